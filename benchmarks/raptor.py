"""Our student of RAPTOR's size beside RAPTOR itself, in every scenario of point control.

    python -m benchmarks.raptor --out docs

Trains a student by the command that a user types, then evaluates it, its teacher and RAPTOR in the scenarios: those
of the default Crazyflie, every other Crazyflie, the quadrotors that the student was trained on, and those held out.
Prints Markdown tables and writes ``evaluation.json``. Training takes some 10 minutes on two CPU cores,
evaluating about half as long.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.crazyflie import ROOT
from bridge.crazyflie import PointControlCfg
from bridge.crazyflie.cfg import RandomizationCfg, ResetCfg, SensorCfg, TargetCfg, WindCfg
from bridge.crazyflie.scenarios import CRAZYFLIES
from bridge.tasks import Scenario
from jdistill.evaluation.evaluate import SEED, EvaluationRequest, evaluate_run, finite
from jdistill.run.saved_run import load_config, request_of
from jdistill.run.session import start

POLICIES = ("student", "raptor", "teacher")


def held_out(cfg: PointControlCfg) -> Mapping[str, Scenario]:
    """Scenarios that were written down when the preset was done, and in which no student had been evaluated before."""
    plain = replace(cfg, target=TargetCfg(kind="fixed"))
    sensor = SensorCfg(0.005, 0.03, 0.5, 0.05, delay_steps=1)
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "spinning": ("starts turning at up to 6 rad/s", {"reset": ResetCfg(angular_velocity=6.0)}),
        "thrown": ("starts at up to 2.5 m/s", {"reset": ResetCfg(linear_velocity=2.5)}),
        "far": ("starts 20 arm lengths away", {"reset": ResetCfg(position=20.0)}),
        "payload": ("a mass ± 25 %", {"randomization": RandomizationCfg(mass=0.25)}),
        "motors": ("motors ± 50 % and thrust ± 20 %", {"randomization": RandomizationCfg(motor=0.5, thrust=0.2)}),
        "breeze": ("pushes by up to 10 % of the weight, 2 s in every 3", {"wind": WindCfg(0.1, 2.0, 1.0)}),
        "hops": (
            "the point jumps by up to 0.3 m every 1.5 s",
            {"target": TargetCfg("step", step_size=0.3, step_interval=1.5)},
        ),
        "small_eight": (
            "a figure-eight of 1 m by 0.5 m in 5 s",
            {"target": TargetCfg("figure_eight", figure_eight_size=0.5, figure_eight_period=5.0)},
        ),
        "real": ("noise, 10 ms delay and gusts of 10 % together", {"sensor": sensor, "wind": WindCfg(0.1)}),
        "brushless": (
            "the craft cf21B_500 with that noise, delay and those gusts",
            {"drone": "cf21B_500", "sensor": sensor, "wind": WindCfg(0.1)},
        ),
    }
    return {name: Scenario(text, replace(plain, **changed)) for name, (text, changed) in changes.items()}


def train(logdir: Path, overrides: list[str]) -> Path:
    """Run the command; returns the run folder."""
    arguments = ["--config", "crazyflie_raptor", "--logdir", str(logdir), *overrides]
    done = subprocess.run([sys.executable, str(ROOT / "train_jax.py"), *arguments], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"training failed with status {done.returncode}")
    (run,) = logdir.glob("*/*")
    return run


def measure(run: Path, episodes: int) -> dict[str, Any]:
    """All scenarios of the default task, the run's own training task as the scenario ``trained_on``, and those held
    out."""
    cfg = load_config(run)
    request = EvaluationRequest(run, episodes, SEED, ["default"], raptor=True)
    results = evaluate_run(request, cfg, start(request_of(cfg)).task)
    nominal = PointControlCfg()
    changes = [f"env.drone={nominal.drone}"]
    for section in ("randomization", "reset", "sensor"):
        changes += [f"env.{section}.{name}={value}" for name, value in vars(getattr(nominal, section)).items()]
    cfg = load_config(run, changes)
    task, every = start(request_of(cfg)).task, request._replace(scenarios=[])
    scenarios = evaluate_run(every, cfg, task)["scenarios"]
    others = evaluate_run(every, cfg, replace(task, scenarios=held_out))["scenarios"]
    trained_on = {"description": "the student's own training task", **results["scenarios"].pop("default")}
    return {**results, "run": run.name, "scenarios": {"trained_on": trained_on, **scenarios}, "held_out": others}


def table(scenarios: dict[str, Any]) -> str:
    """Survival and steady error of each policy as Markdown; the better of student and RAPTOR is bold."""
    head = "".join(f" {name} survival | {name} steady (m) |" for name in POLICIES)
    rows = [f"| scenario |{head}", "|---|" + "---|---|" * len(POLICIES)]
    for name, told in scenarios.items():
        numbers = [told["policies"][policy] for policy in POLICIES]
        survival = [n["survival"] for n in numbers]
        # Where nobody lives to be steady, everybody who does is better.
        steady = [n["metrics"]["position_error"]["steady"] for n in numbers]
        steady = [math.inf if x is None or math.isnan(x) else x for x in steady]
        alive = bold([f"{x:.1%}" for x in survival], survival[0] - survival[1])
        error = bold([f"{x:.4f}" if x < math.inf else "-" for x in steady], steady[1] - steady[0])
        rows.append(
            f"| {name} | " + " | ".join(cell for pair in zip(alive, error, strict=True) for cell in pair) + " |"
        )
    return "\n".join(rows)


def bold(cells: list[str], lead: float) -> list[str]:
    """``cells`` with the first bold if its ``lead`` over the second is positive, the second if it is negative."""
    best = None if cells[0] == cells[1] else 0 if lead > 0 else 1
    return [f"**{cell}**" if i == best else cell for i, cell in enumerate(cells)]


def verdict(results: dict[str, Any]) -> str:
    """Where the student is worse than RAPTOR, by the numbers as they are."""
    lost = []
    for name, told in {**results["scenarios"], **results["held_out"]}.items():
        student, raptor = (told["policies"][policy] for policy in ("student", "raptor"))
        if student["survival"] < raptor["survival"]:
            lost.append(f"survival in {name}")
        errors = [numbers["metrics"]["position_error"]["steady"] for numbers in (student, raptor)]
        if errors[0] >= errors[1]:
            lost.append(f"steady error in {name}" + (" (a Crazyflie)" if name in CRAZYFLIES else ""))
    return "The student is worse in: " + (", ".join(lost) or "nothing")


def main() -> None:
    """Train, evaluate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="a run of the preset, in place of training one")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="folder for evaluation.json")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, as for train_jax.py")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args.run or train(Path(folder), args.overrides), args.episodes)
    for told in (*results["scenarios"].values(), *results["held_out"].values()):
        for numbers in told["policies"].values():
            del numbers["traces"], numbers["histograms"]
    print(table(results["scenarios"]), table(results["held_out"]), sep="\n\n")
    print(verdict(results))
    if args.out:
        (args.out / "evaluation.json").write_text(json.dumps(finite(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
