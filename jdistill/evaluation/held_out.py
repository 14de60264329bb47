"""A run's student craft by craft: ``jdistill evaluate RUN --quadrotors FILE``.

Student, teacher and whoever is asked for fly every quadrotor of a file, as many episodes each, from the same starts.
Written are ``quadrotors.csv``, a line for each craft, policy, scenario and seed; ``quadrotors.html`` with the errors
over mass and thrust-to-weight ratio; and for each policy and scenario a folder with ``tracking_errors.npz``, the errors
of all steps, and ``trajectory_data.npz``, the first craft's flight.
"""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bridge.quadrotors import QuadrotorSpec, read_csv
from bridge.tasks import Task
from jdistill.core.actor import Actor
from jdistill.core.teachers import TeacherBank
from jdistill.errors import ConfigError, ReportError
from jdistill.evaluation.crafts import STATISTICS, Flights, Flyer
from jdistill.evaluation.evaluate import EvaluationRequest, chosen, make_actors, naming
from jdistill.evaluation.figures import color
from jdistill.evaluation.plot import Figure, as_json
from jdistill.evaluation.report import key, number, percent, table
from jdistill.files import replace_file
from jdistill.run.compose import RunCfg
from jdistill.run.folders import QUADROTORS
from jdistill.run.saved_run import load_student, load_teacher
from jdistill.run.session import open_env

SCENARIOS = ("hover", "figure_eight_6s")
"""Flown where no others are asked for, as far as the task has them."""
ABOUT = ("id", "name", "mass", "arm_length", "twr", "roll_acceleration", "motor_tau", "motor_tau_down")
"""What a line says of its craft."""
PRINTED = 10
"""Craft in the printed table, at most: the student's worst."""
Record = dict[str, Any]
"""Scenario, policy, craft, and the craft's numbers (:meth:`jdistill.evaluation.crafts.Flights.numbers`)."""


def evaluate_quadrotors(
    request: EvaluationRequest,
    seeds: Sequence[int],
    cfg: RunCfg,
    task: Task,
    file: Path,
    specs: Sequence[QuadrotorSpec],
    out: Path,
) -> tuple[list[Record], list[Record]]:
    """Fly all once for each of ``seeds``, print a line for each policy and scenario, write the flights to ``out``.

    Returns:
        A record for each scenario, policy and craft, over all seeds; and the same seed by seed.

    Raises:
        ConfigError, PolicyFileError: something is missing, or does not fit; one line.
    """
    if task.with_quadrotors is None:
        raise ConfigError(f"--quadrotors: the task {cfg.task} cannot be flown craft by craft")
    episodes = max(1, request.episodes // len(specs))
    cfg.env.num_envs = episodes * len(specs)
    known = task.scenarios(task.with_quadrotors(cfg.env, str(file)))
    scenarios = chosen(known, request.scenarios or [name for name in SCENARIOS if name in known])
    print(f"{len(specs)} quadrotors, {episodes * len(seeds)} episodes each")
    actors: dict[str, Actor] = {}
    flyer = Flyer()
    records: list[Record] = []
    by_seed: list[Record] = []
    with ExitStack() as stack:
        for name, scenario in scenarios.items():
            with naming(name):
                env = stack.enter_context(open_env(cfg, task, request.seed, scenario.cfg))
                if not actors:
                    saved = {"student": load_student(request.run, request.best), "teacher": load_teacher(request.run)}
                    actors = make_actors(request, cfg, env, saved)
                    if not flies_all(actors["teacher"], request.run, specs):
                        del actors["teacher"]
                        print("The run's teachers are those of other quadrotors, so they do not fly these.")
                    width = max(8, *map(len, actors))
                    print(head(width))
                for policy, actor in actors.items():
                    flown = {seed: flyer.fly(env, actor, seed) for seed in seeds}
                    flights = Flights.joined(list(flown.values()))
                    found = list(_records(name, policy, flights, specs))
                    print(line(name, policy, flights, found, width), flush=True)
                    write_flights(flights, out / f"{name}_{policy}")
                    records += found
                    for seed, part in flown.items():
                        by_seed += [{**record, "seed": seed} for record in _records(name, policy, part, specs)]
    return records, by_seed


def flies_all(teacher: Actor, run: Path, specs: Sequence[QuadrotorSpec]) -> bool:
    """Whether ``teacher`` flies the quadrotors ``specs``: of several teachers each has one, which the ``run`` keeps."""
    if not isinstance(teacher, TeacherBank):
        return True
    kept = run / QUADROTORS
    own = {quadrotor.id: quadrotor for quadrotor in read_csv(kept)} if kept.is_file() else {}
    return all(own.get(spec.id) == spec for spec in specs)


def _records(scenario: str, policy: str, flights: Flights, specs: Sequence[QuadrotorSpec]) -> Iterator[Record]:
    for i, spec in enumerate(specs):
        craft = {name: getattr(spec, name) for name in ABOUT}
        yield {"scenario": scenario, "policy": policy, **craft, **flights.of(i, len(specs)).numbers()}


# -- what is printed -----------------------------------------------------------------------------------------------


def head(width: int) -> str:
    """The head of the table of :func:`line`; ``width`` is that of the policies' column."""
    names = [f"{what} {name}" for what in ("pos", "vel") for name in STATISTICS]
    return f"{'scenario':<16} {'policy':<{width}} {'survival':>9} {'craft 95%':>9}" + "".join(
        f" {n:>10}" for n in names
    )


def line(scenario: str, policy: str, flights: Flights, records: Sequence[Record], width: int) -> str:
    """Of a policy in a scenario: survival; the 95th percentile over the craft of a craft's mean error (m); and over all
    settled steps of all craft the statistics of position (m) and velocity error (m/s)."""
    numbers = flights.numbers()
    means = np.array([r["position_mean"] for r in records])
    worst = np.nanpercentile(means, 95) if np.isfinite(means).any() else np.nan
    cells = "".join(f" {numbers[f'{w}_{n}']:>10.4f}" for w in ("position", "velocity") for n in STATISTICS)
    return f"{scenario:<16} {policy:<{width}} {numbers['survival']:>9.1%} {worst:>9.4f}{cells}"


def craft_table(records: Sequence[Record]) -> str:
    """The craft on which the student errs most in the first scenario, and what the others do on them."""
    first = [r for r in records if r["scenario"] == records[0]["scenario"]]
    policies = list(dict.fromkeys(r["policy"] for r in first))
    by_craft = {r["id"]: {o["policy"]: o for o in first if o["id"] == r["id"]} for r in first}
    # Nobody who lives to be steady errs more than who does not.
    order = sorted(by_craft.values(), key=lambda found: -np.nan_to_num(found[policies[0]]["position_mean"], nan=np.inf))
    lines = [
        f"\n{'id':>6} {'mass':>8} {'twr':>6}" + "".join(f" {p + ' survival':>18} {p + ' (m)':>13}" for p in policies)
    ]
    for found in order[:PRINTED]:
        one = found[policies[0]]
        cells = "".join(f" {found[p]['survival']:>18.1%} {found[p]['position_mean']:>13.4f}" for p in policies)
        lines.append(f"{one['id']:>6} {one['mass']:>8.4f} {one['twr']:>6.2f}{cells}")
    return "\n".join(lines)


# -- what is written -----------------------------------------------------------------------------------------------


def write(records: Sequence[Record], out: Path) -> Path:
    """``quadrotors.csv``; returns it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    replace_file(out / "quadrotors.csv", text.getvalue())
    return out / "quadrotors.csv"


def write_flights(flights: Flights, folder: Path) -> None:
    """``tracking_errors.npz``: ``position_errors`` (m) and ``velocity_errors`` (m/s), (T, B), NaN where an episode is
    over; ``trajectory_data.npz`` of the first environment: ``timestamps`` (s), ``desired_pos``, ``actual_pos`` (m),
    ``desired_vel``, ``actual_vel`` (m/s), ``position_error``, ``velocity_error``, ``actions`` (-1..1)."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = {
        f"{name}_errors": np.where(flights.is_active, values, np.nan).astype(np.float32)
        for name, values in (("position", flights.position_error), ("velocity", flights.velocity_error))
    }
    steps = int(flights.is_active[:, 0].sum())
    course = {name: values[:steps] for name, values in flights.course.items()}
    trajectory = {
        "timestamps": np.arange(steps) * flights.step_dt,
        "desired_pos": course["target"],
        "actual_pos": course["position"],
        "desired_vel": course["target_velocity"],
        "actual_vel": course["velocity"],
        "position_error": flights.position_error[:steps, 0],
        "velocity_error": flights.velocity_error[:steps, 0],
        "actions": course["action"],
    }
    for name, arrays in (("tracking_errors", errors), ("trajectory_data", trajectory)):
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        replace_file(folder / f"{name}.npz", content.getvalue())


def write_page(run: Path, records: Sequence[Record], out: Path) -> Path:
    """``quadrotors.html``: errors over mass and thrust-to-weight ratio; returns it.

    Raises:
        ReportError: plotly is missing.
    """
    if importlib.util.find_spec("plotly") is None:
        raise ReportError("a report needs plotly, which is not installed; use 'uv run --extra report ...'")
    from plotly.offline import get_plotlyjs

    policies = list(dict.fromkeys(r["policy"] for r in records))
    scenarios = list(dict.fromkeys(r["scenario"] for r in records))
    drawn = {"curves": [], "overview": [f for name in scenarios for f in craft_figures(records, name)], "scenarios": {}}
    title = html.escape(f"{run.parent.name}/{run.name}")
    body = (
        f"<header><h1>{title}</h1><p class='soft'>Craft by craft: each point is a quadrotor, its error the mean over "
        "the steps after the first three seconds of its episodes. Crosses did not all survive.</p></header>"
        f'{key(policies)}<div class="grid" id="overview"></div>{summary(records)}'
    )
    page = string.Template(files("jdistill.evaluation").joinpath("report.html").read_text())
    figures = json.dumps(as_json(drawn), separators=(",", ":")).replace("</", "<\\/")
    replace_file(
        out / "quadrotors.html", page.substitute(title=title, body=body, plotly=get_plotlyjs(), figures=figures)
    )
    return out / "quadrotors.html"


def craft_figures(records: Sequence[Record], scenario: str) -> list[Figure]:
    """Position and velocity error over mass, and over thrust-to-weight ratio, in one scenario."""
    found = []
    axes: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
        ("mass", "mass (kg)", {"type": "log"}),
        ("twr", "thrust-to-weight ratio", {}),
    )
    for error, unit in (("position", "m"), ("velocity", "m/s")):
        for name, title, settings in axes:
            figure = Figure(280, f"{scenario}: {error} error ({unit}) over {title}")
            for policy in dict.fromkeys(r["policy"] for r in records):
                mine = [r for r in records if r["policy"] == policy and r["scenario"] == scenario]
                symbols = ["circle" if r["survival"] == 1 else "x" for r in mine]
                marker = {"color": color(policy), "size": 6, "opacity": 0.8, "symbol": symbols}
                x, y = ([float(r[column]) for r in mine] for column in (name, f"{error}_mean"))
                labels = [f"{policy}, id {r['id']} {r['name']}" for r in mine]
                figure.add(x=x, y=y, mode="markers", name=policy, marker=marker, text=labels)
            figure.axis("x", title=title, **settings)
            figure.axis("y", rangemode="tozero")
            found.append(figure)
    return found


def summary(records: Sequence[Record]) -> str:
    """A table: each policy in each scenario, over the craft."""
    rows = []
    for scenario in dict.fromkeys(r["scenario"] for r in records):
        for policy in dict.fromkeys(r["policy"] for r in records):
            mine = [r for r in records if (r["scenario"], r["policy"]) == (scenario, policy)]
            cells = [percent(float(np.mean([r["survival"] for r in mine])))]
            for column in ("position_mean", "velocity_mean"):
                values = np.array([r[column] for r in mine])
                values = values[np.isfinite(values)]
                cells += [number(float(f(values)) if values.size else None) for f in (np.mean, np.median, _p95, np.max)]
            rows.append(f"<tr><td>{scenario}</td>" + "".join(f"<td>{c}</td>" for c in (policy, *cells)) + "</tr>")
    of = ("mean", "median", "95 %", "worst craft")
    return table(
        ["scenario", "policy", "survival", *(f"position, {n}" for n in of), *(f"velocity, {n}" for n in of)], rows
    )


def _p95(values: np.ndarray) -> Any:
    return np.percentile(values, 95)
