"""The report's figures: learning curves, scenarios beside each other, single episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jdistill.evaluation.metrics import outcome
from jdistill.evaluation.plot import GRID, INK, Figure

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]

COLORS = {"student": "#0072B2", "teacher": "#D55E00", "raptor": "#009E73"}
"""Of the policies: Okabe and Ito's, which the color-blind tell apart."""
OTHER, TARGET = "#CC79A7", "#6b7280"
LINE_POINTS = 250
"""Points of a line over an episode, at most; more are not seen."""
ACTIONS = 8
"""Actions that are drawn, at most."""
CURVES = {
    "Loss/behavior": "Behavior loss",
    "Policy/mean_action_error": "Mean action error",
    "Train/mean_reward": "Mean return",
    "Train/mean_episode_length": "Mean episode length (steps)",
    "Distillation/teacher_share": "Share of steps by the teacher",
    "Loss/learning_rate": "Learning rate",
}
"""Curves that every run may have, in this order; those of the environment's metrics follow."""
EXACT = ("Distillation/teacher_share", "Loss/learning_rate")
"""Curves without noise, which need no running mean."""


def color(policy: str) -> str:
    """The policy's color, the same everywhere."""
    return TARGET if policy == "target" else COLORS.get(policy, OTHER)


# -- training ------------------------------------------------------------------------------------------------------


def phase_switch(curves: Curves) -> int | None:
    """The first iteration of phase 2, where phase 1 came before it."""
    iterations, phases = curves.get("Distillation/training_phase", ((), ()))
    second = [i for i, phase in zip(iterations, phases, strict=True) if phase == 2]
    return second[0] if second and second[0] > 0 else None


def learning_curves(curves: Curves) -> list[Figure]:
    """One figure for each curve that the run has, the phase switch marked in all of them."""
    titles = {tag: title for tag, title in CURVES.items() if tag in curves}
    titles |= {tag: spoken(tag.partition("/")[2]) for tag in curves if tag.startswith("Metrics/")}
    switch = phase_switch(curves)
    figures = [_curve(tag, curves[tag], title, switch) for tag, title in titles.items()]
    ends = {tag: c for tag, c in curves.items() if tag.startswith("Episode_Termination/") and any(c[1])}
    return [*figures, *([_terminations(ends, switch)] if ends else [])]


def _curve(tag: str, curve: tuple[Sequence[int], Sequence[float]], title: str, switch: int | None) -> Figure:
    iterations, values = np.asarray(curve[0]), np.asarray(curve[1], np.float32)
    figure = Figure(230, title)
    width = 1 if tag in EXACT else max(1, len(values) // 60)
    thin = {"color": "#9db8cf" if width > 1 else COLORS["student"], "width": 1}
    figure.add(x=iterations, y=values, mode="lines", line=thin)
    if width > 1:
        figure.add(x=iterations, y=running_mean(values, width), mode="lines", line={"color": COLORS["student"]})
    if tag == "Loss/behavior" and len(values) and values.min() > 0:
        decades = float(np.log10(values.max() / values.min()))
        figure.axis("y", type="log", exponentformat="power", **({"dtick": 1} if decades > 1 else {}))
    return _marked(figure, switch)


def _terminations(curves: Curves, switch: int | None) -> Figure:
    figure = Figure(230, "Episodes ended by a limit")
    figure.legend(x=1, xanchor="right", y=1)
    shades = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
    for i, (tag, (iterations, values)) in enumerate(curves.items()):
        name, line = tag.partition("/")[2], {"color": shades[i % len(shades)], "width": 1.3}
        x, y = np.asarray(iterations), np.asarray(values, np.float32)
        figure.add(x=x, y=y, mode="lines", name=name, line=line)
    return _marked(figure, switch)


def _marked(figure: Figure, switch: int | None) -> Figure:
    # As far from the tick labels as plotly.js puts it.
    figure.axis("x", title={"text": "iteration"})
    if switch is not None:
        place, line = {"xref": "x", "yref": "y domain"}, {"color": TARGET, "width": 1, "dash": "dot"}
        figure.layout["shapes"] = [
            {"type": "line", "x0": switch, "x1": switch, "y0": 0, "y1": 1, "line": line, **place}
        ]
        mark = {"text": "phase 2", "font": {"size": 10, "color": TARGET}, "showarrow": False}
        figure.layout["annotations"] = [mark | place | {"x": switch, "xanchor": "left", "y": 1, "yanchor": "bottom"}]
    return figure


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centered means over ``width`` values, fewer at the ends."""
    ones = np.ones(width)
    return (np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")).astype(np.float32)


def spoken(name: str) -> str:
    """A metric's name as a title."""
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


# -- scenarios -----------------------------------------------------------------------------------------------------


def overview(scenarios: Mapping[str, Any], metric: str | None) -> Figure:
    """Every scenario's survival (or success) and its main metric when settled, or its return, by policy."""
    names = list(scenarios)
    figure = Figure(90 + 24 * len(names), grid=(1, 2), spacing=(0, 0.04))
    figure.layout["margin"] |= {"l": 130, "t": 40}
    share = ending(scenarios)
    for cell, title in enumerate((spoken(share), f"{spoken(metric)}, steady" if metric else "Return")):
        figure.caption(cell, title, size=13, color=INK)
    settled = []
    for policy in policies(scenarios):
        found = [scenarios[name]["policies"].get(policy, {}) for name in names]
        right = [(p.get("metrics") or {}).get(metric, {}).get("steady") if metric else p.get("return") for p in found]
        settled += right
        for cell, values in enumerate(([p.get(share) for p in found], right)):
            marker = {"color": color(policy), "size": 9, "opacity": 0.85}
            figure.add(cell, x=values, y=names, mode="markers", name=policy, marker=marker)
    figure.axis("y", autorange="reversed")
    figure.axis("x", 0, tickformat=".0%")
    if metric and min(filter(None, settled), default=0) > 0:
        figure.axis("x", 1, type="log")
    return figure


def ending(scenarios: Mapping[str, Any]) -> str:
    """What tells how the episodes of these scenarios end, see :func:`jdistill.evaluation.metrics.outcome`."""
    return next((outcome(p) for result in scenarios.values() for p in result["policies"].values()), "survival")


def policies(scenarios: Mapping[str, Any]) -> list[str]:
    """The policies of all scenarios, in the order in which they come."""
    return list(dict.fromkeys(policy for result in scenarios.values() for policy in result["policies"]))


def shows_target(scenarios: Mapping[str, Any]) -> bool:
    """Whether any episode has a target to be drawn."""
    numbers = [numbers for result in scenarios.values() for numbers in result["policies"].values()]
    return any(_points(trace, "target") is not None for n in numbers for trace in n.get("traces") or [])


def scenario(result: Mapping[str, Any], metric: str | None) -> dict[str, Any]:
    """The figures of one scenario: ``histograms`` and ``agreement`` (lists), ``episodes`` (a list of lists).

    ``metric`` is the name of the main one, whose course the traces hold.
    """
    found = result["policies"]
    traces = {policy: numbers.get("traces") or [] for policy, numbers in found.items()}
    count = max((len(t) for t in traces.values()), default=0)
    episodes = [{p: t[i] for p, t in traces.items() if i < len(t)} for i in range(count)]
    metrics = dict.fromkeys(m for numbers in found.values() for m in numbers.get("histograms") or {})
    compared = [trace for trace in traces.get("student", []) if trace.get("teacher_action")]
    return {
        "histograms": [histogram(found, metric) for metric in metrics],
        "agreement": [agreement(compared)] if compared else [],
        "episodes": [episode(traces, metric) for traces in episodes],
    }


def episode(traces: Mapping[str, Mapping[str, Any]], metric: str | None) -> list[Figure]:
    """One episode's course under every policy: in space, its main ``metric`` over time, and the student's actions."""
    figures = []
    if any(_points(trace, "position") is not None for trace in traces.values()):
        figures += [path(traces), positions(traces)]
    if metric and any(_main_metric(trace) for trace in traces.values()):
        figures.append(metric_over_time(traces, metric))
    if traces.get("student", {}).get("teacher_action"):
        figures.append(actions(traces["student"]))
    return [*figures, *(view(trace, policy) for policy, trace in traces.items() if trace.get("view"))]


def path(traces: Mapping[str, Mapping[str, Any]]) -> Figure:
    """In space, the target's way included."""
    figure = Figure(420, "Path", grid=(0, 0))
    figure.layout["margin"] |= {"l": 0, "r": 0, "b": 0}
    targets = [target for trace in traces.values() if (target := _points(trace, "target")) is not None]
    # A crashed policy's target ends early; the longest is everybody's.
    for target in sorted(targets, key=len)[-1:]:
        dots = {"color": TARGET, "size": 2.5}
        figure.add(
            type="scatter3d", x=target[:, 0], y=target[:, 1], z=target[:, 2], mode="markers", name="target", marker=dots
        )
    for policy, trace in traces.items():
        if (position := _points(trace, "position")) is None:
            continue
        x, y, z = position.T
        line = {"color": color(policy), "width": 4}
        figure.add(type="scatter3d", x=x, y=y, z=z, mode="lines", name=policy, line=line)
        start = {"color": color(policy), "size": 4, "symbol": "diamond"}
        figure.add(type="scatter3d", x=x[:1], y=y[:1], z=z[:1], mode="markers", name=f"{policy}, start", marker=start)
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "showbackground": False, "tickfont": {"size": 10}}
    axes = {f"{k}axis": {**axis, "title": {"text": f"{k} (m)"}} for k in "xyz"}
    camera = {"eye": {"x": 1.6, "y": 1.6, "z": 1.1}, "center": {"x": 0, "y": 0, "z": -0.12}}
    figure.layout["scene"] = {**axes, "aspectmode": "data", "camera": camera}
    return figure


def positions(traces: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Each coordinate over time, with the target's."""
    figure = Figure(420, "Position", grid=(3, 1), spacing=(0.04, 0))
    for axis in range(3):
        lines: dict[str, dict[str, Any]] = {"target": {"color": TARGET, "width": 1, "dash": "dot"}}
        for policy, trace in traces.items():
            lines["position"] = {"color": color(policy), "width": 1.6}
            for key, line in lines.items():
                if (points := _points(trace, key)) is not None:
                    x, y, name = thinned(trace["time"]), points[:, axis], policy if key == "position" else key
                    figure.add(axis, x=x, y=y, mode="lines", name=name, line=line)
        figure.axis("y", axis, title=f"{'xyz'[axis]} (m)")
    figure.axis("x", 2, title="time (s)")
    return figure


def metric_over_time(traces: Mapping[str, Mapping[str, Any]], metric: str) -> Figure:
    """The main ``metric`` over time."""
    figure = Figure(300, spoken(metric))
    for policy, trace in traces.items():
        if values := _main_metric(trace):
            line = {"color": color(policy), "width": 1.6}
            figure.add(x=thinned(trace["time"]), y=thinned(values), mode="lines", name=policy, line=line)
    figure.axis("x", title="time (s)")
    figure.axis("y", title=metric.replace("_", " "), rangemode="tozero")
    return figure


def _main_metric(trace: Mapping[str, Any]) -> list[float] | None:
    """Its course; jdistill 0.1.0 knew the position error alone."""
    return trace.get("main_metric", trace.get("error"))


def _points(trace: Mapping[str, Any], key: str) -> np.ndarray | None:
    """What a trace shows as ``key``, thinned, if those are points in space (N, 3)."""
    points = thinned(trace.get(key) or [])
    return points if points.ndim == 2 and points.shape[1] == 3 else None


def actions(trace: Mapping[str, Any]) -> Figure:
    """What the student did and what the teacher would have done in its place."""
    time, ours, theirs = (thinned(trace[key]) for key in ("time", "action", "teacher_action"))
    count = min(ours.shape[1], ACTIONS)
    rows, columns = -(-count // 2), min(count, 2)
    title, spacing = "Student's action, and the teacher's in its place", (0.3 / rows, 0.06)
    figure = Figure(max(300, 150 * rows), title, grid=(rows, columns), spacing=spacing)
    figure.layout["margin"] |= {"t": 56}
    for i in range(count):
        figure.caption(i, f"action {i + 1}", size=11, color=TARGET)
        for name, values in (("teacher", theirs), ("student", ours)):
            line = {"color": color(name), "width": 1.2}
            figure.add(i, x=time, y=values[:, i], mode="lines", name=f"{name}, action {i + 1}", line=line)
    figure.axis("x", *range((rows - 1) * columns, rows * columns), title="time (s)")
    return figure


def view(trace: Mapping[str, Any], policy: str) -> Figure:
    """What the camera saw on a ``policy``'s way: from its left edge (top) to its right one the nearest over time."""
    figure = Figure(230, f"What is seen on the {policy}'s way, as a share of the camera's range")
    seen = thinned(trace["view"]).T
    ticks = {"tickvals": [0, len(seen) - 1], "ticktext": ["left", "right"]}
    shades: dict[str, Any] = {"colorscale": "Viridis", "zmin": 0, "zmax": 1, "colorbar": {"thickness": 8}}
    figure.add(type="heatmap", x=thinned(trace["time"]), z=seen, **shades)
    figure.axis("x", title="time (s)")
    figure.axis("y", autorange="reversed", **ticks)
    return figure


def agreement(traces: Sequence[Mapping[str, Any]]) -> Figure:
    """The student's actions over the teacher's, in the states that the student visits."""
    theirs = np.concatenate([thinned(trace["teacher_action"]) for trace in traces])
    ours = np.concatenate([thinned(trace["action"]) for trace in traces])
    low, high = float(np.nanmin([ours.min(), theirs.min()])), float(np.nanmax([ours.max(), theirs.max()]))
    figure = Figure(300, "Agreement, in the episodes shown")
    figure.legend(x=0, y=1)
    equal = {"color": TARGET, "width": 1, "dash": "dot"}
    figure.add(x=[low, high], y=[low, high], mode="lines", line=equal, showlegend=False)
    shades = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#6b7280", "#000000")
    for i in range(min(ours.shape[1], ACTIONS)):
        marker = {"size": 3, "color": shades[i], "opacity": 0.45}
        figure.add(x=theirs[:, i], y=ours[:, i], mode="markers", name=f"action {i + 1}", marker=marker)
    figure.axis("x", title="teacher's action")
    figure.axis("y", title="student's action")
    return figure


def histogram(policies: Mapping[str, Mapping[str, Any]], metric: str) -> Figure:
    """How a metric is spread over the settled steps of all episodes."""
    figure = Figure(300, f"{spoken(metric)} when settled")
    for policy, numbers in policies.items():
        if found := (numbers.get("histograms") or {}).get(metric):
            edges, counts = np.asarray(found["edges"]), np.asarray(found["counts"], float)
            share = (counts / max(counts.sum(), 1)).astype(np.float32)
            line = {"color": color(policy), "width": 1.6, "shape": "hv"}
            figure.add(x=edges, y=np.append(share, share[-1]), mode="lines", name=policy, line=line)
    figure.axis("x", title=metric.replace("_", " "), rangemode="tozero")
    figure.axis("y", title="share of the steps", tickformat=".0%", rangemode="tozero")
    return figure


def thinned(values: Sequence[Any]) -> np.ndarray:
    """At most ``LINE_POINTS`` of the values, evenly taken; null becomes NaN."""
    # Taken before they are converted, which is what takes time.
    return np.asarray(values[:: -(-len(values) // LINE_POINTS) or 1], np.float32)
