"""How parameters begin."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array


class Uniform(struct.PyTreeNode, nn.meta.AxisMetadata[Array]):
    """A parameter that is still to be drawn, from U(-bound, bound).

    :func:`drawn` draws all of them at once: XLA takes longer to compile a random draw for each than all the rest.
    """

    value: Array
    """Zeros."""
    bound: float = struct.field(pytree_node=False)

    def unbox(self) -> Array:
        """What layers see."""
        return self.value

    def replace_boxed(self, val: Any) -> Any:
        """The same with another value."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
        """Nothing in it belongs to an axis."""
        return self

    remove_axis = add_axis


def uniform(bound: float) -> Callable[..., Any]:
    """A Linen initializer of parameters from U(-bound, bound)."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Uniform:
        return Uniform(jnp.zeros(shape, dtype), bound)

    return init


def drawn(rng: Array, params: Any) -> Any:
    """``params`` with numbers in place of each :class:`Uniform`."""
    leaves, tree = jax.tree.flatten(params, is_leaf=lambda x: isinstance(x, Uniform))
    sizes = [x.value.size if isinstance(x, Uniform) else 0 for x in leaves]
    ends = itertools.accumulate(sizes)
    numbers = jax.random.uniform(rng, (sum(sizes),), minval=-1.0, maxval=1.0)
    for i, (leaf, size, end) in enumerate(zip(leaves, sizes, ends, strict=True)):
        if isinstance(leaf, Uniform):
            leaves[i] = leaf.bound * numbers[end - size : end].reshape(leaf.value.shape)
    return jax.tree.unflatten(tree, leaves)
