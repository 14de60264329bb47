"""DAgger's history: what was flown and what the teacher said of it, on the device, the oldest overwritten first.

A history is ``B`` flights side by side. Each is one line of time on which episode follows episode: the rollouts of one
environment, which continue each other, or the episodes of a dataset, set one behind the other. Any stretch of it can
be trained on, because ``first`` marks where episodes begin and so where a recurrent state is known.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jdistill.core.config import AlgorithmCfg
from jdistill.core.networks import Carry
from jdistill.errors import ConfigError

GIB = 2**30


class Stretch(NamedTuple):
    """``N`` sequences of ``L`` consecutive steps."""

    obs: Array
    """(L, N, D) float32, the student's raw observation."""
    label: Array
    """(L, N, A) float32, the teacher's action."""
    begins: Array
    """(L, N) bool, whether an episode begins with the step."""
    done: Array
    """(L, N) bool, whether one ends with it; True at steps that are not known, which leave no recurrent state."""
    known: Array
    """(L, N) bool, False beyond either end of what was stored."""


class History(struct.PyTreeNode):
    """A ring of ``P`` steps of ``B`` flights."""

    obs: Array
    """(P, B, D) the student's raw observation: normalisers change, what was seen does not."""
    label: Array
    """(P, B, A) the teacher's action on the teacher's observation of the same step."""
    first: Array
    """(P, B) bool, whether an episode begins with the step."""
    carry: Carry
    """The student's recurrent state as it flew, before every ``stride``-th step of a rollout: each leaf (P / steps of a
    rollout * states of a rollout, B, hidden). () where no state is kept."""
    origin: Array
    """() int32, the row of the oldest step."""
    length: Array
    """(B,) int32, steps known of each flight."""

    @staticmethod
    def create(steps: int, obs: Array, label: Array, carry: Carry, dtype: Any) -> History:
        """An empty history of ``steps`` steps; ``obs`` (B, D), ``label`` (B, A) and ``carry`` show the shapes.

        ``carry`` leaves are (rows, B, hidden), all rows together.
        """

        def zeros(x: Any, kind: Any) -> Array:
            return jnp.zeros((steps, *x.shape), kind)

        return History(
            obs=zeros(obs, dtype),
            label=zeros(label, dtype),
            first=zeros(obs[:, 0], bool),
            carry=jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), carry),
            origin=jnp.zeros((), jnp.int32),
            length=jnp.zeros(obs.shape[0], jnp.int32),
        )

    def append(self, obs: Array, label: Array, first: Array, carry: Carry) -> History:
        """Add a rollout (T, B, ...), over the oldest where the ring is full; ``P`` is a multiple of T."""
        rows, steps = self.obs.shape[0], obs.shape[0]
        full = self.length[0] == rows
        at = jnp.where(full, self.origin, self.length[0])

        def write(old: Array, new: Array) -> Array:
            # Rollouts fill whole slots, also of an array that holds other than one row a step.
            start = at // steps * new.shape[0]
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=0)

        return History(
            obs=write(self.obs, obs),
            label=write(self.label, label),
            first=write(self.first, first),
            carry=jax.tree.map(write, self.carry, carry),
            origin=jnp.where(full, (self.origin + steps) % rows, self.origin),
            length=jnp.minimum(self.length + steps, rows),
        )

    def stretch(self, start: Array, flight: Array, steps: int) -> Stretch:
        """Sequences of ``steps`` steps of the flights ``flight`` (N,) from the times ``start`` (N,), 0 the oldest.

        They may reach beyond what is known, at either end.
        """
        rows = self.obs.shape[0]
        at = start + jnp.arange(steps + 1)[:, None]
        known = (at >= 0) & (at < self.length[flight])
        row = (self.origin + at) % rows
        begins = self.first[row, flight] & known
        return Stretch(
            obs=self.obs[row[:-1], flight].astype(jnp.float32),
            label=self.label[row[:-1], flight].astype(jnp.float32),
            begins=begins[:-1],
            done=begins[1:] | ~known[:-1],
            known=known[:-1],
        )

    def carry_at(self, row: Array, flight: Array) -> Carry:
        """The recurrent states (N, hidden) kept in ``row`` (N,) of ``flight`` (N,)."""
        return jax.tree.map(lambda x: x[row, flight].astype(jnp.float32), self.carry)

    def begins(self, start: Array, flight: Array, steps: int) -> Array:
        """(steps, N) bool: where episodes begin, in the sequences of :meth:`stretch`."""
        at = start + jnp.arange(steps)[:, None]
        known = (at >= 0) & (at < self.length[flight])
        return self.first[(self.origin + at) % self.obs.shape[0], flight] & known


@dataclass(frozen=True)
class Plan:
    """How large a history is going to be."""

    rollouts: int
    """Rollouts that the ring holds."""
    transitions: int
    """Transitions of all of them."""
    nbytes: int
    """Bytes of all of them."""

    def describe(self) -> str:
        """One line, for the start of a run."""
        return (
            f"History: {self.rollouts} rollouts, {self.transitions} transitions of "
            f"{self.nbytes / self.transitions:.1f} bytes, {self.nbytes / GIB:.3f} GiB on {jax.devices()[0].platform}"
        )


def num_rollouts(cfg: AlgorithmCfg, transitions: int) -> int:
    """How many rollouts of ``transitions`` steps, all environments together, the history holds.

    Raises:
        ConfigError: not even one.
    """
    rollouts = cfg.max_buffer_size // transitions
    if rollouts < 1:
        raise ConfigError(
            f"agent.algorithm.max_buffer_size={cfg.max_buffer_size}: smaller than one rollout, which has {transitions} "
            "transitions (num_steps_per_env * num_envs)"
        )
    return rollouts


def plan(cfg: AlgorithmCfg, history: Any, steps: int) -> Plan:
    """The plan of ``history`` (arrays or their shapes) that takes rollouts of ``steps`` steps.

    Raises:
        ConfigError: it does not fit into memory.
    """
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(history))
    rows, flights = history.first.shape
    smaller = (
        "lower it" if cfg.history_dtype == "bfloat16" else "lower it, or set agent.algorithm.history_dtype=bfloat16"
    )
    # A checkpoint is a copy on the host; on the CPU that copy lives beside the history itself.
    check_memory(size, f"agent.algorithm.max_buffer_size={cfg.max_buffer_size}: the history", smaller, copies=1)
    return Plan(rows // steps, rows * flights, size)


def check_memory(nbytes: int, what: str, advice: str, copies: int = 0) -> None:
    """Raise :class:`ConfigError` unless ``nbytes`` fit on the device, and ``copies`` further times on the host."""
    host = available_host_memory()
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        free = {
            "device": (nbytes, stats["bytes_limit"] - stats.get("bytes_in_use", 0)),
            "host": (copies * nbytes, host),
        }
    else:
        free = {"host": ((1 + copies) * nbytes, host)}
    for where, (needed, available) in free.items():
        if available is not None and needed > available:
            copied = " with the copy that a checkpoint makes" if copies and where == "host" else ""
            raise ConfigError(
                f"{what} needs {needed / GIB:.1f} GiB of the {where}'s memory{copied}, "
                f"{available / GIB:.1f} GiB are available: {advice}"
            )


def available_host_memory() -> int | None:
    """Bytes that this process may still use: the system's, within the limits of its control group; None if unknown."""
    found = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        try:
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (OSError, ValueError):  # Not a POSIX system.
            return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            group = Path("/sys/fs/cgroup")
            found.append(int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # No such control group, or "max".
            continue
    return min(found)
