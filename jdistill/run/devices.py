"""Which devices a run computes on, and which processes share it. One place, before JAX looks for any device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jdistill.errors import ConfigError

if TYPE_CHECKING:
    import jax

    from jdistill.run.compose import RunCfg
    from jdistill.run.mesh import EnvMesh
    from jdistill.run.session import Started

ENVS_PER_CORE = 16
"""Environments for which another CPU core pays off; ``python -m benchmarks.devices`` measures it."""


def select_device(name: str | None) -> None:
    """Tell JAX which kind of device to use, before it looks for any; None leaves the choice to JAX.

    Raises:
        ConfigError: no such device.
    """
    if name is None:
        return
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "gpu", "tpu") or (index and not index.isdigit()):
        raise ConfigError(f"--device {name}: expected cpu, cuda or cuda:N")
    if index and kind in ("cuda", "gpu"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        chosen = visible[int(index)] if int(index) < len(visible) and visible[0] else index
        os.environ["CUDA_VISIBLE_DEVICES"] = chosen
    import jax

    try:
        jax.config.update("jax_platforms", "cuda" if kind == "gpu" else kind)
        jax.devices()
    except RuntimeError as e:
        hint = "" if kind == "cpu" else "; for a GPU use 'uv run --extra cuda ...'"
        raise ConfigError(f"--device {name}: JAX finds no such device{hint}") from e


def cores() -> int:
    """CPU cores that this process may use: by its affinity, within the quota of its control group."""
    number = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for file in ("cpu.max", "cpu/cpu.cfs_quota_us"):
        try:
            quota, *period = (Path("/sys/fs/cgroup") / file).read_text().split()
            period = period or [(Path("/sys/fs/cgroup") / "cpu/cpu.cfs_period_us").read_text()]
            if float(quota) > 0:
                number = min(number, float(quota) / float(period[0]))
        except (OSError, ValueError):  # No such control group, or "max".
            continue
    return max(1, int(number))


def divide_cpu(number: int) -> None:
    """Let JAX treat the CPU as ``number`` devices, each of which computes on one core.

    Without effect once JAX has begun to compute, or where the user has said so in ``XLA_FLAGS``.
    """
    import jax

    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:  # JAX has begun.
        return


def parse_devices(text: str | None) -> int | None:
    """``--devices``: a number, or None for ``all`` and for what is not said.

    Raises:
        ConfigError: neither.
    """
    if text in (None, "all"):
        return None
    if not str(text).isdigit() or int(text) < 1:
        raise ConfigError(f"--devices {text}: expected a number or 'all'")
    return int(text)


def make_mesh(cfg: RunCfg, started: Started, asked: str | None = None) -> EnvMesh:
    """The devices that share the environments of a run.

    ``asked`` is what ``--devices`` says. Without it, a simulator that is JAX takes all GPUs, or as many CPU cores as pay
    off, and any other one device.

    Raises:
        ConfigError: there are not so many, or the environments cannot be divided among them.
    """
    import jax

    from jdistill.run.mesh import EnvMesh

    devices = jax.devices()
    if not started.simulator.is_jax:
        if asked not in (None, "1"):
            raise ConfigError(
                f"--devices {asked}: {started.simulator.title} steps one simulator on one device in each process; for "
                "more, start more processes (docs/scaling.md)"
            )
        return EnvMesh(devices[:1])
    number, smallest = cfg.env.num_envs, cfg.agent.algorithm.num_mini_batches
    if asked is None:
        enough = ENVS_PER_CORE if devices[0].platform == "cpu" else 1
        return EnvMesh(devices[: _most(number, len(devices), max(enough, smallest))])
    count = parse_devices(asked) or len(devices)
    if count > len(devices):
        raise ConfigError(f"--devices {asked}: there are {len(devices)}")
    if number % count:
        near = count * max(1, round(number / count))
        raise ConfigError(f"--num_envs {number}: cannot be divided among {count} devices; the nearest that can is {near}")
    return EnvMesh(devices[:count])


def _most(number: int, available: int, each: int) -> int:
    """The most devices, of those ``available``, with an equal share of at least ``each`` of a ``number``."""
    fitting = [count for count in range(1, available + 1) if number % count == 0 and number // count >= each]
    return max(fitting, default=1)
