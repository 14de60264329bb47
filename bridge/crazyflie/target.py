"""Targets of the point-control task: a resting point, a Langevin path, a figure-eight, a point that jumps.

All of them live in one pytree so that one compiled program can hold a mixture of them.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.cfg import TargetCfg
from bridge.crazyflie.random import Stream
from bridge.crazyflie.vectors import Vector
from bridge.env import where_done

FIXED, LANGEVIN, FIGURE_EIGHT, STEP, MIXED = range(5)
KINDS = {"fixed": FIXED, "langevin": LANGEVIN, "figure_eight": FIGURE_EIGHT, "step": STEP, "mixed": MIXED}
"""By name. ``cfg.kind`` may be such a number too, a traced one: then all kinds are in the program."""


class Target(struct.PyTreeNode):
    """The point to be followed, relative to the spawn point, world frame."""

    pos: Vector
    """m."""
    vel: Vector
    """m/s."""
    raw_pos: Vector
    """m, the Langevin path before smoothing."""
    raw_vel: Vector
    """m/s."""
    speed_limit: Array
    """(B,) m/s."""
    kind: Array
    """(B,) int32, one of FIXED, LANGEVIN, FIGURE_EIGHT, STEP."""
    time: Array
    """(B,) s since the episode began."""


def reset(cfg: TargetCfg, stream: Stream, purpose: int) -> Target:
    """Start all targets at the spawn point."""
    chance, limit = stream.uniform(purpose, 2)
    zeros = Vector.zeros(chance.shape[0])
    asked: Any = KINDS[cfg.kind] if isinstance(cfg.kind, str) else cfg.kind
    kind = jnp.where(asked == MIXED, jnp.where(chance < cfg.fixed_fraction, FIXED, LANGEVIN), asked)
    target = Target(
        pos=zeros,
        vel=zeros,
        raw_pos=zeros,
        raw_vel=zeros,
        speed_limit=cfg.min_speed_limit + limit * (cfg.max_speed_limit - cfg.min_speed_limit),
        kind=kind.astype(jnp.int32),
        time=jnp.zeros_like(limit),
    )
    if FIGURE_EIGHT not in present(cfg):
        return target
    return target.replace(vel=where_done(target.kind == FIGURE_EIGHT, figure_eight(cfg, target.time)[1], zeros))


def step(cfg: TargetCfg, target: Target, stream: Stream, purpose: int, dt: float) -> Target:
    """Advance by ``dt`` seconds."""
    target = target.replace(time=target.time + dt)
    steps = {
        FIXED: lambda: target,
        LANGEVIN: lambda: langevin(cfg, target, stream, purpose, dt),
        FIGURE_EIGHT: lambda: follow_figure_eight(cfg, target),
        STEP: lambda: jump(cfg, target, stream, purpose, dt),
    }
    first, *others = present(cfg)
    after = steps[first]()
    for kind in others:
        after = where_done(target.kind == kind, steps[kind](), after)
    return after


def present(cfg: TargetCfg) -> tuple[int, ...]:
    """The kinds that a target may be of."""
    if not isinstance(cfg.kind, str):
        return FIXED, LANGEVIN, FIGURE_EIGHT, STEP
    return (FIXED, LANGEVIN) if cfg.kind == "mixed" else (KINDS[cfg.kind],)


def langevin(cfg: TargetCfg, target: Target, stream: Stream, purpose: int, dt: float) -> Target:
    """One step of a speed-limited, smoothed Langevin path.

    dv = (-damping v - omega^2 x) dt + sigma dW, integrated by the Euler-Maruyama scheme; ``|v|`` is clipped to the
    episode's limit. Position and velocity then pass the same exponential filter, so that the smoothed velocity stays
    the derivative of the smoothed position.
    """
    noise = Vector(*stream.normal(purpose, 3))
    drift = target.raw_vel * -cfg.damping - target.raw_pos * cfg.omega**2
    vel = target.raw_vel + drift * dt + noise * (cfg.sigma * dt**0.5)
    vel = vel * jnp.minimum(1.0, target.speed_limit / jnp.maximum(vel.norm(), 1e-6))
    pos = target.raw_pos + vel * dt
    return target.replace(
        raw_pos=pos,
        raw_vel=vel,
        pos=target.pos + (pos - target.pos) * cfg.smoothing,
        vel=target.vel + (vel - target.vel) * cfg.smoothing,
    )


def jump(cfg: TargetCfg, target: Target, stream: Stream, purpose: int, dt: float) -> Target:
    """Every ``step_interval`` a new resting point, uniform in the ball of radius ``step_size``."""
    steps, interval = jnp.round(target.time / dt), jnp.round(cfg.step_interval / dt)
    pos = stream.in_unit_ball(purpose) * cfg.step_size
    return target.replace(pos=where_done(steps % interval == 0, pos, target.pos))


def follow_figure_eight(cfg: TargetCfg, target: Target) -> Target:
    """Where the figure-eight is at the target's time."""
    pos, vel = figure_eight(cfg, target.time)
    return target.replace(pos=pos, vel=vel)


def figure_eight(cfg: TargetCfg, time: Array) -> tuple[Vector, Vector]:
    """Position and velocity on the lemniscate of Gerono: x = a sin(wt), y = a sin(wt) cos(wt)."""
    a, w = cfg.figure_eight_size, 2 * jnp.pi / cfg.figure_eight_period
    phase = w * time
    zero = jnp.zeros_like(time)
    pos = Vector(a * jnp.sin(phase), 0.5 * a * jnp.sin(2 * phase), zero)
    return pos, Vector(a * w * jnp.cos(phase), a * w * jnp.cos(2 * phase), zero)
