"""The default job, whole: how long it takes, what it needs, what its students are worth beside the teacher.

    python -m benchmarks.crazyflie --out docs/crazyflie.json

Trains one student for each ``--phase1`` by the command a user types, then evaluates teacher and students on the same
held-out episodes. Prints a Markdown table; about 17 minutes on two CPU cores.
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
from bridge.crazyflie.cfg import TargetCfg
from bridge.env import AutoReset
from jdistill.evaluation.evaluate import evaluate
from jdistill.export.policy_file import load_policy
from jdistill.run.provenance import machine

ROOT = Path(__file__).parents[1]
EPISODES = 1000
SEED = 20_000
"""Of the held-out episodes; training draws from seed 42."""


def train(phase1: int, logdir: Path, cache: Path, overrides: list[str]) -> tuple[Path, dict[str, float]]:
    """Run the command with compiled programs in ``cache``; returns the run folder and its cost."""
    arguments = ["--phase1", str(phase1), "--logdir", str(logdir), "--run_name", f"phase1-{phase1}", *overrides]
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
    (run,) = logdir.glob(f"*/*_phase1-{phase1}")
    cost = {
        "minutes": (time.perf_counter() - began) / 60,
        "compile_s": float(match.group(1)),
        "peak_memory_gib": usage.ru_maxrss / 2**20,
    }
    return run, cost


def measure(file: Path, group: str) -> dict[str, Any]:
    """The numbers of one policy on the default task and on holding a point."""
    policy, policy_state, _ = load_policy(file)
    numbers = {}
    for name, target in (("default", TargetCfg()), ("hold", TargetCfg(kind="fixed"))):
        env = AutoReset(PointControl(PointControlCfg(num_envs=EPISODES, target=target)))
        numbers[name] = evaluate(env, policy, policy_state, [group], seed=SEED)
    return numbers


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        "| policy | survival | steady error, default (m) | steady error, holding (m) | minutes | memory (GiB) |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results["policies"].items():
        default, hold, cost = result["default"], result["hold"], result.get("cost")
        rows.append(
            f"| {name} | {default['survival']:.1%} | {default['steady']['position_error']:.4f} "
            f"| {hold['steady']['position_error']:.4f} "
            + (f"| {cost['minutes']:.1f} | {cost['peak_memory_gib']:.2f} |" if cost else "| | |")
        )
    return "\n".join(rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--phase1", type=int, nargs="+", default=[500, 0, 1500], help="one student for each")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, as for train_jax.py")
    args = parser.parse_args()
    teacher = ROOT / "jdistill" / "teachers" / "crazyflie.safetensors"
    policies: dict[str, Any] = {"teacher": measure(teacher, "teacher")}
    with tempfile.TemporaryDirectory() as folder:
        for phase1 in args.phase1:
            # Each with an empty cache, as a user's first run.
            run, cost = train(phase1, Path(folder), Path(folder) / f"cache-{phase1}", args.overrides)
            policies[f"student, --phase1 {phase1}"] = {**measure(run / "student.safetensors", "student"), "cost": cost}
            print(f"--phase1 {phase1}: {json.dumps(cost)}", flush=True)
        short = [*args.overrides, "agent.max_iterations=1", "agent.run_name=again"]
        again = train(phase1, Path(folder), Path(folder) / f"cache-{phase1}", short)[1]
    results = {"episodes": EPISODES, "machine": machine(), "overrides": args.overrides, "policies": policies}
    results["compile_again_s"] = again["compile_s"]
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
