"""Which devices a run computes on, and which processes share it. One place, before JAX looks for any device."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jdistill.errors import ConfigError

if TYPE_CHECKING:
    from jdistill.run.compose import RunCfg
    from jdistill.run.mesh import EnvMesh
    from jdistill.run.session import Started

ENVS_PER_CORE = 16
"""Environments for which another CPU core pays off; ``python -m benchmarks.devices`` measures it."""

_GIVEN = "JDISTILL_CUDA_VISIBLE_DEVICES"
"""What ``CUDA_VISIBLE_DEVICES`` was before one of them was chosen."""
_ALL = "all"
_NONE = ("", "-1")
"""Values of it that hide all GPUs."""
_OLDEST_DRIVER = {"13": 580, "12": 525}
"""NVIDIA's drivers by version of CUDA."""


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


def select_device(name: str | None, wanted_by: str | None = None) -> None:
    """Tell JAX which kind of device to use, before it looks for any; None leaves the choice to JAX.

    ``wanted_by`` is whoever wants that device, where the user has not named it.

    Raises:
        ConfigError: no such device.
    """
    if name is None:
        return
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "gpu", "tpu") or (index and not index.isdecimal()):
        raise ConfigError(f"--device {name}: expected cpu, cuda or cuda:N")
    on_gpu = kind in ("cuda", "gpu")
    if index and on_gpu:
        see_one_gpu(int(index))
    import jax

    who = f"{wanted_by} is on {name}, which JAX is not" if wanted_by else f"--device {name}"
    try:
        jax.config.update("jax_platforms", "cuda" if on_gpu else kind)
        found = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as e:
        raise ConfigError(f"{who}: {why_no_gpu() if on_gpu else 'JAX finds no such device'}") from e
    if found != ("gpu" if on_gpu else kind):
        raise ConfigError(f"{who}: JAX computes on {found} already")


def see_one_gpu(index: int) -> None:
    """Hide all GPUs but one of those that this process was given, from JAX, torch, simulators and child processes.

    Raises:
        ConfigError: it was given fewer.
    """
    shown, given = os.environ.get("CUDA_VISIBLE_DEVICES", _ALL), os.environ.get(_GIVEN)
    # A child process, and a second run in one program, count from what there was before the first choice.
    if given is None or (given != _ALL and shown not in given.split(",")):
        given = os.environ[_GIVEN] = shown
    numbers = given.split(",")
    if given in _NONE:
        return
    if given != _ALL and index >= len(numbers):
        raise ConfigError(f"--device cuda:{index}: CUDA_VISIBLE_DEVICES={given} shows {len(numbers)} only")
    os.environ["CUDA_VISIBLE_DEVICES"] = str(index) if given == _ALL else numbers[index]


def check_device() -> None:
    """See that a GPU which is there is used, unless somebody has said otherwise.

    Raises:
        ConfigError: JAX has the packages for it and does not get it to work.
    """
    import jax

    if jax.config.jax_platforms or jax.default_backend() != "cpu" or not _gpu_is_there():
        return
    if _cuda_version() is None:
        print(f"There is a GPU, and JAX computes on the CPU: {why_no_gpu()}; --device cpu says it is meant so")
    else:
        raise ConfigError(f"there is a GPU, and JAX computes on the CPU: {why_no_gpu()}; or add --device cpu")


def why_no_gpu() -> str:
    """What JAX lacks to compute on a GPU, and what to do."""
    cuda, driver = _cuda_version(), gpu_driver()
    if cuda is None:
        return "JAX has no CUDA packages; add them with 'uv run --extra cuda ...'"
    if driver is None:
        return "this machine has no NVIDIA driver"
    if int(driver.partition(".")[0]) < _OLDEST_DRIVER[cuda]:
        other = " or use 'uv run --extra cuda12 ...'" if cuda == "13" else ""
        return f"its driver {driver} is too old for CUDA {cuda}; install {_OLDEST_DRIVER[cuda]} or newer{other}"
    return "JAX finds no GPU (the messages above it say why)"


def gpu_driver() -> str | None:
    """The version of the NVIDIA driver; None without one."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found.group() if found else None


def _gpu_is_there() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", _ALL) in _NONE
    return gpu_driver() is not None and not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def _cuda_version() -> str | None:
    """Of the CUDA that JAX's packages are for; None without such packages."""
    found = (v for v in _OLDEST_DRIVER if importlib.util.find_spec(f"jax_cuda{v}_plugin"))
    return next(found, None)


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
    if not str(text).isdecimal() or not 0 < int(text) < 10**6:
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


def device_facts(mesh: EnvMesh) -> dict[str, Any]:
    """What a run keeps of the devices that it computes on."""
    device = mesh.devices[0]
    driver = {"driver": gpu_driver()} if device.platform == "gpu" else {}
    return {"platform": device.platform, "kind": device.device_kind, "count": mesh.shards.count, **driver}


def describe_devices(facts: Mapping[str, Any], num_envs: int) -> str:
    """One line: the devices and how many environments each of them steps."""
    driver = f" (driver {facts['driver']})" if facts.get("driver") else ""
    if facts["count"] == 1:
        return f"Device: {facts['kind']}{driver}"
    return f"Devices: {facts['count']} x {facts['kind']}{driver}, {num_envs} environments on each"


def _check_divides(number: int | None, count: int) -> None:
    if number is not None and number % count:
        near = count * max(1, round(number / count))
        raise ConfigError(
            f"--num_envs {number}: cannot be divided among {count} devices; the nearest that can is {near}"
        )
