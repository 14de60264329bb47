"""From what a user says (``--task``, ``--sim``, settings, flags) to a simulator and a task. Commands know no back end.

A simulator from another package announces itself by an entry point of the group ``jdistill.simulators``, whose value is
``package.module:Class``, a subclass of :class:`bridge.tasks.Simulator`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from typing import Any

from bridge.errors import SettingError, nearest
from bridge.tasks import TASKS, Request, Simulator, Task, UnknownTaskError

GROUP = "jdistill.simulators"
SIMULATORS = (
    "bridge.isaaclab.simulator:IsaacLab",
    "bridge.mjlab.simulator:Mjlab",
    "bridge.crazyflie.simulator:Crazyflow",
    "bridge.brax:Brax",
    "bridge.playground:Playground",
    "bridge.gymnax:Gymnax",
    "bridge.custom:OwnEnvironments",
)
"""The built-in ones; importing these modules imports no simulator. Of two that claim a task the first has it."""


@functools.cache
def simulators() -> dict[str, Simulator]:
    """Every simulator by the name that ``--sim`` takes.

    Raises:
        SettingError: an installed package announces one that cannot be imported.
    """
    announced: list[Simulator] = []
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            announced.append(point.load()())
        except (ImportError, AttributeError) as e:
            raise SettingError(f"simulator {point.name} ({point.value}) of an installed package: {e}") from e
    *built_in, own = (_built_in(target) for target in SIMULATORS)
    return {simulator.name: simulator for simulator in (*built_in, *announced, own)}


def _built_in(target: str) -> Simulator:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)()


def adapted(found: Any, num_envs: int) -> Any:
    """An environment in the words of one of the simulators as :class:`bridge.env.Env`, or ``found`` as it is."""
    batches = (simulator.adapt(found, num_envs) for simulator in simulators().values() if simulator.is_jax)
    return next((env for env in batches if env is not None), found)


def packages() -> tuple[str, ...]:
    """Distributions of all simulators, on whose versions a run's numbers may depend."""
    return tuple(dict.fromkeys(name for simulator in simulators().values() for name in simulator.packages))


def titles(chosen: Iterable[Simulator]) -> str:
    """The simulators as a sentence lists them."""
    return " or ".join(simulator.title for simulator in chosen)


def task_names() -> dict[str, str]:
    """Every task that can be listed without importing a simulator, with the simulator that has it."""
    found: dict[str, str] = {}
    for simulator in simulators().values():
        for name in simulator.task_names():
            found.setdefault(name, simulator.name)
    return found


def find(request: Request) -> Simulator:
    """The simulator that has the task, or the one to be asked for it. It need not be installed.

    Raises:
        SettingError: no such task or simulator; one line.
    """
    every = simulators()
    if request.sim is not None:
        if request.sim not in every:
            near = nearest(request.sim, every)
            raise SettingError(f"--sim {request.sim}: no such simulator{near}; there are {', '.join(every)}")
        simulator = every[request.sim]
        if not (simulator.open_ended or simulator.claims(request)):
            known = ", ".join(simulator.task_names())
            raise SettingError(f"--sim {request.sim}: has no task {request.task}; there are {known}")
        return simulator
    if claimed := next((s for s in every.values() if s.claims(request)), None):
        return claimed
    open_ended = sorted((s for s in every.values() if s.open_ended), key=is_installed, reverse=True)
    if not open_ended:
        names = list(task_names())
        raise SettingError(f"unknown task {request.task}{_near(request.task, names)}; there are {', '.join(names)}")
    return open_ended[0]


def is_installed(simulator: Simulator) -> bool:
    """Whether the package that the simulator needs is there."""
    return simulator.package is None or importlib.util.find_spec(simulator.package) is not None


def check_installed(simulator: Simulator, request: Request) -> None:
    """Raise :class:`SettingError` if the package that the simulator needs is missing; it says how to get it."""
    if is_installed(simulator):
        return
    what = "this task"
    if request.sim is None and not simulator.claims(request):
        others = [name for name, sim in task_names().items() if sim != simulator.name]
        what = f"unknown task {request.task}{_near(request.task, others)}; every other"
    how = f"'uv run --extra {simulator.extra} {request.program}'" if simulator.extra else f"package {simulator.package}"
    raise SettingError(f"{what} needs {simulator.title}, use {how}")


def _near(name: str, known: Iterable[str]) -> str:
    module, _, attribute = name.rpartition(":")
    missing = f" ({module} has no '{attribute}')" if module and attribute.isidentifier() else ""
    return missing or nearest(name, known)


def load(simulator: Simulator, name: str, options: Any = None) -> Task:
    """The task ``name`` of ``simulator``, with what its flags said.

    Raises:
        SettingError: no such task, with the nearest name; or one that cannot be had as asked.
    """
    try:
        return simulator.load(name, options)
    except UnknownTaskError as e:
        near, built_in = _near(name, [*e.known, *task_names()]), ", ".join(TASKS)
        raise SettingError(
            f"unknown task {name}{near}; {simulator.title} has {len(e.known)}, and there are {built_in}"
        ) from e


def canonical(name: str) -> set[str]:
    """The names under which runs of the task ``name`` may be filed, one for each simulator that has it."""
    return {name} | {simulator.canonical(name) for simulator in simulators().values()}


def settings_class(simulator: Simulator, name: str) -> type:
    """The settings class of a task, without starting its simulator."""
    return simulator.cfg_cls or load(simulator, name).cfg_cls
