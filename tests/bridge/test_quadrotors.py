"""Quadrotors as data: files, the distribution, and that what is written is what is flown."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.crazyflie import PointControl, PointControlCfg, dynamics
from bridge.crazyflie.airframe import Airframe
from bridge.crazyflie.cfg import RandomizationCfg, ResetCfg, WindCfg
from bridge.crazyflie.constants import Constants
from bridge.crazyflie.dynamics import Quadrotor
from bridge.crazyflie.simulator import drones
from bridge.crazyflie.vectors import Vector
from bridge.env import AutoReset
from bridge.errors import SettingError
from bridge.quadrotor_distribution import DISTRIBUTIONS, FOUNDATION, RAPTOR, WIDE
from bridge.quadrotors import COLUMNS, GRAVITY, REQUIRED, read_csv, to_csv
from jdistill.run.mesh import BY_ENV, EnvMesh
from tests.conftest import jitted

quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiled in half the time."""
NOMINAL = RandomizationCfg(mass=0, inertia=0, thrust=0, motor=0)
USERS = """id,mass,arm_length,Ixx,Iyy,Izz,twr,motor_tau
7,0.0282,0.04384,2.44864e-05,2.44864e-05,3.61504e-05,2.25,0.05
3,0.905,0.130,6.78e-3,6.78e-3,1.242e-2,4.52,0.068
"""
"""As the users' scripts write it."""


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        file = tmp_path / "quads.csv"
        file.write_text(text)
        return file

    return write


# -- files ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(DISTRIBUTIONS)), st.integers(0, 2**31), st.integers(1, 4))
def test_what_is_written_is_read_back(tmp_path_factory, name, seed, num):
    rows = DISTRIBUTIONS[name].sample(num, seed)
    file = tmp_path_factory.getbasetemp() / "quads.csv"
    file.write_text(to_csv(rows))
    assert read_csv(file) == rows
    assert not any(row.fault() or DISTRIBUTIONS[name].outside(row) for row in rows if name == "wide")
    assert DISTRIBUTIONS[name].sample(num + 1, seed)[:num] == rows


def test_a_file_of_the_users_needs_no_further_columns(write):
    first, second = read_csv(write("\ufeff" + USERS.replace("twr", "thrust_to_weight").replace("\n", "\r\n") + "\n"))
    assert (first.id, second.id, second.mass) == (7, 3, 0.905)
    assert first.motor_tau_down == first.motor_tau == 0.05 and first.torque_coefficient == 0.005964552
    assert math.isclose(first.curve(1.0), 1.0) and first.seed is None


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("", "", "no such file|No such file"),
        (USERS, "", "is empty"),
        (USERS, ",".join(REQUIRED) + "\n", "no quadrotor"),
        (",twr", "", "no column twr"),
        ("motor_tau", "motor_tua", "unknown column 'motor_tua' .did you mean motor_tau"),
        ("Iyy", "Ixx", "two columns Ixx"),
        ("0.0282", "-0.0282", "line 2: mass is -0.0282, expected a positive number"),
        ("0.0282", "nan", "line 2: mass is nan"),
        ("0.0282", "", "line 2: mass is '', expected a number"),
        ("0.0282", "28 g", "line 2: mass is '28 g', expected a number"),
        ("\n3,", "\n7,", "line 3: id 7 again, it is that of line 2"),
        ("\n3,", "\n3.5,", "line 3: id is '3.5'"),
        ("\n3,", "\n-3,", "line 3: id is -3"),
        ("\n3,", "\n3,1,", "line 3: 9 cells"),
        ("2.25", "0.9", "line 2: twr is 0.9, and so no speed"),
        ("3.61504e-05", "3.6", "line 2: inertia"),
    ],
)
def test_mistakes_are_one_line(write, tmp_path, old, new, named):
    file = write(USERS.replace(old, new, 1)) if old else tmp_path / "missing.csv"
    with pytest.raises(SettingError, match=named) as told:
        read_csv(file)
    assert "\n" not in str(told.value) and str(file) in str(told.value)


def test_the_environment_names_its_file_and_its_assignments(write):
    for changes in ({"quadrotors": "missing.csv"}, {"quadrotor_assignment": "both"}):
        with pytest.raises(SettingError, match=next(iter(changes.values()))):
            PointControl(PointControlCfg(num_envs=2, **changes))


# -- the distribution ----------------------------------------------------------------------------------------------


def test_every_crazyflie_lies_inside():
    for spec in drones():
        assert spec.fault() is None and not WIDE.outside(spec), spec.name
    # Of the published ranges the weakest one is no part, nor of the fork's any.
    outside = {spec.name: RAPTOR.outside(spec) for spec in drones()}
    assert "twr" in outside["cf2x_L250"] and "Ixx" not in outside["cf2x_L250"]
    assert all("Ixx" in FOUNDATION.outside(spec) for spec in drones())


def test_samples_have_the_published_distribution():
    rows = RAPTOR.sample(4000, 5)
    uniform = {
        (1.5, 5.0): [r.twr for r in rows],
        (0.02 ** (1 / 3), 5 ** (1 / 3)): [r.mass ** (1 / 3) for r in rows],
        (40.0, 1200.0): [r.arm_length * r.max_thrust / 4 / r.Ixx for r in rows],
        (0.03, 0.1): [r.motor_tau for r in rows],
        (0.03, 0.3): [r.motor_tau_down for r in rows],
        (0.005, 0.05): [r.torque_coefficient for r in rows],
    }
    for (low, high), values in uniform.items():
        shares = (np.array(values) - low) / (high - low)
        np.testing.assert_allclose(np.quantile(shares, [0, 0.25, 0.5, 0.75, 1]), [0, 0.25, 0.5, 0.75, 1], atol=0.03)
    k = 7.24 / np.array([r.size_mass_ratio for r in rows])
    deviation = np.where(k >= 1, k - 1, 1 - 1 / k)
    assert abs(deviation.mean()) < 0.006 and abs(deviation.std() - 0.1) < 0.005
    assert all(math.isclose(r.Izz, 1.832 * r.Ixx) and math.isclose(r.curve(1), 1) for r in rows)


# -- what is flown -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    """Seven rows whose ids are not their places: Crazyflow's drones and others."""
    known = [dataclasses.replace(spec, id=10 + spec.id) for spec in drones()]
    return [*known, *WIDE.sample(3, 4)]


@pytest.fixture(scope="module")
def fleet(rows, tmp_path_factory) -> PointControl:
    """Twelve environments that fly them in turn, one physics step a command."""
    file = tmp_path_factory.mktemp("fleet") / "quads.csv"
    file.write_text(to_csv(rows))
    still = ResetCfg(position=0, linear_velocity=0, angular_velocity=0, tilt=0, yaw=0)
    cfg = PointControlCfg(num_envs=12, quadrotors=str(file), physics_freq=500, policy_freq=500, reset=still)
    return jitted(PointControl(dataclasses.replace(cfg, randomization=NOMINAL)))


def test_what_is_written_is_what_is_flown(rows, fleet):
    """Mass, thrust, inertia, arm and motors by what the craft do: no number is asked for that the file gave."""
    dt, state = fleet.step_dt, fleet.reset(jax.random.key(0))
    want = [rows[i % len(rows)] for i in range(fleet.num_envs)]

    def fly(speeds, commands=None, rate=(0.0, 0.0, 0.0), force=None):
        """Accelerations (B, 3) and (B, 3) in a step with motors that run at ``speeds``, and what these change by."""
        row = state.pipeline_state.row
        quadrotor = fleet.quadrotor_in(row)
        motors = tuple(jnp.full(12, s) for s in speeds)
        spin = Vector(*(jnp.full(12, r) for r in rate))
        craft = state.pipeline_state.craft.replace(rotor_vel=motors, ang_vel=spin)
        command = motors if commands is None else tuple(jnp.full(12, c) for c in commands)
        push = None if force is None else Vector(*(jnp.full(12, f) for f in force))
        after = dynamics.step(quadrotor, craft, command, push, dt, 1)
        return [
            np.array(x, np.float64)
            for x in (
                (after.vel.array - craft.vel.array) / dt,
                (after.ang_vel.array - craft.ang_vel.array) / dt,
                (after.rotor_vel[0] - craft.rotor_vel[0]) / dt,
            )
        ]

    def close(found, name):
        np.testing.assert_allclose(found, [getattr(q, name) for q in want], rtol=2e-3, err_msg=name)

    full, still = (1.0,) * 4, (0.0,) * 4
    pushed, free = fly(full, force=(5.0, 0.0, 0.0)), fly(full)
    mass = 5.0 / pushed[0][:, 0]
    close(mass, "mass")
    thrust = mass * (free[0][:, 2] + GRAVITY)
    close(thrust, "max_thrust")
    # No torque: the moments' ratios are in how the rates change. The yaw torque of known thrusts gives their size.
    change = fly(full, rate=(3.0, 4.0, 5.0))[1]
    a, b = change[:, 0] / 20.0, change[:, 1] / 15.0
    yy = (1 + a) / (1 - b)
    zz = 1 + b * yy
    weak = mass * (fly(still)[0][:, 2] + GRAVITY)
    kappa = np.array([q.torque_coefficient for q in want])
    inertia_z = kappa * (thrust - weak) / 2 / np.abs(fly((0.0, 1.0, 0.0, 1.0))[1][:, 2])
    close(inertia_z, "Izz")
    close(inertia_z / zz, "Ixx")
    close(inertia_z / zz * yy, "Iyy")
    roll = np.abs(fly((0.0, 0.0, 1.0, 1.0))[1][:, 0])
    arm = roll * (inertia_z / zz) / ((thrust - weak) / 2) * math.sqrt(2)
    close(arm, "arm_length")
    close(0.5 / fly((0.5,) * 4, (1.0,) * 4)[2], "motor_tau")
    close(-0.5 / fly((0.5,) * 4, still)[2], "motor_tau_down")


def test_a_row_flies_as_its_drone_does(rows, fleet):
    """Half a second of small differences between the motors: rows of Crazyflow's drones end where the drones do."""
    commands, state = 0.03 * jax.random.normal(jax.random.key(1), (50, 4)), fleet.reset(jax.random.key(0))

    @jax.jit
    def fly(quadrotor, craft):
        hover = quadrotor.motor_speeds(quadrotor.hover_rotor_vel)

        def step(craft, command):
            return dynamics.step(
                quadrotor, craft, quadrotor.command(tuple(hover + c for c in command)), None, 0.002, 5
            ), ()

        craft = craft.replace(rotor_vel=(jnp.full(12, quadrotor.hover_rotor_vel),) * 4)
        return jax.lax.scan(step, craft, commands)[0]

    craft = state.pipeline_state.craft
    ours = fly(fleet.quadrotor_in(state.pipeline_state.row), craft)
    for i, name in enumerate(Airframe.names()):
        theirs = fly(Quadrotor.of(Constants.of(Airframe.load(name))), craft)
        np.testing.assert_allclose(ours.vel.array[i], theirs.vel.array[i], atol=0.02)
        # Reaction of the propellers to a change of their speed, which is about the vertical, is left out.
        rates = [np.array(c.ang_vel.array[i, :2]) for c in (ours, theirs)]
        np.testing.assert_allclose(*rates, atol=0.05 * np.abs(rates[1]).max())


def test_environments_know_whose_craft_they_fly(rows, fleet):
    ids = np.array([row.id for row in rows])
    state = fleet.reset(jax.random.key(3))
    assert state.info["teacher_id"].dtype == jnp.int32
    np.testing.assert_array_equal(state.info["teacher_id"], ids[np.arange(12) % len(rows)])
    # Divided among devices they are shared out as on a single one.
    half = PointControl(dataclasses.replace(fleet.cfg, num_envs=6))
    mesh = EnvMesh(jax.devices()[:2])
    divided = mesh.program(lambda keys: half.reset(keys).info["teacher_id"], BY_ENV, BY_ENV)
    np.testing.assert_array_equal(divided(jax.random.split(jax.random.key(0), 12)), state.info["teacher_id"])


def test_a_new_episode_may_be_another_crafts(rows, fleet):
    cfg = dataclasses.replace(fleet.cfg, quadrotor_assignment="random", episode_length_s=0.006, wind=WindCfg(0.1))
    env = AutoReset(PointControl(dataclasses.replace(cfg, num_envs=64)))
    state, env.step = jax.jit(env.reset)(jax.random.key(0)), quickly(env.step)
    ids, seen = np.array([row.id for row in rows]), []
    for _ in range(7):
        np.testing.assert_array_equal(state.info["teacher_id"], ids[state.pipeline_state.row])
        seen.append(np.array(state.info["teacher_id"]))
        state = env.step(state, jnp.zeros((64, 4)))
    assert (seen[0] == seen[2]).all() and (seen[2] != seen[3]).any() and (seen[3] == seen[5]).all()
    assert set(np.concatenate(seen)) == set(ids)


def test_columns_begin_as_the_users_do():
    assert COLUMNS[: len(REQUIRED)] == REQUIRED
