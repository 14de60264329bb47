"""Vectors and rotations in component form: every component is an array of its own, (B,).

On arrays of (B, 3) each operation is a small kernel over rows that are three wide; component by component, XLA fuses
whole formulas into kernels that run along the batch.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


class Vector(struct.PyTreeNode):
    """Vectors of a batch, each component (B,)."""

    x: Array
    y: Array
    z: Array

    @staticmethod
    def of(rows: Array) -> Vector:
        """The vectors in the rows of an array (B, 3)."""
        return Vector(*jnp.moveaxis(jnp.asarray(rows), -1, 0))

    @staticmethod
    def zeros(batch: int) -> Vector:
        """``batch`` vectors of length 0."""
        return Vector(*jnp.zeros((3, batch)))

    @property
    def array(self) -> Array:
        """As one array (B, 3)."""
        return jnp.stack([self.x, self.y, self.z], axis=-1)

    @property
    def parts(self) -> tuple[Array, Array, Array]:
        """The components in order."""
        return self.x, self.y, self.z

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.x + other.x, self.y + other.y, self.z + other.z)

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.x - other.x, self.y - other.y, self.z - other.z)

    def __mul__(self, factor: Array | float) -> Vector:
        return Vector(self.x * factor, self.y * factor, self.z * factor)

    __rmul__ = __mul__

    def dot(self, other: Vector) -> Array:
        """Inner product (B,)."""
        return self.x * other.x + self.y * other.y + self.z * other.z

    def cross(self, other: Vector) -> Vector:
        """Outer product, right-handed."""
        return Vector(
            self.y * other.z - self.z * other.y,
            self.z * other.x - self.x * other.z,
            self.x * other.y - self.y * other.x,
        )

    def norm(self) -> Array:
        """Length (B,)."""
        return jnp.sqrt(self.dot(self))

    def largest(self) -> Array:
        """The largest absolute component (B,)."""
        return functools.reduce(jnp.maximum, map(jnp.abs, self.parts))


class Rotation(NamedTuple):
    """Rotation matrices, by their rows."""

    x: Vector
    y: Vector
    z: Vector

    def apply(self, v: Vector) -> Vector:
        """R v: from the body's frame to the world's where R is a craft's."""
        return Vector(self.x.dot(v), self.y.dot(v), self.z.dot(v))

    def apply_inverse(self, v: Vector) -> Vector:
        """R' v: from the world's frame to the body's where R is a craft's."""
        return self.x * v.x + self.y * v.y + self.z * v.z

    def transposed(self) -> Rotation:
        """The inverse."""
        return Rotation(*(Vector(*column) for column in zip(*(row.parts for row in self), strict=True)))


class Quaternion(struct.PyTreeNode):
    """Quaternions of a batch, scalar last, each component (B,)."""

    x: Array
    y: Array
    z: Array
    w: Array

    @staticmethod
    def of(rows: Array) -> Quaternion:
        """The quaternions xyzw in the rows of an array (B, 4)."""
        return Quaternion(*jnp.moveaxis(jnp.asarray(rows), -1, 0))

    @staticmethod
    def of_euler(roll: Array, pitch: Array, yaw: Array) -> Quaternion:
        """Yaw after pitch after roll, each (B,) rad; axes of the fixed frame, in the order x, y, z."""
        (sr, cr), (sp, cp), (sy, cy) = ((jnp.sin(0.5 * a), jnp.cos(0.5 * a)) for a in (roll, pitch, yaw))
        return Quaternion(
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        )

    @property
    def array(self) -> Array:
        """As one array (B, 4), xyzw."""
        return jnp.stack([self.x, self.y, self.z, self.w], axis=-1)

    def __mul__(self, other: Quaternion) -> Quaternion:
        """This rotation after the other one (Hamilton's product)."""
        return Quaternion(
            self.w * other.x + self.x * other.w + self.y * other.z - self.z * other.y,
            self.w * other.y + self.y * other.w + self.z * other.x - self.x * other.z,
            self.w * other.z + self.z * other.w + self.x * other.y - self.y * other.x,
            self.w * other.w - self.x * other.x - self.y * other.y - self.z * other.z,
        )

    def normalized(self) -> Quaternion:
        """Of length 1."""
        x, y, z, w = self.x, self.y, self.z, self.w
        factor = jax.lax.rsqrt(x * x + y * y + z * z + w * w)
        return Quaternion(x * factor, y * factor, z * factor, w * factor)

    def rotation(self) -> Rotation:
        """The rotation matrix of a unit quaternion, body to world where it is a craft's."""
        x, y, z, w = self.x, self.y, self.z, self.w
        return Rotation(
            Vector(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            Vector(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            Vector(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        )


Heading = tuple[Array, Array]
"""Cosine and sine of an angle about the vertical, each (B,)."""


def heading(rotation: Rotation) -> Heading:
    """The direction in which the body's x axis points, seen from above."""
    x, y = rotation.x.x, rotation.y.x
    length = jnp.sqrt(x * x + y * y)
    return x / length, y / length


def turned_back(by: Heading, v: Vector) -> Vector:
    """A world vector in the world frame turned by a heading."""
    cos, sin = by
    return Vector(cos * v.x + sin * v.y, cos * v.y - sin * v.x, v.z)


def turned_forth(by: Heading, v: Vector) -> Vector:
    """The inverse of :func:`turned_back`."""
    cos, sin = by
    return Vector(cos * v.x - sin * v.y, cos * v.y + sin * v.x, v.z)


def in_memory[T](tree: T) -> T:
    """``tree``, computed once and kept, on a CPU.

    There XLA fuses a formula into the kernel of everyone who reads its result and computes it anew in each, which is
    several times the arithmetic that is needed. On a GPU it has kernels of several results.
    """
    return jax.lax.platform_dependent(tree, cpu=jax.lax.optimization_barrier, default=lambda x: x)
