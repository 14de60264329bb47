"""The distillation task of the fork that point control comes from: its craft, its reward, its order of observations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.crazyflie import PointControl, PointControlCfg, dynamics
from bridge.crazyflie.airframe import Airframe
from bridge.crazyflie.cfg import RewardCfg
from bridge.crazyflie.constants import Constants
from bridge.crazyflie.dynamics import Craft, Quadrotor
from bridge.crazyflie.simulator import FOUNDATION, point_control
from bridge.crazyflie.task import _orientation_cost
from jdistill.core import networks, observations
from jdistill.core.networks import Policy
from jdistill.errors import ConfigError
from jdistill.export.policy_file import save_policy
from jdistill.run.compose import compose, load_file, with_obs_groups
from jdistill.run.inputs import load_teacher
from jdistill.run.presets import preset
from tests.conftest import BUNDLED_TEACHER

TASK = point_control()


def configured(*overrides: str, layers=("crazyflie", "crazyflie_foundation")):
    layers, rest = with_obs_groups([load_file(preset(name)) for name in layers], overrides, TASK)
    return compose("crazyflie", PointControlCfg, layers, rest)


def test_the_craft_flies_as_the_fork_says():
    quadrotor, full = Quadrotor.of(Constants.of(Airframe.load("foundation"))), 2.25 * 0.0282 * 9.81 / 4
    for u in (0.0, 0.3, 1.0):
        w = quadrotor.command(u)
        thrust = sum(c * w**i for i, c in enumerate(quadrotor.thrust))
        assert thrust == pytest.approx(full * (0.038 + 0.154 * u + 0.987 * u * u), rel=1e-6)
        assert sum(c * w**i for i, c in enumerate(quadrotor.torque)) == pytest.approx(0.016 * thrust, rel=1e-6)
    assert quadrotor.arm_length == pytest.approx(0.04384) and quadrotor.mass == 0.0282
    # Hover at 0.568 of the full speed, and a motor's step of the implicit first-order lag.
    assert float(quadrotor.motor_speeds(quadrotor.hover_rotor_vel)) == pytest.approx(0.568, abs=1e-3)
    rows = (jnp.zeros((1, 3)), jnp.array([[0.0, 0, 0, 1]]), jnp.zeros((1, 3)), jnp.zeros((1, 3)), jnp.zeros((1, 4)))
    after = dynamics.step(quadrotor, Craft.of(*rows), quadrotor.command((jnp.ones(1),) * 4), None, 0.01, 1)
    np.testing.assert_allclose(quadrotor.motor_speeds(after.rotor_vel), 0.01 / 0.06, rtol=1e-5)


def test_the_two_costs_of_orientation():
    """Theirs does not see a roll, and takes a heading of 90 degrees for one of 73."""
    half = np.sqrt(0.5)
    roll, yaw = ([half, 0, 0, half], [0, 0, half, half])
    craft = Craft.of(np.zeros((2, 3)), np.array([roll, yaw]), np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 4)))
    np.testing.assert_allclose(_orientation_cost("tilt", craft), [1, 0], atol=1e-6)
    np.testing.assert_allclose(_orientation_cost("quaternion", craft), [0, np.arccos(1 - half)], atol=1e-3)
    with pytest.raises(ValueError, match=r"env.reward.orientation_cost='yaw': expected one of tilt, quaternion"):
        PointControlCfg(reward=RewardCfg(orientation_cost="yaw")).validate()


def test_the_preset_says_what_the_fork_does():
    cfg = configured()
    assert cfg.env.episode_length_s == 96 and cfg.env.drone == "foundation"
    assert cfg.agent.obs_groups == FOUNDATION and cfg.agent.algorithm.learning_rate_half_life is None
    student = Policy(4, tuple(cfg.agent.student.hidden_dims), pre_dims=(16,), rnn_type="gru")
    assert networks.num_parameters(networks.init(student, jax.random.key(0), 22, True)) == 105_828
    env = PointControl(dataclasses.replace(cfg.env, num_envs=2))
    assert jax.eval_shape(env.reset, jax.random.key(0)).obs["teacher"].shape == (2, 26)
    assert configured("agent.obs_groups.student=policy").agent.obs_groups["student"] == ["policy"]
    with pytest.raises(ConfigError, match=r"agent.obs_groups=fundation: crazyflie has no .*; there is foundation"):
        configured("agent.obs_groups=fundation")


def test_their_order_of_observations():
    obs = {name: np.arange(size, dtype=np.float32)[None] for name, size in (("student", 22), ("teacher", 26))}
    for name, size in (("student", 22), ("teacher", 26)):
        seen = observations.select(obs, FOUNDATION[name])[0].astype(int).tolist()
        assert seen == [0, 1, 2, *range(6, 15), 3, 4, 5, *range(15, size)]
    specs = PointControl(PointControlCfg(num_envs=1)).obs_specs
    names = [part.partition("[")[0] for part in observations.parts(FOUNDATION["teacher"], specs)]
    order = ["position_error", "rotation_matrix", "velocity_error", "body_rates", "previous_motor_commands"]
    assert list(dict.fromkeys(names)) == [*order, "rotor_speeds"]


def test_a_teacher_of_another_order_is_refused(tmp_path):
    """Sizes would fit, and the student would learn nonsense."""
    task = PointControl(PointControlCfg(num_envs=1))
    env = SimpleNamespace(obs_specs=task.obs_specs, num_actions=4, action_layout=task.action_layout)
    load_teacher(BUNDLED_TEACHER, env, configured("agent.obs_groups.teacher=teacher"))
    with pytest.raises(
        ConfigError, match=r"the teacher sees position_error, velocity_error, .* is position_error, rot"
    ):
        load_teacher(BUNDLED_TEACHER, env, configured())
    unknown = Policy(4, (8,), output_activation="tanh")  # One that does not say what it sees is the user's word.
    save_policy(
        file := Path(tmp_path / "t.safetensors"), unknown, networks.init(unknown, jax.random.key(0), 26, False), {}
    )
    load_teacher(file, env, configured())
