"""The tables of docs/simulators.md, from docs/tasks.json and, where it is there, docs/mjlab_tasks.json."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.crazyflie import ROOT

DOCS = ROOT / "docs"
PAGE = DOCS / "simulators.md"
BEGIN, END = "<!-- written by python -m benchmarks.tasks -->", "<!-- up to here -->"


def write_tables(results: dict[str, Any]) -> None:
    """Put the tables in their place on the page."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{rest.partition(END)[2]}")


def tables(results: dict[str, Any]) -> str:
    """All of them, in Markdown."""
    tasks = results["tasks"]
    if not tasks:
        return "No numbers yet."
    other = DOCS / "mjlab_tasks.json"
    rows = [row for task in tasks.values() for row in task["rows"]]
    rows += json.loads(other.read_text())["rows"] if other.is_file() else []
    head = "| task | student | sees | teacher's return | student's return | steps/s | teacher, student (minutes) |"
    lines = [f"Measured on {results['machine']['cores']} cores of an {results['machine']['cpu']}.", "", head]
    lines += ["|---|---|---|---|---|---|---|", *map(row_of, rows), "", "The commands:", "", "```"]
    lines += [*(f"python {row['command']}" for row in rows), "```", ""]
    lines += ["| task | simulator alone (steps/s) | behind our interface | ratio |", "|---|---|---|---|"]
    for name, task in tasks.items():
        found = task["collection"]
        speeds = f"{found['alone_steps_per_second']:,.0f} | {found['ours_steps_per_second']:,.0f}"
        lines.append(f"| {name} | {speeds} | {found['ratio']:.2f} |")
    lines += ["", "| task | rsl_rl's iteration (s) | jdistill's | ratio |", "|---|---|---|---|"]
    for found in (task["iteration"] for task in tasks.values() if "iteration" in task):
        times = " | ".join(f"{found[side]['iteration_s']:.4f}" for side in ("rsl_rl", "jdistill"))
        lines.append(f"| {found['task']} | {times} | {found['ratio']:.1f} |")
    return "\n".join(lines)


def row_of(row: dict[str, Any]) -> str:
    """A student's."""
    share = ""
    if row["teacher_return"] > 0:
        share = f" ({row['student_return'] / row['teacher_return']:.1%})"
    minutes = ", ".join(f"{row['minutes'][who]:.1f}" for who in ("teacher", "student"))
    cells = [row["task"], row.get("student", "GRU"), row.get("sees", "")]
    cells += [f"{row['teacher_return']:.2f}", f"{row['student_return']:.2f}{share}"]
    return f"| {' | '.join([*cells, f'{row["steps_per_second"]:,.0f}', minutes])} |"
