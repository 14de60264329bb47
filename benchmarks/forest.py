"""What eyes are worth: teacher, seeing student and blind student in forests that none of them has met.

    python -m benchmarks.forest --out docs
    python -m benchmarks.forest --cost --out docs

Trains by the command a user types the task's own student and one of equal size without a camera, both from the bundled
teacher, then flies all three through the same held-out forests. With ``--cost`` nothing is trained: rollouts of the
bundled teacher with and without pictures take turns in one process. Writes ``forest.json`` (``--cost`` keeps what else
it holds) and prints the tables of ``forest.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from jax import Array

from benchmarks.crazyflie import ROOT, SEED
from benchmarks.dagger import write
from bridge.crazyflie.forest.cfg import ForestFlightCfg
from bridge.crazyflie.forest.task import ForestFlight
from bridge.env import AutoReset, State
from jdistill.core.actor import PolicyActor
from jdistill.evaluation.evaluate import evaluate
from jdistill.export.policy_file import load_policy
from jdistill.run import compilation
from jdistill.run.provenance import machine

TEACHER = ROOT / "jdistill" / "teachers" / "crazyflie_forest.safetensors"
STUDENTS: dict[str, list[str]] = {
    "student": [],
    "blind student": ["agent.obs_groups=blind", "agent.student.cnn_cfg=null", "agent.student.pre_dims=[89]"],
}
"""With what they are trained beside the preset. The blind one's first layer is wider, so that both have as many
parameters."""
GROUPS = {"teacher": ["teacher"], "student": ["student", "tof"], "blind student": ["student"]}
FILE = "*/*_{}/student.safetensors"
"""Of a run's student in the folder of all runs."""
REASONS = {"obstacle": "hit a column", "wall": "hit a wall", "tilt": "lost control", "time": "out of time"}


def run_name(name: str) -> str:
    """Of a student's run."""
    return re.sub(r"\W+", "-", name)


def start(name: str, iterations: int | None, logdir: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    """Run the command."""
    arguments = [
        "--task",
        "crazyflie_forest",
        "--logdir",
        str(logdir),
        "--run_name",
        run_name(name),
        "--logger",
        "none",
        "--devices",
        "1",
    ]
    if iterations:
        arguments += ["--max_iterations", str(iterations)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(logdir / "cache")}
    command = [sys.executable, str(ROOT / "train_jax.py"), *arguments, *STUDENTS[name], *overrides]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def measure(file: Path, name: str, episodes: int) -> dict[str, Any]:
    """How a policy's flights through the held-out forests end."""
    policy, state, header = load_policy(file)
    env = AutoReset(ForestFlight(ForestFlightCfg(num_envs=episodes)))
    numbers = evaluate(env, policy, state, GROUPS[name], seed=SEED)
    ends = numbers["terminations"]
    failed = {k: ends.get(k, 0) / episodes for k in ("obstacle", "wall", "tilt")} | {"time": numbers["survival"]}
    return {
        "success": numbers["success"],
        "ends": failed,
        "seconds": numbers["length"] / ForestFlightCfg.policy_freq,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "iterations": header.get("iteration"),
    }


def compare(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train what is not in ``work`` yet, and measure everybody."""
    # At the same time, a core for each.
    missing = [name for name in STUDENTS if not list(work.glob(FILE.format(run_name(name))))]
    runs = {name: start(name, args.iterations, work, args.overrides) for name in missing}
    policies = {"teacher": measure(TEACHER, "teacher", args.episodes)}
    for name in STUDENTS:
        if name in runs and (status := runs[name].wait()):
            raise SystemExit(f"training failed with status {status}")
        (file,) = work.glob(FILE.format(run_name(name)))
        policies[name] = measure(file, name, args.episodes)
        print(f"{name}: {json.dumps(policies[name])}", flush=True)
    return policies


def table(results: dict[str, Any]) -> str:
    """How the flights end, as Markdown."""
    rows = [
        f"| policy | parameters | goal reached, nothing hit | {' | '.join(REASONS.values())} | mean flight (s) |",
        "|---|---|---|" + "---|" * (len(REASONS) + 1),
    ]
    for name, found in results["policies"].items():
        ends = " | ".join(f"{found['ends'][reason]:.1%}" for reason in REASONS)
        rows.append(f"| {name} | {found['parameters']} | {found['success']:.1%} | {ends} | {found['seconds']:.1f} |")
    return "\n".join(rows)


# -- what pictures cost --------------------------------------------------------------------------------------------


def make_rollout(camera: str, num_envs: int, steps: int) -> Any:
    """A compiled rollout under the bundled teacher, and the state it begins with."""
    env = AutoReset(ForestFlight(ForestFlightCfg(num_envs=num_envs, camera=camera)))
    actor = PolicyActor(*load_policy(TEACHER)[:2], ("teacher",))

    def rollout(state: State) -> tuple[State, dict[str, Array]]:
        def step(state: State, _: None) -> Any:
            # What is returned is stored, as in training.
            return env.step(state, actor.act((), state.obs)[1]), state.obs

        return jax.lax.scan(step, state, None, length=steps)

    state = jax.jit(env.reset)(jax.random.key(SEED))
    return jax.jit(rollout).lower(state).compile(), state


def measure_cost(num_envs: int, steps: int, turns: int) -> dict[str, Any]:
    """CPU seconds of rollouts with and without pictures, medians, and the median ratio of adjacent pairs."""
    rollouts = {camera: make_rollout(camera, num_envs, steps) for camera in ("none", "tof")}
    seconds: dict[str, list[float]] = {camera: [] for camera in rollouts}
    for turn in range(turns + 1):
        for camera, (program, state) in rollouts.items():
            began = time.process_time()
            jax.block_until_ready(program(state))
            if turn:  # The first one warms up.
                seconds[camera].append(time.process_time() - began)
    ratio = statistics.median(b / a for a, b in zip(seconds["none"], seconds["tof"], strict=True))
    return {
        "num_envs": num_envs,
        "steps": steps,
        "us_per_step": {k: 1e6 * statistics.median(v) / steps for k, v in seconds.items()},
        "ratio": ratio,
    }


def cost_line(cost: dict[str, Any]) -> str:
    """The cost, as the page says it."""
    return f"A rollout with 8 x 8 pictures takes {cost['ratio']:.2f} times the processor time of one without"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--episodes", type=int, default=1000, help="held-out forests, one flight each")
    parser.add_argument("--iterations", type=int, help="of the training, in place of the preset's")
    parser.add_argument("--work", type=Path, help="folder that keeps the runs; students that are there are measured")
    parser.add_argument("--cost", action="store_true", help="measure what pictures cost instead")
    parser.add_argument("--turns", type=int, default=15, help="of each kind of rollout, with --cost")
    parser.add_argument("--out", type=Path, help="folder for forest.json")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, as for train_jax.py")
    args = parser.parse_args()
    compilation.prepare()
    if args.cost:
        results: dict[str, Any] = {"cost": measure_cost(100, 150, args.turns)}
        print(cost_line(results["cost"]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            policies = compare(args.work or Path(folder), args)
        results = {"episodes": args.episodes, "seed": SEED, "machine": machine(), "policies": policies}
        print(table(results))
    write(args.out and args.out / "forest.json", results)


if __name__ == "__main__":
    main()
