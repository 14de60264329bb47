"""Beside the real rsl_rl: same weights, same data, same student; and its checkpoints of all ages."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rsl_rl.algorithms import Distillation as TorchDistillation
from rsl_rl.models import MLPModel, RNNModel
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict

from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.core.activations import ACTIVATIONS
from jdistill.core.config import StudentCfg
from jdistill.core.rollout import Rollout
from jdistill.errors import PolicyFileError
from jdistill.export import rsl_rl
from jdistill.export.policy_file import load_policy
from jdistill.export.rsl_rl_checkpoint import load_teacher_checkpoint

ENVS, STUDENT, TEACHER, ACTIONS = 8, 22, 26, 4
GROUPS = {"student": ["student"], "teacher": ["teacher"]}
MODELS = {
    "mlp": (MLPModel, {}),
    "gru": (RNNModel, {"rnn_type": "gru", "rnn_hidden_dim": 16, "rnn_num_layers": 1}),
    "gru of two layers": (RNNModel, {"rnn_type": "gru", "rnn_hidden_dim": 12, "rnn_num_layers": 2}),
    "lstm": (RNNModel, {"rnn_type": "lstm", "rnn_hidden_dim": 16, "rnn_num_layers": 1}),
    "lstm of two layers": (RNNModel, {"rnn_type": "lstm", "rnn_hidden_dim": 12, "rnn_num_layers": 2}),
}


def observations(rng: np.random.Generator) -> TensorDict:
    draw = {"student": rng.normal(size=(ENVS, STUDENT)), "teacher": rng.normal(size=(ENVS, TEACHER))}
    return TensorDict({k: torch.tensor(v, dtype=torch.float32) for k, v in draw.items()}, batch_size=[ENVS])


def model(kind: str, role: str = "student", **settings):
    cls, recurrent = MODELS[kind]
    obs = observations(np.random.default_rng(0))
    return cls(obs, GROUPS, role, ACTIONS, **{"hidden_dims": [16, 8], "activation": "elu", **recurrent, **settings})


def ours_of(torch_model, normalize: bool):
    """Our network with the weights of rsl_rl's."""
    tensors = {k: v.detach().numpy() for k, v in torch_model.state_dict().items()}
    policy, state = rsl_rl.from_tensors(tensors, rsl_rl.MODEL, "elu", "identity", ACTIONS)
    assert (state.normalizer is not None) == normalize
    return policy, state


CLIPPED = 30, {"normalize": True}
STRADDLING = 20, {"normalize": True, "gradient_length": 15, "loss_type": "huber", "optimizer": "adamw"}
LEFT_OVER = 16, {"normalize": False, "gradient_length": 5, "max_grad_norm": None}


@pytest.mark.parametrize(
    ("kind", "steps", "settings"),
    [
        ("mlp", *CLIPPED),
        ("gru", *CLIPPED),
        ("gru", *STRADDLING),
        ("gru", *LEFT_OVER),
        ("gru of two layers", *LEFT_OVER),
        ("lstm", *CLIPPED),
        ("lstm of two layers", *STRADDLING),
    ],
)
def test_three_updates_give_the_same_student(make_distillation, teacher_actor, kind, steps, settings):
    settings = {"gradient_length": 15, "max_grad_norm": 1.0, "loss_type": "mse", "optimizer": "adam", **settings}
    normalize = settings.pop("normalize")
    torch.manual_seed(0)
    theirs = model(kind, obs_normalization=normalize)
    policy, student = ours_of(theirs, normalize)
    storage = RolloutStorage("distillation", ENVS, steps, observations(np.random.default_rng(0)), [ACTIONS], "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rsl_rl warns of left-over steps.
        algorithm = TorchDistillation(theirs, model("mlp", "teacher"), storage, num_learning_epochs=4, **settings)
    algorithm.train_mode()

    alg = make_distillation(
        policy, steps, num_learning_epochs=4, student_cfg=StudentCfg(obs_normalization=normalize), **settings
    )
    state = alg.init(jax.random.key(0), teacher_actor).replace(student=student)
    shapes = jax.eval_shape(alg.rollout, state, teacher_actor)[1].steps
    update, is_first = jax.jit(alg.update), np.ones(ENVS, bool)

    rng = np.random.default_rng(1)
    for _ in range(3):
        obs = [observations(rng) for _ in range(steps)]
        teacher_actions = np.tanh(rng.normal(size=(steps, ENVS, ACTIONS))).astype(np.float32)
        dones = rng.random((steps, ENVS)) < 0.1
        for t in range(steps):
            transition = RolloutStorage.Transition()
            transition.observations, transition.privileged_actions = obs[t], torch.tensor(teacher_actions[t])
            transition.actions, transition.rewards = torch.zeros(ENVS, ACTIONS), torch.zeros(ENVS)
            transition.dones = torch.tensor(dones[t])
            storage.add_transition(transition)
        their_loss = algorithm.update()["behavior"]
        steps_taken = shapes._replace(
            obs={k: jnp.stack([jnp.array(o[k].numpy()) for o in obs]) for k in ("student", "teacher")},
            teacher_action=jnp.array(teacher_actions),
            done=jnp.array(dones),
            is_first=jnp.array(np.concatenate([is_first[None], dones[:-1]])),
            student_carry=(),
        )
        state, our_loss = update(state, Rollout(steps_taken, start_carry=state.student_carry))
        is_first = dones[-1]
        assert float(our_loss) == pytest.approx(their_loss, rel=1e-5)

    expected = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
    ours = rsl_rl.to_tensors(policy, state.student)
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", ["mlp", "gru"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_acts_alike(kind, activation):
    torch.manual_seed(1)
    theirs = model(kind, "teacher", activation=activation, obs_normalization=True)
    theirs.obs_normalizer.update(torch.randn(100, TEACHER) * 3 + 1)
    tensors = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
    policy, state = rsl_rl.from_tensors(tensors, rsl_rl.MODEL, activation, "identity", ACTIONS)
    carry, rng = networks.initial_carry(policy, state, ENVS), np.random.default_rng(0)
    theirs.eval()
    for _ in range(5):
        obs = observations(rng)
        carry, action = networks.act(policy, state, carry, jnp.array(obs["teacher"].numpy()))
        np.testing.assert_allclose(action, theirs(obs).detach().numpy(), atol=2e-5)


def checkpoint_of_version(version: str, teacher) -> dict:
    """What that version of rsl_rl wrote for a PPO actor or a distillation's teacher."""
    tensors = teacher.state_dict()

    def renamed(mlp: str, rnn: str, normalizer: str | None) -> dict:
        names = {"mlp.": f"{mlp}.", "rnn.rnn.": f"{rnn}.", "obs_normalizer.": f"{normalizer}."}
        moved = {}
        for name, tensor in tensors.items():
            old = next((o for o in names if name.startswith(o)), None)
            if old and not (old == "obs_normalizer." and normalizer is None):
                moved[names[old] + name.removeprefix(old)] = tensor
        return moved

    separate = {k.removeprefix("obs_normalizer."): v for k, v in tensors.items() if k.startswith("obs_normalizer.")}
    # Where deviations depend on the state they are in the last layer, else they stand by themselves.
    noise = {} if teacher.mlp[-1].__class__ is torch.nn.Unflatten else {"std": torch.ones(ACTIONS)}
    critic = {"critic.0.weight": torch.zeros(4, 30), "critic.0.bias": torch.zeros(4)}
    return {
        "2.x": {
            "model_state_dict": {**renamed("actor", "memory_a.rnn", None), **noise, **critic},
            "obs_norm_state_dict": separate,
            "iter": 1499,
        },
        "3.x": {
            "model_state_dict": {**renamed("actor", "memory_a.rnn", "actor_obs_normalizer"), **critic},
            "iter": 1499,
        },
        "3.x distillation": {
            "model_state_dict": {
                **renamed("teacher", "memory_t.rnn", "teacher_obs_normalizer"),
                **{"student.0.weight": torch.zeros(4, 22)},
            },
        },
        "2.x distillation": {
            "model_state_dict": {
                **renamed("teacher", "memory_t.rnn", None),
                **{"student.0.weight": torch.zeros(4, 22)},
            },
            "obs_norm_state_dict": {"_mean": torch.zeros(1, 22), "_var": torch.ones(1, 22)},
            "privileged_obs_norm_state_dict": separate,
        },
        "5.x ppo": {"actor_state_dict": tensors, "critic_state_dict": {}, "iter": 1499},
        "5.x distillation": {"teacher_state_dict": tensors, "student_state_dict": {}, "iter": 1499},
    }[version]


@pytest.mark.parametrize("kind", ["mlp", "gru", "lstm of two layers"])
@pytest.mark.parametrize(
    "version", ["2.x", "2.x distillation", "3.x", "3.x distillation", "5.x ppo", "5.x distillation"]
)
@pytest.mark.parametrize(
    "distribution",
    [None, "GaussianDistribution", "HeteroscedasticGaussianDistribution"],
    ids=["plain", "std", "state-dependent std"],
)
def test_teachers_of_every_version(tmp_path, kind, version, distribution):
    torch.manual_seed(2)
    cfg = distribution and {"class_name": f"rsl_rl.modules.distribution:{distribution}", "init_std": 0.5}
    teacher = model(kind, "teacher", obs_normalization=True, distribution_cfg=cfg)
    teacher.obs_normalizer.update(torch.randn(100, TEACHER) * 3 + 1)
    teacher.eval()
    torch.save(checkpoint_of_version(version, teacher), tmp_path / "model_1499.pt")
    # Only a Beta distribution's last layer looks like one with deviations, and only since 5.x.
    said = {"output_activation": "identity"} if "Hetero" in str(distribution) else {"old_output_activation": "identity"}
    policy, state, header = load_teacher_checkpoint(tmp_path / "model_1499.pt", ACTIONS, **said)
    assert policy.num_actions == ACTIONS and header["obs_size"] == TEACHER
    carry, rng = networks.initial_carry(policy, state, ENVS), np.random.default_rng(0)
    for _ in range(3):
        obs = observations(rng)
        carry, action = networks.act(policy, state, carry, jnp.array(obs["teacher"].numpy()))
        np.testing.assert_allclose(action, teacher(obs).detach().numpy(), atol=2e-5)


def test_converter_writes_a_policy_that_needs_no_torch(tmp_path, capsys):
    teacher = model("gru", "teacher", obs_normalization=True)
    torch.save({"actor_state_dict": teacher.state_dict()}, tmp_path / "model_9.pt")
    out = tmp_path / "teacher.safetensors"
    assert run_command("convert", [str(tmp_path / "model_9.pt"), str(out), "--output_activation", "tanh"]) == 0
    assert "26 observations, gru 16-16-8-4, elu, tanh at the output, with normalizer" in capsys.readouterr().out
    policy, state, _ = load_policy(out)
    obs = observations(np.random.default_rng(0))
    _, action = networks.act(
        policy, state, networks.initial_carry(policy, state, ENVS), jnp.array(obs["teacher"].numpy())
    )
    np.testing.assert_allclose(action, torch.tanh(teacher.eval()(obs)).detach().numpy(), atol=1e-5)
    assert run_command("convert", [str(tmp_path / "none.pt"), str(out)]) == 1
    assert "none.pt: no such file" in capsys.readouterr().err


def test_output_activation_is_the_callers_word(tmp_path):
    teacher = model("mlp", "teacher")
    torch.save({"actor_state_dict": teacher.state_dict()}, tmp_path / "m.pt")
    policy, state, _ = load_teacher_checkpoint(tmp_path / "m.pt", ACTIONS, output_activation="tanh")
    obs = observations(np.random.default_rng(0))
    _, action = networks.act(policy, state, (), jnp.array(obs["teacher"].numpy()))
    np.testing.assert_allclose(action, torch.tanh(teacher(obs)).detach().numpy(), atol=1e-5)


def test_old_checkpoints_end_as_their_task_says(tmp_path):
    teacher = model("mlp", "teacher")
    old = {"model_state_dict": {k.replace("mlp.", "actor."): v for k, v in teacher.state_dict().items()}}
    torch.save(old, tmp_path / "best_model.pt")
    with pytest.raises(PolicyFileError, match="do not say what ends the actor; say it with --output_activation"):
        load_teacher_checkpoint(tmp_path / "best_model.pt", ACTIONS)
    for content, expected in ((old, "tanh"), ({"actor_state_dict": teacher.state_dict()}, "identity")):
        torch.save(content, tmp_path / "best_model.pt")
        policy, _, _ = load_teacher_checkpoint(tmp_path / "best_model.pt", ACTIONS, old_output_activation="tanh")
        assert (policy.activation, policy.output_activation) == ("elu", expected)


def test_isaac_labs_record_beside_the_checkpoint_is_read(tmp_path):
    """Activation and distribution are in no checkpoint, but in Isaac Lab's params/agent.yaml."""
    beta = {"class_name": "BetaDistribution"}
    teacher = model("gru", "teacher", activation="relu", distribution_cfg=beta)
    torch.save({"actor_state_dict": teacher.state_dict()}, tmp_path / "model_1.pt")
    (tmp_path / "params").mkdir()
    record = tmp_path / "params" / "agent.yaml"
    record.write_text(
        "actor:\n  activation: relu\n  hidden_dims: !!python/tuple [16, 8]\n"
        "  distribution_cfg: {class_name: 'rsl_rl.modules.distribution:BetaDistribution', action_range: [-1.0, 1.0]}\n"
    )
    policy, state, _ = load_teacher_checkpoint(tmp_path / "model_1.pt", ACTIONS)
    assert (policy.activation, policy.output_activation, policy.num_actions) == ("relu", "beta", ACTIONS)
    carry, rng = networks.initial_carry(policy, state, ENVS), np.random.default_rng(0)
    for _ in range(3):
        obs = observations(rng)
        carry, action = networks.act(policy, state, carry, jnp.array(obs["teacher"].numpy()))
        np.testing.assert_allclose(action, teacher(obs).detach().numpy(), atol=2e-5)
    asked, _, _ = load_teacher_checkpoint(tmp_path / "model_1.pt", ACTIONS, activation="elu")
    assert asked.activation == "elu", "what is asked for wins"
    record.write_text(record.read_text().replace("-1.0", "0.0"))
    with pytest.raises(PolicyFileError, match=r"its Beta distribution spans \[0.0, 1.0\]"):
        load_teacher_checkpoint(tmp_path / "model_1.pt", ACTIONS)
    record.write_text("policy: {activation: ReLU}\n")
    assert load_teacher_checkpoint(tmp_path / "model_1.pt", None, None, "beta")[0].activation == "relu"
    for text, complaint in {
        "actor: {activation: gegelu}": "agent.yaml: activation gegelu, expected one of elu",
        "actor: {activation: [relu]}": "agent.yaml: activation ..relu.., expected one of",
        "actor: {obs_normalization: true, distribution_cfg: odd}": "no tensor 'obs_normalizer._mean', though",
    }.items():
        record.write_text(text)
        with pytest.raises(PolicyFileError, match=complaint):
            load_teacher_checkpoint(tmp_path / "model_1.pt", ACTIONS, None, "beta")
    hetero = "{class_name: rsl_rl.modules:HeteroscedasticGaussianDistribution, action_range: null}"
    record.write_text(f"actor: {{distribution_cfg: {hetero}}}")
    assert load_teacher_checkpoint(tmp_path / "model_1.pt", None)[0].num_actions == ACTIONS, "the record halves it"
    record.write_text("actor: !!python/object/apply:os.mkdir [made]\n")
    load_teacher_checkpoint(tmp_path / "model_1.pt", None, output_activation="identity")
    assert not (tmp_path / "made").exists() and not Path("made").exists(), "nothing in it is run"
    record.write_text("actor: [")
    with pytest.raises(PolicyFileError, match=r"agent.yaml: cannot be read; move it away"):
        load_teacher_checkpoint(tmp_path / "model_1.pt", ACTIONS)


def test_what_the_last_layer_is_must_be_known(tmp_path):
    """A Beta distribution and state-dependent deviations look alike; one that stands by itself rules both out."""
    file = tmp_path / "m.pt"
    for distribution in ("BetaDistribution", "HeteroscedasticGaussianDistribution"):
        torch.save({"actor_state_dict": model("mlp", distribution_cfg={"class_name": distribution}).state_dict()}, file)
        with pytest.raises(PolicyFileError, match="8 outputs for 4 actions, and the file does not say what they are"):
            load_teacher_checkpoint(file, ACTIONS)
    plain = model("mlp", distribution_cfg={"class_name": "GaussianDistribution"}).state_dict()
    torch.save({"actor_state_dict": plain}, file)
    assert load_teacher_checkpoint(file, ACTIONS // 2)[0].num_actions == ACTIONS, "nothing is cut off"
    torch.save({"actor_state_dict": {**plain, "distribution.std_param": torch.ones(7)}}, file)
    with pytest.raises(PolicyFileError, match=r"'distribution.std_param' is \[7\], expected \[4\]"):
        load_teacher_checkpoint(file, ACTIONS)


def test_half_precision_weights_are_widened(tmp_path):
    teacher = model("mlp", "teacher").to(torch.bfloat16)
    torch.save({"actor_state_dict": teacher.state_dict()}, tmp_path / "m.pt")
    _, state, _ = load_teacher_checkpoint(tmp_path / "m.pt", ACTIONS)
    assert state.params["mlp_0"]["dense"]["kernel"].dtype == jnp.float32


class Malice:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_bad_files_are_told_in_one_line(tmp_path):
    teacher = model("gru", "teacher", obs_normalization=True).state_dict()

    def without(name: str) -> dict:
        return {"teacher_state_dict": {k: v for k, v in teacher.items() if k != name}}

    def having(**tensors) -> dict:
        return {"actor_state_dict": {**teacher, **{k.replace("__", "."): v for k, v in tensors.items()}}}

    def second_layer(hidden: int) -> dict:
        weights = {"weight_ih": (3 * hidden, 16), "weight_hh": (3 * hidden, hidden)}
        shapes = {**weights, "bias_ih": (3 * hidden,), "bias_hh": (3 * hidden,)}
        return {f"rnn__rnn__{name}_l1": torch.zeros(shape) for name, shape in shapes.items()}

    fork = {"actor.0.weight": torch.zeros(4, 26), "actor.0.bias": torch.zeros(4), "critic.0.bias": torch.zeros(1)}
    cases = {
        "mine.pt": ({"actor_state_dict": Malice(tmp_path / "broken into")}, r"refused, because it holds .*\(.*open\)"),
        "list.pt": ([1, 2], "holds a list"),
        "other.pt": ({"policy": {}, "q": {}}, "no teacher and no actor in it; its entries are policy, q"),
        "none_in_it.pt": ({"actor_state_dict": None}, "entry 'actor_state_dict' is a NoneType"),
        "three.pt": ({"model_state_dict": 3}, "entry 'model_state_dict' is a int"),
        "critic.pt": ({"model_state_dict": {"critic.0.bias": torch.zeros(1)}}, "its entries are critic.0.bias"),
        "empty.pt": ({"teacher_state_dict": {}}, "no tensor 'mlp.0.weight'"),
        "number.pt": (having(mlp__0__weight=1.0), "'mlp.0.weight' is a float, expected a tensor"),
        "flat.pt": (having(mlp__0__weight=torch.zeros(4)), r"is \[4\], expected two dimensions"),
        "odd.pt": (having(mlp__2__weight=torch.tensor(1.0)), r"'mlp.2.weight' is \[\], expected two dimensions"),
        "wide.pt": (having(mlp__2__weight=torch.zeros(8, 99)), r"'mlp.2.weight' is \[8, 99\], expected \[8, 16\]"),
        "std.pt": (having(obs_normalizer___std=torch.ones(1, 3)), r"_std' is \[1, 3\], expected \[1, 26\]"),
        "count.pt": (having(obs_normalizer__count=torch.ones(7)), r"count' is \[7\], expected \[\]"),
        "negative.pt": (having(obs_normalizer___var=-torch.ones(1, 26)), "_var' is negative"),
        "nan.pt": (having(mlp__0__bias=torch.full((16,), torch.nan)), "'mlp.0.bias' holds NaN or infinity"),
        "whole.pt": (
            having(mlp__0__weight=torch.zeros(16, 16, dtype=torch.int64)),
            "torch.int64, expected dense floats",
        ),
        "sparse.pt": (having(mlp__0__weight=torch.eye(16).to_sparse()), "torch.sparse_coo .* expected dense floats"),
        "widths.pt": (
            having(**second_layer(4), mlp__0__weight=torch.zeros(16, 4)),
            "its recurrent layers are gru 16, gru 4, expected one kind and width",
        ),
        "image.pt": (
            having(cnns__camera__0__weight=torch.zeros(8, 3, 5, 5)),
            r"the network sees the image 'camera', and in agent.obs_groups no image is observed",
        ),
        "fork.pt": (
            {"model_state_dict": {**fork, "depth.0.weight": torch.zeros(3, 26)}},
            r"tensor 'depth.0.weight' \[3, 26\] belongs to no",
        ),
    }
    for i, name in enumerate(teacher):
        cases[f"short{i}.pt"] = (without(name), f"no tensor '{name}'")
    for name, (content, complaint) in cases.items():
        torch.save(content, tmp_path / name)
        with warnings.catch_warnings(), pytest.raises(PolicyFileError, match=rf"{name}: .*{complaint}") as error:
            warnings.simplefilter("error")
            load_teacher_checkpoint(tmp_path / name, ACTIONS, old_output_activation="tanh")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "broken into").exists()
    (tmp_path / "cut.pt").write_bytes((tmp_path / "wide.pt").read_bytes()[:500])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malice(tmp_path / "broken into"), protocol=4))
    (tmp_path / "folder.pt").mkdir()
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "policy.pt"))
    for name, complaint in (
        ("cut.pt", "truncated"),
        ("text.pt", "text.pt: (truncated or )?no torch file"),
        ("none.pt", "no such file"),
        ("raw.pt", "refused"),
        ("folder.pt", "is a folder"),
        ("policy.pt", r"an exported policy \(TorchScript\), expected a checkpoint"),
    ):
        with pytest.raises(PolicyFileError, match=complaint) as error:
            load_teacher_checkpoint(tmp_path / name, ACTIONS)
        assert "\n" not in str(error.value)
