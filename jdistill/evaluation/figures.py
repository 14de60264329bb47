"""The report's figures, as plotly's: learning curves, scenarios beside each other, single episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]

COLORS = {"student": "#0072B2", "teacher": "#D55E00", "raptor": "#009E73"}
"""Of the policies: Okabe and Ito's, which the color-blind tell apart."""
OTHER, TARGET, GRID, INK = "#CC79A7", "#6b7280", "#e8eaee", "#374151"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
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


def styled(figure: go.Figure, height: int, title: str = "") -> go.Figure:
    """The common look: white, thin grid, no legend (the page has one)."""
    figure.update_layout(
        template="none",
        height=height,
        title={"text": title, "font": {"size": 13, "color": INK}, "x": 0, "xanchor": "left", "xref": "paper"},
        font={"family": FONT, "size": 11, "color": INK},
        margin={"l": 52, "r": 12, "t": 34 if title else 22, "b": 40},
        showlegend=False,
        hovermode="closest",
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "ticks": "", "title_standoff": 6}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


# -- training ------------------------------------------------------------------------------------------------------


def phase_switch(curves: Curves) -> int | None:
    """The first iteration of phase 2, where phase 1 came before it."""
    iterations, phases = curves.get("Distillation/training_phase", ((), ()))
    second = [i for i, phase in zip(iterations, phases, strict=True) if phase == 2]
    return second[0] if second and second[0] > 0 else None


def learning_curves(curves: Curves) -> list[go.Figure]:
    """One figure for each curve that the run has, the phase switch marked in all of them."""
    titles = {tag: title for tag, title in CURVES.items() if tag in curves}
    titles |= {tag: spoken(tag.partition("/")[2]) for tag in curves if tag.startswith("Metrics/")}
    switch = phase_switch(curves)
    figures = [_curve(tag, curves[tag], title, switch) for tag, title in titles.items()]
    ends = {tag: c for tag, c in curves.items() if tag.startswith("Episode_Termination/") and any(c[1])}
    return [*figures, *([_terminations(ends, switch)] if ends else [])]


def _curve(tag: str, curve: tuple[Sequence[int], Sequence[float]], title: str, switch: int | None) -> go.Figure:
    iterations, values = np.asarray(curve[0]), np.asarray(curve[1], np.float32)
    figure = go.Figure()
    width = 1 if tag in EXACT else max(1, len(values) // 60)
    thin = {"color": "#9db8cf" if width > 1 else COLORS["student"], "width": 1}
    figure.add_scatter(x=iterations, y=values, mode="lines", line=thin)
    if width > 1:
        figure.add_scatter(x=iterations, y=running_mean(values, width), mode="lines", line={"color": COLORS["student"]})
    if tag == "Loss/behavior" and len(values) and values.min() > 0:
        decades = float(np.log10(values.max() / values.min()))
        figure.update_yaxes(type="log", exponentformat="power", dtick=1 if decades > 1 else None)
    return _marked(styled(figure, 230, title), switch)


def _terminations(curves: Curves, switch: int | None) -> go.Figure:
    figure = go.Figure()
    shades = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
    for i, (tag, (iterations, values)) in enumerate(curves.items()):
        name, line = tag.partition("/")[2], {"color": shades[i % len(shades)], "width": 1.3}
        figure.add_scatter(x=iterations, y=np.asarray(values, np.float32), mode="lines", name=name, line=line)
    figure = styled(figure, 230, "Episodes ended by a limit")
    figure.update_layout(
        showlegend=True, legend={"x": 1, "xanchor": "right", "y": 1, "bgcolor": "rgba(255,255,255,.7)"}
    )
    return _marked(figure, switch)


def _marked(figure: go.Figure, switch: int | None) -> go.Figure:
    figure.update_xaxes(title="iteration")
    if switch is not None:
        mark = {"text": "phase 2", "font": {"size": 10, "color": TARGET}, "yanchor": "bottom", "showarrow": False}
        figure.add_vline(x=switch, line={"color": TARGET, "width": 1, "dash": "dot"}, annotation=mark)
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


def overview(scenarios: Mapping[str, Any], metric: str | None) -> go.Figure:
    """Every scenario's survival and its main metric when settled, or its return where there is none, by policy."""
    titles = ["Survival", *([f"{spoken(metric)}, steady"] if metric else ["Return"])]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04)
    names = list(scenarios)
    for policy in policies(scenarios):
        found = [scenarios[name]["policies"].get(policy, {}) for name in names]
        right = [(p.get("metrics") or {}).get(metric, {}).get("steady") if metric else p.get("return") for p in found]
        for column, values in ((1, [p.get("survival") for p in found]), (2, right)):
            marker = {"color": color(policy), "size": 9, "opacity": 0.85}
            figure.add_scatter(x=values, y=names, mode="markers", name=policy, marker=marker, row=1, col=column)
    figure = styled(figure, 90 + 24 * len(names))
    figure.update_layout(margin={"l": 130, "t": 40})
    figure.update_annotations(font={"size": 13, "color": INK})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickformat=".0%", row=1, col=1)
    if metric and min((v for t in figure.data[1::2] for v in t.x if v), default=0) > 0:
        figure.update_xaxes(type="log", row=1, col=2)
    return figure


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


def episode(traces: Mapping[str, Mapping[str, Any]], metric: str | None) -> list[go.Figure]:
    """One episode's course under every policy: in space, its main ``metric`` over time, and the student's actions."""
    figures = []
    if any(_points(trace, "position") is not None for trace in traces.values()):
        figures += [path(traces), positions(traces)]
    if metric and any(_main_metric(trace) for trace in traces.values()):
        figures.append(metric_over_time(traces, metric))
    if traces.get("student", {}).get("teacher_action"):
        figures.append(actions(traces["student"]))
    return figures


def path(traces: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """In space, the target's way included."""
    figure = go.Figure()
    targets = [target for trace in traces.values() if (target := _points(trace, "target")) is not None]
    # A crashed policy's target ends early; the longest is everybody's.
    for target in sorted(targets, key=len)[-1:]:
        dots = {"color": TARGET, "size": 2.5}
        figure.add_scatter3d(x=target[:, 0], y=target[:, 1], z=target[:, 2], mode="markers", name="target", marker=dots)
    for policy, trace in traces.items():
        if (position := _points(trace, "position")) is None:
            continue
        x, y, z = position.T
        line = {"color": color(policy), "width": 4}
        figure.add_scatter3d(x=x, y=y, z=z, mode="lines", name=policy, line=line)
        start = {"color": color(policy), "size": 4, "symbol": "diamond"}
        figure.add_scatter3d(x=x[:1], y=y[:1], z=z[:1], mode="markers", name=f"{policy}, start", marker=start)
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "showbackground": False, "tickfont": {"size": 10}}
    scene: dict[str, Any] = {f"{k}axis": {**axis, "title": {"text": f"{k} (m)"}} for k in "xyz"}
    figure = styled(figure, 420, "Path")
    eye = {"x": 1.6, "y": 1.6, "z": 1.1}
    scene |= {"aspectmode": "data", "camera": {"eye": eye, "center": {"x": 0, "y": 0, "z": -0.12}}}
    figure.update_layout(scene=scene, margin={"l": 0, "r": 0, "b": 0})
    return figure


def positions(traces: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Each coordinate over time, with the target's."""
    figure = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.04)
    for axis in range(3):
        lines: dict[str, dict[str, Any]] = {"target": {"color": TARGET, "width": 1, "dash": "dot"}}
        for policy, trace in traces.items():
            lines["position"] = {"color": color(policy), "width": 1.6}
            for key, line in lines.items():
                if (points := _points(trace, key)) is not None:
                    x, y, name = thinned(trace["time"]), points[:, axis], policy if key == "position" else key
                    figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, row=axis + 1, col=1)
        figure.update_yaxes(title=f"{'xyz'[axis]} (m)", row=axis + 1, col=1)
    figure.update_xaxes(title="time (s)", row=3, col=1)
    return styled(figure, 420, "Position")


def metric_over_time(traces: Mapping[str, Mapping[str, Any]], metric: str) -> go.Figure:
    """The main ``metric`` over time."""
    figure = go.Figure()
    for policy, trace in traces.items():
        if values := _main_metric(trace):
            line = {"color": color(policy), "width": 1.6}
            figure.add_scatter(x=thinned(trace["time"]), y=thinned(values), mode="lines", name=policy, line=line)
    figure.update_xaxes(title="time (s)")
    figure.update_yaxes(title=metric.replace("_", " "), rangemode="tozero")
    return styled(figure, 300, spoken(metric))


def _main_metric(trace: Mapping[str, Any]) -> list[float] | None:
    """Its course; jdistill 0.1.0 knew the position error alone."""
    return trace.get("main_metric", trace.get("error"))


def _points(trace: Mapping[str, Any], key: str) -> np.ndarray | None:
    """What a trace shows as ``key``, thinned, if those are points in space (N, 3)."""
    points = thinned(trace.get(key) or [])
    return points if points.ndim == 2 and points.shape[1] == 3 else None


def actions(trace: Mapping[str, Any]) -> go.Figure:
    """What the student did and what the teacher would have done in its place."""
    time, ours, theirs = (thinned(trace[key]) for key in ("time", "action", "teacher_action"))
    count = min(ours.shape[1], ACTIONS)
    rows, columns = -(-count // 2), min(count, 2)
    titles = [f"action {i + 1}" for i in range(count)]
    space = {"vertical_spacing": 0.3 / rows, "horizontal_spacing": 0.06}
    figure = make_subplots(rows, columns, shared_xaxes=True, shared_yaxes=True, subplot_titles=titles, **space)
    for i in range(count):
        for name, values in (("teacher", theirs), ("student", ours)):
            line, place = {"color": color(name), "width": 1.2}, {"row": i // 2 + 1, "col": i % 2 + 1}
            figure.add_scatter(x=time, y=values[:, i], mode="lines", name=f"{name}, action {i + 1}", line=line, **place)
    figure.update_xaxes(title="time (s)", row=rows)
    figure.update_annotations(font={"size": 11, "color": TARGET})
    figure = styled(figure, max(300, 150 * rows), "Student's action, and the teacher's in its place")
    figure.update_layout(margin={"t": 56})
    return figure


def agreement(traces: Sequence[Mapping[str, Any]]) -> go.Figure:
    """The student's actions over the teacher's, in the states that the student visits."""
    theirs = np.concatenate([thinned(trace["teacher_action"]) for trace in traces])
    ours = np.concatenate([thinned(trace["action"]) for trace in traces])
    low, high = float(np.nanmin([ours.min(), theirs.min()])), float(np.nanmax([ours.max(), theirs.max()]))
    figure = go.Figure()
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line={"color": TARGET, "width": 1, "dash": "dot"})
    shades = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#6b7280", "#000000")
    for i in range(min(ours.shape[1], ACTIONS)):
        marker = {"size": 3, "color": shades[i], "opacity": 0.45}
        figure.add_scatter(x=theirs[:, i], y=ours[:, i], mode="markers", name=f"action {i + 1}", marker=marker)
    figure.update_xaxes(title="teacher's action")
    figure.update_yaxes(title="student's action")
    figure = styled(figure, 300, "Agreement, in the episodes shown")
    figure.data[0].showlegend = False
    figure.update_layout(showlegend=True, legend={"x": 0, "y": 1, "bgcolor": "rgba(255,255,255,.7)"})
    return figure


def histogram(policies: Mapping[str, Mapping[str, Any]], metric: str) -> go.Figure:
    """How a metric is spread over the settled steps of all episodes."""
    figure = go.Figure()
    for policy, numbers in policies.items():
        if found := (numbers.get("histograms") or {}).get(metric):
            edges, counts = np.asarray(found["edges"]), np.asarray(found["counts"], float)
            share = (counts / max(counts.sum(), 1)).astype(np.float32)
            line = {"color": color(policy), "width": 1.6, "shape": "hv"}
            figure.add_scatter(x=edges, y=[*share, share[-1]], mode="lines", name=policy, line=line)
    figure.update_xaxes(title=metric.replace("_", " "), rangemode="tozero")
    figure.update_yaxes(title="share of the steps", tickformat=".0%", rangemode="tozero")
    return styled(figure, 300, f"{spoken(metric)} when settled")


def thinned(values: Sequence[Any]) -> np.ndarray:
    """At most ``LINE_POINTS`` of the values, evenly taken; null becomes NaN."""
    array = np.asarray(values, np.float32)
    return array[:: -(-len(array) // LINE_POINTS)] if len(array) else array
