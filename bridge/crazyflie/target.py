"""Targets of the point-control task: a resting point, a Langevin path, a figure-eight, a point that jumps.

All of them live in one pytree so that one compiled program can hold a mixture of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.cfg import TargetCfg

FIXED, LANGEVIN, FIGURE_EIGHT, STEP = 0, 1, 2, 3
KINDS = {"fixed": FIXED, "langevin": LANGEVIN, "figure_eight": FIGURE_EIGHT, "step": STEP}


class Target(struct.PyTreeNode):
    """The point to be followed, relative to the spawn point, world frame."""

    pos: Array
    """(B, 3) m."""
    vel: Array
    """(B, 3) m/s."""
    raw_pos: Array
    """(B, 3) m, the Langevin path before smoothing."""
    raw_vel: Array
    """(B, 3) m/s."""
    speed_limit: Array
    """(B,) m/s."""
    kind: Array
    """(B,) int32, one of FIXED, LANGEVIN, FIGURE_EIGHT, STEP."""
    time: Array
    """(B,) s since the episode began."""


def reset(cfg: TargetCfg, rng: Array, num_envs: int) -> Target:
    """Start all targets at the spawn point."""
    kind_key, limit_key = jax.random.split(rng)
    zeros = jnp.zeros((num_envs, 3))
    if cfg.kind == "mixed":
        kind = jnp.where(jax.random.uniform(kind_key, (num_envs,)) < cfg.fixed_fraction, FIXED, LANGEVIN)
    else:
        kind = jnp.full((num_envs,), KINDS[cfg.kind])
    target = Target(
        pos=zeros,
        vel=zeros,
        raw_pos=zeros,
        raw_vel=zeros,
        speed_limit=jax.random.uniform(limit_key, (num_envs,), minval=cfg.min_speed_limit, maxval=cfg.max_speed_limit),
        kind=kind.astype(jnp.int32),
        time=jnp.zeros(num_envs),
    )
    return target.replace(vel=figure_eight(cfg, target.time)[1]) if cfg.kind == "figure_eight" else target


def step(cfg: TargetCfg, target: Target, rng: Array, dt: float) -> Target:
    """Advance by ``dt`` seconds."""
    target = target.replace(time=target.time + dt)
    if cfg.kind == "fixed":
        return target
    if cfg.kind == "figure_eight":
        pos, vel = figure_eight(cfg, target.time)
        return target.replace(pos=pos, vel=vel)
    if cfg.kind == "step":
        return jump(cfg, target, rng, dt)
    moved = langevin(cfg, target, rng, dt)
    moving = (target.kind == LANGEVIN)[:, None]
    return moved.replace(pos=jnp.where(moving, moved.pos, target.pos), vel=jnp.where(moving, moved.vel, target.vel))


def langevin(cfg: TargetCfg, target: Target, rng: Array, dt: float) -> Target:
    """One step of a speed-limited, smoothed Langevin path.

    dv = (-damping v - omega^2 x) dt + sigma dW, integrated by the Euler-Maruyama scheme; ``|v|`` is clipped to the
    episode's limit. Position and velocity then pass the same exponential filter, so that the smoothed velocity stays
    the derivative of the smoothed position.
    """
    noise = jax.random.normal(rng, target.raw_vel.shape) * jnp.sqrt(dt)
    vel = target.raw_vel + (-cfg.damping * target.raw_vel - cfg.omega**2 * target.raw_pos) * dt + cfg.sigma * noise
    speed = jnp.linalg.norm(vel, axis=-1, keepdims=True)
    vel = vel * jnp.minimum(1.0, target.speed_limit[:, None] / jnp.maximum(speed, 1e-6))
    pos = target.raw_pos + vel * dt
    return target.replace(
        raw_pos=pos,
        raw_vel=vel,
        pos=target.pos + cfg.smoothing * (pos - target.pos),
        vel=target.vel + cfg.smoothing * (vel - target.vel),
    )


def jump(cfg: TargetCfg, target: Target, rng: Array, dt: float) -> Target:
    """Every ``step_interval`` a new resting point, uniform in the ball of radius ``step_size``."""
    steps, interval = jnp.round(target.time / dt), jnp.round(cfg.step_interval / dt)
    pos = cfg.step_size * in_unit_ball(rng, target.pos.shape[0])
    return target.replace(pos=jnp.where((steps % interval == 0)[:, None], pos, target.pos))


def in_unit_ball(rng: Array, n: int) -> Array:
    """Points (n, 3) uniform in the unit ball: a uniform direction times the cube root of a uniform number."""
    direction_key, radius_key = jax.random.split(rng)
    direction = jax.random.normal(direction_key, (n, 3))
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return direction * jax.random.uniform(radius_key, (n, 1)) ** (1 / 3)


def figure_eight(cfg: TargetCfg, time: Array) -> tuple[Array, Array]:
    """Position (B, 3) and velocity (B, 3) on the lemniscate of Gerono: x = a sin(wt), y = a sin(wt) cos(wt)."""
    a, w = cfg.figure_eight_size, 2 * jnp.pi / cfg.figure_eight_period
    phase = w * time
    zero = jnp.zeros_like(time)
    pos = jnp.stack([a * jnp.sin(phase), 0.5 * a * jnp.sin(2 * phase), zero], axis=-1)
    vel = jnp.stack([a * w * jnp.cos(phase), a * w * jnp.cos(2 * phase), zero], axis=-1)
    return pos, vel
