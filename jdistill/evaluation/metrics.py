"""Which of an environment's metrics tables, reports and films speak of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def find_main_metric(declared: str | None, names: Iterable[str]) -> str | None:
    """The task's main metric (``declared``) if it is among ``names``, else the first by name; None where none is."""
    known = sorted(names)
    return declared if declared in known else next(iter(known), None)


def outcome(numbers: Mapping[str, Any]) -> str:
    """The share of ``numbers`` that tells how a policy's episodes end: ``success`` where the task has a goal, else
    ``survival``."""
    return "success" if numbers.get("success") is not None else "survival"
