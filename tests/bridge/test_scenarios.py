"""Wind, sensors, jumping targets, and the scenarios made of them: each does what it says, and nothing when off."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bridge.crazyflie import PointControl, PointControlCfg, target
from bridge.crazyflie.cfg import RandomizationCfg, ResetCfg, SensorCfg, TargetCfg, WindCfg
from bridge.crazyflie.random import Stream
from bridge.crazyflie.scenarios import CRAZYFLIES, scenarios
from bridge.crazyflie.vectors import Quaternion, Vector
from bridge.env import AutoReset, Parametric

pytestmark = pytest.mark.full

STILL = ResetCfg(position=0, linear_velocity=0, angular_velocity=0, tilt=0, yaw=0)
NOMINAL = RandomizationCfg(mass=0, inertia=0, thrust=0, motor=0)
NOISE = SensorCfg(position_noise=0.02, velocity_noise=0.1, attitude_noise=2.0, rate_noise=0.3)


quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiled in half the time."""


def small(num_envs: int, **settings) -> PointControlCfg:
    """Settings whose physics is compiled quickly: one step per command."""
    return PointControlCfg(num_envs=num_envs, physics_freq=100, frame="world", **settings)


def fly(cfg: PointControlCfg, steps: int, seed: int = 0, action: float | None = None):
    """States before and after ``steps`` steps of one constant action (hover's, if not told); the leading axis is time.

    Returns the environment and the pytree ``(pipeline_state, obs)``, each leaf (steps + 1, B, ...); vectors are arrays.
    """
    env = PointControl(cfg)
    constant = jnp.full((cfg.num_envs, 4), 2 * env.hover_action - 1 if action is None else action)

    @quickly
    def run(rng):
        start = env.reset(rng)

        def step(state, _):
            state = env.step(state, constant)
            return state, (state.pipeline_state, state.obs)

        _, later = jax.lax.scan(step, start, None, length=steps)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), (start.pipeline_state, start.obs), later)

    return env, jax.device_get(in_rows(run(jax.random.key(seed))))


def in_rows(tree):
    """``tree`` with vectors and quaternions as arrays (..., 3 or 4)."""
    is_vector = lambda x: isinstance(x, Vector | Quaternion)  # noqa: E731
    return jax.tree.map(lambda x: x.array if is_vector(x) else x, tree, is_leaf=is_vector)


def leaves_equal(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def calm():
    """Craft in calm air with perfect sensors, wandering targets."""
    return fly(small(16, target=TargetCfg(kind="langevin")), 20)


def test_what_is_off_is_not_there(calm):
    _, (sim, _) = calm
    assert sim.wind is None and sim.sensors is None


def test_a_gust_moves_the_craft_as_its_force_says():
    """At hover with full rotors nothing else pushes sideways: the speed after a gust is force / mass * its length."""
    wind = WindCfg(force=0.3, gust_s=0.1, pause_s=0.05)
    cfg = small(200, reset=STILL, randomization=NOMINAL, target=TargetCfg(kind="fixed"), wind=wind)
    env, (sim, _) = fly(cfg, 30)
    force = sim.wind.force
    strength = np.linalg.norm(force, axis=-1) / env.quadrotor.weight
    blowing = np.r_[np.zeros(6, bool), np.ones(10, bool), np.zeros(5, bool), np.ones(10, bool)]
    assert ((strength > 0).all(axis=1) == blowing).all() and (strength[~blowing] == 0).all()
    assert strength.max() <= 0.3 + 1e-6 and strength[6].max() > 0.28 and strength[6].mean() > 0.13
    assert (force[..., 2] == 0).all() and np.abs(force[6].mean(axis=0)).max() < 0.1 * env.quadrotor.weight
    assert (force[6] == force[15]).all() and (force[6] != force[21]).any(axis=-1).all(), "each gust is another"
    gained = sim.craft.vel[15] - sim.craft.vel[5]
    mass = env.quadrotor.weight / 9.81
    expected = force[6] / mass * 0.1
    np.testing.assert_allclose(gained[:, :2], expected[:, :2], rtol=0.03, atol=1e-3)  # Drag takes a little.
    assert np.abs(sim.craft.vel[5]).max() < 1e-3, "calm before the gust"


def test_wind_leaves_targets_and_starts_alone(calm):
    _, (still, _) = calm
    _, (sim, _) = fly(small(16, target=TargetCfg(kind="langevin"), wind=WindCfg(force=0.2)), 20)
    assert leaves_equal(still.target, sim.target) and leaves_equal(still.physics, sim.physics)
    assert leaves_equal(jax.tree.map(lambda x: x[0], still.craft), jax.tree.map(lambda x: x[0], sim.craft))


def test_a_delay_delays_by_exactly_its_steps(calm):
    steps, (_, (sim, obs)) = 3, calm
    cfg = small(16, target=TargetCfg(kind="langevin"), sensor=SensorCfg(delay_steps=steps))
    _, (late_sim, late) = fly(cfg, 20)
    same = {"atol": 1e-6, "rtol": 0}
    np.testing.assert_allclose(late_sim.craft.pos, sim.craft.pos, **same, err_msg="the craft itself flies as ever")
    np.testing.assert_allclose(late["teacher"], obs["teacher"], atol=1e-5, rtol=0, err_msg="the teacher sees the truth")
    seen = np.maximum(np.arange(21) - steps, 0)
    student = late["student"]
    np.testing.assert_allclose(student[..., 0:3], sim.craft.pos[seen] - sim.target.pos, **same)
    np.testing.assert_allclose(student[..., 3:6], sim.craft.vel[seen] - sim.target.vel, **same)
    np.testing.assert_allclose(student[..., 6:18], obs["student"][seen][..., 6:18], **same)
    np.testing.assert_allclose(student[..., 18:22], obs["student"][..., 18:22], **same, err_msg="commands are known")
    apart = np.abs(sim.craft.pos[seen[8:]] - sim.craft.pos[np.maximum(seen - 1, 0)][8:]).max(axis=(0, 2))
    assert (apart > 1e-4).mean() > 0.8, "a step more or less would show"


def test_the_start_frame_is_the_world_turned_by_the_first_heading(calm):
    _, (_, obs) = calm
    _, (_, turned) = fly(dataclasses.replace(small(16, target=TargetCfg(kind="langevin")), frame="start"), 20)
    forward = obs["student"][0][:, [6, 9]]
    heading = Rotation.from_rotvec(np.outer(np.arctan2(forward[:, 1], forward[:, 0]), [0, 0, 1]))
    assert np.abs(heading.magnitude()).max() > 1.5
    for t in (0, 20):
        now, then = turned["student"][t], obs["student"][t]
        np.testing.assert_allclose(now[:, 0:3], heading.inv().apply(then[:, 0:3]), atol=1e-5)
        np.testing.assert_allclose(now[:, 3:6], heading.inv().apply(then[:, 3:6]), atol=1e-5)
        rotation = (heading.inv() * Rotation.from_matrix(then[:, 6:15].reshape(-1, 3, 3))).as_matrix()
        np.testing.assert_allclose(now[:, 6:15], rotation.reshape(-1, 9), atol=1e-5)
        np.testing.assert_array_equal(now[:, 15:], then[:, 15:])
    assert np.abs(turned["student"][0][:, 9]).max() < 1e-6


def test_a_random_delay_is_drawn_for_each_episode(calm):
    _, (_, obs) = calm
    sensor = SensorCfg(delay_steps=2, random_delay=True)
    _, (late_sim, late) = fly(small(16, target=TargetCfg(kind="langevin"), sensor=sensor), 20)
    delay = late_sim.sensors.delay[0]
    assert set(delay.tolist()) == {0, 1, 2} and (late_sim.sensors.delay == delay).all()
    for i, steps in enumerate(delay):
        seen = np.maximum(np.arange(21) - steps, 0)
        np.testing.assert_allclose(late["student"][:, i, 6:18], obs["student"][seen, i, 6:18], atol=1e-6, rtol=0)


def test_noise_has_the_deviation_that_was_asked_for():
    cfg = small(500, target=TargetCfg(kind="fixed"), sensor=NOISE)
    _, (noisy_sim, noisy) = fly(cfg, 10)
    student = noisy["student"]
    errors = {
        "position": (student[..., 0:3] - noisy_sim.craft.pos, 0.02),
        "velocity": (student[..., 3:6] - noisy_sim.craft.vel, 0.1),
        "rates": (student[..., 15:18] - noisy_sim.craft.ang_vel, 0.3),
    }
    true = Rotation.from_quat(noisy_sim.craft.quat.reshape(-1, 4))
    told = noisy["teacher"][..., 6:15].reshape(-1, 3, 3)
    np.testing.assert_allclose(told, true.as_matrix(), atol=1e-5, err_msg="the teacher sees the truth")
    measured = Rotation.from_matrix(student[..., 6:15].reshape(-1, 3, 3))
    errors["attitude"] = ((true.inv() * measured).as_rotvec(degrees=True).reshape(11, 500, 3), 2.0)
    for name, (error, deviation) in errors.items():
        assert error.std() == pytest.approx(deviation, rel=0.03), name
        assert abs(error.mean()) < 0.05 * deviation, name
        flat = error.reshape(11, -1)
        assert abs(np.corrcoef(flat[3], flat[4])[0, 1]) < 0.1, f"{name}: drawn anew every step"
    assert (student[..., 18:22] == noisy["teacher"][..., 18:22]).all()


def test_a_restarted_episode_forgets_its_measurements():
    cfg = small(4, episode_length_s=0.1, sensor=SensorCfg(delay_steps=3))
    env = AutoReset(PointControl(cfg))
    step = quickly(env.step)
    state = quickly(env.reset)(jax.random.key(0))
    for _ in range(10):
        state = step(state, jnp.zeros((4, 4)))
    assert state.done.all()
    sim = in_rows(state.pipeline_state)
    np.testing.assert_array_equal(state.obs["student"][:, :3], sim.craft.pos - sim.target.pos)
    waiting = sim.sensors.recent[..., :3]
    np.testing.assert_array_equal(waiting, jnp.repeat(sim.craft.pos[:, None], 3, axis=1))


def test_a_step_target_rests_and_jumps_within_its_ball():
    cfg = TargetCfg(kind="step", step_size=0.7, step_interval=0.5)
    stream = Stream.create(jax.random.key(0), 300)
    start = target.reset(cfg, stream, 1)

    def step(loop, _):
        now, stream = loop
        now = target.step(cfg, now, stream, 0, 0.01)
        return (now, stream.next()), now

    _, later = jax.lax.scan(step, (start, stream), None, length=200)
    start, later = in_rows(start), in_rows(later)
    pos = np.concatenate([np.asarray(start.pos)[None], later.pos])
    moved = (pos[1:] != pos[:-1]).any(axis=-1)
    assert moved[[49, 99, 149, 199]].all() and moved.sum() == 4 * 300, "every half second and at no other time"
    distance = np.linalg.norm(pos[50], axis=-1)
    assert (pos[:50] == 0).all() and 0.65 < distance.max() <= 0.7 + 1e-5
    assert np.mean(distance < 0.35) == pytest.approx(1 / 8, abs=0.06)
    assert (np.asarray(later.vel) == 0).all()


def test_a_teacher_can_see_the_physics():
    wide = RandomizationCfg(mass=0.2, inertia=0.4, thrust=0.1, motor=0.4)
    cfg = small(50, teacher_sees_physics=True, reset=STILL, randomization=wide, target=TargetCfg(kind="fixed"))
    env = PointControl(cfg)
    plain = PointControl(dataclasses.replace(cfg, teacher_sees_physics=False))
    assert (env.obs_specs["teacher"].shape, plain.obs_specs["teacher"].shape) == ((30,), (26,))
    state = quickly(env.reset)(jax.random.key(0))
    hover, ratio, roll, rate = np.asarray(state.obs["teacher"][:, 26:]).T
    command = jnp.tile(hover[:, None], (1, 4))
    craft = state.pipeline_state.craft.replace(rotor_vel=env.quadrotor.command(tuple(command.T)))
    start = state.replace(pipeline_state=state.pipeline_state.replace(craft=craft))
    after = quickly(env.step)(start, 2 * command - 1)
    assert np.abs(after.pipeline_state.craft.vel.array).max() < 1e-4, "the hover command carries each craft"
    physics = state.pipeline_state.physics
    np.testing.assert_allclose(ratio, 1.4917 * physics.thrust / physics.mass, rtol=1e-3)
    np.testing.assert_allclose(roll * physics.inertia / physics.thrust, 464.6, rtol=1e-3)
    assert np.corrcoef(rate, physics.motor)[0, 1] > 0.9


def test_scenarios_are_what_their_names_say():
    cfg = PointControlCfg(frame="world", drone="cf2x_P250", randomization=RandomizationCfg(mass=0.3))
    found = scenarios(cfg)
    for name, (description, changed) in found.items():
        changed.validate()
        assert changed.frame == "world" and "\n" not in description, name
    assert found["default"].cfg is cfg
    assert found["wind"].cfg.wind.force > 0 and found["hover"].cfg.wind.force == 0
    assert [found[f"delay_{ms}ms"].cfg.sensor.delay_steps for ms in (10, 20, 30)] == [1, 2, 3]
    assert found["figure_eight_4s"].cfg.target.figure_eight_period == 4
    assert found["dynamics"].cfg.randomization.mass == pytest.approx(0.4)
    assert [found[drone].cfg.drone for drone in CRAZYFLIES] == list(CRAZYFLIES)
    assert found[CRAZYFLIES[0]].cfg.randomization == RandomizationCfg()
    slower = scenarios(dataclasses.replace(cfg, policy_freq=50))
    assert [name for name in slower if name.startswith("delay")] == ["delay_20ms", "delay_40ms"]


def test_one_program_serves_every_scenario():
    """Parameters as arguments give the same flight as parameters compiled in: same starts, targets, gusts, noise."""
    found = scenarios(small(4, target=TargetCfg(kind="langevin")))
    all_at_once = small(
        4,
        target=TargetCfg(kind="figure_eight"),
        wind=WindCfg(force=0.2, pause_s=0.02),
        sensor=dataclasses.replace(NOISE, delay_steps=2),
        drone=CRAZYFLIES[3],
    )
    envs = {name: AutoReset(PointControl(scenario.cfg)) for name, scenario in found.items()}
    envs["all at once"] = AutoReset(PointControl(all_at_once))
    first = next(iter(envs.values()))
    assert isinstance(first, Parametric) and len({env.structure for env in envs.values()}) == 1
    longer = small(4, sensor=SensorCfg(delay_steps=9))
    assert AutoReset(PointControl(longer)).structure != first.structure, "there is no room for such a delay"

    def flight(env, rng):
        step = lambda s, _: (env.step(s, 0.3 * jnp.ones((4, 4))), s.obs)  # noqa: E731
        return jax.lax.scan(step, env.reset(rng), None, length=10)[1]

    program = quickly(lambda parameters, rng: flight(first.with_parameters(parameters), rng))
    shared = {name: program(env.parameters, jax.random.key(0)) for name, env in envs.items()}
    assert program._cache_size() == 1
    for scenario in ("all at once", "step"):
        alone = quickly(functools.partial(flight, envs[scenario]))(jax.random.key(0))
        for name, value in alone.items():
            np.testing.assert_allclose(
                shared[scenario][name], value, rtol=1e-4, atol=1e-4, err_msg=f"{scenario} {name}"
            )
    assert not np.allclose(shared[CRAZYFLIES[0]]["teacher"], shared[CRAZYFLIES[3]]["teacher"], atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"wind": WindCfg(force=-0.1)}, "env.wind.force"),
        ({"wind": WindCfg(gust_s=0.0)}, "env.wind.gust_s"),
        ({"sensor": SensorCfg(position_noise=-1.0)}, "env.sensor.position_noise"),
        ({"sensor": SensorCfg(delay_steps=101)}, "env.sensor.delay_steps"),
        ({"target": TargetCfg(kind="step", step_interval=0.0)}, "env.target.step_interval"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        PointControlCfg(**settings).validate()
