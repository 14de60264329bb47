"""Figures as plain data that plotly.js draws, in the report's look.

plotly's own classes check every setting, which takes a page of figures ten seconds and more. Here the tests let plotly
check one of each kind instead.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

GRID, INK = "#e8eaee", "#374151"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
STANDOFF = 6
"""Pixels between an axis' tick labels and its title."""
PACKED = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
"""Array types that plotly.js reads in binary."""


class Figure:
    """Traces in a grid of cells, white with thin lines and no legend (the page has one).

    Cells count from 0, row by row. Those of a column share their x axis, those of a row their y axis. ``data`` and
    ``layout`` are those of plotly.js.
    """

    def __init__(
        self, height: int, title: str = "", grid: tuple[int, int] = (1, 1), spacing: tuple[float, float] = (0.0, 0.0)
    ):
        """``grid`` is rows and columns; ``spacing`` what is between two of each, as shares of the whole figure."""
        self.data: list[dict[str, Any]] = []
        self.layout: dict[str, Any] = {
            "height": height,
            "title": {"text": title, "font": {"size": 13, "color": INK}, "x": 0, "xanchor": "left", "xref": "paper"},
            "font": {"family": FONT, "size": 11, "color": INK},
            "margin": {"l": 52, "r": 12, "t": 34 if title else 22, "b": 40},
            "showlegend": False,
            "hovermode": "closest",
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "annotations": [],
        }
        self._axes: dict[tuple[str, int], dict[str, Any]] = {}
        (rows, columns), (below, beside) = grid, spacing
        for cell in range(rows * columns):
            row, column = divmod(cell, columns)
            bottom = (rows - 1) * columns + column
            self._add_axis("x", cell, _part(column, columns, beside), bottom)
            self._add_axis("y", cell, _part(rows - 1 - row, rows, below), row * columns)

    def _add_axis(self, letter: str, cell: int, domain: list[float], shown: int) -> None:
        """The axis of the cell ``shown`` has the tick labels, and the range, of the whole column or row."""
        axis: dict[str, Any] = {
            "domain": domain,
            "anchor": _name("y" if letter == "x" else "x", cell),
            "title": {"standoff": STANDOFF},
            "gridcolor": GRID,
            "zerolinecolor": GRID,
            "linecolor": GRID,
            "ticks": "",
        }
        if cell != shown:
            axis |= {"matches": _name(letter, shown), "showticklabels": False}
        self._axes[letter, cell] = self.layout[_name(f"{letter}axis", cell)] = axis

    def add(self, cell: int = 0, **trace: Any) -> None:
        """Draw a trace, a ``scatter`` where ``type`` does not say otherwise."""
        place = {"xaxis": _name("x", cell), "yaxis": _name("y", cell)} if cell else {}
        self.data.append({"type": "scatter", **place, **trace})

    def axis(self, letter: str, *cells: int, **settings: Any) -> None:
        """Set the axes ``letter`` (x or y) of these cells; of all cells, where none is named."""
        if isinstance(title := settings.get("title"), str):
            settings["title"] = {"text": title, "standoff": STANDOFF}
        for (of, cell), axis in self._axes.items():
            if of == letter and (not cells or cell in cells):
                axis |= settings

    def caption(self, cell: int, text: str, **font: Any) -> None:
        """A title above one cell."""
        (left, right), (_, top) = (self._axes[letter, cell]["domain"] for letter in "xy")
        place = {"x": (left + right) / 2, "xanchor": "center", "xref": "paper"}
        place |= {"y": top, "yanchor": "bottom", "yref": "paper"}
        self.layout["annotations"].append({"text": text, "showarrow": False, "font": font, **place})

    def legend(self, **place: Any) -> None:
        """Show one within the figure."""
        self.layout |= {"showlegend": True, "legend": {**place, "bgcolor": "rgba(255,255,255,.7)"}}


def _name(what: str, cell: int) -> str:
    """``x``, ``x2``, ``x3``: as plotly counts."""
    return f"{what}{cell + 1}" if cell else what


def _part(index: int, count: int, spacing: float) -> list[float]:
    """The share of the figure from where to where the part ``index`` of ``count`` goes."""
    size = (1 - spacing * (count - 1)) / count
    start = index * (size + spacing)
    # A sum over 1 would be no domain.
    return [round(start, 9), round(start + size, 9)]


def as_json(value: Any) -> Any:
    """The value for JSON: figures as objects, arrays packed (a third less of a page), null for what is not finite."""
    match value:
        case Figure():
            return {"data": as_json(value.data), "layout": as_json(value.layout)}
        case dict():
            return {key: as_json(v) for key, v in value.items()}
        case list() | tuple():
            return [as_json(v) for v in value]
        case np.ndarray():
            return packed(value)
        case np.generic():
            return as_json(value.item())
        case float() if not math.isfinite(value):
            return None
    return value


def packed(values: np.ndarray) -> Any:
    """An array as plotly.js reads it in binary; a list, where it cannot. NaN stays NaN, which is a gap."""
    if values.dtype.kind in "iu" and values.size:
        # It has no integers of 64 bits.
        values = values.astype(np.result_type(*(np.min_scalar_type(v) for v in (values.min(), values.max()))))
    dtype = values.dtype.str[1:]
    if dtype not in PACKED or not values.size:
        return as_json(values.tolist())
    data = base64.b64encode(values.astype(f"<{dtype}").tobytes()).decode()
    shape = {"shape": ", ".join(map(str, values.shape))} if values.ndim > 1 else {}
    return {"dtype": dtype, "bdata": data, **shape}
