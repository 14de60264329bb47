"""Quadrotor dynamics in component form: Crazyflow's first-principles model, one formula a line.

The formulas are those of ``crazyflow.dynamics.first_principles``, whose documentation derives them, integrated by
``crazyflow.sim.integration.euler``; tests fly both from the same states. Every number of the state is an array (B,),
and so may be every parameter: each environment can have a craft of its own.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.constants import MIXING, RAD_PER_S, Constants
from bridge.crazyflie.vectors import Quaternion, Vector, in_memory

T = TypeVar("T")
Number = Array | float
"""A parameter: (B,), or () for all environments."""
Motors = tuple[Array, Array, Array, Array]
"""A number of each motor, (B,): front-right, back-right, back-left, front-left."""


class Craft(struct.PyTreeNode):
    """Physical state of a batch of quadrotors."""

    pos: Vector
    """m, world frame, relative to the spawn point."""
    quat: Quaternion
    """Body to world."""
    vel: Vector
    """m/s, world frame."""
    ang_vel: Vector
    """rad/s, body frame."""
    rotor_vel: Motors
    """rpm."""

    @staticmethod
    def of(pos: Array, quat: Array, vel: Array, ang_vel: Array, rotor_vel: Array) -> Craft:
        """From arrays of rows: (B, 3), (B, 4) xyzw, (B, 3), (B, 3), (B, 4)."""
        motors: Any = tuple(jnp.moveaxis(jnp.asarray(rotor_vel), -1, 0))
        return Craft(Vector.of(pos), Quaternion.of(quat), Vector.of(vel), Vector.of(ang_vel), motors)

    @property
    def rows(self) -> dict[str, Array]:
        """The arguments of :meth:`of`."""
        vectors = {name: getattr(self, name).array for name in ("pos", "quat", "vel", "ang_vel")}
        return {**vectors, "rotor_vel": jnp.stack(self.rotor_vel, axis=-1)}

    @property
    def vertical(self) -> Array:
        """Cosine of the tilt (B,): the world's z component of the body's z axis."""
        return 1.0 - 2.0 * (self.quat.x * self.quat.x + self.quat.y * self.quat.y)

    @property
    def is_finite(self) -> Array:
        """(B,) whether every number is."""
        return functools.reduce(operator.and_, map(jnp.isfinite, jax.tree.leaves(self)))


class Quadrotor(struct.PyTreeNode):
    """Physical parameters, see :class:`bridge.crazyflie.constants.Constants`; each may differ between environments."""

    mass: Number
    inertia: Vector
    arm: Number
    thrust: tuple[Number, Number, Number]
    torque: tuple[Number, Number, Number]
    spin_up: tuple[Number, Number]
    spin_down: tuple[Number, Number]
    rotor_inertia: Number
    drag: Vector
    rotor_min: Number
    rotor_max: Number
    gravity: Number

    @staticmethod
    def of(constants: Constants) -> Quadrotor:
        """With these numbers."""
        numbers: dict[str, Any] = constants._asdict()
        return Quadrotor(**{**numbers, "inertia": Vector(*constants.inertia), "drag": Vector(*constants.drag)})

    @property
    def weight(self) -> Number:
        """N."""
        return self.mass * self.gravity

    @property
    def arm_length(self) -> Number:
        """Distance of a motor from the centre, m."""
        return self.arm * math.sqrt(2)

    @property
    def hover_rotor_vel(self) -> Array:
        """Rotor speed at which four motors carry the weight, rpm."""
        return self.rotor_vel(self.weight / 4)

    def rotor_vel(self, thrust: Number) -> Array:
        """Rotor speed at which one motor pulls ``thrust`` (N), rpm."""
        c0, c1, c2 = self.thrust
        return (-c1 + jnp.sqrt(c1 * c1 - 4 * c2 * (c0 - thrust))) / (2 * c2)

    def command(self, action: T) -> T:
        """Motor commands in [0, 1] to rotor speeds in rpm: linear between the slowest and the fastest."""
        return jax.tree.map(lambda a: self.rotor_min + a * (self.rotor_max - self.rotor_min), action)

    def motor_speeds(self, rotor_vel: T) -> T:
        """Rotor speeds in rpm on the scale of :meth:`command`, so that a steady motor's speed equals its command."""
        return jax.tree.map(lambda w: (w - self.rotor_min) / (self.rotor_max - self.rotor_min), rotor_vel)


class Derivative(NamedTuple):
    """What changes a craft, beside its own velocities."""

    acc: Vector
    """m/s^2, world frame."""
    ang_acc: Vector
    """rad/s^2, body frame."""
    rotor_acc: Motors
    """rpm/s."""


def step(
    quadrotor: Quadrotor,
    craft: Craft,
    command: Motors | Callable[[Craft], Motors],
    force: Vector | None,
    dt: float,
    substeps: int,
) -> Craft:
    """Advance by ``substeps`` times ``dt`` seconds with the rotor speeds ``command`` (rpm) commanded.

    A controller in place of them is asked before every substep. ``force`` (N, world frame) acts on the centre of mass
    throughout. Of ``craft.quat`` only the direction counts.
    """
    craft = in_memory(craft.replace(quat=craft.quat.normalized()))

    def limited(command: Motors) -> Motors:
        return tuple(jnp.clip(c, quadrotor.rotor_min, quadrotor.rotor_max) for c in command)  # type: ignore[return-value]

    steady = None if callable(command) else limited(command)

    def substep(_: int, craft: Craft) -> Craft:
        now = in_memory(limited(command(craft))) if callable(command) else steady
        return integrate(craft, in_memory(derivative(quadrotor, craft, now, force)), dt)  # type: ignore[arg-type]

    # A CPU takes a tenth longer for the loop, and a quarter of the time to compile it; a GPU would launch five times
    # the kernels.
    after: Craft = jax.lax.platform_dependent(
        craft,
        cpu=lambda craft: jax.lax.fori_loop(0, substeps, substep, craft),
        default=lambda craft: jax.lax.fori_loop(0, substeps, substep, craft, unroll=True),
    )
    return after


def derivative(quadrotor: Quadrotor, craft: Craft, command: Motors, force: Vector | None) -> Derivative:
    """Newton's and Euler's equations of the body, with the motors' lag, thrust, drag and angular momentum."""
    q, rate, rotor_vel = quadrotor, craft.ang_vel, craft.rotor_vel
    rotor_acc: Any = tuple(spin(q, w, c) for w, c in zip(rotor_vel, command, strict=True))
    thrust = [polynomial(q.thrust, w) for w in rotor_vel]

    # m dv/dt = m g + R (f_thrust + C_a R' v) + f_ext
    rotation = craft.quat.rotation()
    air = rotation.apply_inverse(craft.vel)
    in_body = Vector(q.drag.x * air.x, q.drag.y * air.y, q.drag.z * air.z + sum(thrust))
    total = rotation.apply(in_body) if force is None else rotation.apply(in_body) + force
    acc = total * (1 / q.mass)
    acc = acc.replace(z=acc.z - q.gravity)

    # h = J_p e_z' M W; the torque of the rotors' angular momentum is w x e_z h in direction, dh/dt in size.
    momentum = q.rotor_inertia * RAD_PER_S * mixed(2, rotor_vel)
    momentum_rate = q.rotor_inertia * RAD_PER_S * mixed(2, rotor_acc)
    torque = Vector(
        q.arm * mixed(0, thrust) + rate.y * momentum,
        q.arm * mixed(1, thrust) - rate.x * momentum,
        mixed(2, [polynomial(q.torque, w) for w in rotor_vel]) + momentum_rate,
    )

    # J dw/dt = t - w x J w
    j = q.inertia
    net = torque - rate.cross(Vector(j.x * rate.x, j.y * rate.y, j.z * rate.z))
    return Derivative(acc, Vector(net.x / j.x, net.y / j.y, net.z / j.z), rotor_acc)


def integrate(craft: Craft, change: Derivative, dt: float) -> Craft:
    """Explicit Euler: the pose moves with the velocities from before the step."""
    return Craft(
        pos=craft.pos + craft.vel * dt,
        quat=(craft.quat * turned(craft.ang_vel * dt)).normalized(),
        vel=craft.vel + change.acc * dt,
        ang_vel=craft.ang_vel + change.ang_acc * dt,
        rotor_vel=tuple(w + a * dt for w, a in zip(craft.rotor_vel, change.rotor_acc, strict=True)),  # type: ignore[arg-type]
    )


def turned(angle: Vector) -> Quaternion:
    """The rotation by ``angle`` (rad): ``sin(|a| / 2) a / |a|`` and ``cos(|a| / 2)``, by their power series.

    They need no square root, so that gradients are right at rest too. Exact to rounding up to 2.5 rad.
    """
    a = angle.dot(angle)
    sine = 1 / 2 + a * (-1 / 48 + a * (1 / 3840 + a * (-1 / 645120 + a / 185794560)))
    cosine = 1 + a * (-1 / 8 + a * (1 / 384 + a * (-1 / 46080 + a / 10321920)))
    return Quaternion(angle.x * sine, angle.y * sine, angle.z * sine, cosine)


def spin(quadrotor: Quadrotor, rotor_vel: Array, command: Array) -> Array:
    """dW/dt = c_v (W_cmd - W) + c_d (W_cmd^2 - W^2), with constants of their own for gaining and losing speed."""
    linear, quadratic = command - rotor_vel, command * command - rotor_vel * rotor_vel
    (up, up2), (down, down2) = quadrotor.spin_up, quadrotor.spin_down
    return jnp.where(linear > 0, up * linear + up2 * quadratic, down * linear + down2 * quadratic)


def polynomial(coefficients: tuple[Number, Number, Number], x: Array) -> Array:
    """c0 + c1 x + c2 x^2."""
    c0, c1, c2 = coefficients
    return c0 + c1 * x + c2 * x * x


def mixed(axis: int, motors: Motors | list[Array]) -> Array:
    """The sum over the motors with the signs of an axis of :data:`bridge.crazyflie.constants.MIXING`."""
    return sum(sign * x for sign, x in zip(MIXING[axis], motors, strict=True))  # type: ignore[return-value]
