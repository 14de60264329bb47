"""Point control on Isaac Lab: the same task as the embedded one, flown and computed side by side."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from isaaclab.managers import (
    ActionManager,
    ActionTerm,
    ActionTermCfg,
    ObservationGroupCfg,
    ObservationManager,
    ObservationTermCfg,
)
from scipy.spatial.transform import Rotation
from torch.overrides import TorchFunctionMode

from bridge.crazyflie import PointControl, PointControlCfg, dynamics
from bridge.crazyflie import sensor as embedded_sensors
from bridge.crazyflie import target as embedded_targets
from bridge.crazyflie.airframe import Airframe
from bridge.crazyflie.cfg import RandomizationCfg, ResetCfg, SensorCfg, TargetCfg
from bridge.crazyflie.constants import Constants
from bridge.crazyflie.dynamics import Craft
from bridge.crazyflie.random import Stream
from bridge.crazyflie.vectors import Quaternion, Vector
from bridge.errors import SettingError
from bridge.isaaclab import launch
from bridge.isaaclab.managers import ManagerNames, names_of
from bridge.isaaclab_tasks.point_control import TASK_ID
from bridge.isaaclab_tasks.point_control import dynamics as rotors
from bridge.isaaclab_tasks.point_control import sensor as sensors
from bridge.isaaclab_tasks.point_control import target as targets
from bridge.isaaclab_tasks.point_control.fleet import MAX_ID, Fleet
from bridge.quadrotor_distribution import WIDE
from bridge.quadrotors import to_csv
from jdistill.core import networks
from jdistill.export.policy_file import load_policy
from tests.conftest import BUNDLED_TEACHER, jitted

NUM_ENVS = 16
ZERO = [f"env.randomization.{name}=0.0" for name in ("mass", "inertia", "thrust", "motor")]
ROWS = [dataclasses.replace(spec, id=id) for id, spec in zip((7, 2, 40), WIDE.sample(3, 7), strict=True)]
"""Three craft of very different mass."""


@pytest.fixture
def env(make_isaaclab_env):
    """Sixteen Crazyflies on Isaac Lab, freshly reset; targets rest, nothing is randomised."""
    env = make_isaaclab_env(TASK_ID, f"env.scene.num_envs={NUM_ENVS}", "env.target.kind=fixed", *ZERO)
    env.cfg.frame = "body"
    env.reset(seed=1)
    return env


@pytest.fixture(scope="module")
def embedded() -> PointControl:
    """The embedded task with resting targets; its physical parameters differ from craft to craft."""
    wide = RandomizationCfg(mass=0.05, inertia=0.05, thrust=0.05, motor=0.05)
    return jitted(PointControl(PointControlCfg(num_envs=NUM_ENVS, target=TargetCfg(kind="fixed"), randomization=wide)))


@pytest.fixture(scope="module")
def embedded_symplectic() -> PointControl:
    """The same, integrated as MuJoCo integrates."""
    return symplectic()


def symplectic(**settings) -> PointControl:
    """The embedded task integrated as MuJoCo integrates: new velocities first, then the pose with them."""

    def integrate(craft, change, dt):
        after = euler(craft, change, dt)
        quat = (craft.quat * dynamics.turned(after.ang_vel * dt)).normalized()
        return after.replace(pos=craft.pos + after.vel * dt, quat=quat)

    euler = dynamics.integrate
    wide = RandomizationCfg(mass=0.05, inertia=0.05, thrust=0.05, motor=0.05)
    cfg = PointControlCfg(num_envs=NUM_ENVS, target=TargetCfg(kind="fixed"), randomization=wide, **settings)
    env = jitted(PointControl(cfg))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "integrate", integrate)
        state = env.reset(jax.random.key(0))
        env.step(env.step(state, jnp.zeros((NUM_ENVS, 4))), jnp.zeros((NUM_ENVS, 4)))  # Compiles it with the patch.
    return env


@pytest.fixture(scope="module")
def teacher():
    """The bundled teacher, from observations (B, 26) to actions (B, 4)."""
    policy, learnt, _ = load_policy(BUNDLED_TEACHER)
    carry = networks.initial_carry(policy, learnt, NUM_ENVS)
    return jax.jit(lambda obs: networks.act(policy, learnt, carry, obs)[1])


def np_of(x) -> np.ndarray:
    return np.array(x, np.float64)


def torch_of(x) -> torch.Tensor:
    return torch.tensor(np.array(x))


def put(env, craft, physics=None, **fields):
    """Put the embedded task's ``craft`` into the Isaac Lab environment; ``fields`` replace rows of it."""
    from bridge.isaaclab_tasks.point_control.env import Craft as TorchCraft

    rows = {k: torch_of(v) for k, v in craft.rows.items()}
    rows |= {k: torch.tensor(v, dtype=torch.float32).expand(NUM_ENVS, -1).clone() for k, v in fields.items()}
    env.place(TorchCraft(**rows), torch.arange(NUM_ENVS, dtype=torch.int32))
    env.last_action[:] = env.hover_action
    for name, value in vars(physics).items() if physics else ():
        setattr(env.physics, name, torch_of(value))
    env.sim.forward()


def differences(env, craft) -> dict[str, np.ndarray]:
    """Distance (B,) of the two simulators' crafts by quantity: m, rad, m/s, rad/s."""
    ours = {k: v.numpy().astype(np.float64) for k, v in vars(env.craft).items()}
    theirs = {k: np_of(v) for k, v in craft.rows.items()}
    turned = Rotation.from_quat(ours["quat"]).inv() * Rotation.from_quat(theirs["quat"])
    far = {k: np.linalg.norm(ours[k] - theirs[k], axis=1) for k in ("pos", "vel", "ang_vel")}
    return {**far, "attitude": turned.magnitude()}


def fly(env, embedded, teacher, seconds: float, closed_loop: bool) -> dict[str, np.ndarray]:
    """Fly both from the same states; greatest difference (B,) of each quantity on the way.

    In closed loop the teacher sees each simulator's own observations, else the embedded task's alone.
    """
    state = embedded.reset(jax.random.key(0))
    env.reset()
    if state.pipeline_state.row is not None:
        state = state.replace(pipeline_state=state.pipeline_state.replace(row=jnp.asarray(env.row.numpy(), jnp.int32)))
    sim = state.pipeline_state
    put(env, sim.craft, sim.physics)
    obs = env._get_observations()
    worst = differences(env, sim.craft)
    for _ in range(round(seconds / env.step_dt)):
        action = teacher(state.obs["teacher"])
        own_action = teacher(obs["teacher"].numpy()) if closed_loop else action
        state = embedded.step(state, action)
        obs, _, terminated, _, _ = env.step(torch_of(own_action))
        assert not terminated.any() and not state.done.any()
        worst = {k: np.maximum(worst[k], v) for k, v in differences(env, state.pipeline_state.craft).items()}
    return worst


def test_the_first_second_is_crazyflows_under_the_same_integrator(env, embedded_symplectic, teacher):
    """Same rotors, drag, gyroscopic terms, timing: what is left in one second is rounding."""
    closed = fly(env, embedded_symplectic, teacher, 1.0, closed_loop=True)
    assert closed["pos"].max() < 5e-5 and closed["vel"].max() < 2e-4
    assert closed["attitude"].max() < 2e-4 and closed["ang_vel"].max() < 2e-3
    # Nothing pulls the two together when one replays the other's actions.
    replayed = fly(env, embedded_symplectic, teacher, 1.0, closed_loop=False)
    assert replayed["pos"].max() < 5e-4 and replayed["vel"].max() < 2e-3
    assert replayed["attitude"].max() < 5e-4 and replayed["ang_vel"].max() < 2e-3


def test_the_teacher_flies_the_first_second_as_in_the_embedded_task(env, embedded, teacher):
    """Crazyflow moves the pose with the old velocity, MuJoCo with the new one: 2 ms apart at 500 Hz."""
    closed = fly(env, embedded, teacher, 1.0, closed_loop=True)
    assert np.median(closed["pos"]) < 5e-3 and closed["pos"].max() < 3e-2
    assert np.median(closed["attitude"]) < 2e-2 and np.median(closed["vel"]) < 2e-2


def test_one_physics_step_of_the_rotors_is_crazyflows(embedded):
    """Force, torque and rotor lag against the model's own right-hand side, at random states."""
    from crazyflow.dynamics.core import load_fn_params
    from crazyflow.dynamics.first_principles import dynamics

    rng = np.random.default_rng(0)
    n, airframe = 100, Airframe.load("cf2x_L250")
    quadrotor = rotors.Quadrotor.of(Constants.of(airframe))
    quat, vel, ang_vel = Rotation.random(n, rng=0), rng.normal(size=(n, 3)), 5 * rng.normal(size=(n, 3))
    rotor_vel, command = rng.uniform(8e3, 23e3, (2, n, 4))
    params = load_fn_params(dynamics, "cf2x_L250")
    state = [jnp.asarray(x) for x in (np.zeros((n, 3)), quat.as_quat(), vel, ang_vel, command, rotor_vel)]
    _, _, acc, ang_acc, rotor_acc = dynamics(*state, **{k: jnp.asarray(v) for k, v in params.items()})
    ones, as_torch = torch.ones(n), functools.partial(torch.tensor, dtype=torch.float32)
    ours = rotors.rotor_acceleration(quadrotor, as_torch(rotor_vel), as_torch(command), ones)
    np.testing.assert_allclose(ours, rotor_acc, rtol=1e-4, atol=0.5)
    force, torque = rotors.wrench(
        quadrotor, as_torch(rotor_vel), ours, as_torch(quat.inv().apply(vel)), as_torch(ang_vel), ones
    )
    weight = np.array([0.0, 0.0, 9.81 * airframe.mass])
    np.testing.assert_allclose(force, quat.inv().apply(airframe.mass * np_of(acc) + weight), rtol=1e-4, atol=1e-5)
    inertia = np.array(airframe.J)
    needed = np_of(ang_acc) @ inertia + np.cross(ang_vel, ang_vel @ inertia)
    np.testing.assert_allclose(torque, needed, rtol=1e-3, atol=1e-6)


def test_constants_and_defaults_are_the_embedded_ones(env, embedded):
    np.testing.assert_allclose(env.quadrotor.arm_length, np.full((NUM_ENVS, 1), embedded.quadrotor.arm_length))
    np.testing.assert_allclose(env.hover_action, np.full((NUM_ENVS, 1), embedded.hover_action[0]), atol=1e-6)
    assert env.step_dt == pytest.approx(embedded.step_dt) and env.max_episode_length == embedded.max_episode_length
    body = env.robot.data
    airframe = Airframe.load(env.cfg.drone)
    np.testing.assert_allclose(body.body_mass.torch, airframe.mass, rtol=1e-6)
    np.testing.assert_allclose(body.body_inertia.torch[:, 0].reshape(-1, 3, 3), [airframe.J] * NUM_ENVS, atol=1e-11)
    from bridge.isaaclab_tasks.point_control.cfg import PointControlEnvCfg

    ours, theirs = PointControlEnvCfg(), PointControlCfg()
    for name in (
        "drone",
        "quadrotors",
        "quadrotor_assignment",
        "action",
        "frame",
        "teacher_frame",
        "target",
        "reset",
        "termination",
        "reward",
        "randomization",
        "sensor",
    ):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.scene.num_envs == theirs.num_envs and env.sensors is None, "perfect ones cost nothing"
    for group, size in (("policy", 22), ("teacher", 26)):
        assert env.single_observation_space[group].shape == (size,) == env.obs_buf[group].shape[1:]


@pytest.mark.parametrize("frame", ["body", "world"])
def test_observations_are_the_embedded_formulas(env, embedded, frame):
    world = PointControl(PointControlCfg(num_envs=NUM_ENVS, frame=frame, target=TargetCfg(kind="fixed")))
    state = embedded.reset(jax.random.key(3))
    env.cfg.frame = frame
    put(env, state.pipeline_state.craft)
    env.target.pos, env.target.vel = torch.randn(2, NUM_ENVS, 3)
    obs, *_ = env.step(torch.rand(NUM_ENVS, 4) * 2 - 1)
    sim = state.pipeline_state
    sim = sim.replace(
        craft=Craft.of(**{k: jnp.asarray(v.numpy()) for k, v in vars(env.craft).items()}),
        target=sim.target.replace(pos=Vector.of(env.target.pos.numpy()), vel=Vector.of(env.target.vel.numpy())),
        last_action=tuple(jnp.asarray(env.last_action.numpy()).T),
    )
    expected = world.observe_pipeline_state(sim)
    np.testing.assert_allclose(obs["policy"], expected["student"], atol=2e-5)
    np.testing.assert_allclose(obs["teacher"], expected["teacher"], atol=2e-5)


def test_reward_terms(env, embedded):
    put(env, embedded.reset(jax.random.key(3)).pipeline_state.craft)
    action = torch.rand(NUM_ENVS, 4) * 2 - 1
    _, reward, terminated, _, extras = env.step(action)
    assert not terminated.any()
    craft = env.craft
    error = (craft.pos - env.target.pos).norm(dim=1).numpy()
    tilt = 1 - Rotation.from_quat(craft.quat.numpy()).as_matrix()[:, 2, 2]
    change = (0.5 * (action + 1) - env.hover_action).norm(dim=1).numpy()
    np.testing.assert_allclose(reward, 1.5 - error - 0.5 * tilt - 0.1 * change, atol=1e-5)
    assert float(extras["log"]["Metrics/position_error"]) == pytest.approx(error.mean(), rel=1e-4)
    assert not any(name.startswith("Episode_") for name in extras["log"]), "no episode ended"


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
def test_each_limit_ends_the_episode_and_the_next_one_is_sound(env, embedded, limit, fields):
    still = {"pos": [0, 0, 0], "quat": [0, 0, 0, 1], "vel": [0, 0, 0], "ang_vel": [0, 0, 0]}
    put(env, embedded.reset(jax.random.key(0)).pipeline_state.craft, **(still | fields))
    hover = (2 * env.hover_action - 1).expand(-1, 4)
    obs, reward, terminated, truncated, extras = env.step(hover)
    assert terminated.all() and not truncated.any()
    ended = {k.split("/")[1]: float(v) for k, v in extras["log"].items() if k.startswith("Episode_Termination/")}
    assert ended == {name: float(name == limit) for name in ended} and limit in ended
    assert (reward < -80).all() and reward.isfinite().all()
    for _ in range(3):
        assert all(group.isfinite().all() for group in obs.values())
        obs, _, terminated, _, _ = env.step(hover)
        assert not terminated.any()


def test_time_ends_an_episode_and_the_observation_is_the_new_ones(env):
    age = env.max_episode_length - 1
    env.episode_length_buf[:4] = age
    env.last_action[:] = 0.1
    obs, _, terminated, truncated, _ = env.step(torch.zeros(NUM_ENVS, 4))
    assert not terminated.any() and truncated.tolist() == [True] * 4 + [False] * (NUM_ENVS - 4)
    assert env.episode_length_buf.tolist() == [0] * 4 + [1] * (NUM_ENVS - 4)
    np.testing.assert_allclose(obs["teacher"][:4, 18:], env.hover_action[:4].expand(-1, 8), atol=1e-6)
    np.testing.assert_allclose(obs["teacher"][4:, 18:22], 0.5, atol=1e-6)
    shown = {k: v.clone() for k, v in obs.items()}
    env.sim.forward()
    for group, value in env._get_observations().items():
        np.testing.assert_array_equal(shown[group], value)


def test_default_resets_fill_their_ranges(env):
    craft = env._initial_craft(ResetCfg(), torch.arange(2000) % NUM_ENVS)
    for name, radius in (("pos", 10 * float(env.quadrotor.arm_length[0])), ("vel", 1.0), ("ang_vel", 1.0)):
        length = getattr(craft, name).norm(dim=1).numpy()
        assert 0.97 * radius < length.max() <= radius * (1 + 1e-5)
        away = length[length > 0]
        assert np.mean(away < radius / 2) == pytest.approx(1 / 8, abs=0.03), "uniform in the ball's volume"
    assert np.mean(craft.pos.norm(dim=1).numpy() == 0) == pytest.approx(0.1, abs=0.03)
    yaw, pitch, roll = Rotation.from_quat(craft.quat.numpy()).as_euler("ZYX", degrees=True).T
    for angle, bound in ((roll, 45), (pitch, 45), (yaw, 180)):
        assert 0.98 * bound < np.abs(angle).max() <= bound * (1 + 1e-5)
    physics = type(env.physics).sample(RandomizationCfg(mass=0.1, inertia=0, thrust=0, motor=0), 500, "cpu")
    assert 0.9 <= physics.mass.min() < 0.91 and 1.09 < physics.mass.max() <= 1.1 and (physics.thrust == 1).all()


@pytest.mark.parametrize("kind", ["mixed", "langevin", "figure_eight", "fixed"])
def test_targets_move_as_the_embedded_ones(kind):
    cfg = TargetCfg(kind=kind, sigma=2.0)
    stream = Stream.create(jax.random.key(0), 500)
    theirs = embedded_targets.reset(cfg, stream, 1)
    ours = targets.reset(cfg, 500, "cpu")
    assert float(ours.kind.double().mean()) == pytest.approx(np.mean(np_of(theirs.kind)), abs=0.1)
    assert ours.speed_limit.min() >= cfg.min_speed_limit and ours.speed_limit.max() <= cfg.max_speed_limit
    ours.kind, ours.speed_limit = torch_of(theirs.kind).long(), torch_of(theirs.speed_limit)
    step = jax.jit(lambda t, s: embedded_targets.step(cfg, t, s, 0, 0.01))
    for _ in range(100):
        noise = np.stack(stream.normal(0, 3), axis=1)
        theirs = step(theirs, stream)
        stream = stream.next()
        if kind in ("mixed", "langevin"):
            ours.time += 0.01
            targets.langevin(cfg, ours, torch_of(noise), 0.01)
        else:
            targets.step(cfg, ours, 0.01)
    # The path before smoothing is nobody's where a target rests.
    wanders = np.asarray(theirs.kind) == embedded_targets.LANGEVIN
    for name, value in vars(theirs).items():
        found, expected = np.asarray(getattr(ours, name)), value.array if isinstance(value, Vector) else value
        shown = wanders if kind == "mixed" and name.startswith("raw") else slice(None)
        np.testing.assert_allclose(found[shown], expected[shown], atol=1e-4, err_msg=name)


def test_langevin_targets_wander_from_step_to_step():
    cfg = TargetCfg(kind="langevin")
    target = targets.reset(cfg, 4, "cpu")
    for _ in range(50):
        targets.step(cfg, target, 0.01)
    assert (target.pos.norm(dim=1) > 0).all() and target.time == pytest.approx(0.5, rel=1e-5)


def any_craft(number: int) -> rotors.Craft:
    """``number`` craft, each somewhere else."""
    quat = torch.tensor(Rotation.random(number).as_quat(), dtype=torch.float32)
    return rotors.Craft(torch.randn(number, 3), quat, *torch.randn(2, number, 3), torch.zeros(number, 4))


@pytest.mark.parametrize("cfg", [SensorCfg(delay_steps=3), SensorCfg(delay_steps=3, random_delay=True)], ids=str)
def test_measurements_arrive_when_the_embedded_ones_do(cfg):
    """Of 0 to 3 steps ago, before that the episode's beginning; ours begin anew in between."""
    flown = [any_craft(64) for _ in range(7)]
    ours, stream = sensors.Sensors(cfg, 64, "cpu"), Stream.create(jax.random.key(0), 64)
    for craft in flown[:5]:
        ours.reset(torch.arange(64, dtype=torch.int32), craft)
        ours.step(craft)
    as_jax = [Craft.of(**{k: jnp.asarray(v.numpy()) for k, v in vars(craft).items()}) for craft in flown]
    theirs = embedded_sensors.reset(cfg, as_jax[0], stream, (0, 1), cfg.delay_steps)
    ours.reset(torch.arange(64, dtype=torch.int32), flown[0])
    assert (
        set(ours.delay.tolist())
        == set(np.asarray(theirs.delay).tolist())
        == ({0, 1, 2, 3} if cfg.random_delay else {3})
    )
    ours.delay[:] = torch_of(theirs.delay).long()
    for t, craft in enumerate(flown):
        if t:
            ours.step(craft)
            theirs = embedded_sensors.step(cfg, theirs, as_jax[t], stream, 0)
        for name, value in vars(ours.seen).items():
            np.testing.assert_allclose(value, getattr(theirs.seen, name).array, atol=1e-6, err_msg=name)


def test_a_restart_forgets_the_measurements_of_its_environment_alone():
    ours, flown = sensors.Sensors(SensorCfg(delay_steps=2), 4, "cpu"), [any_craft(4) for _ in range(3)]
    ours.reset(torch.arange(4), flown[0])
    ours.step(flown[1])
    again = any_craft(2)
    ours.reset(torch.tensor([1, 3], dtype=torch.int32), again)
    for _ in range(2):
        np.testing.assert_array_equal(ours.seen.pos[[1, 3]], again.pos)
        np.testing.assert_array_equal(ours.seen.pos[[0, 2]], flown[0].pos[[0, 2]])
        ours.step(flown[2])
    np.testing.assert_array_equal(ours.seen.pos[[0, 2]], flown[1].pos[[0, 2]])


def test_noise_is_the_embedded_ones():
    craft, cfg = any_craft(20000), SensorCfg(0.02, 0.1, 2.0, 0.3)
    ours = sensors.Sensors(cfg, 20000, "cpu")
    ours.step(craft)
    before = ours.seen
    ours.step(craft)
    turned = Rotation.from_quat(craft.quat.numpy()).inv() * Rotation.from_quat(ours.seen.quat.numpy())
    for name, error, deviation in (
        ("pos", ours.seen.pos - craft.pos, cfg.position_noise),
        ("vel", ours.seen.vel - craft.vel, cfg.velocity_noise),
        ("ang_vel", ours.seen.ang_vel - craft.ang_vel, cfg.rate_noise),
        ("quat", turned.as_rotvec(degrees=True), cfg.attitude_noise),
    ):
        np.testing.assert_allclose(np.std(np_of(error), axis=0), deviation, rtol=0.03, err_msg=name)
        assert np.abs(np.mean(np_of(error), axis=0)).max() < 0.05 * deviation, name
        assert (getattr(before, name) != getattr(ours.seen, name)).any(dim=1).all(), f"{name}: drawn anew every step"
    np.testing.assert_allclose(ours.seen.quat.norm(dim=1), 1.0, atol=1e-6)
    half = 0.3 * torch.randn(20000, 3)
    theirs = embedded_sensors.turn(Quaternion.of(craft.quat.numpy()), Vector.of(half.numpy()))
    np.testing.assert_allclose(sensors.turn(craft.quat, half), theirs.array, atol=1e-6)


def test_a_measurement_moves_nothing_between_host_and_device():
    class Seen(TorchFunctionMode):
        """Notes what torch is asked to do."""

        names: ClassVar[set[str]] = set()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.names.add(func.__name__)
            return func(*args, **(kwargs or {}))

    ours, craft = sensors.Sensors(SensorCfg(0.1, 0.1, 0.1, 0.1, 2, True), 4, "cpu"), any_craft(4)
    with Seen():
        ours.step(craft)
        assert ours.seen
    assert {"cat", "__setitem__", "__getitem__"} <= Seen.names
    assert not Seen.names & {"tensor", "as_tensor", "from_numpy", "arange", "to", "cpu", "item", "tolist", "__bool__"}


ARTICULATED = """#usda 1.0
(defaultPrim = "quad")
def Xform "quad" (prepend apiSchemas = ["PhysicsArticulationRootAPI"])
{
    def Xform "body" (prepend apiSchemas = ["PhysicsRigidBodyAPI", "PhysicsMassAPI"])
    {
        float physics:mass = 0.025
    }
    def Xform "propeller" (prepend apiSchemas = ["PhysicsRigidBodyAPI", "PhysicsMassAPI"])
    {
        float physics:mass = 0.005
    }
    def PhysicsRevoluteJoint "spin"
    {
        rel physics:body0 = </quad/body>
        rel physics:body1 = </quad/propeller>
    }
}
"""
ONE_BODY = """#usda 1.0
(defaultPrim = "quad")
def Xform "quad"
{
    def Xform "body" (prepend apiSchemas = ["PhysicsRigidBodyAPI", "PhysicsMassAPI"])
    {
        float physics:mass = 0.03
        float3 physics:diagonalInertia = (2e-5, 2e-5, 3e-5)
    }
}
"""


@pytest.mark.parametrize(
    ("usd", "mass", "inertia"),
    [(ONE_BODY, 0.03, 2e-5), (ARTICULATED, 0.03, 1.68e-5 * 0.03 / 0.0328), (None, 0.0328, 1.68e-5)],
    ids=["one body", "articulated", "looks alone"],
)
def test_another_asset_flies(make_isaaclab_env, tmp_path, usd, mass, inertia):
    import newton

    path = tmp_path / "quad.usda"
    if usd:
        path.write_text(usd)
    else:
        path = Path(newton.__file__).parent / "examples" / "assets" / "crazyflie.usd"
    still = [f"env.reset.{name}=0.0" for name in ("position", "linear_velocity", "angular_velocity", "tilt", "yaw")]
    env = make_isaaclab_env(TASK_ID, "env.scene.num_envs=2", f"env.robot.spawn.usd_path={path}", *still, *ZERO)
    env.reset()
    assert env.robot.num_bodies == 1
    np.testing.assert_allclose(env.robot.data.body_mass.torch, mass, rtol=1e-5)
    np.testing.assert_allclose(env.robot.data.body_inertia.torch[:, 0, 0], inertia, rtol=1e-4)
    for _ in range(50):
        env.step((2 * env.hover_action - 1).expand(-1, 4))
    assert env.craft.pos.abs().max() < 1e-3


def test_settings_that_make_no_sense_are_named(make_isaaclab_env):
    for override, named in (
        ("env.frame=moon", "env.frame"),
        ("env.drone=cf9", "env.drone"),
        ("env.quadrotors=/nowhere.csv", "^/nowhere.csv: No such file or directory$"),
        ("env.quadrotor_assignment=all", "env.quadrotor_assignment='all': expected one of cycle, random"),
        ("env.action=ctbr", "^env.action='ctbr': known to the embedded simulator only, use --sim crazyflow$"),
        ("env.reward.orientation_cost=quaternion", "^env.reward.orientation_cost='quaternion': known to the embedded"),
        ("env.teacher_frame=start", "^env.teacher_frame='start': known to the embedded simulator only"),
        ("env.sensor.delay_steps=101", "^env.sensor.delay_steps=101: expected 0 to 100, a second$"),
        ("env.sensor.delay_steps=2.5", "^env.sensor.delay_steps=2.5: expected a whole number$"),
        ("env.sensor.random_delay=maybe", "^env.sensor.random_delay='maybe': expected true or false$"),
    ):
        with pytest.raises(ValueError, match=named):
            make_isaaclab_env(TASK_ID, "env.scene.num_envs=2", override)


def test_the_names_of_managers_are_read(env):
    """Isaac Lab's own managers on the running simulation, in the forms that the stock tasks do not have."""

    def term(width: int, **settings) -> ObservationTermCfg:
        return ObservationTermCfg(func=lambda env: torch.zeros(env.num_envs, width), **settings)

    class Thrust(ActionTerm):
        """Two numbers that belong to no joint."""

        action_dim, raw_actions, processed_actions, _scale = 2, None, None, 0.5

        def process_actions(self, actions):
            pass

        apply_actions = process_actions

    class Managed:
        """The running environment with managers."""

        num_envs, device, step_dt, physics_dt = env.num_envs, env.device, env.step_dt, env.physics_dt
        scene, sim = env.scene, env.sim

    policy = ObservationGroupCfg(concatenate_terms=False)
    policy.velocity, policy.attitude = term(3, scale=(1.0, 2.0, 3.0)), term(4)
    timely = ObservationGroupCfg(history_length=2, history_order="time")
    timely.velocity, timely.attitude = term(3), term(4)
    managed = Managed()
    managed.observation_manager = ObservationManager({"policy": policy, "timely": timely}, managed)
    asset = next(name for name in env.scene.keys() if hasattr(env.scene[name], "data"))  # noqa: SIM118
    actions = SimpleNamespace(thrust=ActionTermCfg(class_type=Thrust, asset_name=asset))
    managed.action_manager = ActionManager(actions, managed)
    names = names_of(managed)
    assert names.layouts == {
        "policy/velocity": (("velocity", 3, ""),),
        "policy/attitude": (("attitude", 4, ""),),
        "timely": (("velocity", 3, ""), ("attitude", 4, "")) * 2,
    }
    assert names.terms["policy/velocity"]["velocity"]["scale"] == [1.0, 2.0, 3.0]
    assert names.terms["timely"]["attitude"]["history_order"] == "time"
    assert names.action_layout["layout"] == ["thrust[0]", "thrust[1]"]
    assert names.action_layout["terms"] == [{"name": "thrust", "type": "Thrust", "size": 2, "scale": [0.5, 0.5]}]
    assert "robot" not in names.deployment and names.deployment["decimation"] == env.cfg.decimation


def test_managers_of_another_kind_are_told_and_cost_nothing_else(env, capsys):
    env.observation_manager = env.action_manager = SimpleNamespace(active_terms=None)
    try:
        assert names_of(env) == ManagerNames()
    finally:
        del env.observation_manager, env.action_manager
    assert capsys.readouterr().err.startswith("No names in policy.json: the environment's managers are others (")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The three craft."""
    file = tmp_path_factory.mktemp("quadrotors") / "quads.csv"
    file.write_text(to_csv(ROWS))
    return file


@pytest.fixture
def fleet(make_isaaclab_env, file):
    """Environments 1 to 16 of many with the three craft; targets rest, nothing is randomized, sensors are late."""
    fixed = [f"env.scene.num_envs={NUM_ENVS}", "env.target.kind=fixed", *ZERO]
    late = ["env.sensor.position_noise=0.01", "env.sensor.delay_steps=3", "env.sensor.random_delay=true"]
    env = make_isaaclab_env(TASK_ID, f"env.quadrotors={file}", "env.first_env=1", *fixed, *late)
    env.cfg.quadrotor_assignment, env.cfg.frame = "cycle", "body"
    env.reset(seed=1)
    return env


@pytest.fixture(scope="module")
def embedded_fleet(file) -> PointControl:
    """The embedded task with the three craft, integrated as MuJoCo integrates."""
    return symplectic(quadrotors=str(file))


@pytest.mark.parametrize("assignment", ["cycle", "random"])
def test_the_craft_of_a_file_fly_as_in_the_embedded_task(fleet, embedded_fleet, assignment):
    """Mass, inertia, arm, motors, thrust, drag, and what is randomized about them, after different starts."""
    rng = np.random.default_rng(0)
    fleet.cfg.quadrotor_assignment = assignment
    assert max(spec.mass for spec in ROWS) > 10 * min(spec.mass for spec in ROWS)

    def policy(obs):
        return jnp.asarray(2 * (fleet.hover_action.numpy() + 0.03 * rng.normal(size=(NUM_ENVS, 4))) - 1, jnp.float32)

    worst = fly(fleet, embedded_fleet, policy, 0.4, closed_loop=False)
    assert worst["pos"].max() < 5e-5 and worst["vel"].max() < 2e-4
    assert worst["attitude"].max() < 2e-4 and worst["ang_vel"].max() < 1e-3
    ids = np.array([ROWS[i].id for i in fleet.row])
    np.testing.assert_array_equal(fleet.obs_buf["teacher_id"][:, 0], ids)
    assert (ids == np.resize([2, 40, 7], NUM_ENVS)).all() == (assignment == "cycle")


def test_a_new_episode_may_be_another_crafts(fleet):
    """Drawn where an episode ends and nowhere else; and whoever it is hovers at its own command."""
    fleet.cfg.quadrotor_assignment = "random"
    fleet.reset()
    before, ends = fleet.row.clone(), torch.arange(NUM_ENVS) % 2 == 0
    for _ in range(3):
        fleet.episode_length_buf[ends] = fleet.max_episode_length - 1
        obs = fleet.step(torch.zeros(NUM_ENVS, 4))[0]
    assert (fleet.row[~ends] == before[~ends]).all() and (fleet.row[ends] != before[ends]).any()
    np.testing.assert_array_equal(obs["teacher_id"][:, 0], [ROWS[i].id for i in fleet.row])
    body, mine = fleet.robot.data, [ROWS[i] for i in fleet.row]
    np.testing.assert_allclose(body.body_mass.torch[:, 0], [spec.mass for spec in mine], rtol=1e-6)
    moments = body.body_inertia.torch[:, 0].reshape(-1, 3, 3).diagonal(dim1=1, dim2=2)
    np.testing.assert_allclose(moments, [(spec.Ixx, spec.Iyy, spec.Izz) for spec in mine], rtol=1e-6)
    np.testing.assert_allclose(fleet.hover_action[:, 0], [spec.hover for spec in mine], rtol=1e-5)
    fleet.place(fleet._initial_craft(ResetCfg(0, 0, 0, 0, 0), torch.arange(NUM_ENVS)), torch.arange(NUM_ENVS).int())
    fleet.physics.thrust[:] = fleet.physics.mass[:] = 1.0
    for _ in range(20):
        fleet.step((2 * fleet.hover_action - 1).expand(-1, 4))
    assert fleet.craft.pos.abs().max() < 1e-3
    start = fleet._initial_craft(ResetCfg(on_target_fraction=0), torch.arange(NUM_ENVS).repeat(200))
    far = (start.pos.norm(dim=1).reshape(200, -1).amax(dim=0) / 10).numpy()
    arms = np.array([spec.arm_length for spec in mine])
    assert (far <= arms * (1 + 1e-5)).all() and (far > 0.95 * arms).all()


def test_the_student_sees_what_it_measures_and_the_teacher_the_truth(fleet):
    """Each environment with its own delay, also where an episode ends in between."""
    fleet.cfg.frame = "world"
    obs, _ = fleet.reset(seed=1)
    began, every = np.zeros(NUM_ENVS, int), np.arange(NUM_ENVS)
    flown: list[dict[str, np.ndarray]] = []
    for t in range(14):
        craft, delay = fleet.craft, fleet.sensors.delay.numpy()
        rotation = rotors.rotation_matrix(craft.quat).flatten(1)
        truth = {"pos": craft.pos, "vel": craft.vel, "rotation": rotation, "ang_vel": craft.ang_vel}
        flown.append({k: np_of(v) for k, v in truth.items()})
        then = np.maximum(t - delay, began)
        shown = {k: np.stack([step[k] for step in flown])[then, every] for k in truth}
        student, teacher = obs["policy"].numpy(), obs["teacher"].numpy()
        error = student[:, 0:3] - (shown["pos"] - fleet.target.pos.numpy())
        assert 0.005 < error.std() < 0.015 and np.abs(error).max() < 0.06
        np.testing.assert_allclose(student[:, 3:6], shown["vel"] - fleet.target.vel.numpy(), atol=1e-5)
        np.testing.assert_allclose(student[:, 6:18], np.hstack([shown["rotation"], shown["ang_vel"]]), atol=1e-5)
        np.testing.assert_allclose(teacher[:, 6:18], np.hstack([flown[t]["rotation"], flown[t]["ang_vel"]]), atol=1e-5)
        np.testing.assert_array_equal(student[:, 18:22], teacher[:, 18:22], err_msg="commands are known at once")
        if t == 7:
            assert set(delay.tolist()) == {0, 1, 2, 3}
            assert (np.abs(student[:, 15:18] - teacher[:, 15:18]).max(axis=1) > 1e-3)[delay > 0].all()
            before, ends = delay.copy(), every % 2 == 0
            fleet.episode_length_buf[torch.tensor(ends)] = fleet.max_episode_length - 1
            began[ends] = 8
        obs = fleet.step(0.2 * torch.randn(NUM_ENVS, 4) + (2 * fleet.hover_action - 1))[0]
    assert (delay[~ends] == before[~ends]).all() and (delay[ends] != before[ends]).any()


def test_processes_share_the_craft_out_together():
    for num_envs, parts, part, own, first in ((8, 1, 3, 8, 24), (None, 2, 1, 50, 50)):
        cfg = launch.load_env_cfg(TASK_ID, [])
        launch.number_envs(TASK_ID, cfg, num_envs, parts, part)
        assert (cfg.scene.num_envs, cfg.first_env) == (own, first)


def test_ids_that_no_observation_can_hold_are_refused(tmp_path):
    (file := tmp_path / "quads.csv").write_text(to_csv([dataclasses.replace(ROWS[0], id=MAX_ID + 1)]))
    with pytest.raises(SettingError, match=r"quads.csv: id is 16777217, on Isaac Lab expected at most 16777216"):
        Fleet.read(str(file))
