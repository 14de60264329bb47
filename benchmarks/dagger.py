"""What a history is worth: students of equal size and equal environment steps, trained in different ways.

    python -m benchmarks.dagger --out docs/dagger.json
    python -m benchmarks.dagger --cost --out docs/dagger.json

The quadrotors differ widely in mass, inertia, thrust and motors. Each way of training gets the same number of
iterations from the same teacher with several seeds; the students then control the same held-out quadrotors. Prints a
Markdown table: means over the seeds, with the standard deviation between them.

With ``--cost`` nothing is trained to an end: in one process, iterations without a history, iterations that are recorded
and iterations on a full history take turns, some of each at a time, while the teacher acts. (``--out`` keeps what
else the file holds.)
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
import numpy as np

from benchmarks.crazyflie import ROOT, SEED
from bridge.crazyflie import PointControl, PointControlCfg
from bridge.crazyflie.cfg import RandomizationCfg
from bridge.env import AutoReset
from bridge.tasks import TASKS, make_env
from jdistill.core.actor import PolicyActor
from jdistill.core.distillation import Distillation
from jdistill.core.memory import plan_history
from jdistill.core.statistics import is_first_step
from jdistill.data.recorder import Recorder
from jdistill.evaluation.evaluate import evaluate
from jdistill.export.policy_file import load_policy
from jdistill.run import compilation
from jdistill.run.compose import compose, load_file
from jdistill.run.inputs import make_student
from jdistill.run.provenance import machine

WIDE = {"mass": 0.2, "inertia": 0.5, "thrust": 0.15, "motor": 0.5}
"""Half-widths of the ranges, relative to the nominal craft."""
HISTORY = ["agent.algorithm.use_dagger=true"]
WAYS = {
    "streaming": [],
    "history": HISTORY,
    "history, burn-in": [*HISTORY, "agent.algorithm.carry_start=burn_in"],
    "history, recent": [*HISTORY, "agent.algorithm.sampler=recent"],
    "packed": [*HISTORY, "agent.algorithm.sampler=packed", "agent.algorithm.num_mini_batches=10"],
}
"""Ways of training, as settings beside the common ones. The ring holds ``max_buffer_size`` transitions, but that of
``packed`` only the rollouts that an episode spans: RAPTOR trains on the newest."""
COSTS = {"plain": [], "recorded": [], "full history": HISTORY}
"""What ``--cost`` compares."""
TEACHER = ROOT / "jdistill" / "teachers" / "crazyflie.safetensors"


def train(way: str, seed: int, iterations: int, args: argparse.Namespace, logdir: Path) -> tuple[Path, list[float]]:
    """Run the command; returns the student's file and the seconds of each iteration."""
    settings = [f"env.randomization.{name}={width}" for name, width in WIDE.items()]
    # Phase 1 and the step size's half-lives are the same parts of the run as in the task's 1500 iterations.
    settings += [f"agent.algorithm.learning_rate_half_life={iterations / 5}", *WAYS[way]]
    if way == "packed":
        settings.append(f"agent.algorithm.max_buffer_size={4 * args.num_steps * args.num_envs}")
    name = re.sub(r"\W+", "-", f"{way} {seed}")
    arguments = ["--logdir", str(logdir), "--run_name", name, "--seed", str(seed), "--logger", "none"]
    arguments += ["--max_iterations", str(iterations), "--phase1", str(iterations // 3)]
    arguments += ["--num_envs", str(args.num_envs), f"agent.num_steps_per_env={args.num_steps}", *settings]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(logdir / "cache")}
    command = [sys.executable, str(ROOT / "train_jax.py"), *arguments, *args.overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"training failed with status {done.returncode}")
    (run,) = logdir.glob(f"*/*_{name}")
    rates = re.findall(r"Steps per second: (\d+)", done.stdout)
    return run / "student.safetensors", [args.num_steps * args.num_envs / float(rate) for rate in rates]


class Iterations:
    """One way of training that can be gone on with for a while."""

    def __init__(self, way: str, args: argparse.Namespace):
        task = TASKS["crazyflie"]()
        settings = [f"env.num_envs={args.num_envs}", f"agent.num_steps_per_env={args.num_steps}", *args.overrides]
        # Long episodes, as they are once the student can fly, from the first iteration on.
        settings += ["agent.algorithm.use_two_stage_training=true", "agent.algorithm.phase1_iterations=1000000"]
        preset = load_file(ROOT / "configs" / "crazyflie.yaml")
        cfg = compose(task.name, task.cfg_cls, [preset], [*settings, *COSTS[way]])
        env = make_env(task, cfg.env)
        self.teacher = PolicyActor(*load_policy(TEACHER)[:2], tuple(cfg.agent.obs_groups["teacher"]))
        alg = Distillation(env, make_student(cfg.agent.student, env.num_actions), cfg.agent)
        self.state = jax.jit(alg.init)(jax.random.key(SEED), self.teacher)
        self.recorded = way == "recorded"
        program: Any = alg.iteration if self.recorded else lambda *args: alg.iteration(*args)[:2]
        self.program = jax.jit(program, donate_argnums=0).lower(self.state, self.teacher).compile()
        plan = plan_history(alg)
        self.run((plan.rollouts if plan else 0) + 2, None)
        history = self.state.history
        assert history is None or int(history.length.min()) == history.is_first.shape[0], "the history is full"

    def run(self, iterations: int, file: Path | None) -> float:
        """Iterate; returns the seconds of an iteration, those of writing all of ``file`` included.

        The half second in which a run starts the process that writes is not.
        """
        is_first = np.asarray(is_first_step(self.state.env_state))
        recorder = Recorder(file, {"env_name": "crazyflie"}, is_first, None) if file and self.recorded else None
        began = time.perf_counter()
        for _ in range(iterations):
            self.state, metrics, *rollout = self.program(self.state, self.teacher)
            jax.device_get(metrics)
            if recorder:
                recorder.put(*rollout)
        if recorder:
            recorder.close()
        return (time.perf_counter() - began) / iterations


def measure_costs(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an iteration in every turn of each way, and their medians relative to the plain one's."""
    runs = {way: Iterations(way, args) for way in COSTS}
    seconds: dict[str, list[float]] = {way: [] for way in COSTS}
    for _ in range(args.turns):
        for way, run in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds[way].append(run.run(args.turn, Path(folder) / "episodes.hdf5"))
        print(json.dumps({way: round(s[-1], 4) for way, s in seconds.items()}), flush=True)
    medians = {way: statistics.median(s) for way, s in seconds.items()}
    sizes = {name: getattr(args, name) for name in ("num_envs", "num_steps", "turn", "turns", "overrides")}
    relative = {way: median / medians["plain"] for way, median in medians.items()}
    return {"sizes": sizes, "machine": machine(), "seconds": seconds, "median": medians, "relative": relative}


def cost_table(costs: dict[str, Any]) -> str:
    """The costs as Markdown."""
    rows = ["| iteration | s | relative |", "|---|---|---|"]
    rows += [f"| {way} | {costs['median'][way]:.3f} | {costs['relative'][way]:.2f} |" for way in costs["median"]]
    return "\n".join(rows)


def measure(file: Path, group: str, episodes: int) -> dict[str, float]:
    """Survival and steady position error of a policy on the held-out quadrotors."""
    policy, policy_state, _ = load_policy(file)
    env = AutoReset(PointControl(PointControlCfg(num_envs=episodes, randomization=RandomizationCfg(**WIDE))))
    numbers = evaluate(env, policy, policy_state, [group], seed=SEED)
    return {"survival": numbers["survival"], "error": numbers["steady"]["position_error"]}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        "| way of training | survival | steady position error (m) | s per iteration | relative |",
        "|---|---|---|---|---|",
        f"| (teacher) | {results['teacher']['survival']:.1%} | {results['teacher']['error']:.4f} | | |",
    ]
    reference = results["ways"].get("streaming")
    for way, runs in results["ways"].items():
        survival, error = _spread(runs, "survival"), _spread(runs, "error")
        seconds = statistics.median(run["seconds"] for run in runs)
        relative = f"{seconds / statistics.median(run['seconds'] for run in reference):.2f}" if reference else ""
        rows.append(
            f"| {way} | {survival[0]:.1%} ± {survival[1]:.1%} | {error[0]:.4f} ± {error[1]:.4f} "
            f"| {seconds:.3f} | {relative} |"
        )
    return "\n".join(rows)


def _spread(runs: list[dict[str, float]], name: str) -> tuple[float, float]:
    values = [run[name] for run in runs]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["streaming", "history", "packed"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--num_envs", type=int, default=100)
    parser.add_argument("--num_steps", type=int, default=400, help="steps of an environment per iteration")
    parser.add_argument("--episodes", type=int, default=1000, help="held-out episodes, each of another quadrotor")
    parser.add_argument("--cost", action="store_true", help="measure what recording and a full history cost instead")
    parser.add_argument("--turns", type=int, default=7, help="how often each way comes, with --cost")
    parser.add_argument("--turn", type=int, default=30, help="iterations of a turn")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--override", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    compilation.prepare()
    if args.cost:
        costs = measure_costs(args)
        print(cost_table(costs))
        write(args.out, {"cost": costs})
        return
    teacher = measure(TEACHER, "teacher", args.episodes)
    ways: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    with tempfile.TemporaryDirectory() as folder:
        # Seed by seed, so that whatever else slows the machine for a while slows all ways alike.
        for seed in args.seeds:
            for way in args.ways:
                file, seconds = train(way, seed, args.iterations, args, Path(folder))
                # The history is full by then, and what the first iterations warm up is warm.
                late = statistics.median(seconds[args.iterations // 2 :])
                ways[way].append({**measure(file, "student", args.episodes), "seconds": late, "seed": seed})
                print(f"{way}: {json.dumps(ways[way][-1])}", flush=True)
    sizes = {k: v for k, v in vars(args).items() if k not in ("out", "ways", "cost", "turn", "turns")}
    results = {"sizes": sizes, "randomization": WIDE, "machine": machine(), "teacher": teacher, "ways": ways}
    print(table(results))
    write(args.out, results)


def write(file: Path | None, results: dict[str, Any]) -> None:
    """Put the results into the file, beside what else it holds."""
    if file:
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
