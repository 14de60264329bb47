"""Settings that a simulator applies to configs of its own: how a run keeps them, and where they lead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bridge.errors import SettingError


@dataclass
class OverridesCfg:
    """What is set beside a task's registered config."""

    num_envs: int | None = None
    """Number of environments; null takes the task's own."""
    overrides: list[str] = field(default_factory=list)
    """Overrides in the simulator's words, ``key=value``, applied in order."""

    def validate(self) -> None:
        """Raise :class:`SettingError` with one line for a number of environments that makes no sense."""
        if self.num_envs is not None and self.num_envs < 1:
            raise SettingError(f"env.num_envs={self.num_envs}: expected a positive number")


def separate(
    cfg_cls: type[OverridesCfg],
    prefixes: tuple[str, ...],
    sections: Sequence[Mapping[str, Any]],
    overrides: Sequence[str],
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """See :meth:`bridge.tasks.Simulator.separate`: all but the fields of ``cfg_cls`` becomes an override, in order.

    ``prefixes`` are how overrides begin that are the simulator's.
    """
    names = {f.name for f in fields(cfg_cls)}
    kept: list[Mapping[str, Any]] = []
    theirs: list[str] = []
    for section in sections:
        ours = {name: value for name, value in section.items() if name in names}
        theirs += ours.pop("overrides", None) or []
        theirs += _as_overrides({name: value for name, value in section.items() if name not in names})
        kept.append(ours)
    own = tuple(f"env.{name}=" for name in names - {"overrides"})
    is_theirs = [o.startswith(prefixes) and not o.startswith(own) for o in overrides]
    theirs += [o for o, theirs_too in zip(overrides, is_theirs, strict=True) if theirs_too]
    rest = [o for o, theirs_too in zip(overrides, is_theirs, strict=True) if not theirs_too]
    return [*kept, {"overrides": theirs}], rest


def _as_overrides(section: Mapping[str, Any], prefix: str = "env.") -> Iterable[str]:
    """The ``env`` section of a config file, one override for each value."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _as_overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value}"


def locate(cfg: Any, override: str) -> tuple[Any, str]:
    """Whose setting ``override`` (``env.some.name=value``) is in the nested config ``cfg``, and its name there.

    Raises:
        SettingError: there is no such setting; with those that there are.
    """
    path, separator, _ = override.partition("=")
    if not separator:
        raise SettingError(f"{override}: expected key=value")
    node, *names = path.split(".")
    value, owner = cfg, cfg
    for name in names:
        owner, known = value, settings(value)
        if name not in known:
            there_are = f"there are {', '.join(sorted(known)[:40])}" if known else "it is a single value"
            raise SettingError(f"{path}: no setting '{name}' in {node}; {there_are}")
        node, value = f"{node}.{name}", known[name]
    if not names:
        raise SettingError(f"{path}: is a section, set what is in it: {', '.join(sorted(settings(cfg))[:40])}")
    return owner, names[-1]


def settings(cfg: Any) -> dict[str, Any]:
    """The settings by name that a part of a config has: a dict's, an object's, a sequence's by index."""
    if isinstance(cfg, Mapping):
        return {str(name): value for name, value in cfg.items()}
    if isinstance(cfg, list | tuple):
        return {str(i): value for i, value in enumerate(cfg)}
    return {name: value for name, value in getattr(cfg, "__dict__", {}).items() if not name.startswith("_")}


def share(name: str, number: int, parts: int) -> int:
    """One of ``parts`` equal shares of the ``number`` of environments of the task ``name``.

    Raises:
        SettingError: it cannot be divided so.
    """
    if number % parts:
        raise SettingError(
            f"{name}: its {number} environments cannot be divided among {parts} processes; set --num_envs, "
            f"{parts * max(1, round(number / parts))} for one"
        )
    return number // parts
