"""Wind of the point-control task: pushes from the side with pauses between them."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.cfg import WindCfg
from bridge.crazyflie.random import Stream
from bridge.crazyflie.vectors import Vector
from bridge.env import where_done


class Wind(struct.PyTreeNode):
    """What blows in each episode."""

    force: Vector
    """N, world frame, on the centre of mass during this control step."""
    gust: Vector
    """N, the gust under way or the next one."""
    steps: Array
    """(B,) int32, control steps since the episode began."""


def reset(num_envs: int) -> Wind:
    """Calm."""
    zeros = Vector.zeros(num_envs)
    return Wind(force=zeros, gust=zeros, steps=jnp.zeros(num_envs, jnp.int32))


def step(cfg: WindCfg, wind: Wind, stream: Stream, purpose: int, weight: Array | float, dt: float) -> Wind:
    """The wind of the next control step for a craft of ``weight`` (N)."""
    pause, period = jnp.round(cfg.pause_s / dt), jnp.round((cfg.pause_s + cfg.gust_s) / dt)
    phase = wind.steps % period
    gust = where_done(phase == 0, draw(cfg, stream, purpose, weight), wind.gust)
    force = where_done(phase >= pause, gust, Vector.zeros(wind.steps.shape[0]))
    return Wind(force=force, gust=gust, steps=wind.steps + 1)


def draw(cfg: WindCfg, stream: Stream, purpose: int, weight: Array | float) -> Vector:
    """Horizontal forces: any direction, any strength up to ``cfg.force`` weights."""
    turn, share = stream.uniform(purpose, 2)
    strength = weight * cfg.force * share
    angle = 2 * jnp.pi * turn
    return Vector(strength * jnp.cos(angle), strength * jnp.sin(angle), jnp.zeros_like(angle))
