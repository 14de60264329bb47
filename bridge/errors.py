"""Errors whose message is for the user: one line that says what is wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend. Commands print the message alone and exit with ``status``."""

    status = 1

    def __str__(self) -> str:
        """In one line, whatever is in the names and values that it tells of."""
        return visible(super().__str__())


def visible(text: str) -> str:
    """``text`` in one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class SettingError(UserError, ValueError):
    """A setting, flag or task that a simulator cannot use."""


class SimulatorError(UserError, RuntimeError):
    """A simulator failed."""


class RenderError(UserError, RuntimeError):
    """No picture can be drawn; the message says what is missing and how to get it."""


def nearest(name: str, known: Iterable[str], likeness: float = 0.5) -> str:
    """`` (did you mean X?)`` for the known name most like ``name``, or nothing where none is as like (0..1)."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f" (did you mean {match[0]}?)" if match else ""


def line_of(error: BaseException) -> str:
    """What an error of somebody else's says, in one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 400 else text[:400] + "..."
