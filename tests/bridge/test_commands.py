"""Actions of point control: collective thrust and body rates."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.crazyflie import PointControl, PointControlCfg
from bridge.crazyflie.cfg import RandomizationCfg, RateControllerCfg, ResetCfg
from bridge.errors import SettingError
from jdistill.cli.main import main

EXACT = RandomizationCfg(mass=0.0, inertia=0.0, thrust=0.0, motor=0.0)
CFG = PointControlCfg(num_envs=4, action="ctbr", reset=ResetCfg(on_target_fraction=1.0), randomization=EXACT)


@pytest.fixture(scope="module")
def env() -> PointControl:
    """Four Crazyflies that hover."""
    return PointControl(CFG)


def fly(env: PointControl, action, steps: int):
    """Body rates (T, B, 3) and the last state."""

    def step(state, _):
        state = env.step(state, action)
        return state, state.pipeline_state.craft.ang_vel.array

    return jax.jit(lambda state: jax.lax.scan(step, state, None, length=steps))(env.reset(jax.random.key(0)))


@pytest.mark.parametrize("drone", ["cf2x_L250", "cf21B_500"])
def test_rates_answer_with_two_poles_at_the_bandwidth(drone):
    """A step of each rate alone: w(t) = w_cmd (1 - (1 + p t) exp(-p t)), whatever the craft."""
    env = PointControl(dataclasses.replace(CFG, drone=drone))
    hover = 2.0 * env.hover_action - 1.0
    action = jnp.tile(hover, (4, 1)).at[jnp.arange(3), 1 + jnp.arange(3)].set(0.1)
    state, rates = fly(env, action, 40)
    cfg, t = RateControllerCfg(), np.arange(1, 41) / 100
    limits = (cfg.max_rate, cfg.max_rate, cfg.max_yaw_rate)
    for axis, (limit, p) in enumerate(zip(limits, (cfg.bandwidth, cfg.bandwidth, cfg.yaw_bandwidth), strict=True)):
        expected = 0.1 * limit * (1 - (1 + p * t) * np.exp(-p * t))
        found = np.asarray(rates[:, axis, axis])
        if axis < 2:
            np.testing.assert_allclose(found, expected, atol=0.06 * 0.1 * limit, err_msg=f"axis {axis}")
        else:  # Propellers that gain speed turn the craft the other way at once, before their drag does.
            assert (found > expected - 0.06 * 0.1 * limit).all() and (found < 0.1 * limit).all()
        others = np.delete(np.asarray(rates[:, axis]), axis, axis=-1)
        assert np.abs(others).max() < 0.02 * 0.1 * limit, "the other axes stay"
    assert abs(float(state.pipeline_state.craft.pos.z[3])) < 1e-5, "the one that is told nothing hovers"


def test_what_the_policy_gives_and_sees_is_named(env):
    assert env.action_layout["layout"] == ["collective_thrust", "roll_rate", "pitch_rate", "yaw_rate"]
    names = [name for name, _, _ in env.obs_specs["student"].layout]
    assert names[-1] == "previous_thrust_and_rates" and "previous_motor_commands" not in names
    state = env.step(env.reset(jax.random.key(0)), jnp.tile(jnp.array([0.5, -1.0, 0.0, 3.0]), (4, 1)))
    np.testing.assert_allclose(state.obs["student"][0, -4:], [0.75, 0.0, 0.5, 1.0], err_msg="clipped, 0..1")


def test_full_thrust_is_that_of_the_motors_at_full_speed(env):
    up = jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (4, 1))
    state, _ = fly(env, up, 80)
    np.testing.assert_allclose(jnp.stack(state.pipeline_state.craft.rotor_vel), env.quadrotor.rotor_max, rtol=0.01)


def test_settings_that_make_no_sense_are_named():
    for changes, named in (
        ({"action": "velocity"}, "env.action='velocity': expected one of motors, ctbr"),
        ({"rate_controller": RateControllerCfg(bandwidth=0.0)}, "env.rate_controller.bandwidth=0.0"),
    ):
        with pytest.raises(SettingError, match="env") as e:
            PointControl(PointControlCfg(**changes))
        assert str(e.value).startswith(named)


def test_a_teacher_of_other_actions_is_refused(tmp_path, capsys):
    asked = ["--teacher", "crazyflie", "--logdir", str(tmp_path), "env.action=ctbr"]
    assert main(["train", *asked]) == 1
    told = capsys.readouterr().err
    assert "the teacher gives front_right, back_right" in told and "takes collective_thrust, roll_rate" in told
    assert not list(tmp_path.iterdir())
