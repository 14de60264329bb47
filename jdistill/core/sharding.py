"""The environments divided among devices, each of which steps, remembers and learns from its own.

A program of the learner runs on every device at once (``jax.shard_map`` over a mesh of one axis, :data:`AXIS`), and
sees that device's environments as if there were no others. What it learns is the same everywhere, because whatever
speaks of all environments is brought together here: gradients, the normalizer's moments, scalars, episode statistics.
All parts are equally large, so that a mean of means is the mean.

What is drawn at random for an environment, or for a sequence, hangs on its number among all of them, so that a run's
numbers do not depend on how many devices share the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from bridge.keys import ENV_AXIS

AXIS = ENV_AXIS
"""The mesh's axis."""


@dataclass(frozen=True)
class Shards:
    """Into how many equal parts the environments are divided. With one part nothing is exchanged.

    Methods are for use inside a program that runs on all parts at once.
    """

    count: int = 1
    axis: str | None = AXIS
    """The mesh's axis. None exchanges nothing: enough to find out shapes, which needs no mesh."""

    @property
    def is_alone(self) -> bool:
        """Whether nothing is exchanged."""
        return self.count == 1 or self.axis is None

    def mean(self, tree: Any) -> Any:
        """The mean over all parts, of every leaf (float32); one exchange for all leaves."""
        if self.is_alone:
            return tree
        flat, unravel = ravel_pytree(tree)
        return unravel(lax.pmean(flat, self.axis))  # type: ignore[no-untyped-call]

    def all(self, flags: Array) -> Array:
        """Bool, of the shape of ``flags``: whether they are true in every part."""
        if self.is_alone:
            return flags
        everywhere: Array = lax.pmin(flags.astype(jnp.int32), self.axis)  # type: ignore[no-untyped-call]
        return everywhere.astype(bool)

    def concatenate(self, tree: Any) -> Any:
        """The leaves (N, ...) of all parts, one behind the other: (count * N, ...)."""
        return tree if self.is_alone else lax.all_gather(tree, self.axis, tiled=True)

    def moments(self, x: Array, counts: Array | None = None) -> tuple[Array, Array, Array | int]:
        """Mean, biased variance (D,) and number of the rows ``x`` (N, D) of all parts together.

        Where ``counts`` (N,) is False there is none. The variance is the mean of the parts' own plus the variance of
        their means (Chan et al. 1979).
        """
        if counts is not None:
            share = self.mean(counts.mean())
            scale = 1 / jnp.maximum(share, 1e-30)
            whole = scale * self.mean(jnp.where(counts[:, None], x, 0).mean(axis=0))
            var = scale * self.mean(jnp.where(counts[:, None], jnp.square(x - whole), 0).mean(axis=0))
            return whole, var, share * self.count * x.shape[0]
        mean, var = x.mean(axis=0), x.var(axis=0)
        whole, number = self.mean(mean), self.count * x.shape[0]
        return whole, var if self.is_alone else self.mean(var + jnp.square(mean - whole)), number

    def numbers(self, size: int) -> Array:
        """(size,) int32: the numbers among all, counted from 0, of the ``size`` things that this part has."""
        own = jnp.arange(size)
        return own if self.is_alone else own + lax.axis_index(self.axis) * size

    def keys(self, rng: Array, size: int) -> Array:
        """(size,) keys of these things, the same however they are divided."""
        return jax.vmap(jax.random.fold_in, (None, 0))(rng, self.numbers(size))


WHOLE = Shards()
"""All environments on one device."""
