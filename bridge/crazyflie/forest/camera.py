"""What a distance sensor sees of hall and columns: rays against vertical cylinders and a box, and the sensor's faults.

Pixels are rows (B, P) of a batch, the upper left pixel first, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.crazyflie.forest.cfg import ForestCfg, ImageCfg
from bridge.crazyflie.forest.columns import Columns
from bridge.crazyflie.random import Stream
from bridge.crazyflie.vectors import Rotation, Vector, in_memory


@dataclass(frozen=True)
class Camera:
    """A distance sensor at the craft's centre that looks along the body's x axis, with z up.

    A pixel's value is the distance along that axis (the depth), over the range; 1 where nothing is seen within it.
    """

    height: int
    """Pixels from top to bottom."""
    width: int
    """Pixels from left to right."""
    field: tuple[float, float]
    """Field of view from top to bottom and from left to right, degrees."""
    range_m: float
    """How far it sees, m."""
    equal_angles: bool
    """Whether pixels divide the angles evenly, as zones of a time-of-flight sensor do, or an image plane."""

    @property
    def slopes(self) -> tuple[np.ndarray, np.ndarray]:
        """(P,) float32 of each pixel's ray (1, y, z) in the body frame: y and z."""
        up, left = (self._axis(count, degrees) for count, degrees in zip(self.shape, self.field, strict=True))
        z, y = np.meshgrid(up, left, indexing="ij")
        return y.ravel().astype(np.float32), z.ravel().astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def _axis(self, count: int, degrees: float) -> np.ndarray:
        middles = 1 - (2 * np.arange(count) + 1) / count  # From 1 at the upper or left edge to -1.
        half = np.deg2rad(degrees) / 2
        return np.tan(half * middles) if self.equal_angles else np.tan(half) * middles


CAMERAS = {
    "tof": Camera(8, 8, (45.0, 45.0), 4.0, True),
    "depth": Camera(60, 100, (58.0, 87.0), 6.0, False),
}
"""By name: zones as those of ST's VL53L5CX (its data sheet DS13754: 8 x 8 at 15 Hz, 45 x 45 degrees, 4 m), and an image
plane with the field of Intel's D435 depth camera."""


def picture(
    camera: Camera, cfg: ImageCfg, hall: ForestCfg, columns: Columns, pos: Vector, rotation: Rotation, words: Array
) -> Array:
    """(B, H, W) float32 in [0, 1], what a ``camera`` at ``pos`` sees, with its faults.

    ``words`` (B, P) uint32 are random bits. A column at rest in the picture of a perfect camera has its exact distance.
    """
    depth = cast(camera, hall, columns, pos, rotation)
    # The upper 23 bits make the noise, the lower 9 the drop-outs.
    noise = 2.0**0.5 * jax.lax.erf_inv(2.0 * (((words >> 9).astype(jnp.float32) + 0.5) * 2.0**-23) - 1.0)
    is_lost = (words & 511).astype(jnp.float32) < 512.0 * cfg.dropout
    seen = jnp.clip(depth * (1.0 + cfg.noise * noise) / camera.range_m, 0.0, 1.0)
    return jnp.where(is_lost | (depth >= camera.range_m), 1.0, seen).reshape(-1, *camera.shape)


def draw(camera: Camera, stream: Stream, purpose: int) -> Array:
    """The random bits of a picture, (B, P) uint32."""
    return stream.bit_rows(purpose, camera.height * camera.width)


def cast(camera: Camera, hall: ForestCfg, columns: Columns, pos: Vector, rotation: Rotation) -> Array:
    """(B, P) the exact depth of what each pixel's ray meets first, m."""
    left, up = (jnp.asarray(slopes) for slopes in camera.slopes)
    x, y, z = (row.x[:, None] + row.y[:, None] * left + row.z[:, None] * up for row in rotation)
    # Seen from above: along the unit vector (u, v) a ray goes `flat` m for each metre of depth.
    flat = jnp.sqrt(x * x + y * y)
    u, v, flat = in_memory((x / flat, y / flat, flat))

    def nearer(i: Array | int, way: Array) -> Array:
        along_x, along_y = columns.x[:, i] - pos.x, columns.y[:, i] - pos.y
        return jnp.minimum(way, meet(u, v, along_x[:, None], along_y[:, None], columns.radius[:, i][:, None]))

    count, far = columns.x.shape[1], jnp.full_like(flat, jnp.inf)
    way = jax.lax.fori_loop(0, count, nearer, far, unroll=4) if count else far
    walls = inside(pos, (x, y, z), hall)
    return jnp.minimum(way / flat, walls)


def meet(u: Array, v: Array, x: Array, y: Array, radius: Array) -> Array:
    """How far it is along the unit vector (u, v) to a circle with its centre at (x, y); infinite where it is missed.

    The centre is ``u x + v y`` ahead and ``u y - v x`` beside the ray.
    """
    ahead, beside = u * x + v * y, u * y - v * x
    half_chord = radius * radius - beside * beside
    return jnp.where((half_chord > 0) & (ahead > 0), ahead - jnp.sqrt(jnp.maximum(half_chord, 0.0)), jnp.inf)


def inside(pos: Vector, ray: tuple[Array, Array, Array], hall: ForestCfg) -> Array:
    """(B, P) the depth at which rays (each component (B, P), per metre of depth) leave the hall."""
    bounds = ((0.0, hall.length), (-0.5 * hall.width, 0.5 * hall.width), (0.0, hall.height))
    leaves = jnp.full_like(ray[0], jnp.inf)
    for start, slope, (low, high) in zip(pos.parts, ray, bounds, strict=True):
        to_wall = jnp.where(slope > 0, high - start[:, None], start[:, None] - low)
        leaves = jnp.minimum(leaves, to_wall / jnp.maximum(jnp.abs(slope), 1e-9))
    return leaves
