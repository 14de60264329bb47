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
    """(B,) int32, control steps; None where it is the same in all episodes."""


def reset(cfg: SensorCfg, craft: Craft, stream: Stream, noise: int, delay: int) -> Sensors:
    """Measure where the episodes begin; ``noise`` and ``delay`` are the purposes of what is drawn."""
    first, longest = measure(cfg, craft, stream, noise), cfg.delay_steps
    (chance,) = stream.uniform(delay, 1)
    return Sensors(
        seen=first,
        recent=jnp.repeat(_row(first)[:, None], longest, axis=1) if longest else None,
        delay=(chance * (longest + 1)).astype(jnp.int32) if cfg.random_delay else None,
    )


def step(cfg: SensorCfg, sensors: Sensors, craft: Craft, stream: Stream, purpose: int) -> Sensors:
    """Measure once more, and let what is old enough arrive."""
    newest = measure(cfg, craft, stream, purpose)
    if sensors.recent is None:
        return sensors.replace(seen=newest)
    # Of delay + 1 measurements the last is the newest.
    known = jnp.concatenate([sensors.recent, _row(newest)[:, None]], axis=1)
    first = 0 if sensors.delay is None else cfg.delay_steps - sensors.delay
    arrived = known[jnp.arange(len(known)), first]
    seen = jax.tree.unflatten(jax.tree.structure(newest), list(arrived.T))
    return sensors.replace(seen=seen, recent=known[:, 1:])


def _row(measurement: Measurement) -> Array:
    """The 13 numbers of a measurement side by side (B, 13)."""
    return jnp.stack(jax.tree.leaves(measurement), axis=-1)


def measure(cfg: SensorCfg, craft: Craft, stream: Stream, purpose: int) -> Measurement:
    """The craft's state with this moment's noise."""
    noise = stream.normal(purpose, 12)
    pos, half, vel, rate = (Vector(*noise[i : i + 3]) for i in (0, 3, 6, 9))
    return Measurement(
        pos=craft.pos + pos * cfg.position_noise,
        quat=turn(craft.quat, half * (0.5 * jnp.deg2rad(cfg.attitude_noise))),
        vel=craft.vel + vel * cfg.velocity_noise,
        ang_vel=craft.ang_vel + rate * cfg.rate_noise,
    )


def turn(quat: Quaternion, half: Vector) -> Quaternion:
    """Quaternions behind a small rotation about the body axes by twice ``half`` (rad)."""
    return quat * Quaternion(half.x, half.y, half.z, jnp.ones_like(half.x)).normalized()
