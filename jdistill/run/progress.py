"""``RUN/progress.csv``: every scalar of every iteration, one row each, whatever else is logged.

It is what the report draws. A resumed run drops the rows that a killed one wrote after its last checkpoint and goes on
behind them, so that an iteration has one row.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from jdistill.errors import ConfigError
from jdistill.files import replace_file

ITERATION = "iteration"


class ProgressWriter:
    """Appends rows; a tag that comes up later gets a column of its own."""

    def __init__(self, run: Path, first: int):
        """Go on at the iteration ``first``."""
        self._path = _file(run)
        rows = [row for row in _rows(self._path) if int(row[ITERATION]) < first] if first else []
        self._tags = [tag for tag in rows[0] if tag != ITERATION] if rows else []
        self._rewrite(rows)

    def write(self, scalars: dict[str, float], iteration: int) -> None:
        """Record the scalars of one iteration."""
        if new := [tag for tag in scalars if tag not in self._tags]:
            rows = _rows(self._path)
            self._tags += new
            self._rewrite(rows)
        with self._path.open("a", newline="") as file:
            self._csv(file).writerow({ITERATION: iteration, **{tag: f"{v:.9g}" for tag, v in scalars.items()}})

    def show(self, film: Any, iteration: int) -> None:
        """Nothing: the film is in a file of its own."""

    def close(self) -> None:
        """Nothing: every row is on disk already."""

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        table = io.StringIO(newline="")
        writer = self._csv(table)
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self._path, table.getvalue())

    def _csv(self, file: Any) -> csv.DictWriter:
        return csv.DictWriter(file, [ITERATION, *self._tags], lineterminator="\n")


def read_progress(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Every tag's iterations and values; empty where the run has none.

    Raises:
        ConfigError: the file is damaged.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in _rows(_file(run)):
        for tag, text in row.items():
            if tag != ITERATION and text:
                iterations, values = curves.setdefault(tag, ([], []))
                iterations.append(int(row[ITERATION]))
                values.append(float(text))
    return curves


def last_row(run: Path) -> dict[str, float]:
    """The newest iteration's scalars with ``iteration``; empty where there are none.

    Raises:
        ConfigError: the file is damaged.
    """
    rows = _rows(_file(run), last_only=True)
    return {tag: float(text) for tag, text in rows[-1].items() if text} if rows else {}


def _file(run: Path) -> Path:
    return run / "progress.csv"


def _rows(file: Path, last_only: bool = False) -> list[dict[str, str]]:
    """All rows, or the last. A line that was cut short by a kill is left out.

    Raises:
        ConfigError: something else than rows of numbers.
    """
    if not file.is_file():
        return []
    content = file.read_bytes()
    try:
        lines = content[: content.rfind(b"\n") + 1].decode().splitlines()
        rows = list(csv.DictReader([*lines[:1], *lines[1:][-1:]] if last_only else lines))
        for row in rows:
            if not (row[ITERATION].isdecimal() and all(not v or math.isfinite(float(v)) for v in row.values())):
                raise ValueError(f"row {row}")
    except (csv.Error, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{file}: damaged ({e}); delete it to go on without the curves so far") from e
    return rows
