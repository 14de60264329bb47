"""Collection and what is built on it, beside an earlier commit: environment, rollout, update, iteration, evaluation.

    python -m benchmarks.collection --out docs/collection.json

The earlier commit (--against) is checked out into a temporary folder, and the same measurements run on both trees in
turns, each in a process of its own on one core, with the packages that are installed here; ratios are medians over the
rounds. The default run's settings: 100 environments, 400 steps, the bundled teacher, the GRU student. --evaluation adds
'jdistill evaluate' of a default run (18 scenarios, 2 policies, 1000 episodes), with a compilation cache that is empty
the first time. About 5 minutes, 10 with --evaluation. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEFORE = "d3772a6"
"""The last commit with arrays of (B, 3) in the simulator."""
PHASES = {"phase 1": 0, "phase 2": 500}
"""An iteration of each phase."""


# -- one tree, in a process of its own -------------------------------------------------------------------------------


def seconds(program: Callable[[], Any], rounds: int) -> float:
    """Median duration of a call, after two to warm up."""
    import jax

    times = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        jax.block_until_ready(program())
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def measure(num_envs: int, rounds: int) -> dict[str, Any]:
    """Seconds of each part, of the compilation of an iteration, and the memory of its program."""
    import jax
    import jax.numpy as jnp

    from bridge.crazyflie import PointControl, PointControlCfg
    from bridge.env import AutoReset
    from jdistill.core.actor import PolicyActor
    from jdistill.core.distillation import Distillation
    from jdistill.export.policy_file import load_policy
    from jdistill.run import compilation
    from jdistill.run.compose import compose, load_file
    from jdistill.run.inputs import make_student

    compilation.prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    tree = Path(os.environ["PYTHONPATH"])
    settings = [f"env.num_envs={num_envs}", "agent.algorithm.use_two_stage_training=true"]
    settings += ["agent.algorithm.phase1_iterations=500"]
    cfg = compose("crazyflie", PointControlCfg, [load_file(tree / "configs" / "crazyflie.yaml")], settings)
    policy, weights, _ = load_policy(tree / "jdistill" / "teachers" / "crazyflie.safetensors")
    teacher = PolicyActor(policy, weights, tuple(cfg.agent.obs_groups["teacher"]))
    task = PointControl(cfg.env)
    env = AutoReset(task)
    alg = Distillation(env, make_student(cfg.agent.student, 4), cfg.agent)
    state = jax.jit(alg.init)(jax.random.key(0), teacher)
    steps = cfg.agent.num_steps_per_env
    hover = jnp.broadcast_to(2.0 * task.hover_action - 1.0, (num_envs, 4))

    def fly(env_state: Any) -> Any:
        return jax.lax.fori_loop(0, steps, lambda _, s: env.step(s, hover), env_state)

    def rollout(state: Any, teacher: Any) -> Any:
        # As in a run that records nothing: nobody reads the simulator's states.
        after, rollout = alg.rollout(state, teacher)
        return after, rollout._replace(steps=rollout.steps._replace(pipeline_state=()))

    found: dict[str, Any] = {}
    compiled = jax.jit(fly).lower(state.env_state).compile()
    found["environment"] = seconds(lambda: compiled(state.env_state), rounds)
    began = time.perf_counter()
    iteration = jax.jit(lambda *args: alg.iteration(*args)[:2]).lower(state, teacher).compile()
    found["compilation"] = time.perf_counter() - began
    memory: Any = iteration.memory_analysis()
    found["memory_bytes"] = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    collect = jax.jit(rollout).lower(state, teacher).compile()
    for name, number in PHASES.items():
        then = state.replace(iteration=jnp.asarray(number, jnp.int32))
        found[f"rollout, {name}"] = seconds(partial(collect, then, teacher), rounds)
        found[f"iteration, {name}"] = seconds(partial(iteration, then, teacher), rounds)
    after, collected = collect(state, teacher)
    update = jax.jit(alg.update).lower(after, collected).compile()
    found["update"] = seconds(lambda: update(after, collected), rounds)
    return found


# -- both trees --------------------------------------------------------------------------------------------------------


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder with the tree of ``commit``."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
        yield tree


def run(tree: Path, *arguments: str, **variables: str) -> str:
    """Run Python on ``tree``, on one core; what it prints."""
    core = str(max(os.sched_getaffinity(0)))
    # Not this folder's modules: some are named like the packages that they measure.
    command = ["taskset", "-c", core, sys.executable, "-P", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree), **variables}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def evaluate(tree: Path, folder: Path) -> dict[str, float]:
    """Seconds of 'jdistill evaluate' of a run of two iterations, with an empty and with a filled cache."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    train = ["--max_iterations", "2", "--experiment_name", "e", "--logdir", str(folder), "agent.logger=none"]
    run(tree, "train_jax.py", *train, **cache)
    (made,) = (folder / "e").iterdir()
    times = []
    for _ in range(2):
        began = time.perf_counter()
        run(tree, "-m", "jdistill", "evaluate", str(made), **cache)
        times.append(time.perf_counter() - began)
    return {"evaluation, empty cache": times[0], "evaluation": times[1]}


def compare(before: Path, num_envs: int, rounds: int) -> dict[str, Any]:
    """Each part's seconds in both trees, and the ratios: medians over ``rounds`` turns."""
    trees = {"before": before, "now": ROOT}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(rounds):
        for name, tree in trees.items():
            out = run(tree, str(Path(__file__).resolve()), "--measure", str(num_envs))
            found[name].append(json.loads(out.splitlines()[-1]))
            print(name, json.dumps(found[name][-1]), flush=True)
    return summary(found)


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of both sides, and of the ratios of adjacent turns."""
    result = {}
    for part in found["now"][0]:
        pairs = [(b[part], n[part]) for b, n in zip(found["before"], found["now"], strict=True)]
        before, now = (statistics.median(side) for side in zip(*pairs, strict=True))
        result[part] = {"before": before, "now": now, "ratio": statistics.median(b / n for b, n in pairs)}
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", default=BEFORE, metavar="COMMIT", help=f"the tree to compare with ({BEFORE})")
    parser.add_argument("--num_envs", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=3, help="turns (3)")
    parser.add_argument("--evaluation", action="store_true", help="time 'jdistill evaluate' too")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, rounds=11 if args.measure <= 100 else 3)))
        return
    results: dict[str, Any] = {"against": args.against, "envs": {}}
    with checked_out(args.against) as before:
        for num_envs in args.num_envs:
            results["envs"][num_envs] = compare(before, num_envs, args.rounds)
        if args.evaluation:
            found: dict[str, list[dict[str, float]]] = {}
            for name, tree in (("before", before), ("now", ROOT)):
                with tempfile.TemporaryDirectory() as folder:
                    found[name] = [evaluate(tree, Path(folder))]
            results["evaluation"] = summary(found)
    print(json.dumps(results, indent=1))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
