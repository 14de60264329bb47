"""Brax, MuJoCo Playground and gymnax: names, settings, restarts, ranges of actions, what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import brax.envs
import gymnax
import jax
import jax.numpy as jnp
import mujoco_playground
import numpy as np
import pytest
from brax.envs.wrappers import training
from flax import struct

from bridge import registry
from bridge.custom import as_task
from bridge.env import AutoReset
from bridge.errors import SettingError
from bridge.tasks import Request, make_env
from tests.conftest import ROOT

pytestmark = pytest.mark.full


def task(name):
    return registry.load(registry.find(Request(name)), name)


def opened(name, **settings):
    found = task(name)
    return make_env(found, found.cfg_cls(**settings))


def test_names_are_read_and_not_imported():
    code = "from bridge import registry; print(*registry.task_names()); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    names, modules = (set(line.split()) for line in done.stdout.splitlines())
    assert not modules & {"jax", "brax", "mujoco_playground", "gymnax", "mujoco"}
    for simulator, own in {
        "brax": brax.envs._envs,
        "playground": mujoco_playground.registry.ALL_ENVS,
        "gymnax": gymnax.registered_envs,
    }.items():
        assert {name for name in names if name.startswith(f"{simulator}/")} == {f"{simulator}/{n}" for n in own}


def test_settings_are_the_simulators_own():
    ant = task("brax/ant").cfg_cls()
    assert (ant.episode_length, ant.backend, ant.healthy_z_range) == (1000, "generalized", [0.2, 1.0])
    go1 = task("playground/Go1JoystickFlatTerrain").cfg_cls()
    assert (go1.Kp, go1.reward_config.scales.orientation, go1.impl) == (35.0, -5.0, "jax")
    pendulum = task("gymnax/Pendulum-v1").cfg_cls()
    assert (pendulum.max_steps_in_episode, pendulum.max_torque) == (200, 2.0)
    assert task("gymnax/CartPole-v1").agent_defaults["student"]["output_activation"] == "identity"


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("brax/antt", {}, r"unknown task brax/antt \(did you mean brax/ant\?\); Brax has 1\d"),
        ("Brax/ant", {}, r"unknown task Brax/ant \(did you mean brax/ant\?\); Brax has"),
        ("brax", {}, "unknown task brax.*; Brax has"),
        ("brax/ant", {"backend": "spinrg"}, "brax/ant: backend should be in"),
        ("brax/inverted_pendulum", {"n_frames": 0}, "brax/inverted_pendulum: step_dt is 0.0, expected a"),
        ("brax/inverted_pendulum", {"episode_length": -1}, "max_episode_length is -1, expected a positive number"),
        ("gymnax/Pendulum-v1", {"dt": 0.0}, "gymnax/Pendulum-v1: step_dt is 0.0, expected a positive number"),
        ("gymnax/Pendulum-v1", {"max_steps_in_episode": 0}, "max_episode_length is 0, expected a positive number"),
        ("brax/fast", {"asymmetric_obs": True}, "brax/fast: asymmetric_obs requires dictionary observations"),
        (
            "playground/Go1Getup",
            {},
            "playground/Go1Getup: the robot unitree_go1 of MuJoCo Menagerie: 'unitree_go1' not",
        ),
    ],
)
def test_complaints(name, settings, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("MENAGERIE_ROOT", str(tmp_path))
    with pytest.raises(SettingError, match=expected):
        opened(name, **settings)


@struct.dataclass
class Sim:
    """A state of Brax's shape."""

    obs: dict
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class Walk:
    """Counts in ``info``, as Playground's environments keep their commands there; ends itself where it is told to."""

    action_size, dt = 1, 0.1

    def reset(self, rng):
        start = jax.random.uniform(rng)
        return self._sim(start, {"count": jnp.int32(0), "start": start})

    def step(self, sim, action):
        sim.info["count"] += 1  # In place, as they do.
        return self._sim(sim.info["start"] + sim.info["count"] + action[0], sim.info)

    def _sim(self, place, info):
        obs = {"state": place[None], "privileged_state": jnp.stack([place, info["count"].astype(float)])}
        return Sim(obs, place, (place > 50).astype(float), {"place": place}, info)


def test_time_outs_of_wrappers_are_told_and_info_restarts():
    from bridge.vmapped import of_brax_shape

    wrapped = training.EpisodeWrapper(training.VmapWrapper(Walk()), 3, 1)
    env = AutoReset(of_brax_shape(wrapped, 4, None, lambda sim: {}))
    assert env.max_episode_length == 3 and env.step_dt == 0.1
    assert {k: v.shape for k, v in env.obs_specs.items()} == {"state": (1,), "privileged_state": (2,)}
    env.max_episode_length = 100  # From here on the wrapper alone ends episodes.
    state, step = jax.jit(env.reset)(jax.random.key(0)), jax.jit(env.step)
    first = state.obs["state"]
    action = jnp.array([[0.2], [0.9], [1e9], [-1e9]])
    for i in (1, 2):
        state = step(state, action)
        assert not state.done.any()
        np.testing.assert_allclose(state.obs["state"] - first - i, jnp.clip(action, -1, 1), atol=1e-5)
    state = step(state, action)
    assert state.done.all() and state.info["time_outs"].all()
    np.testing.assert_array_equal(state.obs["privileged_state"][:, 1], 0)
    assert (state.pipeline_state.info["count"] == 0).all() and (state.pipeline_state.info["steps"] == 0).all()
    np.testing.assert_allclose(state.metrics["Metrics/place"], state.reward, err_msg="of the step that ended")
    assert (state.obs["state"] != first).all(), "starts are fresh"
    assert not step(state, action).done.any()


def test_users_functions_may_return_what_simulators_have():
    def walk(num_envs: int = 2, batch: int = 0):
        return brax.envs.create("inverted_pendulum", backend="spring", episode_length=5, batch_size=batch or None)

    assert make_env(as_task("walk", walk), as_task("walk", walk).cfg_cls()).max_episode_length == 5
    with pytest.raises(SettingError, match="is a batch of 3 that takes one key: leave out its batch_size"):
        make_env(as_task("walk", walk), as_task("walk", walk).cfg_cls(batch=3))

    def pendulum(num_envs: int = 2):
        return gymnax.make("Pendulum-v1")

    env = make_env(as_task("pendulum", pendulum), as_task("pendulum", pendulum).cfg_cls())
    assert (env.num_envs, env.max_episode_length, env.step_dt) == (2, 200, 0.05)


def test_gymnax_steps_as_gymnax_does():
    env = opened("gymnax/Pendulum-v1", num_envs=3, max_steps_in_episode=2).env
    theirs, params = gymnax.make("Pendulum-v1")
    state = jax.jit(env.reset)(jax.random.split(jax.random.key(1), env.num_envs))
    action = jnp.array([[-3.0], [0.25], [1.0]])
    expected = jax.vmap(lambda s, a: theirs.step_env(jax.random.key(0), s, a, params))(
        state.pipeline_state.state, 2.0 * jnp.clip(action, -1, 1)
    )
    step = jax.jit(env.step)
    state = step(state, action)
    np.testing.assert_allclose(state.obs["policy"], expected[0], atol=1e-6)
    np.testing.assert_allclose(state.reward, expected[2], atol=1e-5)
    assert not state.done.any()
    state = step(state, action)
    assert state.done.all() and state.info["truncation"].all()


def test_the_largest_preference_is_the_choice():
    env = opened("gymnax/CartPole-v1", num_envs=2).env
    state = jax.jit(env.reset)(jax.random.split(jax.random.key(1), env.num_envs))
    step = jax.jit(env.step)
    preference = jnp.array([[3.0, -1.0], [0.1, 0.2]])
    after = step(state, preference)
    assert np.sign(after.obs["policy"] - state.obs["policy"])[:, 1].tolist() == [-1, 1], "the cart's speed"
    for _ in range(40):
        after = step(after, preference)
        if after.done.any():
            break
    assert after.done.any() and not after.info["truncation"].any(), "it fell"


def test_settings_reach_playground():
    env = opened("playground/CartpoleBalance", num_envs=2, ctrl_dt=0.02, episode_length=7)
    assert (env.step_dt, env.max_episode_length, env.action_layout["layout"]) == (0.02, 7, ["slide"])
    assert dataclasses.is_dataclass(task("playground/CartpoleBalance").cfg_cls().vision_config)
