"""Which of an environment's metrics tables, reports and films speak of."""

from __future__ import annotations

from collections.abc import Iterable


def find_main_metric(declared: str | None, names: Iterable[str]) -> str | None:
    """The task's main metric (``declared``) if it is among ``names``, else the first by name; None where none is."""
    known = sorted(names)
    return declared if declared in known else next(iter(known), None)
