"""Point control on Crazyflow: physics, observations, rewards, limits, resets, targets."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bridge.crazyflie import PointControl, PointControlCfg, target
from bridge.crazyflie.cfg import RandomizationCfg, ResetCfg, RewardCfg, TargetCfg
from bridge.crazyflie.random import Stream
from bridge.crazyflie.vectors import Quaternion, Vector
from tests.conftest import jitted

STILL = ResetCfg(position=0, linear_velocity=0, angular_velocity=0, tilt=0, yaw=0)
NOMINAL = RandomizationCfg(mass=0, inertia=0, thrust=0, motor=0)


def make(num_envs: int = 8, **settings) -> PointControl:
    return jitted(PointControl(PointControlCfg(num_envs=num_envs, **settings)))


@pytest.fixture(scope="module")
def resting() -> PointControl:
    """Nominal craft that begin at rest on their target, which stays."""
    return make(reset=STILL, randomization=NOMINAL, target=TargetCfg(kind="fixed"))


def with_craft(env: PointControl, state, **fields):
    """``state`` with the craft's fields replaced, the same in every environment."""
    rows = {k: jnp.broadcast_to(jnp.asarray(v, jnp.float32), (env.num_envs, len(v))) for k, v in fields.items()}
    rows = {k: (Quaternion if k == "quat" else Vector).of(v) for k, v in rows.items()}
    sim = state.pipeline_state
    return state.replace(pipeline_state=sim.replace(craft=sim.craft.replace(**rows)))


def np_of(x) -> np.ndarray:
    return np.array(x, np.float64)


@pytest.mark.full
def test_hover_command_carries_the_nominal_craft(resting):
    env = resting
    state = env.reset(jax.random.key(0))
    action = jnp.full((8, 4), 2 * env.hover_action - 1)
    for _ in range(100):
        state = env.step(state, action)
    assert float(jnp.abs(state.pipeline_state.craft.pos.array).max()) < 1e-3
    np.testing.assert_allclose(state.obs["teacher"][:, 22:], jnp.tile(env.hover_action, (8, 1)), atol=1e-4)


@pytest.mark.full
def test_motor_order_is_front_right_back_right_back_left_front_left(resting):
    """More speed on one motor tips the craft away from it."""
    env, motors = resting, jnp.tile(jnp.eye(4), (2, 1))
    state = env.reset(jax.random.key(0))
    for _ in range(5):
        state = env.step(state, 2 * (env.hover_action + 0.1 * motors) - 1)
    roll_rate, pitch_rate = np.sign(np_of(state.pipeline_state.craft.ang_vel.array)[:4, :2]).T
    # x points forward, y to the left: a strong right side rolls left (negative), a strong front pitches up (negative).
    assert roll_rate.tolist() == [-1, -1, 1, 1]
    assert pitch_rate.tolist() == [-1, 1, 1, -1]


@pytest.mark.full
@pytest.mark.parametrize("frame", ["body", "world"])
def test_observation_layout(crazyflie, frame):
    env = crazyflie if frame == "body" else make(frame=frame, teacher_frame="body")
    state = env.reset(jax.random.key(1))
    state = env.step(state, jax.random.uniform(jax.random.key(2), (8, 4), minval=-1.0))
    sim = state.pipeline_state
    rotation = Rotation.from_quat(np_of(sim.craft.quat.array))
    position, velocity = np_of((sim.craft.pos - sim.target.pos).array), np_of((sim.craft.vel - sim.target.vel).array)
    tail = [rotation.as_matrix().reshape(8, 9), np_of(sim.craft.ang_vel.array), np_of(sim.last_action).T]
    motors = np_of(env.quadrotor.motor_speeds(sim.craft.rotor_vel)).T
    in_body = [rotation.inv().apply(position), rotation.inv().apply(velocity), *tail]
    in_world = [position, velocity, *tail]
    student = np.concatenate(in_body if frame == "body" else in_world, axis=1)
    np.testing.assert_allclose(state.obs["student"], student, atol=1e-5)
    np.testing.assert_allclose(state.obs["teacher"], np.concatenate([*in_body, motors], axis=1), atol=1e-5)
    assert {k: v.shape[1:] for k, v in state.obs.items()} == {k: v.shape for k, v in env.obs_specs.items()}


def test_rotation_matrix_agrees_with_scipy():
    quat = jax.random.normal(jax.random.key(0), (50, 4))
    quat = quat / jnp.linalg.norm(quat, axis=1, keepdims=True)
    ours = np.stack([row.array for row in Quaternion.of(quat).rotation()], axis=1)
    np.testing.assert_allclose(ours, Rotation.from_quat(np_of(quat)).as_matrix(), atol=1e-5)


def test_reward_terms(crazyflie):
    env = crazyflie
    assert PointControlCfg().reward == RewardCfg(alive=1.5, position=1.0, orientation=0.5, action_change=0.1)
    before = env.reset(jax.random.key(1))
    after = env.step(before, jnp.ones((8, 4)))
    sim = after.pipeline_state
    error = np.linalg.norm(np_of((sim.craft.pos - sim.target.pos).array), axis=1)
    tilt = 1 - np_of(sim.craft.quat.rotation().z.z)
    change = np.linalg.norm(1.0 - np_of(before.pipeline_state.last_action), axis=0)
    np.testing.assert_allclose(after.reward, 1.5 - error - 0.5 * tilt - 0.1 * change, atol=1e-5)


@pytest.mark.parametrize(
    ("limit", "fields"),
    [
        ("distance", {"pos": [15.1, 0, 0]}),
        ("linear_velocity", {"vel": [0, -4.2, 0]}),
        ("body_rate", {"ang_vel": [0, 0, 40.0]}),
        ("tilt", {"quat": [np.sin(np.pi / 4 + 0.05), 0, 0, np.cos(np.pi / 4 + 0.05)]}),
        ("nan", {"vel": [np.nan, 0, 0]}),
    ],
)
def test_each_limit_ends_the_episode(resting, limit, fields):
    env = resting
    hover = jnp.full((8, 4), 2 * env.hover_action - 1)
    fine = env.step(env.reset(jax.random.key(0)), hover)
    assert not fine.done.any()
    state = env.step(with_craft(env, env.reset(jax.random.key(0)), **fields), hover)
    assert state.done.all()
    assert state.metrics[f"Episode_Termination/{limit}"].all()
    assert sum(float(v[0]) for k, v in state.metrics.items() if k.startswith("Episode_Termination/")) == 1
    assert (state.reward < -80).all() and jnp.isfinite(state.reward).all()


def test_default_resets_fill_their_ranges():
    env = make(num_envs=2000)
    craft = env.reset(jax.random.key(0)).pipeline_state.craft
    arm = np.sqrt(2) * 0.03253
    for name, radius in (("pos", 10 * arm), ("vel", 1.0), ("ang_vel", 1.0)):
        length = np.linalg.norm(np_of(getattr(craft, name).array), axis=1)
        assert 0.97 * radius < length.max() <= radius * (1 + 1e-5)
        away = length[length > 0]
        assert np.mean(away < radius / 2) == pytest.approx(1 / 8, abs=0.03), "uniform in the ball's volume"
    assert np.mean(np.linalg.norm(np_of(craft.pos.array), axis=1) == 0) == pytest.approx(0.1, abs=0.03)
    yaw, pitch, roll = Rotation.from_quat(np_of(craft.quat.array)).as_euler("ZYX", degrees=True).T
    for angle, bound in ((roll, 45), (pitch, 45), (yaw, 180)):
        assert 0.98 * bound < np.abs(angle).max() <= bound * (1 + 1e-5)


@pytest.mark.full
def test_randomization_draws_within_its_range_and_changes_the_flight():
    env = make(num_envs=500, reset=STILL, randomization=RandomizationCfg(mass=0.1, inertia=0, thrust=0, motor=0))
    state = env.reset(jax.random.key(0))
    mass = np_of(state.pipeline_state.physics.mass)
    assert 0.9 <= mass.min() < 0.91 and 1.09 < mass.max() <= 1.1
    assert (state.pipeline_state.physics.thrust == 1).all()
    for _ in range(20):
        state = env.step(state, jnp.full((500, 4), 2 * env.hover_action - 1))
    height = np_of(state.pipeline_state.craft.pos.z)
    assert np.corrcoef(mass, height)[0, 1] < -0.99, "heavier craft sink at the same command"


class Path(NamedTuple):
    """Where targets went, after each step (T, B, 3)."""

    pos: np.ndarray
    vel: np.ndarray


def wander(cfg: TargetCfg, num_envs: int, steps: int) -> tuple[target.Target, Path]:
    """Targets after ``steps`` steps, and their way there."""

    @jax.jit
    def run():
        stream = Stream.create(jax.random.key(0), num_envs)

        def step(loop, _):
            state, stream = loop
            state = target.step(cfg, state, stream, 0, 0.01)
            return (state, stream.next()), (state.pos.array, state.vel.array)

        (state, _), path = jax.lax.scan(step, (target.reset(cfg, stream, 1), stream), None, length=steps)
        return state, path

    state, path = run()
    return state, Path(*map(np_of, path))


def test_mixed_targets_rest_or_wander_within_the_speed_limit():
    cfg = TargetCfg(kind="mixed", fixed_fraction=0.5)
    state, wandering = wander(cfg, 1000, 300)
    speeds = np.linalg.norm(wandering.vel, axis=-1)
    resting = np_of(state.kind) == target.FIXED
    assert np.mean(resting) == pytest.approx(0.5, abs=0.06)
    assert (np.linalg.norm(np_of(state.pos.array), axis=1)[resting] == 0).all()
    assert (np.linalg.norm(np_of(state.pos.array), axis=1)[~resting] > 0).all()
    assert (np.max(speeds, axis=0) <= np_of(state.speed_limit) + 1e-5).all()
    assert np.max(speeds) > 1.2


def test_langevin_velocity_reaches_its_stationary_spread():
    """Unlimited, the velocity of dv = -(d v + w^2 x) dt + s dW has the standard deviation s / sqrt(2 d)."""
    cfg = TargetCfg(kind="langevin", sigma=0.75, damping=0.5, min_speed_limit=100, max_speed_limit=100)
    state, _ = wander(cfg, 2000, 1500)
    assert np.std(np_of(state.raw_vel.array)) == pytest.approx(0.75, rel=0.05)
    assert np.std(np_of(state.raw_pos.array)) == pytest.approx(0.75 / 1.5, rel=0.05)


@pytest.mark.parametrize("kind", ["langevin", "figure_eight"])
def test_target_velocity_is_the_derivative_of_its_position(kind):
    cfg = TargetCfg(kind=kind, smoothing=0.2)
    _, path = wander(cfg, 50, 200)
    moved, meant = path.pos[1:] - path.pos[:-1], 0.01 * 0.5 * (path.vel[1:] + path.vel[:-1])
    np.testing.assert_allclose(moved.sum(axis=0), meant.sum(axis=0), atol=0.03)
    assert np.abs(moved.sum(axis=0)).max() > 0.1


def test_figure_eight_closes_after_its_period():
    cfg = TargetCfg(kind="figure_eight", figure_eight_size=1.0, figure_eight_period=6.0)
    time = jnp.linspace(0, 6, 601)
    pos, _ = target.figure_eight(cfg, time)
    pos = pos.array
    np.testing.assert_allclose(pos[0], pos[-1], atol=1e-5)
    assert np_of(pos).max(axis=0)[:2] == pytest.approx([1.0, 0.5], abs=1e-3)


@pytest.mark.full
def test_random_actions_never_leave_a_state_that_is_not_finite(crazyflie):
    from bridge.env import AutoReset

    env = AutoReset(crazyflie)

    def step(state, key):
        state = env.step(state, jax.random.uniform(key, (8, 4), minval=-3.0, maxval=3.0))
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((state.obs, state.reward))]
        return state, (jnp.stack(finite).all(), state.done)

    start = env.reset(jax.random.key(0))
    _, (finite, done) = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 1000)))(start)
    assert finite.all() and done.any()


def test_reset_and_step_are_pure(crazyflie):
    def leaves(state):
        data = jax.tree.map(
            lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state
        )
        return jax.tree.leaves(data)

    a, b = (crazyflie.reset(jax.random.key(5)) for _ in range(2))
    action = jnp.zeros((8, 4))
    for x, y in zip(leaves(crazyflie.step(a, action)), leaves(crazyflie.step(b, action)), strict=True):
        assert (x == y).all()
    other = crazyflie.reset(jax.random.key(6))
    assert (other.obs["student"] != a.obs["student"]).any()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"drone": "cf9"}, "env.drone"),
        ({"drone": "hb_x500"}, "env.drone"),
        ({"frame": "moon"}, "env.frame"),
        ({"physics_freq": 450}, "env.physics_freq"),
        ({"target": TargetCfg(kind="circle")}, "env.target.kind"),
        ({"randomization": RandomizationCfg(mass=1.0)}, "env.randomization.mass"),
        ({"num_envs": 0}, "env.num_envs"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        PointControl(dataclasses.replace(PointControlCfg(num_envs=2), **settings))
