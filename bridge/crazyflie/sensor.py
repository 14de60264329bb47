"""Sensors of the point-control task: what the student measures of its craft, with noise and delay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.cfg import SensorCfg
from bridge.crazyflie.dynamics import Craft
from bridge.crazyflie.random import Stream
from bridge.crazyflie.vectors import Quaternion, Vector


class Measurement(struct.PyTreeNode):
    """One measurement of a batch of craft; the fields are those of :class:`bridge.crazyflie.dynamics.Craft`."""

    pos: Vector
    quat: Quaternion
    vel: Vector
    ang_vel: Vector


class Sensors(struct.PyTreeNode):
    """What has been measured."""

    seen: Measurement
    """What the student sees now."""
    recent: Array | None
    """(B, delay, 13) the numbers of the newest measurements, oldest first; None without delay."""
    delay: Array | None
    """(B,) int32, control steps; None without delay."""


def reset(cfg: SensorCfg, craft: Craft, stream: Stream, purposes: tuple[int, int], longest: int) -> Sensors:
    """Measure where the episodes begin.

    ``purposes`` are those of the random noise and delays; ``longest`` is the delay that there is room for, in steps.
    Where it is more than ``cfg.delay_steps``, that may be a traced number.
    """
    first = measure(cfg, craft, stream, purposes[0])
    (chance,) = stream.uniform(purposes[1], 1)
    drawn = (chance * (cfg.delay_steps + 1)).astype(jnp.int32)
    if not cfg.random_delay:
        drawn = jnp.full_like(drawn, cfg.delay_steps)
    return Sensors(
        seen=first,
        recent=jnp.repeat(_row(first)[:, None], longest, axis=1) if longest else None,
        delay=drawn if longest else None,
    )


def step(cfg: SensorCfg, sensors: Sensors, craft: Craft, stream: Stream, purpose: int) -> Sensors:
    """Measure once more, and let what is old enough arrive."""
    newest = measure(cfg, craft, stream, purpose)
    if sensors.recent is None or sensors.delay is None:
        return sensors.replace(seen=newest)
    # The last is the newest.
    known = jnp.concatenate([sensors.recent, _row(newest)[:, None]], axis=1)
    arrived = known[jnp.arange(len(known)), sensors.recent.shape[1] - sensors.delay]
    seen = jax.tree.unflatten(jax.tree.structure(newest), list(arrived.T))
    return sensors.replace(seen=seen, recent=known[:, 1:])


def _row(measurement: Measurement) -> Array:
    """The 13 numbers of a measurement side by side (B, 13)."""
    return jnp.stack(jax.tree.leaves(measurement), axis=-1)


def measure(cfg: SensorCfg, craft: Craft, stream: Stream, purpose: int) -> Measurement:
    """The craft's state with this moment's noise."""
    exact = Measurement(pos=craft.pos, quat=craft.quat, vel=craft.vel, ang_vel=craft.ang_vel)

    def noisy() -> Measurement:
        noise = stream.normal(purpose, 12)
        pos, half, vel, rate = (Vector(*noise[i : i + 3]) for i in (0, 3, 6, 9))
        return Measurement(
            pos=craft.pos + pos * cfg.position_noise,
            quat=turn(craft.quat, half * (0.5 * jnp.deg2rad(cfg.attitude_noise))),
            vel=craft.vel + vel * cfg.velocity_noise,
            ang_vel=craft.ang_vel + rate * cfg.rate_noise,
        )

    # Twelve normal numbers cost as much as the whole physics of a step, and perfect sensors need none.
    deviations = (cfg.position_noise, cfg.velocity_noise, cfg.attitude_noise, cfg.rate_noise)
    if all(isinstance(x, (int, float)) for x in deviations):
        return noisy() if any(deviations) else exact
    return jax.lax.cond(jnp.any(jnp.stack(deviations) != 0), noisy, lambda: exact)


def turn(quat: Quaternion, half: Vector) -> Quaternion:
    """Quaternions behind a small rotation about the body axes by twice ``half`` (rad)."""
    return quat * Quaternion(half.x, half.y, half.z, jnp.ones_like(half.x)).normalized()
