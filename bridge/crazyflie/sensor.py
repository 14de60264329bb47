"""Sensors of the point-control task: what the student measures of its craft, with noise and delay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.cfg import SensorCfg
from bridge.crazyflie.dynamics import Craft


class Measurement(struct.PyTreeNode):
    """One measurement of a batch of craft; the fields are those of :class:`bridge.crazyflie.dynamics.Craft`."""

    pos: Array
    """(B, 3) m."""
    quat: Array
    """(B, 4) xyzw."""
    vel: Array
    """(B, 3) m/s."""
    ang_vel: Array
    """(B, 3) rad/s."""


class Sensors(struct.PyTreeNode):
    """What has been measured."""

    seen: Measurement
    """What the student sees now."""
    recent: Measurement | None
    """The newest measurements, oldest first, each field (B, delay, ...); None without delay."""
    delay: Array | None
    """(B,) int32, control steps; None where it is the same in all episodes."""


def reset(cfg: SensorCfg, craft: Craft, rng: Array) -> Sensors:
    """Measure where the episodes begin."""
    noise_key, delay_key = jax.random.split(rng)
    first, longest = measure(cfg, craft, noise_key), cfg.delay_steps
    return Sensors(
        seen=first,
        recent=jax.tree.map(lambda x: jnp.repeat(x[:, None], longest, axis=1), first) if longest else None,
        delay=jax.random.randint(delay_key, craft.pos.shape[:1], 0, longest + 1) if cfg.random_delay else None,
    )


def step(cfg: SensorCfg, sensors: Sensors, craft: Craft, rng: Array) -> Sensors:
    """Measure once more, and let what is old enough arrive."""
    newest = measure(cfg, craft, rng)
    if sensors.recent is None:
        return sensors.replace(seen=newest)
    all_ = jax.tree.map(lambda x, new: jnp.concatenate([x, new[:, None]], axis=1), sensors.recent, newest)
    # Of delay + 1 measurements the last is the newest.
    first = 0 if sensors.delay is None else cfg.delay_steps - sensors.delay
    seen = jax.tree.map(lambda x: x[jnp.arange(len(x)), first], all_)
    return sensors.replace(seen=seen, recent=jax.tree.map(lambda x: x[:, 1:], all_))


def measure(cfg: SensorCfg, craft: Craft, rng: Array) -> Measurement:
    """The craft's state with this moment's noise."""
    noise = jax.random.normal(rng, (4, craft.pos.shape[0], 3))
    turned = 0.5 * jnp.deg2rad(cfg.attitude_noise) * noise[1]
    return Measurement(
        pos=craft.pos + cfg.position_noise * noise[0],
        quat=turn(craft.quat, turned),
        vel=craft.vel + cfg.velocity_noise * noise[2],
        ang_vel=craft.ang_vel + cfg.rate_noise * noise[3],
    )


def turn(quat: Array, half: Array) -> Array:
    """Quaternions xyzw (B, 4) behind a small rotation about the body axes by twice ``half`` (B, 3) rad."""
    small = jnp.concatenate([half, jnp.ones_like(half[:, :1])], axis=-1)
    small = small / jnp.linalg.norm(small, axis=-1, keepdims=True)
    (a, d), (b, e) = (quat[:, :3], quat[:, 3:]), (small[:, :3], small[:, 3:])
    return jnp.concatenate([d * b + e * a + jnp.cross(a, b), d * e - (a * b).sum(-1, keepdims=True)], axis=-1)
