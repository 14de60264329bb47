"""Students distilled on one simulator, evaluated on the other: point control on Crazyflow and on Isaac Lab.

    python -m benchmarks.transfer --out docs/transfer.json

One short run on each by the command that a user types, the same bundled teacher; then teacher and both students are
evaluated on the same number of held-out episodes on both. About 6 minutes on two CPU cores, most of it physics.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.crazyflie import ROOT
from bridge.env import TrainingEnv
from bridge.registry import simulators
from bridge.tasks import DEFAULT_TASK, Session
from jdistill.run import compilation
from jdistill.run.provenance import machine

JOBS = {
    "crazyflow": ["--phase1", "60", "--max_iterations", "200"],
    "isaaclab": ["--phase1", "15", "--max_iterations", "50", "agent.num_steps_per_env=100"],
}
"""What is trained on each simulator; Isaac Lab's physics are a hundred times slower on a CPU."""
STUDENT = {"crazyflow": ["student"], "isaaclab": ["policy"]}
"""The student's observation group on each."""
HALF_LIFE = {"crazyflow": 40, "isaaclab": 10}
"""Iterations after which the step size has halved: the default's share of a run."""


def train(sim: str, logdir: Path) -> Path:
    """Run the command; returns the student's file."""
    arguments = ["--sim", sim, "--device", "cpu", "--logger", "none", "--logdir", str(logdir), *JOBS[sim]]
    arguments.append(f"agent.algorithm.learning_rate_half_life={HALF_LIFE[sim]}")
    done = subprocess.run([sys.executable, str(ROOT / "train_jax.py"), *arguments], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"training on {sim} failed with status {done.returncode}")
    (file,) = logdir.glob("*/*/student.safetensors")
    return file


def open_env(sim: str, num_envs: int, stack: ExitStack) -> TrainingEnv:
    """The default task on ``sim``."""
    simulator = simulators()[sim]
    task = simulator.load(DEFAULT_TASK, simulator.parse_flags([], "cpu").options)
    return stack.enter_context(task.open(task.cfg_cls(num_envs=num_envs), Session(seed=1, groups=None)))


def measure(sim: str, policies: dict[str, Path], episodes: int) -> dict[str, Any]:
    """The numbers of every policy on ``sim``."""
    from jdistill.evaluation.evaluate import evaluate
    from jdistill.export.policy_file import load_policy

    numbers = {}
    with ExitStack() as stack:
        env = open_env(sim, episodes, stack)
        for name, file in policies.items():
            policy, policy_state, _ = load_policy(file)
            groups = ["teacher"] if name == "teacher" else STUDENT[sim]
            numbers[name] = evaluate(env, policy, policy_state, groups, seed=20_000)
    return numbers


def main() -> None:
    """Train, evaluate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    compilation.prepare()
    with tempfile.TemporaryDirectory() as folder:
        policies = {"teacher": ROOT / "jdistill" / "teachers" / "crazyflie.safetensors"}
        policies |= {f"student of {sim}": train(sim, Path(folder) / sim) for sim in JOBS}
        results = {sim: measure(sim, policies, args.episodes) for sim in JOBS}
    print("| policy | on | survival | return |\n|---|---|---|---|")
    for name in policies:
        for sim in JOBS:
            row = results[sim][name]
            print(f"| {name} | {sim} | {row['survival']:.1%} | {row['return']:.0f} |")
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "episodes": args.episodes, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
