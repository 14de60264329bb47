"""The forest: where columns stand, how far they are, which are the nearest.

Columns are rows (B, N) of a batch: what is done with them runs along the columns, or the pixels, of one environment.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.forest.cfg import CLEARING, ForestCfg
from bridge.crazyflie.vectors import Heading, Vector, in_memory

CANDIDATES = 16
"""Places that are drawn for a column; it takes the first that is far enough from those before it."""
SOFT = 0.5
"""Added to a distance before its inverse is taken, m."""
NOWHERE = 1e3
"""Where columns are that have found no place, m along both axes."""


class Columns(struct.PyTreeNode):
    """Upright cylinders from the floor to the ceiling, each number (B, N)."""

    x: Array
    """m, along the hall."""
    y: Array
    """m, across it; 0 is in the middle."""
    radius: Array
    """m"""

    def clearance(self, pos: Vector) -> Array:
        """(B, N) distance from ``pos`` to each surface, m; negative inside."""
        x, y = self.x - pos.x[:, None], self.y - pos.y[:, None]
        # The small number keeps the gradient finite on a column's axis.
        return jnp.sqrt(x * x + y * y + 1e-9) - self.radius


def plant(cfg: ForestCfg, rng: Array) -> Columns:
    """Columns at random, no two closer than the gap; ``rng`` are the keys (B,).

    They are placed one after the other (random sequential adsorption); where none of a column's places is far enough
    from the others it is left out.
    """
    count = cfg.obstacles
    place_key, radius_key = jnp.moveaxis(jax.vmap(jax.random.split)(rng), 1, 0)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (count, CANDIDATES, 2)))(place_key)
    share = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(radius_key)
    radius = cfg.min_radius + share * (cfg.max_radius - cfg.min_radius)
    places_x = CLEARING + drawn[..., 0] * (cfg.length - 2 * CLEARING)
    places_y = (drawn[..., 1] - 0.5) * cfg.width
    nowhere = jnp.full_like(radius, NOWHERE)

    def add(i: Array, columns: Columns) -> Columns:
        x, y, r = places_x[:, i], places_y[:, i], radius[:, i]
        away = jnp.hypot(x[..., None] - columns.x[:, None], y[..., None] - columns.y[:, None])
        is_fine = ((away - columns.radius[:, None]).min(axis=-1) - r[:, None]) >= cfg.gap
        first = is_fine.argmax(axis=-1)[:, None]
        fits = is_fine.any(axis=-1)
        x, y = (jnp.where(fits, jnp.take_along_axis(places, first, axis=1)[:, 0], NOWHERE) for places in (x, y))
        return Columns(columns.x.at[:, i].set(x), columns.y.at[:, i].set(y), columns.radius.at[:, i].set(r))

    none = Columns(nowhere, nowhere, jnp.zeros_like(radius))
    return jax.lax.fori_loop(0, count, add, none) if count else none


def nearest(columns: Columns, pos: Vector, by: Heading, count: int, sight: float) -> Array:
    """(B, 3 count) of the columns whose surfaces are nearest to ``pos``, nearest first: where and how wide they are.

    Three numbers each: x and y of the direction to the axis, in the frame turned by the heading, times a closeness, and
    the radius (m). The closeness is ``1 / (d + 0.5) - 1 / (sight + 0.5)`` at a distance d (m) from the surface, so that
    a network tells near ones well; all three are 0 for what is farther than ``sight`` or not there.
    """
    x, y = columns.x - pos.x[:, None], columns.y - pos.y[:, None]
    away = jnp.sqrt(x * x + y * y + 1e-9)
    clearance = away - columns.radius
    closeness = jax.nn.relu(1 / (jnp.maximum(clearance, 0.0) + SOFT) - 1 / (sight + SOFT))
    cos, sin = (part[:, None] for part in by)
    ahead, left = ((cos * x + sin * y) / away * closeness, (cos * y - sin * x) / away * closeness)
    rows = in_memory(jnp.stack([ahead, left, jnp.where(closeness > 0, columns.radius, 0.0)], axis=-1))
    # A column's place in the order is the number of those before it; of equals the first comes first.
    total = clearance.shape[1]
    before = clearance[:, None, :] < clearance[:, :, None]
    equal = (clearance[:, None, :] == clearance[:, :, None]) & jnp.tri(total, k=-1, dtype=bool)
    order = in_memory(jnp.sum(before | equal, axis=-1))
    chosen = order[:, None, :, None] == jnp.arange(min(count, total))[:, None, None]
    found = jnp.where(chosen, rows[:, None], 0.0).sum(axis=2).reshape(len(order), 3 * min(count, total))
    return jnp.pad(found, ((0, 0), (0, 3 * (count - min(count, total)))))
