"""Our environments under rsl_rl's own runners."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rsl_rl.runners import DistillationRunner, OnPolicyRunner

from bridge.torch_vecenv import TorchVecEnv
from jdistill.core import networks
from jdistill.export.rsl_rl_checkpoint import load_teacher_checkpoint

MLP = {"class_name": "rsl_rl.models:MLPModel", "hidden_dims": [16, 16], "activation": "elu", "obs_normalization": True}
NOISE = {"class_name": "rsl_rl.modules.distribution:GaussianDistribution", "init_std": 0.3}


@pytest.fixture
def vecenv(flock) -> TorchVecEnv:
    return TorchVecEnv(flock, seed=3)


def test_steps_are_the_environments_own(vecenv, flock):
    state = flock.reset(jax.random.key(3))
    rng = np.random.default_rng(0)
    obs = vecenv.get_observations()
    assert {k: tuple(v.shape) for k, v in obs.items()} == {"student": (8, 22), "teacher": (8, 26)}
    for _ in range(120):
        np.testing.assert_allclose(obs["teacher"], state.obs["teacher"], atol=1e-4)
        action = rng.uniform(-1, 1, (8, 4)).astype(np.float32)
        obs, reward, done, extras = vecenv.step(torch.tensor(action))
        state = flock.step(state, jnp.array(action))
        np.testing.assert_allclose(reward, state.reward, atol=1e-3)
        assert (done.numpy() == np.asarray(state.done)).all()
        assert (extras["time_outs"].numpy() == np.asarray(state.info["time_outs"])).all()
        assert "Metrics/position_error" in extras["log"]
        assert ("Episode_Termination/tilt" in extras["log"]) == bool(done.any())
        if done.any():
            break
    assert done.any(), "random actions end episodes"


def test_torch_may_write_into_what_it_gets(vecenv, flock):
    other = TorchVecEnv(flock, seed=3)
    for env in (vecenv, other):
        obs = env.get_observations()
        if env is vecenv:
            obs["student"].fill_(7.0)
        obs, reward, _, _ = env.step(torch.zeros(8, 4))
        if env is vecenv:
            obs["student"].fill_(7.0)
            reward.fill_(7.0)
    ours, theirs = (env.step(torch.zeros(8, 4))[0]["student"] for env in (vecenv, other))
    assert (ours == theirs).all()


def test_ages_can_be_set(vecenv):
    vecenv.episode_length_buf = torch.randint_like(vecenv.episode_length_buf, 10) + 990
    assert vecenv.episode_length_buf.min() >= 990
    outs = [vecenv.step(torch.zeros(8, 4))[3]["time_outs"] for _ in range(10)]
    assert torch.stack(outs).any(dim=0).sum() >= 1


def runner_cfg(**entries) -> dict:
    return {"num_steps_per_env": 8, "save_interval": 100, "logger": "tensorboard", "run_name": "", **entries}


def test_rsl_rls_ppo_trains_a_teacher_and_its_distillation_a_student(tmp_path, flock):
    """PPO's checkpoint is an authentic teacher: both rsl_rl's Distillation and our loader take it."""
    ppo = runner_cfg(
        obs_groups={"actor": ["teacher"], "critic": ["teacher"]},
        actor={**MLP, "distribution_cfg": NOISE},
        critic=MLP,
        algorithm={"class_name": "rsl_rl.algorithms:PPO", "num_learning_epochs": 1, "num_mini_batches": 2},
    )
    trainer = OnPolicyRunner(TorchVecEnv(flock), ppo, str(tmp_path / "ppo"), "cpu")
    trainer.learn(2, init_at_random_ep_len=True)
    (file,) = (tmp_path / "ppo").glob("model_1.pt")

    policy, learnt, _ = load_teacher_checkpoint(file, 4)
    actor, obs = trainer.get_inference_policy("cpu"), TorchVecEnv(flock, seed=5).get_observations()
    _, action = networks.act(policy, learnt, (), jnp.array(obs["teacher"].numpy()))
    np.testing.assert_allclose(action, actor(obs).detach().numpy(), atol=1e-5)

    distillation = runner_cfg(
        obs_groups={"student": ["student"], "teacher": ["teacher"]},
        student={**MLP, "distribution_cfg": NOISE},  # rsl_rl logs its deviation, so it needs one.
        teacher={**MLP, "distribution_cfg": NOISE},
        algorithm={"class_name": "rsl_rl.algorithms:Distillation", "gradient_length": 4},
    )
    distiller = DistillationRunner(TorchVecEnv(flock), distillation, None, "cpu")
    distiller.load(str(file))
    before = [p.clone() for p in distiller.alg.student.mlp.parameters()]
    distiller.learn(2)
    assert all((a != b).any() for a, b in zip(before, distiller.alg.student.mlp.parameters(), strict=True))
