"""An expert that knows all columns: of a fan of headings it flies the one that is free and leads to the goal.

The teacher learns from it, see :mod:`bridge.crazyflie.forest.teaching`. Everything is in the world frame, seen from
above; the fan's headings (F) are rows of a batch.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.crazyflie.forest.cfg import ForestFlightCfg
from bridge.crazyflie.forest.task import RADIUS, ForestState
from bridge.crazyflie.vectors import Vector, heading, in_memory, turned_back

FAN = np.deg2rad(np.linspace(-85.0, 85.0, 35)).astype(np.float32)
"""Headings that are considered, beside that of the goal, rad."""
LOOKAHEAD, MARGIN = 2.5, 0.32
"""How far a heading should be free, and the clearance that it should have, m."""
BLOCKED = 6.0
"""Weight of a heading's being blocked at hand; the other term is at most 2."""
KEPT = 0.7
"""Weight of a heading's distance from the velocity, so that the craft stays with a decision."""
CRUISE, SLOWEST = 1.15, 0.5
"""Speed where a heading is free, and at least, m/s."""


def act(cfg: ForestFlightCfg, sim: ForestState) -> Array:
    """(B, 4) the task's actions."""
    craft, way = sim.craft, sim.goal - sim.craft.pos
    towards = jnp.arctan2(way.y, way.x)
    angles = towards[:, None] + FAN
    u, v = in_memory((jnp.cos(angles), jnp.sin(angles)))
    blocked = jnp.maximum(_blocked_by_columns(sim, u, v), _blocked_by_walls(cfg, craft.pos, u, v, LOOKAHEAD))
    speed = jnp.sqrt(craft.vel.x**2 + craft.vel.y**2 + 1e-6)
    along = (u * craft.vel.x[:, None] + v * craft.vel.y[:, None]) / jnp.maximum(speed, 0.5)[:, None]
    cost = BLOCKED * blocked + (1.0 - jnp.cos(FAN)) + KEPT * (1.0 - along)
    best = cost.argmin(axis=1)[:, None]
    u, v, blocked = (jnp.take_along_axis(x, best, axis=1)[:, 0] for x in (u, v, blocked))
    distance = jnp.sqrt(way.x**2 + way.y**2)
    pace = jnp.minimum(SLOWEST + (CRUISE - SLOWEST) * (1.0 - blocked), 0.5 + distance)
    turn = heading(craft.quat.rotation())
    free = turned_back(turn, Vector(u, v, jnp.clip(1.5 * way.z, -0.5, 0.5)))
    off = jnp.arctan2(free.y, free.x)
    # Slowly where the eyes are not yet, for those that have to see.
    pace = pace * (0.3 + 0.7 * jnp.maximum(free.x, 0.0))
    wanted = Vector(free.x * pace, free.y * pace, free.z)
    pilot = cfg.pilot
    commands = (wanted.x / pilot.speed, wanted.y / pilot.speed, wanted.z / pilot.climb, 2.5 * off / pilot.yaw_rate)
    return jnp.clip(jnp.stack(commands, axis=-1), -1.0, 1.0)


def _blocked_by_columns(sim: ForestState, u: Array, v: Array) -> Array:
    """(B, F) how much columns block each heading: from 0 (free) to 1 (at hand)."""
    x, y = sim.columns.x - sim.craft.pos.x[:, None], sim.columns.y - sim.craft.pos.y[:, None]
    ahead = u[:, :, None] * x[:, None] + v[:, :, None] * y[:, None]
    beside = jnp.abs(u[:, :, None] * y[:, None] - v[:, :, None] * x[:, None])
    clearance = jnp.sqrt(x * x + y * y)[:, None] - sim.columns.radius[:, None] - RADIUS
    wide = (sim.columns.radius + RADIUS + MARGIN)[:, None]
    within = jnp.clip((wide - beside) / MARGIN, 0.0, 1.0)
    near = jnp.clip(1.0 - clearance / LOOKAHEAD, 0.0, 1.0)
    return jnp.where(ahead > 0, within * near, 0.0).max(axis=-1, initial=0.0)


def _blocked_by_walls(cfg: ForestFlightCfg, pos: Vector, u: Array, v: Array, sight: float) -> Array:
    """(B, F) the same of walls."""
    hall, keep = cfg.forest, RADIUS + MARGIN
    to_side = jnp.where(v > 0, 0.5 * hall.width - keep - pos.y[:, None], 0.5 * hall.width - keep + pos.y[:, None])
    to_end = jnp.where(u > 0, hall.length - keep - pos.x[:, None], pos.x[:, None] - keep)
    way = jnp.minimum(to_side / jnp.maximum(jnp.abs(v), 1e-3), to_end / jnp.maximum(jnp.abs(u), 1e-3))
    return jnp.clip(1.0 - jnp.maximum(way, 0.0) / (0.6 * sight), 0.0, 1.0)
