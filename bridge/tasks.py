"""What a task is, what a simulator is, and the built-in tasks by name. Importing this imports no simulator.

Adding a built-in task is one line in :data:`TASKS`; adding a simulator is one file with a subclass of
:class:`Simulator` and one line in :data:`bridge.registry.SIMULATORS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from bridge.errors import SettingError

if TYPE_CHECKING:
    from bridge.env import Env, TrainingEnv
    from bridge.quadrotors import QuadrotorSpec
    from bridge.teaching import Lesson


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
    parts: int = 1
    """Into how many parts a simulator is to divide the number of environments that its own config has; this is one."""
    part: int = 0
    """Which of the processes that share the run this is, each with as many environments."""


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
    teacher: Callable[[Any], str | None] = lambda cfg: None
    """Name of the bundled teacher, given settings of ``cfg_cls``."""
    old_teacher_output_activation: str = "identity"
    """What ends this task's actors in checkpoints of rsl_rl 2.x and 3.x, which do not say."""
    scenarios: Callable[[Any], Mapping[str, Scenario]] = lambda cfg: {"default": Scenario("the task as it is", cfg)}
    """What the task is evaluated in, given settings of ``cfg_cls``: at least one scenario, by name."""
    quadrotors: Callable[[], Sequence[QuadrotorSpec]] | None = None
    """The quadrotors that its simulator knows by name; None where the task flies none out of files."""
    with_quadrotors: Callable[[Any, str], Any] | None = None
    """Its settings, with the quadrotors of a file, which fly in turn and exactly as they are."""
    lesson: Callable[[Any, float], Lesson] | None = None
    """The task as teachers are trained on it, from its settings and the distance (m) below which being closer is worth
    less; None where it is not differentiable."""
    generalist: str | None = None
    """Name of the bundled policy for all craft that teachers of single ones may begin with."""
    obs_groups: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """Named values of the setting ``agent.obs_groups``, for policies that see the task's numbers in another order than
    it observes them: entries of ``student`` and ``teacher`` by the name."""
    main_metric: str | None = None
    """The metric (``Metrics/<name>`` of a State) that tells most about a policy on this task: tables, reports and films
    speak of it. None takes the first by name."""


class Request(NamedTuple):
    """What a command line, or a run folder, says about the task that it means."""

    task: str
    """As given, or a run's."""
    sim: str | None = None
    """``--sim``, or a run's simulator."""
    overrides: Sequence[str] = ()
    """Dotted settings, ``key=value``."""
    flags: Sequence[str] = ()
    """What the command did not know of its command line."""
    program: str = "..."
    """The command, for hints."""


class UnknownTaskError(SettingError):
    """A simulator has no task of that name."""

    def __init__(self, name: str, known: Sequence[str]):
        super().__init__(f"unknown task {name}")
        self.known = known
        """The names that there are."""


class Launch(NamedTuple):
    """A simulator's part of the command line."""

    options: Any
    """What its flags say, for :meth:`Simulator.load`."""
    rest: list[str]
    """The command line without them."""
    device: str | None = None
    """Where the simulator runs if the user named no device: ``cpu`` or ``cuda:N``; None leaves the choice to JAX."""


class Simulator:
    """A back end, as the commands see it. The defaults are those of environments written in JAX.

    Only :meth:`parse_flags` and :meth:`load` may import the simulator; all else is cheap.
    """

    name = "jax"
    """As ``--sim`` says it."""
    title = "JAX"
    """As a sentence says it."""
    package: str | None = None
    """The Python package that has to be installed."""
    extra: str | None = None
    """The extra of this project that installs it."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions a run records, because its numbers depend on them."""
    is_jax = True
    """Whether its environments are JAX: pure, opened in no time and without flags of their own."""
    shares_gpu = False
    """Whether it needs memory on the GPU that JAX would otherwise take for itself."""
    records_video = False
    """Whether it has a recording of its own behind ``--video``."""
    open_ended = False
    """Whether a name that nobody else knows may be one of its tasks."""
    flags: tuple[str, ...] = ()
    """The best known of its own flags."""
    cfg_cls: type | None = None
    """The settings class that all its tasks share, so that a run can be read without the simulator; None where each
    task has its own."""
    twins: ClassVar[Mapping[str, str]] = {}
    """Built-in tasks that it has too, with their names here."""

    def claims(self, request: Request) -> bool:
        """Whether the request, which names no simulator, means a task of this one."""
        return request.task in self.task_names()

    def task_names(self) -> Sequence[str]:
        """The tasks that can be listed without importing the simulator."""
        return list(self.twins)

    def canonical(self, name: str) -> str:
        """The name under which runs of the task ``name`` are filed."""
        return self.twins.get(name, name)

    def separate(
        self, sections: Sequence[Mapping[str, Any]], overrides: Sequence[str]
    ) -> tuple[list[Mapping[str, Any]], list[str]]:
        """Settings in the words of the task's ``cfg_cls``, for a simulator that applies some settings itself.

        Args:
            sections: the ``env`` sections of config files and flags; later ones win.
            overrides: from the command line, ``key=value``; they win over all sections.

        Returns:
            The sections, and the overrides that are left.
        """
        return list(sections), list(overrides)

    def drawing_flags(self, flags: Sequence[str]) -> list[str]:
        """Flags to be added to ``flags`` so that the environment can be drawn."""
        return []

    def parse_flags(self, argv: Sequence[str], device: str | None) -> Launch:
        """Read the simulator's own flags out of ``argv``; ``device`` is where it is to run, None where it likes.

        Raises:
            SettingError: a flag with a value that makes no sense.
        """
        return Launch(None, list(argv), device)

    def load(self, name: str, options: Any) -> Task:
        """The task ``name``, with ``options`` of :meth:`parse_flags`.

        Raises:
            UnknownTaskError: there is none.
            SettingError: it cannot be had as asked; one line.
        """
        return TASKS[name]()

    def adapt(self, found: Any, num_envs: int) -> Env | None:
        """``found``, which a user's function made, as a batch, where it is one of this simulator's environments."""
        return None


def lazily(target: str) -> Callable[[], Task]:
    """A function that imports ``target`` (``module:function``) when it is called, and calls it."""
    module, _, name = target.partition(":")
    return lambda: getattr(importlib.import_module(module), name)()


TASKS: dict[str, Callable[[], Task]] = {
    "crazyflie": lazily("bridge.crazyflie.simulator:point_control"),
    "distillation": lazily("bridge.crazyflie.simulator:point_control"),
    "crazyflie_forest": lazily("bridge.crazyflie.simulator:forest"),
}
"""The built-in tasks; ``distillation`` is an alias. Entries import nothing until they are called."""

DEFAULT_TASK = "crazyflie"
"""What is trained on where nothing else is said."""


def make_env(task: Task, cfg: Any) -> TrainingEnv:
    """The environment of a task that is JAX, which goes on after its context: there is nothing to close.

    Raises:
        SettingError: a setting that cannot be used; one line.
    """
    with task.open(cfg, Session(seed=0, groups=None)) as env:
        return env
