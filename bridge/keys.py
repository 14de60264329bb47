"""Random keys: one for all environments of a batch, or one for each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

ENV_AXIS = "env"
"""The axis of a mesh of devices along which environments are divided."""


def split_keys(rng: Array) -> tuple[Array, Array]:
    """Two keys of every key: a single one, or (B,)."""
    first, second = jnp.moveaxis(jax.vmap(jax.random.split)(rng), 1, 0) if rng.ndim else jax.random.split(rng)
    return first, second


def single_key(rng: Array) -> Array:
    """The only key, or the first of (B,)."""
    return rng[0] if rng.ndim else rng


def keys_for(env: Any, rng: Array) -> Array:
    """What ``env`` resets with: (num_envs,) keys, or one; ``rng`` is one or the other."""
    if not getattr(env, "key_per_env", False):
        return single_key(rng)
    return rng if rng.ndim else jax.random.split(rng, env.num_envs)


def random_ages(rng: Array, num_envs: int, max_episode_length: int) -> Array:
    """(num_envs,) int32, the ages of episodes that began at different times; ``rng`` is one key or (num_envs,)."""

    def draw(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.randint(key, shape, 0, max_episode_length, jnp.int32)

    return jax.vmap(lambda key: draw(key, ()))(rng) if rng.ndim else draw(rng, (num_envs,))


def env_numbers(num_envs: int) -> Array:
    """(num_envs,) int32, the numbers of this device's environments among those of all devices."""
    own = jnp.arange(num_envs, dtype=jnp.int32)
    try:
        return own + jax.lax.axis_index(ENV_AXIS) * num_envs
    except NameError:  # No such axis: they are not divided.
        return own
