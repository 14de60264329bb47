"""From what a command line or a run says to an open environment: the one place that starts simulators."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from bridge import registry
from bridge.env import TrainingEnv
from bridge.tasks import Request, Session, Simulator, Task
from jdistill.core.config import AgentCfg
from jdistill.core.observations import group_names
from jdistill.errors import ConfigError, ObservationError
from jdistill.run import compilation, processes
from jdistill.run.compose import RunCfg
from jdistill.run.devices import (
    ANYWHERE,
    Placement,
    check_device,
    cores,
    divide_cpu,
    parse_devices,
    see_one_gpu,
    select_device,
)

GROUPS = {
    "student": ("student", "policy", "actor", "state"),
    "teacher": ("teacher", "policy", "actor", "privileged_state", "state"),
}
"""What a set of observations is where it is left at its own name: the first of these groups that there is. ``policy``
is rsl_rl's name, ``actor`` mjlab's; ``state`` and ``privileged_state`` are Brax's and Playground's."""


class Started(NamedTuple):
    """A simulator that is ready to open environments of a task."""

    simulator: Simulator
    task: Task
    flags: Sequence[str] = ()
    """What of the command line was the simulator's."""
    rest: Sequence[str] = ()
    """The command line without it."""


def start(request: Request, argv: Sequence[str] = (), placement: Placement = ANYWHERE) -> Started:
    """Find and load the task that ``request`` means, where ``placement`` says, before JAX has computed anything.

    ``argv`` is the command line in which the simulator finds flags of its own.

    Raises:
        SettingError: no such task, device or package; a simulator's flag that makes no sense; one line.
    """
    device = placement.device
    simulator = registry.find(request)
    registry.check_installed(simulator, request)
    compilation.prepare()
    if simulator.shares_gpu:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    group = processes.find_group(*placement.group)
    if simulator.is_jax:
        divide_cpu(parse_devices(placement.devices) or (1 if group else cores()))
    if group:
        if group.local_id is not None and device in (None, "cuda", "gpu"):
            see_one_gpu(group.local_id)
        processes.join(group)
    select_device(device)
    launch = simulator.parse_flags(argv, device)
    if device is None:
        select_device(launch.device, simulator.title)
    taken = Counter(argv) - Counter(launch.rest)
    task = registry.load(simulator, request.task, launch.options)
    check_device()
    return Started(simulator, task, [token for token in argv if token in taken], launch.rest)


@contextmanager
def open_env(
    cfg: RunCfg, task: Task, seed: int | None = None, settings: Any = None, video_dir: str = ".", parts: int = 1
) -> Iterator[TrainingEnv]:
    """The environment of a run; it ends with the context.

    Args:
        cfg: the run's.
        task: its task.
        seed: of everything random before the first reset; None takes the run's.
        settings: the task's settings in place of the run's, a scenario's for one.
        video_dir: folder above the videos that a simulator records by itself.
        parts: into which the environments are divided; this is one of them.

    Raises:
        SettingError: settings that cannot be used; one line.
    """
    seed = cfg.agent.seed if seed is None else seed
    settings = cfg.env if settings is None else settings
    if parts > 1 and settings.num_envs is not None:
        settings, parts = dataclasses.replace(settings, num_envs=settings.num_envs // parts), 1
    # Simulators that are stepped by a process each must not all do the same.
    part = processes.process_id()
    session = Session(seed + part, needed_groups(cfg.agent), cfg.bridge.mode, video_dir, parts, part)
    with task.open(settings, session) as env:
        yield env


def needed_groups(agent: AgentCfg) -> list[str]:
    """The observation groups that policies may take from.

    :data:`GROUPS` are among them where a set is left at its own name (see
    :func:`jdistill.run.inputs.resolve_obs_groups`).
    """
    fallback = [group for name, entries in agent.obs_groups.items() if entries == [name] for group in GROUPS[name]]
    try:
        policies = [entry for entries in agent.obs_groups.values() for entry in entries]
        return group_names([*fallback, *policies, agent.teacher.id_group])
    except ObservationError as e:
        raise ConfigError(f"agent.obs_groups or agent.teacher.id_group: {e}") from e
