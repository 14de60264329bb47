"""Which rotor speeds make a thrust and a torque: what controllers in the craft end with."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from bridge.crazyflie.dynamics import MIXING, Motors, Number, Quadrotor, polynomial
from bridge.crazyflie.vectors import Vector


def arms(quadrotor: Quadrotor) -> tuple[Number, Number, Array]:
    """By how much a motor's thrust turns the body about x, y and z, m: z is its propeller's drag torque over its
    thrust, which differs little between speeds and is that of hovering."""
    hover = quadrotor.hover_rotor_vel
    return quadrotor.arm, quadrotor.arm, polynomial(quadrotor.torque, hover) / polynomial(quadrotor.thrust, hover)


def thrust_limits(quadrotor: Quadrotor) -> tuple[Array, Array]:
    """Of one motor, at its slowest and at its fastest, N."""
    slow, fast = (polynomial(quadrotor.thrust, jnp.asarray(w)) for w in (quadrotor.rotor_min, quadrotor.rotor_max))
    return slow, fast


def rotor_speeds(quadrotor: Quadrotor, thrust: Array, torque: Vector) -> Motors:
    """Rotor speeds (rpm) of four motors that pull ``thrust`` (N) together and turn the body by ``torque`` (Nm), each
    (B,); motors that cannot are at their limit."""
    shares = [side / arm for side, arm in zip(torque.parts, arms(quadrotor), strict=True)]
    limits = thrust_limits(quadrotor)

    def speed(motor: int) -> Array:
        pull = 0.25 * (thrust + sum(MIXING[axis][motor] * share for axis, share in enumerate(shares)))
        return quadrotor.rotor_vel(jnp.clip(pull, *limits))

    speeds: Any = tuple(speed(motor) for motor in range(4))
    return speeds
