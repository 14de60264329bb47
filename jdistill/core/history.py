"""DAgger's history: observations and the teacher's actions on them, on the device, the oldest overwritten first.

A history has ``B`` columns. Each is one line of time on which episode follows episode: the rollouts of one environment,
which continue each other, or the episodes of a dataset, placed one behind the other. Any stretch of a column can be
trained on, because ``is_first`` marks where episodes begin and so where a recurrent state is known.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from jdistill.core.networks import Carry


class Sequences(NamedTuple):
    """``N`` sequences of ``L`` consecutive steps."""

    obs: Any
    """(L, N, D) float32, the student's raw observation; images of bytes are left so."""
    teacher_action: Array
    """(L, N, A) float32"""
    is_first: Array
    """(L, N) bool, whether an episode begins with the step."""
    known: Array
    """(L, N) bool, False beyond either end of what was stored, and where a step is left out."""

    @property
    def reset(self) -> Array:
        """(L, N) bool: before these steps a recurrent state is set back, as what precedes them is not known either."""
        after_unknown = jnp.concatenate([jnp.zeros_like(self.known[:1]), ~self.known[:-1]])
        return self.is_first | after_unknown


class History(struct.PyTreeNode):
    """A ring of ``P`` steps of ``B`` columns."""

    obs: Any
    """(P, B, D) the student's raw observation: normalizers change, observations do not. Bytes of images stay bytes."""
    teacher_action: Array
    """(P, B, A) the teacher's action on its own observation of the same step."""
    is_first: Array
    """(P, B) bool, whether an episode begins with the step."""
    carry: Carry
    """The student's recurrent state in the rollout, before every ``stride``-th of its steps: each leaf (P / steps of a
    rollout * states of a rollout, B, hidden). () where no state is kept."""
    origin: Array
    """() int32, the row of the oldest step."""
    length: Array
    """(B,) int32, steps known of each column."""
    counts: Array | None = None
    """(P, B) bool, whether the step is learned from; None where all are."""

    @staticmethod
    def create(
        steps: int, obs: Any, teacher_action: Array, carry: Carry, dtype: DTypeLike, leaves_out: bool = False
    ) -> History:
        """An empty history of ``steps`` steps; ``obs`` (B, ...), ``teacher_action`` (B, A), ``carry`` show the shapes.

        Floats are held as ``dtype``. ``carry`` leaves are (rows, B, hidden), all rows together. ``leaves_out``: whether
        some steps may not count.
        """

        def zeros(x: Array, kind: DTypeLike) -> Array:
            return jnp.zeros((steps, *x.shape), kind)

        def held(x: Array) -> Array:
            return zeros(x, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)

        return History(
            obs=jax.tree.map(held, obs),
            teacher_action=zeros(teacher_action, dtype),
            is_first=zeros(teacher_action[:, 0], bool),
            carry=jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), carry),
            origin=jnp.zeros((), jnp.int32),
            length=jnp.zeros(teacher_action.shape[0], jnp.int32),
            counts=zeros(teacher_action[:, 0], bool) if leaves_out else None,
        )

    def append(
        self, obs: Any, teacher_action: Array, is_first: Array, carry: Carry, counts: Array | None = None
    ) -> History:
        """Add a rollout (T, B, ...), over the oldest where the ring is full; ``P`` is a multiple of T."""
        rows, steps = self.is_first.shape[0], is_first.shape[0]
        full = self.length[0] == rows
        at = jnp.where(full, self.origin, self.length[0])

        def write(old: Array, new: Array) -> Array:
            # Rollouts fill whole slots, also of an array that holds other than one row a step.
            start = at // steps * new.shape[0]
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=0)

        return History(
            obs=jax.tree.map(write, self.obs, obs),
            teacher_action=write(self.teacher_action, teacher_action),
            is_first=write(self.is_first, is_first),
            carry=jax.tree.map(write, self.carry, carry),
            origin=jnp.where(full, (self.origin + steps) % rows, self.origin),
            length=jnp.minimum(self.length + steps, rows),
            counts=jax.tree.map(write, self.counts, counts),
        )

    def sequences(self, start: Array, column: Array, steps: int) -> Sequences:
        """``steps`` steps of each ``column`` (N,) from the times ``start`` (N,) on, 0 being the oldest.

        They may reach beyond what is known, at either end.
        """
        row, known = self._rows(start, column, steps)

        def found(x: Array) -> Array:
            x = x[row, column]
            return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return Sequences(
            obs=jax.tree.map(found, self.obs),
            teacher_action=self.teacher_action[row, column].astype(jnp.float32),
            is_first=self.is_first[row, column] & known,
            known=known,
        )

    def episode_starts(self, start: Array, column: Array, steps: int) -> Array:
        """(steps, N) bool: where episodes begin in the same :meth:`sequences`."""
        row, known = self._rows(start, column, steps)
        return self.is_first[row, column] & known

    def carry_at(self, row: Array, column: Array) -> Carry:
        """The recurrent states (N, hidden) kept in ``row`` (N,) of ``column`` (N,)."""
        carry: Carry = jax.tree.map(lambda x: x[row, column].astype(jnp.float32), self.carry)
        return carry

    def _rows(self, start: Array, column: Array, steps: int) -> tuple[Array, Array]:
        """Rows of the ring (steps, N), and whether anything is known there."""
        time = start + jnp.arange(steps)[:, None]
        known = (time >= 0) & (time < self.length[column])
        row = (self.origin + time) % self.is_first.shape[0]
        return row, known if self.counts is None else known & self.counts[row, column]
