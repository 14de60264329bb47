"""How the craft differ from their model, drawn anew for every episode, and what of that a policy feels."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.cfg import RandomizationCfg
from bridge.crazyflie.dynamics import Quadrotor, polynomial
from bridge.crazyflie.random import Stream


class Physics(struct.PyTreeNode):
    """Multipliers on the nominal physical parameters, each (B,)."""

    mass: Array
    inertia: Array
    thrust: Array
    motor: Array

    @staticmethod
    def sample(cfg: RandomizationCfg, stream: Stream, purpose: int) -> Physics:
        """Draw each multiplier uniformly from [1 - width, 1 + width]."""
        widths = (cfg.mass, cfg.inertia, cfg.thrust, cfg.motor)
        drawn = stream.uniform(purpose, 4)
        return Physics(*(1.0 + width * (2.0 * u - 1.0) for width, u in zip(widths, drawn, strict=True)))

    def apply(self, quadrotor: Quadrotor) -> Quadrotor:
        """``quadrotor`` with these parameters."""
        return quadrotor.replace(
            mass=quadrotor.mass * self.mass,
            inertia=quadrotor.inertia * self.inertia,
            thrust=tuple(c * self.thrust for c in quadrotor.thrust),
            spin_up=tuple(c * self.motor for c in quadrotor.spin_up),
            spin_down=tuple(c * self.motor for c in quadrotor.spin_down),
        )


def felt(quadrotor: Quadrotor) -> list[Array]:
    """What the physical parameters mean to a policy, 4 numbers, each (B,); see :data:`bridge.crazyflie.cfg.PHYSICS`.

    The motor command that carries the craft; thrust over weight at full speed; the angular acceleration about the
    roll axis when the motors of one side run at full speed; and the rate at which a motor near hover approaches
    its command, spin-up and spin-down averaged.
    """
    hover, full = quadrotor.hover_rotor_vel, polynomial(quadrotor.thrust, jnp.asarray(quadrotor.rotor_max))
    roll = 2 * full * quadrotor.arm / quadrotor.inertia.x
    return [quadrotor.motor_speeds(hover), 4 * full / quadrotor.weight, roll, motor_rate(quadrotor)]


def motor_rate(quadrotor: Quadrotor) -> Array:
    """(B,) 1/s at which a motor near hover approaches its command, spin-up and spin-down averaged."""
    (up, up2), (down, down2) = quadrotor.spin_up, quadrotor.spin_down
    return 0.5 * (up + down) + (up2 + down2) * quadrotor.hover_rotor_vel
