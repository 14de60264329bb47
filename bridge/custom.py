"""Tasks from outside: those that installed packages announce, and functions that are named on the command line.

A package announces a task by an entry point of the group ``jdistill.tasks``, whose value is
``package.module:function``. Nothing needs to be announced for ``--task package.module:function`` or
``--task path/to/file.py:function``. What stands there is

- a :class:`bridge.tasks.Task`, or a function without arguments that returns one; or
- a function that makes an environment, ``def pendulum(num_envs: int = 64, length: float = 0.5) -> Env``. Its parameters
  are the task's settings: ``env.length=1.0`` on the command line, checked against the annotation. The environment may
  also be one of Brax, MuJoCo Playground or gymnax, plain or in their wrappers, which then is made a batch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import SettingError, nearest
from bridge.tasks import TASKS, Request, Session, Simulator, Task, UnknownTaskError

if TYPE_CHECKING:
    from bridge.env import TrainingEnv

GROUP = "jdistill.tasks"
"""Of the entry points."""


class OwnEnvironments(Simulator):
    """Tasks that bring an environment in JAX of their own."""

    def claims(self, request: Request) -> bool:
        """An announced task, a function in a file, or one in a module that has it."""
        if request.task in self.task_names() or _in_file(request.task):
            return True
        module, _, name = request.task.rpartition(":")
        names = name.split(".")
        if not module or not all(part.isidentifier() for part in names):
            return False
        return hasattr(_imported(module, request.task), names[0])

    def task_names(self) -> Sequence[str]:
        """Built-in tasks and those that packages announce."""
        return [*TASKS, *announced()]

    def canonical(self, name: str) -> str:
        """A file is known by its absolute path."""
        if not _in_file(name):
            return name
        file, _, function = name.rpartition(":")
        return f"{Path(file).absolute()}:{function}"

    def load(self, name: str, options: Any) -> Task:
        """A built-in task, an announced one, or what ``name`` leads to."""
        if name in TASKS:
            return TASKS[name]()
        points = announced()
        target = points[name].value if name in points else name
        module, _, attribute = target.rpartition(":")
        if not module:
            raise UnknownTaskError(name, self.task_names())
        found: Any = _from_file(Path(module), name) if _in_file(target) else _imported(module, name)
        for part in attribute.split("."):
            if not hasattr(found, part):
                near = nearest(part, [n for n in vars(found) if not n.startswith("_")])
                raise SettingError(f"--task {name}: {module} has no '{attribute}'{near}")
            found = getattr(found, part)
        return as_task(self.canonical(name), found)


@functools.cache
def announced() -> dict[str, importlib.metadata.EntryPoint]:
    """The tasks that installed packages announce, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


# -- from a name to an object --------------------------------------------------------------------------------------


def _in_file(name: str) -> bool:
    return name.rpartition(":")[0].endswith(".py")


def _imported(module: str, task: str) -> Any:
    """The module, which may lie in the current folder."""
    _find_modules_in(Path.cwd())
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise SettingError(f"--task {task}: {e}") from e


def _from_file(file: Path, task: str) -> Any:
    """The module that the file is; it may import what lies beside it."""
    file = file.absolute()
    # A name that no package has, whatever the file is called.
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise SettingError(f"--task {task}: {file}: no such file")
    _find_modules_in(file.parent)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as e:
        del sys.modules[name]
        if isinstance(e, ImportError):
            raise SettingError(f"--task {task}: {e}") from e
        raise
    return module


def _find_modules_in(folder: Path) -> None:
    """Let modules in ``folder`` be imported, after all that are installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


# -- from an object to a task --------------------------------------------------------------------------------------


def as_task(name: str, found: Any) -> Task:
    """The task ``name`` that ``found`` is, returns, or makes environments for.

    Raises:
        SettingError: it is none of these; one line.
    """
    if callable(found) and not isinstance(found, Task):
        parameters = inspect.signature(found).parameters
        if "num_envs" in parameters:
            return _of_factory(name, found)
        if any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            raise SettingError(
                f"--task {name}: expected a function whose parameters all have defaults, num_envs among them, that "
                "returns an environment; or one without parameters that returns a Task"
            )
        found = found()
    if not isinstance(found, Task):
        raise SettingError(
            f"--task {name}: is a {type(found).__name__}; expected a Task, or a function with a parameter num_envs "
            "that returns an environment"
        )
    return dataclasses.replace(found, name=name)


def _of_factory(name: str, make: Callable[..., Any]) -> Task:
    cfg_cls = settings_class(name, make)

    @contextmanager
    def open_env(cfg: Any, session: Session) -> Iterator[TrainingEnv]:
        from bridge import registry  # It builds on this module.
        from bridge.env import AutoReset, TrainingEnv

        made = make(**{field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)})
        env = registry.adapted(made, cfg.num_envs)
        yield env if isinstance(env, TrainingEnv) else AutoReset(env)

    return Task(name=name, cfg_cls=cfg_cls, open=open_env)


def settings_class(name: str, make: Callable[..., Any]) -> type:
    """A dataclass of the parameters of ``make``, with their annotations (else their defaults' types) and defaults.

    Raises:
        SettingError: a parameter without a default.
    """
    # What it returns need not be importable, so that it can be annotated for type checkers alone.
    function: Any = inspect.unwrap(vars(make)["__init__"] if isinstance(make, type) else make)
    annotations = {k: v for k, v in function.__annotations__.items() if k != "return"}
    hints = typing.get_type_hints(types.SimpleNamespace(__annotations__=annotations), function.__globals__)
    fields: list[Any] = []
    for parameter in inspect.signature(make).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = parameter.default
        if default is parameter.empty:
            raise SettingError(f"--task {name}: its parameter {parameter.name} needs a default, as every setting does")
        kind = hints.get(parameter.name, Any if default is None else type(default))
        if isinstance(default, (list, dict)):
            default = dataclasses.field(default_factory=functools.partial(type(default), default))
        fields.append((parameter.name, kind, default))

    def validate(self: Any) -> None:
        """Raise :class:`SettingError` for a number of environments that makes no sense."""
        if self.num_envs < 1:
            raise SettingError(f"env.num_envs={self.num_envs}: expected a positive number")

    return dataclasses.make_dataclass("Settings", fields, namespace={"validate": validate, "__doc__": make.__doc__})
