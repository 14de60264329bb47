"""The craft's own controller: from a velocity and a yaw rate to rotor speeds, within the physics' steps.

Errors of the velocity ask for an acceleration, that and the air's drag for a direction of the thrust, the error of the
attitude for body rates, and their error for torques (Lee, Leok, McClamroch, "Geometric tracking control of a quadrotor
UAV on SE(3)", 2010). It knows the nominal craft and reads the true state.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from bridge.crazyflie import mixer
from bridge.crazyflie.dynamics import Craft, Motors, Quadrotor
from bridge.crazyflie.forest.cfg import PilotCfg
from bridge.crazyflie.vectors import Vector

VERTICAL_SHARE = 0.4
"""Of gravity: the largest acceleration up and down that it asks for."""


def rotor_speeds(cfg: PilotCfg, quadrotor: Quadrotor, craft: Craft, velocity: Vector, yaw_rate: Array) -> Motors:
    """Rotor speeds (rpm) towards ``velocity`` (m/s, world frame) and ``yaw_rate`` (rad/s), each (B,)."""
    q = quadrotor
    wanted = (velocity - craft.vel) * cfg.velocity_gain
    limit = q.gravity * jnp.tan(jnp.deg2rad(cfg.max_tilt))
    level = jnp.minimum(1.0, limit * jax.lax.rsqrt(wanted.x * wanted.x + wanted.y * wanted.y + 1e-6))
    most = VERTICAL_SHARE * q.gravity
    force = Vector(wanted.x * level, wanted.y * level, q.gravity + jnp.clip(wanted.z, -most, most)) * q.mass
    rotation = craft.quat.rotation()
    ahead, air = rotation.apply_inverse(force), rotation.apply_inverse(craft.vel)
    ahead -= Vector(q.drag.x * air.x, q.drag.y * air.y, q.drag.z * air.z)

    # e_z x f / |f| is the rotation that turns the body's z axis into the force's direction.
    per_force = cfg.attitude_gain * jax.lax.rsqrt(ahead.dot(ahead))
    rate = Vector(-ahead.y * per_force, ahead.x * per_force, yaw_rate)
    change = (rate - craft.ang_vel) * cfg.rate_gain
    torque = Vector(q.inertia.x * change.x, q.inertia.y * change.y, q.inertia.z * change.z)
    return mixer.rotor_speeds(q, ahead.z, torque)
