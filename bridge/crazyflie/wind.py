"""Wind of the point-control task: pushes from the side with pauses between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.cfg import WindCfg


class Wind(struct.PyTreeNode):
    """What blows in each episode."""

    force: Array
    """(B, 3) N, world frame, on the centre of mass during this control step."""
    gust: Array
    """(B, 3) N, the gust under way or the next one."""
    steps: Array
    """(B,) int32, control steps since the episode began."""


def reset(num_envs: int) -> Wind:
    """Calm."""
    zeros = jnp.zeros((num_envs, 3))
    return Wind(force=zeros, gust=zeros, steps=jnp.zeros(num_envs, jnp.int32))


def step(cfg: WindCfg, wind: Wind, rng: Array, weight: float, dt: float) -> Wind:
    """The wind of the next control step for a craft of ``weight`` (N)."""
    pause, period = jnp.round(cfg.pause_s / dt), jnp.round((cfg.pause_s + cfg.gust_s) / dt)
    phase = wind.steps % period
    gust = jnp.where((phase == 0)[:, None], draw(cfg, rng, wind.steps.shape[0], weight), wind.gust)
    return Wind(force=jnp.where((phase >= pause)[:, None], gust, 0.0), gust=gust, steps=wind.steps + 1)


def draw(cfg: WindCfg, rng: Array, num_envs: int, weight: float) -> Array:
    """Horizontal forces (B, 3): any direction, any strength up to ``cfg.force`` weights."""
    angle_key, strength_key = jax.random.split(rng)
    angle = jax.random.uniform(angle_key, (num_envs,), maxval=2 * jnp.pi)
    strength = weight * cfg.force * jax.random.uniform(strength_key, (num_envs,))
    return strength[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle), jnp.zeros(num_envs)], axis=-1)
