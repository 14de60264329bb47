"""Quadrotors of a file as the simulator flies them: each environment one of their rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from bridge.crazyflie.dynamics import Quadrotor
from bridge.crazyflie.random import Stream
from bridge.crazyflie.vectors import Vector
from bridge.keys import env_numbers
from bridge.quadrotors import GRAVITY, QuadrotorSpec


class Fleet(struct.PyTreeNode):
    """The quadrotors of a file."""

    ids: Array
    """(N,) int32, see :class:`bridge.quadrotors.QuadrotorSpec`."""
    quadrotors: Quadrotor
    """Each number (N,), but for those that are the same for all."""

    @staticmethod
    def of(specs: Sequence[QuadrotorSpec]) -> Fleet:
        """The craft of ``specs`` (N)."""
        return Fleet(ids=np.array([s.id for s in specs], np.int32), quadrotors=quadrotors_of(specs))  # type: ignore[arg-type]

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


def quadrotors_of(specs: Sequence[QuadrotorSpec]) -> Quadrotor:
    """The parameters of ``specs`` (N), each (N,) float32.

    Rotor speeds are counted from 0, the slowest, to 1, the fastest; propellers have no angular momentum.
    """

    def column(name: str) -> np.ndarray:
        return np.array([getattr(s, name) for s in specs])

    full = column("twr") * column("mass") * GRAVITY / 4
    thrust = [full * column(f"thrust_c{i}") for i in range(3)]
    single: Any = jax.tree.map(
        np.float32,
        Quadrotor(
            mass=column("mass"),  # type: ignore[arg-type]
            inertia=Vector(*(column(f"I{axis}") for axis in ("xx", "yy", "zz"))),  # type: ignore[arg-type]
            arm=column("arm_length") / math.sqrt(2),  # type: ignore[arg-type]
            thrust=tuple(thrust),  # type: ignore[arg-type]
            torque=tuple(column("torque_coefficient") * c for c in thrust),  # type: ignore[arg-type]
            spin_up=(1 / column("motor_tau"), 0.0),  # type: ignore[arg-type]
            spin_down=(1 / column("motor_tau_down"), 0.0),  # type: ignore[arg-type]
            rotor_inertia=0.0,
            drag=Vector(*(-column(f"drag_{axis}") for axis in "xyz")),  # type: ignore[arg-type]
            rotor_min=0.0,
            rotor_max=1.0,
            gravity=GRAVITY,
        ),
    )
    return single
