"""How much memory a rollout and a history take, and whether the machine has it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import jax

from jdistill.core.distillation import Distillation
from jdistill.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class HistoryPlan:
    """How large a history is going to be."""

    rollouts: int
    """Rollouts that the ring holds."""
    transitions: int
    """Transitions of all of them."""
    nbytes: int
    """Bytes of all of them."""

    def describe(self) -> str:
        """One line, for the start of a run."""
        on = jax.local_devices()[0].platform
        return (
            f"History: {self.rollouts} rollouts, {self.transitions} transitions of "
            f"{self.nbytes / self.transitions:.1f} bytes, {self.nbytes / GIB:.3f} GiB on {on}"
        )


def plan_history(alg: Distillation, local_devices: int = 1) -> HistoryPlan | None:
    """How much the history of ``alg`` is going to hold, on all devices together; None where there is none.

    ``local_devices`` are those of this process.

    Raises:
        ConfigError: it is too small for a rollout or for the sampler, or too large for the memory.
    """
    alg.sampler.check()
    history = jax.eval_shape(alg.empty_history)
    if history is None:
        return None
    cfg = alg.cfg.algorithm
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(history))  # Of one device.
    rows, columns = history.is_first.shape
    count = alg.shards.count
    smaller = (
        "lower it" if cfg.history_dtype == "bfloat16" else "lower it, or set agent.algorithm.history_dtype=bfloat16"
    )
    # A checkpoint is a copy on the host; on the CPU that copy lives beside the history itself.
    what = f"agent.algorithm.max_buffer_size={cfg.max_buffer_size}: the history"
    check_memory(local_devices * size, what, smaller, copies=1, devices=local_devices)
    return HistoryPlan(rows // alg.cfg.num_steps_per_env, count * rows * columns, count * size)


def check_rollout(alg: Distillation, local_devices: int = 1) -> None:
    """See that a rollout of ``alg`` fits: observations, actions, rewards, and the observations once more, normalized.

    ``local_devices`` are those of this process. What a program needs besides is not counted.

    Raises:
        ConfigError: it does not.
    """
    env, steps = alg.env, alg.cfg.num_steps_per_env
    specs = [env.obs_specs[group] for group in alg.groups]
    transition = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
    transition += 4 * (alg.obs_size + 2 * env.num_actions + 3)
    check_memory(
        local_devices * env.num_envs * steps * transition,
        f"a rollout of {env.num_envs * alg.shards.count} environments x {steps} steps",
        "lower --num_envs or agent.num_steps_per_env",
        devices=local_devices,
    )


def check_memory(nbytes: int, what: str, advice: str, copies: int = 0, devices: int = 1) -> None:
    """Raise :class:`ConfigError` unless ``nbytes`` fit on ``devices``, and ``copies`` further times on the host."""
    host = available_host_memory()
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        free = {
            "device": (nbytes // devices, stats["bytes_limit"] - stats.get("bytes_in_use", 0)),
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
