"""One CPU core, XLA's threads on all of them, and a device on each: how fast an iteration is, and what is exchanged.

    python -m benchmarks.devices --out docs/devices.json

For each number of environments the same job runs in three ways, each in a process of its own, in turns: on one core;
on one device with all cores, which is what JAX makes of a CPU by itself; on as many devices as there are cores
on one device with all cores, which is what JAX makes of a CPU by itself; on as many devices as there are cores
with its share of the environments. The exchange is by calculation. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.crazyflie import ROOT
from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset
from jdistill.core.statistics import EPISODES, Metrics
from jdistill.run import compilation
from jdistill.run.compose import RunCfg, compose, load_file
from jdistill.run.devices import ENVS_PER_CORE as ENVS_PER_CORE
from jdistill.run.devices import cores, divide_cpu
from jdistill.run.inputs import load_teacher, make_algorithm
from jdistill.run.mesh import SAME, EnvMesh, Programs
from jdistill.run.provenance import machine

SIZES = (16, 32, 100, 1000)
WAYS = ("one core", "threads", "devices")
TEACHER = ROOT / "jdistill" / "teachers" / "crazyflie.safetensors"
FLOAT = 4
"""Bytes."""


def settings(num_envs: int, steps: int = 400) -> RunCfg:
    """The default run, in phase 1 throughout."""
    phases = ["agent.algorithm.use_two_stage_training=true", "agent.algorithm.phase1_iterations=100000"]
    sizes = [f"env.num_envs={num_envs}", f"agent.num_steps_per_env={steps}"]
    return compose("crazyflie", PointControlCfg, [load_file(ROOT / "configs" / "crazyflie.yaml")], [*sizes, *phases])


def programs(cfg: RunCfg, mesh: EnvMesh) -> tuple[Programs, Any]:
    """The learner's programs on ``mesh``, and the teacher there."""
    cfg.env.num_envs //= mesh.shards.count
    env = AutoReset(PointControl(cfg.env))
    teacher = mesh.put(load_teacher(TEACHER, env, cfg).actor(cfg.agent), SAME)
    return Programs(make_algorithm(env, cfg.agent, mesh.shards), mesh, teacher, 1), teacher


def one_way(way: str, num_envs: int, iterations: int) -> list[float]:
    """Seconds of each iteration, in this process."""
    compilation.prepare()
    count = cores() if way == "devices" else 1
    if way == "one core":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    divide_cpu(count)
    mesh = EnvMesh(jax.devices()[:count])
    made, teacher = programs(settings(num_envs), mesh)
    state = made.init()(mesh.put(jax.random.key(1), SAME), teacher)
    program = made.iteration(keeps_rollout=False).lower(state, teacher).compile()
    times = []
    for _ in range(iterations + 2):
        began = time.perf_counter()
        state, metrics = program(state, teacher)
        jax.device_get(metrics)
        times.append(time.perf_counter() - began)
    return times[2:]


def measured(way: str, num_envs: int, iterations: int) -> float:
    """The median of :func:`one_way`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.devices", "--way", way, "--num_envs", str(num_envs)]
    command += ["--iterations", str(iterations)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def scaling(num_envs: int, turns: int) -> dict[str, Any]:
    """Seconds of an iteration each way, medians over ``turns``, and the ratios of adjacent ones."""
    count, iterations = cores(), max(8, 6000 // num_envs)
    found: dict[str, list[float]] = {way: [] for way in (*WAYS, "share")}
    for _ in range(turns):
        for way in WAYS:
            found[way].append(measured(way, num_envs, iterations))
        found["share"].append(measured("one core", num_envs // count, iterations))
    best = [min(pair) for pair in zip(found["one core"], found["threads"], strict=True)]
    strong = statistics.median(b / d for b, d in zip(best, found["devices"], strict=True))
    weak = statistics.median(s / d for s, d in zip(found["share"], found["devices"], strict=True))
    seconds = {way: statistics.median(times) for way, times in found.items()}
    row = {"num_envs": num_envs, "devices": count, "seconds": seconds, "strong": strong, "weak": weak, "all": found}
    print(json.dumps(row), flush=True)
    return row


def exchange(devices: int, num_envs: int, steps: int) -> dict[str, Any]:
    """Bytes that each device contributes to the exchanges of an iteration, and how many exchanges there are.

    Of the default student on a task like the embedded one; ``num_envs`` of each device.
    """
    cfg = settings(num_envs, steps)
    env = AutoReset(PointControl(cfg.env))
    alg = make_algorithm(env, cfg.agent)
    made = Programs(alg, EnvMesh(), load_teacher(TEACHER, env, cfg).actor(cfg.agent), 1)
    teacher = load_teacher(TEACHER, env, cfg).actor(cfg.agent)
    metrics: Metrics = jax.eval_shape(alg.iteration, made.part, teacher)[1]
    parameters = sum(x.size for x in jax.tree.leaves(made.part.student.params))
    sampler = alg.sampler
    parts = {
        "gradients": (sampler.steps, sampler.steps * FLOAT * (parameters + 2)),
        "loss of the last window": (bool(sampler.leftover) * 1, bool(sampler.leftover) * 2 * FLOAT),
        "moments of the normalizer": (2, 2 * FLOAT * alg.obs_size),
        "episode statistics": (4, FLOAT * (3 * EPISODES + 1)),
        "scalars": (1, FLOAT * len(metrics.scalars)),
        "what is not finite": (2, 2 * FLOAT * metrics.finite.size),
    }
    rows = {name: {"exchanges": number, "bytes": size} for name, (number, size) in parts.items()}
    return {"devices": devices, "num_envs": num_envs, "steps": steps, "parameters": parameters, "parts": rows}


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    head = ("environments", "one core (s)", "threads (s)", "devices (s)", "strong", "turn by turn", "weak")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in results["scaling"]:
        cells = " | ".join(f"{row['seconds'][way]:.4f}" for way in WAYS)
        turns = zip(*(row["all"][way] for way in WAYS), strict=True)
        each = ", ".join(f"{min(core, threads) / devices:.2f}" for core, threads, devices in turns)
        rows.append(f"| {row['num_envs']} | {cells} | {row['strong']:.2f} | {each} | {row['weak']:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num_envs", type=int, nargs="+", default=SIZES)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--iterations", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(one_way(args.way, args.num_envs[0], args.iterations)))
        return
    results = {
        "machine": machine(),
        "scaling": [scaling(num_envs, args.turns) for num_envs in args.num_envs],
        "exchange": [exchange(8, 4096, 24), exchange(8, 4096, 400)],
    }
    print(table(results))
    print(json.dumps(results["exchange"], indent=1))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
