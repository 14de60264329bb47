"""From 64 to 65536 environments: how fast an iteration is, what bounds it, what it takes to compile and to hold.

    python -m benchmarks.scaling --out docs/scaling.json

For each number of environments the whole iteration is timed, and its parts each in a program of their own: the
simulator with a constant action, both networks, the update. The parts one after the other are the limit that an
iteration could reach by adding nothing of its own. FLOPs and bytes are those of XLA's cost analysis; they are set
against what this machine does in a large matrix product and in adding to a large array (what fits into its caches can
be faster than that). About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.crazyflie import ROOT
from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset
from jdistill.core import networks
from jdistill.core.actor import PolicyActor
from jdistill.core.distillation import Distillation, TrainState
from jdistill.export.policy_file import load_policy
from jdistill.run import compilation
from jdistill.run.compose import RunCfg, compose, load_file
from jdistill.run.inputs import make_student
from jdistill.run.provenance import machine

SIZES = (64, 256, 1024, 4096, 16384, 65536)


def seconds(program: Callable[..., Any], *args: Any, rounds: int = 5) -> float:
    """Median duration of a call, after one to warm up."""
    jax.block_until_ready(program(*args))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(program(*args))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def cost(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """FLOPs and bytes of a program without loops, by XLA's cost analysis."""
    analysis: Any = jax.jit(function).lower(*args).compile().cost_analysis()
    return {"flops": analysis["flops"], "bytes": analysis["bytes accessed"]}


class Parts:
    """An iteration, and its parts as programs of their own."""

    def __init__(self, num_envs: int, steps: int):
        settings = [f"env.num_envs={num_envs}", f"agent.num_steps_per_env={steps}"]
        preset = load_file(ROOT / "configs" / "crazyflie.yaml")
        cfg: RunCfg = compose("crazyflie", PointControlCfg, [preset], settings)
        teacher, state, _ = load_policy(ROOT / "jdistill" / "teachers" / "crazyflie.safetensors")
        self.teacher = PolicyActor(teacher, state, tuple(cfg.agent.obs_groups["teacher"]))
        self.env = AutoReset(PointControl(cfg.env))
        self.alg = Distillation(self.env, make_student(cfg.agent.student, 4), cfg.agent)
        self.steps = steps
        self.state: TrainState = jax.jit(self.alg.init)(jax.random.key(0), self.teacher)

    def step_simulator(self, state: TrainState) -> Any:
        """One control step with a constant action."""
        action = jnp.zeros((self.env.num_envs, self.env.num_actions))
        return state.replace(env_state=self.env.step(state.env_state, action))

    def step_networks(self, state: TrainState) -> Any:
        """One step of teacher and student."""
        carries = (state.student_carry, state.teacher_carry)
        obs = state.env_state.obs
        student, action = networks.act(self.alg.student, state.student, carries[0], self.alg.student_obs(obs))
        teacher, target = self.teacher.act(carries[1], obs)
        # Each step's observations hang on the actions before, else XLA would compute them once for all steps.
        moved = jax.tree.map(lambda x: x + 1e-3 * (action + target).mean(axis=-1, keepdims=True), obs)
        return state.replace(student_carry=student, teacher_carry=teacher, env_state=state.env_state.replace(obs=moved))

    def gradient_of_a_step(self, params: Any, carry: Any, obs: Any, target: Any) -> Any:
        """What the update computes for one step of a rollout, in an epoch."""

        def loss(params: Any, carry: Any) -> Any:
            student = networks.PolicyState(params=params, normalizer=None)
            carry, action = networks.act(self.alg.student, student, carry, obs)
            return jnp.square(action - target).mean() + sum(x.sum() for x in jax.tree.leaves(carry))

        return jax.grad(loss, argnums=(0, 1))(params, carry)

    def repeated(self, step: Callable[[TrainState], TrainState]) -> Callable[[TrainState], TrainState]:
        """As many steps as a rollout has."""
        return jax.jit(lambda state: jax.lax.fori_loop(0, self.steps, lambda _, s: step(s), state))

    def measure(self) -> dict[str, Any]:
        """Seconds, FLOPs and bytes of the parts, and what the whole takes."""
        began = time.perf_counter()
        program = jax.jit(lambda *args: self.alg.iteration(*args)[:2])
        iteration = program.lower(self.state, self.teacher).compile()
        compile_s = time.perf_counter() - began
        memory: Any = iteration.memory_analysis()
        after, rollout = jax.jit(self.alg.rollout)(self.state, self.teacher)
        epochs = self.alg.cfg.algorithm.num_learning_epochs
        student = self.state.student
        actions = jnp.zeros((self.env.num_envs, self.env.num_actions))
        obs = self.alg.student_obs(self.state.env_state.obs)
        parts: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "simulator": (self.repeated(self.step_simulator), (self.state,)),
            "networks": (self.repeated(self.step_networks), (self.state,)),
            "update": (jax.jit(self.alg.update), (after, rollout)),
        }
        costs = {
            "simulator": cost(self.env.env.step, self.state.env_state, actions),
            "networks": cost(self.step_networks, self.state),
            "update": cost(self.gradient_of_a_step, student.params, self.state.student_carry, obs, actions),
        }
        results: dict[str, Any] = {}
        for name, (part, args) in parts.items():
            times = self.steps * (epochs if name == "update" else 1)
            results[name] = {"seconds": seconds(part, *args), **{k: times * v for k, v in costs[name].items()}}
        results["iteration"] = {"seconds": seconds(iteration, self.state, self.teacher)}
        results["compile_s"] = compile_s
        results["memory_bytes"] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        return results


def peaks() -> dict[str, float]:
    """FLOPs a second of a large matrix product, bytes a second of adding to a large array, on the whole device."""
    matrix, array = jnp.ones((2048, 2048)), jnp.ones(2**26)
    product, add = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1.0)
    return {"flops": 2 * 2048**3 / seconds(product, matrix), "bytes": 2 * array.nbytes / seconds(add, array)}


def row(num_envs: int, steps: int, peak: dict[str, float]) -> dict[str, Any]:
    """The numbers of one size, with rates and shares."""
    results = Parts(num_envs, steps).measure()
    limit = sum(results[name]["seconds"] for name in ("simulator", "networks", "update"))
    for name in ("simulator", "networks", "update"):
        part = results[name]
        part["share_of_peak"] = {k: part[k] / part["seconds"] / peak[k] for k in peak}
    results["steps_per_second"] = num_envs * steps / results["iteration"]["seconds"]
    return {"envs": num_envs, **results, "share_of_limit": limit / results["iteration"]["seconds"]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num_envs", type=int, nargs="+", default=SIZES)
    parser.add_argument("--num_steps_per_env", type=int, default=24, help="steps of a rollout (24)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    compilation.prepare()
    jax.config.update("jax_enable_compilation_cache", False)  # Compile times are part of what is measured.
    peak = peaks()
    rows = []
    for num_envs in args.num_envs:
        rows.append(row(num_envs, args.num_steps_per_env, peak))
        print(json.dumps(rows[-1]), flush=True)
    results = {"machine": machine(), "device": jax.devices()[0].device_kind, "peak": peak}
    results |= {"steps": args.num_steps_per_env, "rows": rows}
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| envs | env steps/s | simulator alone (s) | networks alone (s) | update alone (s) | iteration (s) "
        "| share of the limit | compile (s) | memory (GiB) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results["rows"]:
        times = " | ".join(f"{r[name]['seconds']:.3f}" for name in ("simulator", "networks", "update", "iteration"))
        lines.append(
            f"| {r['envs']} | {r['steps_per_second']:,.0f} | {times} | {r['share_of_limit']:.0%} "
            f"| {r['compile_s']:.1f} | {r['memory_bytes'] / 2**30:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
