"""Images beside the real rsl_rl: its CNN, its CNNModel, three updates of its distillation, its checkpoints."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from rsl_rl.algorithms import Distillation as TorchDistillation
from rsl_rl.models import CNNModel, MLPModel
from rsl_rl.modules import CNN as TorchCNN
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict

from bridge.env import AutoReset, ObservationSpec
from jdistill.core import cnn, networks, observations
from jdistill.core.actor import PolicyActor
from jdistill.core.cnn_cfg import cnn_cfgs
from jdistill.core.config import AgentCfg, AlgorithmCfg, StudentCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import Policy
from jdistill.core.rollout import Rollout
from jdistill.errors import PolicyFileError
from jdistill.export import rsl_rl
from jdistill.export.rsl_rl_checkpoint import load_teacher_checkpoint
from jdistill.run.inputs import student_for
from tests.cameras import Cameras

HEIGHT, WIDTH, CHANNELS = 11, 9, 2
KINDS = {
    "two layers": {"output_channels": [3, 4], "kernel_size": 3},
    "stride, zeros, pooling": {
        "output_channels": [3, 4],
        "kernel_size": [5, 3],
        "stride": [2, 1],
        "padding": "zeros",
        "max_pool": True,
        "activation": "relu",
    },
    "dilation, reflect, norm": {
        "output_channels": [3],
        "kernel_size": 3,
        "dilation": 2,
        "stride": 2,
        "padding": "reflect",
        "norm": "layer",
    },
    "replicate, global max": {
        "output_channels": [3, 2],
        "kernel_size": 4,
        "stride": 3,
        "padding": "replicate",
        "global_pool": "max",
    },
    "circular, global mean, lists": {
        "output_channels": [3, 2],
        "kernel_size": 3,
        "stride": 2,
        "padding": "circular",
        "max_pool": [True, False],
        "norm": ["layer", "none"],
        "global_pool": "avg",
    },
}


@pytest.mark.parametrize(("kind", "rows"), [*((kind, 5) for kind in KINDS), ("stride, zeros, pooling", 2)])
def test_features_and_gradients_are_torchs(kind, rows, monkeypatch):
    """All images at once and, where ``rows`` are fewer, some at a time."""
    torch.manual_seed(0)
    theirs = TorchCNN((HEIGHT, WIDTH), CHANNELS, **KINDS[kind])
    (cfg,) = cnn_cfgs(KINDS[kind], {"camera": ObservationSpec((HEIGHT, WIDTH, CHANNELS))})
    assert cfg.num_features == theirs.output_dim
    monkeypatch.setattr(cnn, "chunk_rows", lambda cfg: rows)
    params = {
        name: jnp.array(p.detach().numpy())
        for name, p in zip(cnn.parameter_shapes(cfg), theirs.parameters(), strict=True)
    }
    rng = np.random.default_rng(0)
    # Round numbers: several equal pixels below a pooling's window.
    image = rng.integers(0, 3, (5, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)
    there = torch.tensor(image.transpose(0, 3, 1, 2), requires_grad=True)
    features = theirs(there)
    upstream = rng.normal(size=features.shape).astype(np.float32)
    features.backward(torch.tensor(upstream))

    @jax.jit
    def both(params, image, upstream):
        features, back = jax.vjp(lambda p, x: cnn.CNN(cfg).apply({"params": p}, x), params, image)
        return features, *back(upstream)

    ours, d_params, d_image = both(params, jnp.array(image), jnp.array(upstream))
    np.testing.assert_allclose(ours, features.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(d_image, there.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)
    for (name, got), p in zip(((n, d_params[n]) for n in params), theirs.parameters(), strict=True):
        np.testing.assert_allclose(got, p.grad.numpy(), atol=1e-4, rtol=1e-4, err_msg=name)


def test_xlas_own_convolution_is_the_same(monkeypatch):
    """What other devices than a CPU take."""
    (cfg,) = cnn_cfgs(KINDS["dilation, reflect, norm"], {"camera": ObservationSpec((HEIGHT, WIDTH, CHANNELS))})
    image = jax.random.normal(jax.random.key(0), (5, HEIGHT, WIDTH, CHANNELS))
    params = jax.jit(cnn.CNN(cfg).init)(jax.random.key(1), image)
    ours = jax.jit(cnn.CNN(cfg).apply)(params, image)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(jax.jit(cnn.CNN(cfg).apply)(params, image), ours, atol=1e-5)


SETTINGS = {"output_channels": [3, 4], "kernel_size": 3, "stride": [2, 1], "padding": "zeros", "activation": "relu"}
MODEL = {"hidden_dims": [16, 8], "activation": "elu"}
GROUPS = {"student": ["student", "camera"], "teacher": ["teacher"]}
ENVS, STEPS = 4, 16


def of_torch(obs: dict[str, np.ndarray]) -> TensorDict:
    """As rsl_rl takes them: floats, channels first."""
    camera = torch.tensor(obs["camera"].transpose(0, 3, 1, 2).astype(np.float32) / 255)
    rest = {name: torch.tensor(obs[name]) for name in ("student", "teacher")}
    return TensorDict({**rest, "camera": camera}, batch_size=[ENVS])


def drawn(rng: np.random.Generator, cameras: Cameras) -> dict[str, np.ndarray]:
    return {
        "camera": rng.integers(0, 256, (ENVS, *cameras.image.shape)).astype(np.uint8),
        "student": rng.normal(size=(ENVS, 3)).astype(np.float32),
        "teacher": rng.normal(size=(ENVS, 4)).astype(np.float32),
    }


def test_three_updates_give_the_same_student():
    env, settings = Cameras(ENVS), {**SETTINGS, "output_channels": [3]}
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    obs = of_torch(drawn(rng, env))
    theirs = CNNModel(obs, GROUPS, "student", 2, obs_normalization=True, cnn_cfg=settings, **MODEL)
    tensors = {name: x.detach().numpy() for name, x in theirs.state_dict().items()}
    agent = AgentCfg(
        num_steps_per_env=STEPS,
        obs_groups=GROUPS,
        student=StudentCfg(
            pre_dims=[], rnn_type=None, hidden_dims=[16, 8], output_activation="identity", cnn_cfg=settings
        ),
        algorithm=AlgorithmCfg(num_learning_epochs=2, gradient_length=5),
    )
    env = AutoReset(env)
    policy = student_for(env, agent)
    same, student = rsl_rl.from_tensors(tensors, rsl_rl.MODEL, "elu", "identity", 2, policy.cnns)
    assert same == policy
    storage = RolloutStorage("distillation", ENVS, STEPS, obs, [2], "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rsl_rl warns of left-over steps.
        teacher = MLPModel(obs, GROUPS, "teacher", 2, **MODEL)
        algorithm = TorchDistillation(
            theirs, teacher, storage, num_learning_epochs=2, gradient_length=5, max_grad_norm=1.0
        )
    algorithm.train_mode()
    alg = Distillation(env, policy, agent)
    bare = Policy(2, (4,))
    actor = PolicyActor(bare, networks.init(bare, jax.random.key(7), 4, normalize=False), ("teacher",))
    state = alg.init(jax.random.key(0), actor).replace(student=student)
    shapes = jax.eval_shape(alg.rollout, state, actor)[1].steps
    assert shapes.obs["camera"].dtype == np.uint8
    update, is_first = jax.jit(alg.update), np.ones(ENVS, bool)
    for _ in range(3):
        seen = [drawn(rng, env.env) for _ in range(STEPS)]
        labels = np.tanh(rng.normal(size=(STEPS, ENVS, 2))).astype(np.float32)
        dones = rng.random((STEPS, ENVS)) < 0.1
        for t in range(STEPS):
            step = RolloutStorage.Transition()
            step.observations, step.privileged_actions = of_torch(seen[t]), torch.tensor(labels[t])
            step.actions, step.rewards = torch.zeros(ENVS, 2), torch.zeros(ENVS)
            step.dones = torch.tensor(dones[t])
            storage.add_transition(step)
        their_loss = algorithm.update()["behavior"]
        taken = shapes._replace(
            obs={name: jnp.stack([x[name] for x in seen]) for name in seen[0]},
            teacher_action=jnp.array(labels),
            done=jnp.array(dones),
            is_first=jnp.array(np.concatenate([is_first[None], dones[:-1]])),
            student_carry=(),
        )
        state, our_loss = update(state, Rollout(taken, start_carry=state.student_carry))
        is_first = dones[-1]
        assert float(our_loss) == pytest.approx(their_loss, rel=1e-5)
    ours = rsl_rl.to_tensors(policy, state.student)
    expected = {name: x.detach().numpy() for name, x in theirs.state_dict().items()}
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_teachers_with_a_cnn_are_read(norm, tmp_path):
    torch.manual_seed(0)
    env, settings = Cameras(ENVS), {**SETTINGS, "norm": norm}
    rng = np.random.default_rng(0)
    seen = drawn(rng, env)
    groups = {"actor": ["teacher", "camera"]}
    theirs = CNNModel(of_torch(seen), groups, "actor", 2, obs_normalization=True, cnn_cfg=settings, **MODEL)
    theirs(of_torch(seen))  # A batch norm takes its moments from what it sees.
    theirs.eval()
    file = tmp_path / "model_0.pt"
    torch.save({"actor_state_dict": theirs.state_dict()}, file)
    images = {"camera": ObservationSpec(env.image.shape, np.dtype(np.uint8))}
    with pytest.raises(PolicyFileError, match=r"sees the image 'camera', and in agent.obs_groups no image is observed"):
        load_teacher_checkpoint(file, 2)
    with pytest.raises(PolicyFileError, match=r"put the run's params/agent.yaml beside it"):
        load_teacher_checkpoint(file, 2, images=images)
    (tmp_path / "params").mkdir()
    recorded = {"actor": {"cnn_cfg": settings, "distribution_cfg": {"class_name": "GaussianDistribution"}}}
    (tmp_path / "params" / "agent.yaml").write_text(yaml.safe_dump(recorded))
    policy, state, header = load_teacher_checkpoint(file, 2, images=images)
    assert header["obs_size"] == 4
    obs = observations.select({name: jnp.array(x) for name, x in seen.items()}, ["teacher", "camera"])
    action = jax.jit(lambda obs: networks.act(policy, state, (), obs)[1])(obs)
    np.testing.assert_allclose(action, theirs(of_torch(seen)).detach().numpy(), atol=1e-5)
