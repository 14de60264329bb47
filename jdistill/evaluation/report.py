"""A run on one HTML page that needs no network: ``jdistill report RUN``.

Learning curves, what the evaluation says in tables and pictures, single episodes over time and in space, and all that
made the run. The curves come from the run's ``progress.csv``, the rest from its ``evaluation/evaluation.json``; without
an evaluation the page has what there is.
"""

from __future__ import annotations

import html
import importlib.util
import json
import string
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jdistill.errors import ReportError
from jdistill.evaluation import figures
from jdistill.evaluation.metrics import find_main_metric, outcome
from jdistill.evaluation.plot import as_json
from jdistill.files import replace_file
from jdistill.run.folders import describe, starts
from jdistill.run.progress import read_progress

FORMAT = 1
"""Of ``evaluation.json``, see :mod:`jdistill.evaluation.evaluate`."""


def write_report(run: Path, evaluation: Mapping[str, Any] | None) -> Path:
    """Write ``run/report.html`` with what :mod:`jdistill.evaluation.evaluate` found, if anything; returns the file.

    Raises:
        ReportError: plotly is missing.
        ConfigError: the run folder is damaged.
        OSError: the file cannot be written.
    """
    if importlib.util.find_spec("plotly") is None:
        raise ReportError("a report needs plotly, which is not installed; use 'uv run --extra report ...'")
    from plotly.offline import get_plotlyjs

    curves = read_progress(run)
    evaluation = evaluation or {}
    scenarios = evaluation.get("scenarios") or {}
    metric = main_metric(evaluation)
    drawn = {
        "curves": figures.learning_curves(curves),
        "overview": [figures.overview(scenarios, metric)] if scenarios else [],
        "scenarios": {
            name: {"description": result["description"], **figures.scenario(result, metric)}
            for name, result in scenarios.items()
        },
    }
    page = string.Template(files("jdistill.evaluation").joinpath("report.html").read_text())
    body = [
        heading(run, evaluation),
        curves_section(curves, figures.phase_switch(curves)),
        *([scenarios_section(evaluation), episodes_section(scenarios)] if scenarios else [no_evaluation(run)]),
        origin_section(run, evaluation),
    ]
    text = page.substitute(
        title=html.escape(f"{run.parent.name}/{run.name}"),
        body="\n".join(body),
        plotly=get_plotlyjs(),
        # A script element ends at "</", whatever stands around it.
        figures=json.dumps(as_json(drawn), separators=(",", ":")).replace("</", "<\\/"),
    )
    file = run / "report.html"
    replace_file(file, text)
    return file


def read_evaluation(run: Path) -> dict[str, Any] | None:
    """What the run's last evaluation found; None where there was none.

    Raises:
        ReportError: its file is damaged, or another version's.
    """
    file = run / "evaluation" / "evaluation.json"
    if not file.is_file():
        return None
    again = f"evaluate anew with 'jdistill evaluate {run}'"
    try:
        found = json.loads(file.read_text())
        version = found.get("format")
    except (OSError, ValueError, AttributeError) as e:
        raise ReportError(f"{file}: damaged ({type(e).__name__}); {again}") from e
    if version != FORMAT:
        raise ReportError(f"{file}: format {version}, this version reads {FORMAT}; {again}")
    return found


def main_metric(evaluation: Mapping[str, Any]) -> str | None:
    """The metric that the page speaks of: the task's, else the first by name; None where nothing is measured."""
    found = {
        metric
        for result in (evaluation.get("scenarios") or {}).values()
        for numbers in result["policies"].values()
        for metric in numbers.get("metrics") or {}
    }
    # Evaluations of jdistill 0.1.0 do not say; theirs were of tasks with positions.
    return find_main_metric(evaluation.get("main_metric", "position_error"), found)


# -- sections ------------------------------------------------------------------------------------------------------


def heading(run: Path, evaluation: Mapping[str, Any]) -> str:
    """The run's name and the few numbers that tell most."""
    info = describe(run)
    scenarios = evaluation.get("scenarios") or {}
    facts = [f"task {info.task}", f"{info.iterations} of {info.max_iterations} iterations"]
    if begun := starts(run):
        facts.append(f"begun {begun[0]['time'].replace('T', ' ')[:16]}")
    if evaluation:
        facts.append(f"student of iteration {evaluation['iteration']}, {evaluation['episodes']} episodes per scenario")
    cards = []
    if scenarios:
        name = "default" if "default" in scenarios else next(iter(scenarios))
        numbers, metric = scenarios[name]["policies"]["student"], main_metric(evaluation)
        cards.append((percent(numbers.get(outcome(numbers))), f"{outcome(numbers)}, {name}"))
        if metric:
            steady = ((numbers.get("metrics") or {}).get(metric) or {}).get("steady")
            cards.append((number(steady), f"{metric.replace('_', ' ')}, steady, {name}"))
        cards.append((number((numbers.get("agreement") or {}).get("r2")), f"R² with the teacher, {name}"))
        cost = (evaluation.get("policies") or {}).get("student") or {}
        if "parameters" in cost:
            cards.append((f"{cost['parameters']:,}", "parameters of the student"))
    elif info.best_return is not None:
        cards.append((number(info.best_return), "best mean return"))
    shown = "".join(f'<div class="card"><b>{value}</b><span>{html.escape(what)}</span></div>' for value, what in cards)
    return (
        f"<header><h1>{html.escape(run.parent.name)}/{html.escape(run.name)}</h1>"
        f'<div class="soft">{html.escape(" · ".join(facts))}</div>'
        f'<div class="cards">{shown}</div></header>'
    )


def curves_section(curves: Mapping[str, Any], switch: int | None) -> str:
    """Where the learning curves go."""
    if not curves:
        return "<h2>Learning</h2><p class='soft'>The run has no progress.csv, so there are no curves.</p>"
    text = "Each thin line shows every iteration, the strong one a running mean."
    if switch is not None:
        text += f" The teacher stepped the environments up to iteration {switch - 1} (phase 1)."
    return f'<h2>Learning</h2><p class="soft">{text}</p><div class="grid" id="curves"></div>'


def no_evaluation(run: Path) -> str:
    """How to get the other half of the page."""
    command = html.escape(f"jdistill evaluate {run}")
    return f"<h2>Evaluation</h2><p>There is none yet.</p><pre>{command}</pre>"


def scenarios_section(evaluation: Mapping[str, Any]) -> str:
    """Every policy in every scenario, and what an action costs."""
    scenarios = evaluation["scenarios"]
    return (
        "<h2>Evaluation</h2>"
        f'<p class="soft">{evaluation["episodes"]} episodes for each policy and scenario, the same start states for '
        f"all (seed {evaluation['seed']}). Steady is after the first three seconds; agreement is that of the policy's "
        "actions with the teacher's, in the states that the policy itself visits.</p>"
        f'{key(figures.policies(scenarios))}<div class="figure" id="overview"></div>'
        f"{scenario_table(scenarios, main_metric(evaluation))}{cost_table(evaluation.get('policies') or {})}"
    )


def key(names: Iterable[str]) -> str:
    """Which color is which policy."""
    items = "".join(
        f'<span class="key"><i style="background:{figures.color(n)}"></i>{html.escape(n)}</span>' for n in names
    )
    return f'<div class="bar">{items}</div>'


def scenario_table(scenarios: Mapping[str, Any], metric: str | None) -> str:
    """One row for each scenario and policy; ``metric`` is the main one."""
    ending = figures.ending(scenarios)
    heads = [ending, "return", "action change", "RMSE", "R²"]
    if metric:
        heads[2:2] = [f"{metric.replace('_', ' ')}, mean", "95 %", "steady"]
    rows = []
    for name, result in scenarios.items():
        label = f"{html.escape(name)}<small>{html.escape(result['description'])}</small>"
        for i, (policy, numbers) in enumerate(result["policies"].items()):
            values = (numbers.get("metrics") or {}).get(metric) or {}
            near = numbers.get("agreement") or {}
            cells = [percent(numbers.get(ending)), number(numbers.get("return"))]
            cells += [number(values.get(k)) for k in ("mean", "p95", "steady")] if metric else []
            cells += [number(numbers.get("action_change")), number(near.get("rmse")), number(near.get("r2"))]
            first = f'<td class="name" rowspan="{len(result["policies"])}">{label}</td>' if i == 0 else ""
            row = f'{first}<td class="policy">{html.escape(policy)}</td>' + "".join(f"<td>{c}</td>" for c in cells)
            rows.append(f'<tr class="{"first" if i == 0 else ""}">{row}</tr>')
    return table(["scenario", "policy", *heads], rows)


def cost_table(costs: Mapping[str, Any]) -> str:
    """What one action takes."""
    rows = [
        f'<tr class="first"><td class="name">{html.escape(name)}</td>'
        f"<td>{cost['parameters']:,}</td><td>{count(cost.get('flops'))}</td><td>{count(cost.get('bytes'))}</td></tr>"
        for name, cost in costs.items()
    ]
    return table(["one action", "parameters", "operations", "bytes read and written"], rows) if rows else ""


def table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """A table that scrolls where the page is narrow."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def episodes_section(scenarios: Mapping[str, Any]) -> str:
    """Where the chosen scenario's episodes go."""
    names = [*figures.policies(scenarios), *(["target"] if figures.shows_target(scenarios) else [])]
    options = "".join(f"<option>{html.escape(name)}</option>" for name in scenarios)
    return (
        f'<h2>Episodes</h2><div class="bar"><label>Scenario <select id="scenario">{options}</select></label>'
        '<select id="episode" aria-label="Episode"></select><span class="soft" id="about"></span></div>'
        f'{key(names)}<div class="grid" id="episodes"></div>'
    )


def origin_section(run: Path, evaluation: Mapping[str, Any]) -> str:
    """The commands, versions, machine and settings behind it all."""
    begun = starts(run)
    parts = ["<h2>How it was made</h2>"]
    if begun:
        lines = [f"# {s['time'].replace('T', ' ')}, from iteration {s['iteration']}\n{s['command']}" for s in begun]
        parts.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")
    sources = {
        "Trained": _joined(begun[-1]["versions"] if begun else {}),
        "Evaluated": _joined((evaluation.get("versions") or {}) | (evaluation.get("machine") or {})),
    }
    parts += [f"<p><b>{what}</b> with {html.escape(', '.join(with_))}</p>" for what, with_ in sources.items() if with_]
    config = html.escape((run / "config.yaml").read_text())
    parts.append(f"<details><summary>All settings (config.yaml)</summary><pre>{config}</pre></details>")
    return "".join(parts)


def _joined(facts: Mapping[str, Any]) -> list[str]:
    return [f"{name} {value}" for name, value in facts.items()]


def number(value: float | None) -> str:
    """Four significant digits; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share."""
    return "–" if value is None else f"{value:.1%}"


def count(value: float | None) -> str:
    """A whole number."""
    return "–" if value is None else f"{value:,.0f}"
