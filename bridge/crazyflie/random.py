"""Random numbers that cost a few integer operations each: a counter-based generator, one stream for each environment.

``jax.random`` spends more time on a few hundred numbers, drawn anew in every step of a rollout, than the physics takes;
on a CPU its generator is a loop of small kernels. This is the same generator, Threefry-2x32 with 20 rounds (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", 2011), written out, so that XLA fuses it into what uses the numbers.
What is drawn depends on an environment's key, step and purpose alone, not on how many environments share a device.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie.vectors import Vector, in_memory

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
BLOCKS = 256
"""Counters of a purpose, two numbers each."""


class Stream(struct.PyTreeNode):
    """A step's random numbers, for every environment."""

    key: tuple[Array, Array]
    """The two words of each environment's key, uint32, (B,)."""
    step: Array
    """(B,) uint32."""

    @staticmethod
    def create(rng: Array, num_envs: int) -> Stream:
        """The streams of ``num_envs`` environments, from a JAX key for each of them or one to be split."""
        keys = rng if rng.ndim else jax.random.split(rng, num_envs)
        words = jax.vmap(lambda key: jax.random.bits(key, (2,)))(keys)
        return Stream(key=(words[:, 0], words[:, 1]), step=jnp.zeros(num_envs, jnp.uint32))

    def next(self) -> Stream:
        """The streams of the next step."""
        return self.replace(step=self.step + jnp.uint32(1))

    def bits(self, purpose: int, count: int) -> list[Array]:
        """``count`` words of 32 random bits, each (B,); other ones for each ``purpose`` (any small number)."""
        numbers = range(purpose * BLOCKS, purpose * BLOCKS + (count + 1) // 2)
        if jax.default_backend() == "cpu":
            # All blocks at once: each is a hundred operations to compile.
            blocks = jnp.array(numbers, jnp.uint32)[:, None]
            x, y = in_memory(threefry_2x32(self.key, (self.step, blocks)))
            return [(x, y)[i % 2][i // 2] for i in range(count)]
        # One by one they become part of the kernels that read them.
        pairs = [threefry_2x32(self.key, (self.step, jnp.full_like(self.step, number))) for number in numbers]
        return [word for pair in pairs for word in pair][:count]

    def bit_rows(self, purpose: int, count: int) -> Array:
        """The same side by side, (B, count). More than ``2 BLOCKS`` words run into those of the purposes behind."""
        blocks = purpose * BLOCKS + jnp.arange((count + 1) // 2, dtype=jnp.uint32)
        key: Any = tuple(word[:, None] for word in self.key)
        return jnp.concatenate(threefry_2x32(key, (self.step[:, None], blocks[None])), axis=1)[:, :count]

    def uniform(self, purpose: int, count: int) -> list[Array]:
        """``count`` numbers uniform in (0, 1), each (B,)."""
        return [uniform(word) for word in self.bits(purpose, count)]

    def normal(self, purpose: int, count: int) -> list[Array]:
        """``count`` normal deviates, each (B,)."""
        return [normal(word) for word in self.bits(purpose, count)]

    def in_unit_ball(self, purpose: int) -> Vector:
        """Points uniform in the unit ball: a uniform direction times the cube root of a uniform number."""
        *direction, volume = self.bits(purpose, 4)
        vector = in_memory(Vector(*(normal(word) for word in direction)))
        return vector * (jnp.cbrt(uniform(volume)) / vector.norm())


def uniform(word: Array) -> Array:
    """A random word to a number uniform in (0, 1): the middle of one of 2^23 equal intervals."""
    return ((word >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def normal(word: Array) -> Array:
    """A random word to a normal deviate, by the inverse of the normal distribution."""
    return 2.0**0.5 * jax.lax.erf_inv(2.0 * uniform(word) - 1.0)


@jax.jit
def threefry_2x32(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Threefry-2x32-20 of uint32 words: equal to ``jax.extend.random.threefry_2x32``."""
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(PARITY))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for turn in range(5):
        for rotation in ROTATIONS[turn % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x, y = x + keys[(turn + 1) % 3], y + keys[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return x, y
