"""Which devices a run computes on, and which processes share it. One place, before JAX looks for any device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jdistill.errors import ConfigError

if TYPE_CHECKING:
    from jdistill.run.compose import RunCfg
    from jdistill.run.mesh import EnvMesh
    from jdistill.run.session import Started

ENVS_PER_CORE = 16
"""Environments for which another CPU core pays off; ``python -m benchmarks.devices`` measures it."""


@dataclass(frozen=True)
class Placement:
    """What a command line says of devices and processes: the flags of these names."""

    device: str | None = None
    devices: str | None = None
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @property
    def group(self) -> tuple[bool, str | None, int | None, int | None]:
        """The arguments of :func:`jdistill.run.processes.find_group`."""
        return self.distributed, self.coordinator, self.num_processes, self.process_id


ANYWHERE = Placement()
"""Nothing said."""


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
        see_one_gpu(int(index))
    import jax

    try:
        jax.config.update("jax_platforms", "cuda" if kind == "gpu" else kind)
        jax.devices()
    except RuntimeError as e:
        hint = "" if kind == "cpu" else "; for a GPU use 'uv run --extra cuda ...'"
        raise ConfigError(f"--device {name}: JAX finds no such device{hint}") from e


def see_one_gpu(index: int) -> None:
    """Hide all GPUs but one of those that this process sees, from JAX, torch and simulators."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) and visible[0] else str(index)


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

    ``asked`` is what ``--devices`` says, of each process. Without it, a simulator that is JAX takes all GPUs, or as
    many CPU cores as pay off, and any other one device.

    Raises:
        ConfigError: there are not so many, or the environments cannot be divided among them.
    """
    import jax

    from jdistill.run.mesh import EnvMesh

    here = jax.local_devices()
    processes = [[d for d in jax.devices() if d.process_index == i] for i in range(jax.process_count())]

    def mesh(each: int) -> EnvMesh:
        return EnvMesh([device for devices in processes for device in devices[:each]])

    number = cfg.env.num_envs
    if not started.simulator.is_jax:
        if asked not in (None, "1"):
            raise ConfigError(
                f"--devices {asked}: {started.simulator.title} steps one simulator on one device in each process; for "
                "more, start more processes (docs/scaling_out.md)"
            )
        _check_divides(number, len(processes))
        return mesh(1)
    if asked is None:
        enough = max(ENVS_PER_CORE if here[0].platform == "cpu" else 1, cfg.agent.algorithm.num_mini_batches)
        counts = [n * len(processes) for n in range(1, len(here) + 1)]
        count = max((n for n in counts if number % n == 0 and number // n >= enough), default=counts[0])
    else:
        count = len(processes) * (parse_devices(asked) or len(here))
        if count > len(processes) * len(here):
            raise ConfigError(f"--devices {asked}: there are {len(here)}")
    _check_divides(number, count)
    return mesh(count // len(processes))


def _check_divides(number: int | None, count: int) -> None:
    if number is not None and number % count:
        near = count * max(1, round(number / count))
        raise ConfigError(
            f"--num_envs {number}: cannot be divided among {count} devices; the nearest that can is {near}"
        )
