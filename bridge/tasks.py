"""Tasks by name: what ``--task`` accepts, on the embedded simulator and on Isaac Lab."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bridge.env import AutoReset, TrainingEnv

SIMULATORS = ("crazyflow", "isaaclab")


class Session(NamedTuple):
    """What a run tells the environment that is opened for it."""

    seed: int
    """Of everything random before the first reset."""
    groups: Sequence[str] | None
    """Observation groups that are needed; None for all."""
    mode: str = "auto"
    """How a simulator that is not JAX is stepped: ``auto``, ``callback`` or ``host``."""
    video_dir: str = "."
    """Folder above a simulator's own videos."""


class Scenario(NamedTuple):
    """One variation of a task, to evaluate policies in."""

    description: str
    """One line."""
    cfg: Any
    """The task's settings in it."""


@dataclass(frozen=True)
class Task:
    """A task: its settings and how to build it from them."""

    name: str
    """The name under which its runs, presets and bundled teacher are filed."""
    cfg_cls: type
    """Dataclass of its settings; it has ``num_envs`` and ``validate()``."""
    open: Callable[[Any, Session], AbstractContextManager[TrainingEnv]]
    """Opens the environment from an instance of ``cfg_cls``; it ends with the context."""
    agent_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the agent that come with the task, under those of its preset."""
    preset: str | None = None
    """Name of the preset in ``configs/`` that always applies."""
    teacher: str | None = None
    """Name of the bundled teacher."""
    main_metric: str | None = None
    """The metric to speak of in tables, reports and films, without its prefix ``Metrics/``; None takes the first by
    name."""
    old_teacher_output_activation: str = "identity"
    """What ends this task's actors in checkpoints of rsl_rl 2.x and 3.x, which do not say."""
    scenarios: Callable[[Any], Mapping[str, Scenario]] = lambda cfg: {"default": Scenario("the task as it is", cfg)}
    """What the task is evaluated in, given settings of ``cfg_cls``: at least one scenario, by name."""
    takes_override: Callable[[str], bool] = lambda override: False
    """Whether an override is for the simulator to apply; those are collected in ``cfg.overrides``."""


def _crazyflie() -> Task:
    from bridge.crazyflie import PointControl, PointControlCfg
    from bridge.crazyflie.scenarios import scenarios

    @contextmanager
    def open_env(cfg: Any, session: Session) -> Iterator[TrainingEnv]:
        yield AutoReset(PointControl(cfg))

    # The task comes from a fork of rsl_rl whose actors end in a tanh.
    return Task(
        name="crazyflie",
        cfg_cls=PointControlCfg,
        open=open_env,
        scenarios=scenarios,
        preset="crazyflie",
        teacher="crazyflie",
        main_metric="position_error",
        old_teacher_output_activation="tanh",
    )


TASKS: dict[str, Callable[[], Task]] = {"crazyflie": _crazyflie, "distillation": _crazyflie}
"""The names of the embedded task; ``distillation`` is an alias. Entries import nothing until they are called."""

POINT_CONTROL = "Jdistill-PointControl-Direct"
"""The same task on Isaac Lab."""


def make_env(task: Task, cfg: Any) -> TrainingEnv:
    """The environment of an embedded task, which goes on after its context: there is nothing to close.

    Raises:
        ValueError: a setting that cannot be used; one line.
    """
    with task.open(cfg, Session(seed=0, groups=None)) as env:
        return env


def on_isaaclab(name: str, sim: str | None, overrides: Sequence[str], flags: Sequence[str]) -> bool:
    """Whether ``--task name`` means a task of Isaac Lab.

    Args:
        name: as given, or of a resumed run.
        sim: ``--sim``, if given.
        overrides: dotted settings; ``env.robot.*`` exists on Isaac Lab only.
        flags: what is left of the command line.

    Raises:
        ValueError: the embedded simulator was asked for a task that it does not have; one line.
    """
    if name not in TASKS:
        if sim == "crazyflow":
            raise ValueError(f"--sim crazyflow: has no task {name}; there are {', '.join(TASKS)}")
        return True
    if sim is not None:
        return sim == "isaaclab"
    if any(o.startswith("env.robot.") for o in overrides):
        return True
    return name == "distillation" and _is_external(name, flags)


def _is_external(name: str, flags: Sequence[str]) -> bool:
    """Whether another package has registered ``name``, or is about to."""
    if importlib.util.find_spec("isaaclab") is None:
        return False
    import gymnasium  # Registers what installed packages announce as Gymnasium plug-ins.

    return name in gymnasium.registry or any(flag.startswith("--external_callback") for flag in flags)


def isaaclab_task(name: str, launch: argparse.Namespace) -> Task:
    """The task ``name`` of Isaac Lab, or point control there for one of the embedded task's names.

    ``launch`` holds Isaac Lab's flags, see :func:`bridge.isaaclab.launch.parse_flags`.

    Raises:
        ValueError: no such task; one line.
    """
    from bridge.isaaclab import agent
    from bridge.isaaclab import launch as starter
    from bridge.isaaclab.cfg import IsaacLabCfg, is_simulators

    if not starter.has_task(name):
        if name not in TASKS:
            known = starter.task_names()
            near = difflib.get_close_matches(name, [*known, *TASKS], n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"unknown task {name}{hint}; Isaac Lab has {len(known)}, and there are {', '.join(TASKS)}")
        name = POINT_CONTROL
    ours = name == POINT_CONTROL

    @contextmanager
    def open_env(cfg: Any, session: Session) -> Iterator[TrainingEnv]:
        details = session.seed, session.groups, session.mode, session.video_dir
        with starter.open_env(name, cfg, launch, *details) as env:
            yield env

    defaults = {"obs_groups": {"student": ["policy"]}} if ours else agent.agent_defaults(name, launch.agent)
    return Task(
        name=name,
        cfg_cls=IsaacLabCfg,
        open=open_env,
        agent_defaults=defaults,
        preset="crazyflie" if ours else None,
        teacher="crazyflie" if ours else None,
        old_teacher_output_activation="tanh" if ours else "identity",
        takes_override=is_simulators,
    )
