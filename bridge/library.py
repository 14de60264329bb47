"""Tasks of a package that has environments in JAX by name, as ``brax/ant``: what such simulators share.

Importing this imports neither JAX nor a simulator.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.errors import SettingError
from bridge.tasks import Request, Session, Simulator, Task, UnknownTaskError

if TYPE_CHECKING:
    from bridge.env import TrainingEnv


class Library(Simulator):
    """A simulator whose tasks are the environments of a package, by its own names after ``name/``.

    A subclass says where the names stand (:attr:`sources`), lists them (:meth:`registered`), and makes the settings
    (:meth:`settings`) and the environment (:meth:`make`) of one.
    """

    sources: ClassVar[Mapping[str, str]] = {}
    """Files of the package, and the variable in each whose keys, or entries, are names. They are read, not run: most
    such packages take seconds to import."""
    agent_defaults: ClassVar[Mapping[str, Any]] = {}
    """Of all tasks."""

    def claims(self, request: Request) -> bool:
        """Every name that begins with the package's, however it is spelled."""
        return f"{request.task}/".lower().startswith(f"{self.name}/")

    def task_names(self) -> Sequence[str]:
        """What the installed package has; nothing where there is none."""
        return [f"{self.name}/{name}" for name in _names(str(self.package), tuple(self.sources.items()))]

    def load(self, name: str, options: Any) -> Task:
        """The task of that name."""
        short, known = name.removeprefix(f"{self.name}/"), self.registered()
        if short == name or short not in known:
            raise UnknownTaskError(name, [f"{self.name}/{other}" for other in known])

        @contextmanager
        def open_env(cfg: Any, session: Session) -> Iterator[TrainingEnv]:
            from bridge.env import AutoReset

            settings = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
            with _told(name):
                env = AutoReset(self.make(short, settings.pop("num_envs"), settings))
            yield env

        with _told(name):
            return Task(name, self.settings(short), open_env, agent_defaults=self.defaults(short))

    def registered(self) -> Sequence[str]:
        """The names that the imported package knows."""
        raise NotImplementedError

    def settings(self, name: str) -> type:
        """The dataclass of the settings of an environment, with ``num_envs``; see :func:`settings_class`."""
        raise NotImplementedError

    def make(self, name: str, num_envs: int, settings: dict[str, Any]) -> Any:
        """The environments, of :class:`bridge.env.Env`, with settings of :meth:`settings`."""
        raise NotImplementedError

    def defaults(self, name: str) -> Mapping[str, Any]:
        """Settings of the agent that come with the task."""
        return {}


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What a package says to settings that it cannot use, or to data that it cannot get, in one line."""
    try:
        yield
    except SettingError as e:
        raise SettingError(f"{name}: {e}") from e
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, ArithmeticError, OSError) as e:
        raise SettingError(f"{name}: {' '.join(str(e).split()) or type(e).__name__}") from e


@functools.cache
def _names(package: str, sources: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    spec = importlib.util.find_spec(package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found: list[str] = []
    for folder in folders:
        for file, variable in sources:
            found += _texts_in(folder / file, variable)
    return tuple(dict.fromkeys(found))


def _texts_in(file: Path, variable: str) -> list[str]:
    """The keys of the dict, or the entries of the list, that ``file`` assigns to ``variable`` at its top level."""
    body = ast.parse(file.read_text()).body if file.is_file() else []
    for line in body:
        if not isinstance(line, ast.Assign | ast.AnnAssign):
            continue
        targets = line.targets if isinstance(line, ast.Assign) else [line.target]
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            value = line.value
            nodes = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
            return [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
    return []


# -- settings ------------------------------------------------------------------------------------------------------

Setting = tuple[str, Any, Any]
"""Name, type, default of a setting."""


def parameters(make: Callable[..., Any]) -> list[Setting]:
    """The parameters of ``make`` that have plain defaults, as settings."""
    given = inspect.signature(make).parameters.values()
    return [(p.name, *plain) for p in given if (plain := setting(p.default)) is not None]


def setting(default: Any) -> tuple[Any, Any] | None:
    """The type and the default of a setting whose default is ``default``; None for what no command line can say."""
    if default is None:
        return Any, None
    if isinstance(default, enum.Enum):
        default = default.value
    if hasattr(default, "items"):
        return _section(default)
    if isinstance(default, tuple | list):
        return list, dataclasses.field(default_factory=functools.partial(list, default))
    return (type(default), default) if isinstance(default, bool | int | float | str) else None


def _section(tree: Mapping[str, Any]) -> tuple[Any, Any]:
    """A mapping as a dataclass."""
    fields = [(str(name), *plain) for name, value in tree.items() if (plain := setting(value)) is not None]
    section = dataclasses.make_dataclass("Section", fields)
    return section, dataclasses.field(default_factory=section)


def settings_class(fields: Sequence[Setting], num_envs: int = 100) -> type:
    """A dataclass of settings: ``num_envs``, then ``fields``."""

    def validate(self: Any) -> None:
        """Raise :class:`SettingError` for a number of environments that makes no sense."""
        if self.num_envs < 1:
            raise SettingError(f"env.num_envs={self.num_envs}: expected a positive number")

    every = [("num_envs", int, num_envs), *fields]
    return dataclasses.make_dataclass("Settings", every, namespace={"validate": validate})
