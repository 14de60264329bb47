"""Settings of a task of mjlab: what a run keeps, and how they get into mjlab's own config objects."""

from __future__ import annotations

import ast
import enum
import typing
from dataclasses import dataclass
from typing import Any

from bridge.errors import SettingError, nearest
from bridge.overrides import OverridesCfg, locate, settings

WORDS = {"true": True, "false": False, "null": None, "none": None}


@dataclass
class MjlabCfg(OverridesCfg):
    """``overrides`` are paths in mjlab's config: ``env.rewards.pose.weight=0.5``, ``env.events.push_robot=None``."""

    play: bool = False
    """Whether the task is taken in its play variant: mjlab's, with episodes that end when the task's do."""


def apply(cfg: Any, override: str) -> None:
    """Set ``override`` (``env.some.name=value``) in mjlab's config ``cfg``.

    Raises:
        SettingError: there is no such setting, or it takes no such value; one line.
    """
    owner, name = locate(cfg, override)
    path, _, text = override.partition("=")
    value = _read(path, text, settings(owner)[name], _hint(owner, name))
    if isinstance(owner, dict):
        owner[next(key for key in owner if str(key) == name)] = value
    elif isinstance(owner, list | tuple):
        raise SettingError(f"{override}: set the whole of {path.rpartition('.')[0]}, or what is in its element {name}")
    else:
        setattr(owner, name, value)


def _hint(owner: Any, name: str) -> Any:
    """How the setting is annotated; None where that cannot be known."""
    try:
        return typing.get_type_hints(type(owner)).get(name)
    except (NameError, TypeError, AttributeError):  # It is for type checkers alone, and its parts are not imported.
        return None


def _read(path: str, text: str, old: Any, hint: Any) -> Any:
    """``text`` as a value of the setting ``path``, which was ``old``."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = WORDS.get(text.lower(), text)
    kinds = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ()
    choices = list(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else []
    members = type(old).__members__ if isinstance(old, enum.Enum) else {}
    if choices or members:
        known = [*choices, *members]
        found = members.get(text.upper()) if members else value
        if found is None or (choices and found not in choices):
            raise SettingError(f"{path}={text}: expected one of {', '.join(map(str, known))}{nearest(text, known)}")
        return found
    if value is None and (hint is None or old is None or type(None) in kinds):
        return None  # Terms of a manager are taken out like that.
    if old is None:
        return text if str in kinds else value
    if (converted := _as(type(old), value, text, hint)) is None or _other_length(old, converted):
        if settings(old) and not isinstance(old, list | tuple):
            inside = ", ".join(list(settings(old))[:40])
            raise SettingError(f"{path}={text}: is a section, set what is in it ({inside}), or None where it may miss")
        raise SettingError(f"{path}={text}: expected a value like {old!r}")
    return converted


def _as(kind: type, value: Any, text: str, hint: Any) -> Any:
    """``value`` as one of ``kind``; None where it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str:
        return text
    if kind in (bool, dict):
        return value if isinstance(value, kind) else None
    if kind is int:
        return value if is_number and (isinstance(value, int) or hint is not int) else None
    if kind is float:
        return float(value) if is_number else None
    if kind in (list, tuple):
        return kind(value) if isinstance(value, list | tuple) else None
    return None


def _other_length(old: Any, new: Any) -> bool:
    """Whether a vector of numbers is to become one of another size."""
    numbers = isinstance(old, list | tuple) and bool(old) and all(isinstance(x, int | float) for x in old)
    return numbers and (len(old) != len(new) or not all(isinstance(x, int | float) for x in new))
