"""Quadrotors of a file as the simulator flies them: each environment one of their rows."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from bridge.crazyflie.constants import Constants
from bridge.crazyflie.dynamics import Quadrotor
from bridge.crazyflie.random import Stream
from bridge.keys import env_numbers
from bridge.quadrotors import QuadrotorSpec


class Fleet(struct.PyTreeNode):
    """The quadrotors of a file."""

    ids: Array
    """(N,) int32, see :class:`bridge.quadrotors.QuadrotorSpec`."""
    quadrotors: Quadrotor
    """Each number (N,), but for those that are the same for all."""

    @staticmethod
    def of(specs: Sequence[QuadrotorSpec]) -> Fleet:
        """The craft of ``specs`` (N)."""
        single = jax.tree.map(np.float32, Quadrotor.of(Constants.of_rows(specs)))
        return Fleet(ids=np.array([s.id for s in specs], np.int32), quadrotors=single)  # type: ignore[arg-type]

    def assign(self, assignment: str, stream: Stream, purpose: int) -> Array:
        """(B,) int32, the row of each environment: one after the other (``cycle``), or any (``random``)."""
        size = self.ids.shape[0]
        if assignment == "cycle":
            return env_numbers(stream.step.shape[0]) % size
        (chance,) = stream.uniform(purpose, 1)
        return jnp.minimum((chance * size).astype(jnp.int32), size - 1)

    def take(self, row: Array) -> Quadrotor:
        """The parameters of the craft in the rows ``row`` (B,), each (B,)."""
        taken: Quadrotor = jax.tree.map(lambda x: jnp.asarray(x)[row] if jnp.ndim(x) else x, self.quadrotors)
        return taken
