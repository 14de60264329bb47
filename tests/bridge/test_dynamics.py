"""Our dynamics against Crazyflow's own simulation, in single and double precision; and how few kernels they take."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.crazyflie import dynamics
from bridge.crazyflie.airframe import Airframe
from bridge.crazyflie.constants import Constants
from bridge.crazyflie.dynamics import Craft, Quadrotor
from bridge.crazyflie.vectors import Vector

pytestmark = pytest.mark.full

STATES = 1000
FREQ = 500
COMMANDS = 100
"""A second."""
FIELDS = ("pos", "quat", "vel", "ang_vel", "rotor_vel")


@functools.cache
def crazyflow(drone: str) -> Any:
    """Crazyflow's simulator of ``STATES`` craft."""
    from bridge.crazyflie.render import build_sim

    with jax.enable_x64(False):
        return build_sim(drone, STATES, FREQ)


def quadrotor_of(drone: str) -> Quadrotor:
    """Ours with Crazyflow's numbers, which it keeps in single precision."""
    quadrotor = Quadrotor.of(Constants.of(Airframe.load(drone)))
    rounded = jax.tree.map(np.float32, quadrotor)
    return rounded.replace(rotor_min=quadrotor.rotor_min, rotor_max=quadrotor.rotor_max)


def fly_ours(quadrotor: Quadrotor, states: dict[str, Any], commands: Any, force: Any) -> dict[str, Any]:
    """The state after each command (T, B, ...), by our dynamics."""

    def step(craft: Craft, command: Any) -> Any:
        craft = dynamics.step(quadrotor, craft, tuple(command.T), Vector.of(force), 1.0 / FREQ, 5)
        return craft, craft.rows

    return jax.lax.scan(step, Craft.of(**states), commands)[1]


def fly_theirs(data: Any, states: dict[str, Any], commands: Any, force: Any) -> dict[str, Any]:
    """The same by Crazyflow's pipeline. Neither its floor nor its limits for commands, which are those of one drone."""
    pipeline = crazyflow("cf2x_L250").step_pipeline
    stages = [stage for name, stage in pipeline.items() if name not in ("clip_floor_pos", "clip_rotor_vel_cmd")]
    states = {k: v[:, None] for k, v in states.items()}
    data = data.replace(
        params=data.params.replace(J_inv=jnp.linalg.inv(data.params.J)),
        states=data.states.replace(force=force[:, None], **states),
    )

    def substep(_: int, data: Any) -> Any:
        for stage in stages:
            data = stage(data)
        return data

    def step(data: Any, command: Any) -> Any:
        data = data.replace(controls=data.controls.replace(rotor_vel=command[:, None]))
        data = jax.lax.fori_loop(0, 5, substep, data)
        return data, {k: getattr(data.states, k)[:, 0] for k in FIELDS}

    return jax.lax.scan(step, data, commands)[1]


def total(fly: Any, craft: Any, states: Any, commands: Any, force: Any, weights: dict[str, Any]) -> Any:
    """A weighted sum of all numbers of the last states."""
    end = fly(craft, states, commands, force)
    return sum((weights[k] * end[k][-1]).sum() for k in FIELDS)


FLIGHTS = {fly: jax.jit(fly) for fly in (fly_ours, fly_theirs)}
GRADIENTS = {fly: jax.jit(jax.grad(functools.partial(total, fly), argnums=(1, 2, 3))) for fly in FLIGHTS}


def in_precision(dtype: Any, tree: Any) -> Any:
    """Its real numbers as arrays of ``dtype``."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) else x, tree
    )


class Case:
    """1000 random states of a drone, a second of random commands and a steady force, in some precision."""

    def __init__(self, drone: str, dtype: Any):
        rng, self.drone, self.dtype = np.random.default_rng(3), drone, dtype
        self.quadrotor = quadrotor_of(drone)
        low, high = float(self.quadrotor.rotor_min), float(self.quadrotor.rotor_max)
        self.states = {
            "pos": rng.normal(size=(STATES, 3)),
            "quat": rng.normal(size=(STATES, 4)),
            "vel": rng.normal(size=(STATES, 3)),
            "ang_vel": 3.0 * rng.normal(size=(STATES, 3)),
            "rotor_vel": rng.uniform(low, high, (STATES, 4)),
        }
        self.states["quat"] /= np.linalg.norm(self.states["quat"], axis=1, keepdims=True)
        self.commands = rng.uniform(low, high, (COMMANDS, STATES, 4))
        self.force = 0.1 * float(self.quadrotor.weight) * rng.normal(size=(STATES, 3))

    def apply(self, programs: dict[Any, Any], commands: np.ndarray, *more: Any) -> list[Any]:
        """What ours and theirs make of the case."""
        crafts = {fly_ours: self.quadrotor, fly_theirs: crazyflow(self.drone).data}
        arguments = [(crafts[fly], self.states, commands, self.force, *more) for fly in programs]
        pairs = zip(programs.values(), arguments, strict=True)
        return [jax.device_get(program(*in_precision(self.dtype, given))) for program, given in pairs]


@pytest.mark.parametrize("drone", Airframe.names())
def test_airframes_are_those_of_crazyflow(drone):
    params, airframe = crazyflow(drone).data.params, Airframe.load(drone)
    for field in dataclasses.fields(airframe):
        if not field.name.startswith("thrust_m"):
            theirs = np.squeeze(getattr(params, field.name))
            np.testing.assert_allclose(theirs, getattr(airframe, field.name), rtol=1e-6, err_msg=field.name)
    limits = crazyflow(drone).step_pipeline["clip_rotor_vel_cmd"].keywords
    assert (airframe.rotor_min, airframe.rotor_max) == pytest.approx((limits["lower"], limits["upper"]))


@pytest.mark.parametrize("drone", Airframe.names())
def test_a_second_of_flight_is_crazyflows(drone):
    """To 1e-12 of each quantity's size in double precision, and to 1e-4 in single precision, where rounding grows."""
    for dtype, limit in ((np.float64, 1e-12), (np.float32, 1e-4)):
        with jax.enable_x64(dtype is np.float64):
            case = Case(drone, dtype)
            ours, theirs = case.apply(FLIGHTS, case.commands)
        for name in FIELDS:
            apart = np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()
            assert apart < limit, f"{name}: {apart}"


@pytest.mark.parametrize("drone", Airframe.names())
def test_gradients_are_crazyflows(drone):
    """Of a sum of the states after 40 ms, with respect to the first states, the commands and the force."""
    with jax.enable_x64(True):
        case = Case(drone, np.float64)
        weights = {k: np.random.default_rng(5).normal(size=v.shape) / np.abs(v).max() for k, v in case.states.items()}
        ours, theirs = case.apply(GRADIENTS, case.commands[:4], weights)
    pairs = zip(jax.tree_util.tree_leaves_with_path(theirs), jax.tree.leaves(ours), strict=True)
    for (path, value), mine in pairs:
        scale = np.abs(value).max()
        assert scale > 0
        np.testing.assert_allclose(mine, value, atol=1e-10 * scale, rtol=1e-10, err_msg=jax.tree_util.keystr(path))


def test_commands_beyond_the_motors_limits_are_cut(crazyflie):
    quadrotor, state = crazyflie.quadrotor, crazyflie.reset(jax.random.key(0))
    craft = state.pipeline_state.craft

    def after(command: Any) -> Any:
        return dynamics.step(quadrotor, craft, (jnp.full(8, command),) * 4, None, 0.002, 5)

    for limit, beyond in ((quadrotor.rotor_max, 1.5 * quadrotor.rotor_max), (quadrotor.rotor_min, 0.0)):
        pairs = zip(jax.tree.leaves(after(limit)), jax.tree.leaves(after(beyond)), strict=True)
        assert all((a == b).all() for a, b in pairs)


def test_each_environment_may_have_a_craft_of_its_own():
    """A batch of all of Crazyflow's drones flies as each of them alone."""
    quadrotors = [Quadrotor.of(Constants.of(Airframe.load(name))) for name in Airframe.names()]
    mixed = jax.tree.map(lambda *values: jnp.array(values), *quadrotors)
    states = {k: v[: len(quadrotors)] for k, v in Case("cf2x_L250", np.float32).states.items()}
    command = (jnp.full(len(quadrotors), 15_000.0),) * 4
    together = dynamics.step(mixed, Craft.of(**in_precision(np.float32, states)), command, None, 0.002, 5).rows
    for i, quadrotor in enumerate(quadrotors):
        one = in_precision(np.float32, {k: v[i : i + 1] for k, v in states.items()})
        alone = dynamics.step(quadrotor, Craft.of(**one), tuple(c[:1] for c in command), None, 0.002, 5).rows
        for name in FIELDS:
            np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-5, atol=1e-5, err_msg=name)
    assert np.abs(np.diff(together["vel"][:, 2])).min() > 1e-3
