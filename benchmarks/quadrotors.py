"""Many quadrotors, a teacher for each, one student of RAPTOR's size for all, beside RAPTOR on craft that nobody knows.

    python -m benchmarks.quadrotors --work quadrotors --out docs

The commands that a user types, one after the other: 100 quadrotors are drawn and their teachers trained, a student of
2084 parameters is distilled from them all, and student and RAPTOR fly 200 quadrotors of another seed, whose file is
written before anything is trained, and the simulator's own drones. What is done in ``--work`` is not done again, so
that the same command goes on after a kill. Prints Markdown tables and writes ``quadrotors.json``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.crazyflie import ROOT
from jdistill.files import replace_file
from jdistill.run.provenance import machine

SEED, HELD_OUT_SEED = 1, 2000
STUDENT = [
    *("--config", "crazyflie_raptor", "--logger", "none", "--phase1", "270"),
    *("env.teacher_sees_physics=false", "env.randomization={mass: 0.0, inertia: 0.0, thrust: 0.0, motor: 0.0}"),
]
"""How the student is trained: 22-16-GRU 16-4 with a learned initial state, on the teachers' craft as they are."""
POLICIES = ("student", "raptor")


class Chain:
    """Commands whose results lie in the folder ``work``, and how long each took, in seconds of all tries together."""

    def __init__(self, work: Path):
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        self._file = work / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def run(self, name: str, *arguments: Any) -> None:
        """Run ``jdistill`` with ``arguments``; a command that fails ends the chain."""
        begin = time.monotonic()
        status = subprocess.run([sys.executable, "-m", "jdistill", *map(str, arguments)], cwd=ROOT).returncode
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin
        replace_file(self._file, json.dumps(self.seconds) + "\n")
        if status:
            raise SystemExit(f"jdistill {arguments[0]} failed with status {status}")

    def sample(self, name: str, *arguments: Any) -> Path:
        """A file of quadrotors; it is drawn once."""
        file = self.work / name
        if not file.exists():
            self.run("sample", "quadrotors", *arguments, file)
        return file

    def student(self, teachers: Path, arguments: list[str]) -> Path:
        """The run folder of the student; a run that was cut off goes on."""
        logs = self.work / "logs"
        begun = sorted(logs.glob("*/*/checkpoints"))
        if not begun:
            self.run("student", "train", "--logdir", logs, "--teacher_dir", teachers, *STUDENT, *arguments)
        elif not (begun[0].parent / "student.safetensors").exists():
            experiment, name = begun[0].parts[-3:-1]
            resume = ["--resume", "--experiment_name", experiment, "--load_run", name]
            self.run("student", "train", "--logdir", logs, *resume)
        (found,) = logs.glob("*/*")
        return found


def numbers(file: Path) -> dict[str, dict[str, dict[str, float]]]:
    """By scenario and policy: survival, and over the craft the mean, median and 95th percentile of their errors."""
    rows = list(csv.DictReader(file.read_text().splitlines()))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key in dict.fromkeys((row["scenario"], row["policy"]) for row in rows):
        mine = [row for row in rows if (row["scenario"], row["policy"]) == key]
        told = {"craft": len(mine), "survival": float(np.mean([float(row["survival"]) for row in mine]))}
        for what in ("position", "velocity"):
            errors = np.array([float(row[f"{what}_mean"]) for row in mine])
            steady = errors[np.isfinite(errors)]
            for name, q in (("median", 50), ("p95", 95), ("worst", 100)):
                told[f"{what}_{name}"] = float(np.percentile(steady, q)) if steady.size else float("nan")
            told[f"{what}_mean"] = float(steady.mean()) if steady.size else float("nan")
        found.setdefault(key[0], {})[key[1]] = told
    return found


def table(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Every file of craft, scenario and policy as Markdown."""
    rows = ["| craft | scenario | policy | survival | error (m) | median | 95 % of craft | velocity error (m/s) |"]
    rows.append("|---" * 8 + "|")
    for craft, scenarios in results.items():
        for scenario, policies in scenarios.items():
            for policy, told in policies.items():
                errors = [told[f"position_{name}"] for name in ("mean", "median", "p95")] + [told["velocity_mean"]]
                cells = " | ".join("-" if np.isnan(error) else f"{error:.4f}" for error in errors)
                rows.append(f"| {craft} | {scenario} | {policy} | {told['survival']:.1%} | {cells} |")
    return "\n".join(rows)


def misses(results: dict[str, Any]) -> str:
    """Where the student is not better than RAPTOR, by the numbers as they are."""
    lost = []
    for craft, scenarios in results.items():
        for scenario, policies in scenarios.items():
            student, raptor = (policies[name] for name in POLICIES)
            if student["survival"] < raptor["survival"]:
                lost.append(f"survival on {craft}, {scenario}")
            lost += [
                f"{name} on {craft}, {scenario}"
                for name in ("position_mean", "position_p95")
                if not student[name] < raptor[name]
            ]
    return "The student is no better in: " + (", ".join(lost) or "nothing")


def main() -> None:
    """Draw, teach, distill, fly, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--num", type=int, default=100, help="quadrotors with teachers (%(default)s)")
    parser.add_argument("--held_out", type=int, default=200, help="quadrotors without (%(default)s)")
    parser.add_argument("--episodes", type=int, default=3200, help="of each policy and scenario (%(default)s)")
    parser.add_argument("--teach", nargs="*", default=[], metavar="ARG=VALUE", help="flags of 'jdistill teach'")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the student's run")
    parser.add_argument("--out", type=Path, help="folder for quadrotors.json")
    args = parser.parse_args()
    args.work = args.work.resolve()
    chain = Chain(args.work)
    quads = chain.sample("quads.csv", "sample", "--num", args.num, "--seed", SEED)
    unknown = chain.sample("held_out.csv", "sample", "--num", args.held_out, "--seed", HELD_OUT_SEED)
    drones = chain.sample("drones.csv", "drones")
    checksum = hashlib.sha256(unknown.read_bytes()).hexdigest()
    teachers = args.work / "teachers"
    chain.run("teachers", "teach", quads, "--out", teachers, *(f"--{flag}" for flag in args.teach))
    run = chain.student(teachers, args.train)
    results = {}
    for name, file in (("held out", unknown), ("drones", drones)):
        out = args.work / f"evaluation_{file.stem}"
        if not (out / "quadrotors.csv").exists():
            chain.run(
                "evaluation",
                "evaluate",
                run,
                "--quadrotors",
                file,
                "--raptor",
                "--episodes",
                args.episodes,
                "--out",
                out,
            )
        results[name] = numbers(out / "quadrotors.csv")
    print(table(results), misses(results), sep="\n\n")
    quality = list(csv.DictReader((teachers / "quality.csv").read_text().splitlines()))
    passed = sum(row["passed"] == "True" for row in quality)
    print(f"{passed} of {len(quality)} teachers are good enough; seconds: {chain.seconds}")
    if args.out:
        about = {"machine": machine(), "seconds": chain.seconds, "held_out_sha256": checksum, "teachers": quality}
        (args.out / "quadrotors.json").write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
