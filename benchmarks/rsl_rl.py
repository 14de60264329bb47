"""Both trainers on the very same environment: rsl_rl's ``DistillationRunner`` over ``bridge.torch_vecenv``, and ours.

    python -m benchmarks.rsl_rl --out docs/rsl_rl.json

The same Crazyflies, teacher, hyperparameters and initial student weights; one process, iterations alternating, both on
one core with one thread. Prints the median time of collection and of a whole iteration of each, their ratios, and what
the two students are worth on held-out episodes. About 3 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch
from rsl_rl.runners import DistillationRunner as TorchRunner

from benchmarks.crazyflie import EPISODES, ROOT, SEED
from benchmarks.torch_side import torch_device
from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset, TrainingEnv
from bridge.tasks import TASKS, make_env
from bridge.torch_vecenv import TorchVecEnv
from jdistill.core.actor import PolicyActor
from jdistill.core.distillation import Distillation, TrainState
from jdistill.core.networks import Policy, PolicyState
from jdistill.evaluation.evaluate import evaluate
from jdistill.export.policy_file import load_policy
from jdistill.export.rsl_rl import MODEL, from_tensors, model_cfg
from jdistill.export.rsl_rl_export import distillation_checkpoint
from jdistill.run import compilation
from jdistill.run.compose import RunCfg, compose, load_file
from jdistill.run.inputs import make_student
from jdistill.run.provenance import machine

NOISE = 1e-6
"""Of the students' actions: rsl_rl's own smallest, since its distribution cannot do without."""


def configure(args: argparse.Namespace) -> tuple[RunCfg, TrainingEnv]:
    """The default job, with rsl_rl's fixed step size."""
    settings = [
        f"env.num_envs={args.num_envs}",
        f"agent.num_steps_per_env={args.num_steps_per_env}",
        "agent.algorithm.learning_rate_half_life=null",
        *args.overrides,
    ]
    task = TASKS["crazyflie"]()
    cfg = compose(task.name, task.cfg_cls, [load_file(ROOT / "configs" / "crazyflie.yaml")], settings)
    return cfg, make_env(task, cfg.env)


def make_torch_runner(
    cfg: RunCfg, env: TrainingEnv, student: tuple[Policy, PolicyState], teacher: tuple[Policy, PolicyState]
) -> TorchRunner:
    """rsl_rl's runner on our environment, its student and teacher with our weights."""
    agent = cfg.agent
    names = ("num_learning_epochs", "gradient_length", "learning_rate", "max_grad_norm", "loss_type", "optimizer")
    algorithm = {name: getattr(agent.algorithm, name) for name in names}
    settings: dict[str, Any] = {
        "num_steps_per_env": agent.num_steps_per_env,
        "save_interval": 10**9,
        "logger": "tensorboard",
        "run_name": "",
        "obs_groups": agent.obs_groups,
        "student": model_cfg(*student, NOISE),
        "teacher": model_cfg(*teacher, NOISE),
        "algorithm": {"class_name": "rsl_rl.algorithms:Distillation", **algorithm},
    }
    with contextlib.redirect_stdout(io.StringIO()):  # It prints its models.
        runner = TorchRunner(TorchVecEnv(env, seed=agent.seed), settings, None, torch_device())
    rate = agent.algorithm.learning_rate
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "start.pt"
        torch.save(distillation_checkpoint(student, teacher, NOISE, agent.algorithm.optimizer, rate, 0), file)
        runner.load(str(file))
    return runner


class Clock:
    """Adds up the time spent inside a function."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        began = time.perf_counter()
        results = jax.block_until_ready(self._function(*args))
        self.seconds += time.perf_counter() - began
        return results

    def lap(self) -> float:
        """Seconds since the last lap."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def alternate(
    iterations: int, alg: Distillation, state: TrainState, teacher: PolicyActor, theirs: TorchRunner
) -> tuple[TrainState, Any]:
    """Iterate both in turns; returns our final state, and by trainer the seconds of each collection and iteration."""
    rollout = Clock(jax.jit(alg.rollout).lower(state, teacher).compile())
    program = jax.jit(lambda *args: alg.iteration(*args)[:2], donate_argnums=0)
    iteration = Clock(program.lower(state, teacher).compile())
    update = theirs.alg.update = Clock(theirs.alg.update)
    learn = Clock(theirs.learn)
    laps: dict[str, Any] = {name: {"collection_s": [], "iteration_s": []} for name in ("jdistill", "rsl_rl")}
    for _ in range(iterations):
        rollout(state, teacher)
        state, _ = iteration(state, teacher)
        laps["jdistill"]["collection_s"].append(rollout.lap())
        laps["jdistill"]["iteration_s"].append(iteration.lap())
        with contextlib.redirect_stdout(io.StringIO()):  # It prints a block an iteration.
            learn(1)
        whole = learn.lap()
        laps["rsl_rl"]["collection_s"].append(whole - update.lap())
        laps["rsl_rl"]["iteration_s"].append(whole)
    return state, laps


def medians(laps: dict[str, list[float]]) -> dict[str, float]:
    """Of each kind."""
    return {kind: statistics.median(seconds) for kind, seconds in laps.items()}


def worth(policy: Policy, policy_state: PolicyState) -> dict[str, float]:
    """Survival and steady position error (m) on held-out episodes of the default task."""
    env = AutoReset(PointControl(PointControlCfg(num_envs=EPISODES)))
    numbers = evaluate(env, policy, policy_state, ["student"], seed=SEED)
    return {"survival": numbers["survival"], "steady_error_m": numbers["steady"]["position_error"]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--num_envs", type=int, default=100)
    parser.add_argument("--num_steps_per_env", type=int, default=400)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, as for train_jax.py")
    args = parser.parse_args()
    # Before JAX starts, which counts the cores that it may use.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    compilation.prepare()
    cfg, env = configure(args)
    teacher, teacher_state, _ = load_policy(ROOT / "jdistill" / "teachers" / "crazyflie.safetensors")
    alg = Distillation(env, make_student(cfg.agent.student, env.num_actions), cfg.agent)
    actor = PolicyActor(teacher, teacher_state, tuple(cfg.agent.obs_groups["teacher"]))
    state = jax.jit(alg.init)(jax.random.key(cfg.agent.seed), actor)
    theirs = make_torch_runner(cfg, env, (alg.student, state.student), (teacher, teacher_state))
    state, laps = alternate(args.iterations, alg, state, actor, theirs)

    tensors = {k: v.numpy() for k, v in theirs.alg.save()["student_state_dict"].items()}
    network = alg.student.activation, alg.student.output_activation, env.num_actions
    results: dict[str, Any] = {
        "machine": machine(),
        "job": {"iterations": args.iterations, "num_envs": env.num_envs, "num_steps": cfg.agent.num_steps_per_env},
        "overrides": args.overrides,
        "jdistill": {**medians(laps["jdistill"]), **worth(alg.student, state.student)},
        "rsl_rl": {**medians(laps["rsl_rl"]), **worth(*from_tensors(tensors, MODEL, *network))},
        "ratio": {
            kind: statistics.median(b / a for a, b in zip(laps["jdistill"][kind], laps["rsl_rl"][kind], strict=True))
            for kind in ("collection_s", "iteration_s")
        },
    }
    print("| trainer | collection (s) | iteration (s) | survival | steady error (m) |\n|---|---|---|---|---|")
    for name in ("rsl_rl", "jdistill"):
        row = results[name]
        times = f"{row['collection_s']:.3f} | {row['iteration_s']:.3f}"
        print(f"| {name} | {times} | {row['survival']:.1%} | {row['steady_error_m']:.3f} |")
    ratio = results["ratio"]
    print(f"medians of the ratios: collection {ratio['collection_s']:.1f}, iteration {ratio['iteration_s']:.1f}")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
