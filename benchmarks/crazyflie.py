"""The default job, whole: how long it takes, what it needs, what its students are worth beside the teacher.

    python -m benchmarks.crazyflie --out docs/crazyflie.json

Trains students by the commands a user types, then evaluates teacher and students on the same held-out episodes: the
task with perfect sensors, holding a point with perfect ones, with noisy ones, and with measurements that are 20 ms old.
Prints a Markdown table; about five minutes a student on two CPU cores. With ``--only`` the other rows of the file stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bridge.crazyflie import PointControl, PointControlCfg
from bridge.crazyflie.scenarios import scenarios
from bridge.env import AutoReset
from jdistill.evaluation.evaluate import evaluate
from jdistill.export.policy_file import load_policy
from jdistill.run.provenance import machine

ROOT = Path(__file__).parents[1]
EPISODES = 1000
SEED = 20_000
"""Of the held-out episodes; training draws from seed 42."""


STUDENTS = {
    "student, --phase1 500": ["--phase1", "500"],
    "student, --phase1 0": ["--phase1", "0"],
    "student, --phase1 1500": ["--phase1", "1500"],
    "student, --phase1 500 --config crazyflie_perfect_sensors": [
        *("--phase1", "500", "--config", "crazyflie_perfect_sensors"),
    ],
}
"""What the table calls them, and the commands' arguments."""
CASES = {"default": "default", "hover": "holding", "noise": "holding, noise", "delay_20ms": "holding, 20 ms"}
"""Scenarios of :mod:`bridge.crazyflie.scenarios`, and what the table calls them."""


def train(command: list[str], folder: Path, overrides: list[str]) -> tuple[Path, dict[str, float]]:
    """Run the command with its compiled programs in ``folder``; returns the run folder and its cost."""
    logdir, cache = folder / "logs", folder / "cache"
    arguments = [*command, "--logdir", str(logdir), *overrides]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_jax.py"), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
    )
    assert process.stdout
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"training failed with status {status}")
    match = re.search(r"Compiled the iteration in ([\d.]+)s", out)
    assert match
    run = max(logdir.glob("*/*"), key=lambda run: run.stat().st_mtime)
    cost = {
        "minutes": (time.perf_counter() - began) / 60,
        "compile_s": float(match.group(1)),
        "peak_memory_gib": usage.ru_maxrss / 2**20,
    }
    return run, cost


def measure(file: Path, group: str) -> dict[str, Any]:
    """The numbers of one policy in all :data:`CASES`."""
    policy, policy_state, _ = load_policy(file)
    known = scenarios(PointControlCfg(num_envs=EPISODES))
    return {
        name: evaluate(AutoReset(PointControl(known[name].cfg)), policy, policy_state, [group], seed=SEED)
        for name in CASES
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    names = ["policy", *(f"{case} (m)" for case in CASES.values()), "minutes", "memory (GiB)"]
    rows = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for name, result in results["policies"].items():
        cells = [_cell(result[case]) for case in CASES]
        cost = result.get("cost")
        cells += [f"{cost['minutes']:.1f}", f"{cost['peak_memory_gib']:.2f}"] if cost else ["", ""]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(numbers: dict[str, Any]) -> str:
    """The steady error, and who survived where not all did."""
    error, survival = numbers["steady"]["position_error"], numbers["survival"]
    return f"{error:.4f}" if survival == 1 else f"{'-' if error != error else f'{error:.4f}'}, {survival:.1%}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(STUDENTS), metavar="NAME", help="some of the students")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, as for train_jax.py")
    args = parser.parse_args()
    before = json.loads(args.out.read_text()) if args.only and args.out and args.out.exists() else {"policies": {}}
    teacher = ROOT / "jdistill" / "teachers" / "crazyflie.safetensors"
    found: dict[str, Any] = {"teacher": measure(teacher, "teacher")}
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(args.only or STUDENTS):
            # Each with an empty cache, as a user's first run.
            run, cost = train(STUDENTS[name], Path(folder) / str(i), args.overrides)
            found[name] = {**measure(run / "student.safetensors", "student"), "cost": cost}
            print(f"{name}: {json.dumps(cost)}", flush=True)
        again = train(STUDENTS[name], Path(folder) / str(i), [*args.overrides, "agent.max_iterations=1"])[1]
    kept = before["policies"] | found
    policies = {name: kept[name] for name in ("teacher", *STUDENTS) if name in kept}
    results = {"episodes": EPISODES, "machine": machine(), "overrides": args.overrides, "policies": policies}
    results["compile_again_s"] = again["compile_s"]
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
