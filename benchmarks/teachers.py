"""What many teachers cost beside one: an iteration of each phase, and the teachers' own part of it.

    python -m benchmarks.teachers --out docs/teachers.json

Environments and steps as in the default run (100 and 400), then 1000 environments of 100 steps; teachers are MLPs
26-64-64-64-4 with normalizers. 1 and 100 teachers are compared, the 100 divided evenly among the environments and at
random. Everything runs on one core, in turns, in milliseconds of processor time; ratios are medians over the rounds.
About 5 minutes. Let nothing else run meanwhile: what shares the caches is felt by many teachers first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset, State
from jdistill.core import networks
from jdistill.core.actor import Actor, PolicyActor, follow
from jdistill.core.config import AgentCfg, AlgorithmCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import Policy
from jdistill.core.teachers import TeacherBank
from jdistill.run import compilation
from jdistill.run.provenance import machine

SIZES = ((100, 400), (1000, 100))
"""Environments and steps of a rollout."""
TEACHERS = 100
NETWORK = Policy(4, (64, 64, 64), output_activation="tanh")
STUDENT = Policy(4, (16,), output_activation="tanh", pre_dims=(16,), rnn_type="gru", rnn_hidden_dim=16)
PHASES = {"phase 1": 0, "phase 2": 500}
"""An iteration of each phase."""
SHARES = ("evenly", "at random")


class Fleet(PointControl):
    """Crazyflies that differ in nothing but the id of their teacher, which ``ids`` (B,) says."""

    ids: jax.Array

    def reset(self, rng: jax.Array) -> State:
        """With the ids in ``info``."""
        state = super().reset(rng)
        return state.replace(info={**state.info, "teacher_id": self.ids})


def make_teachers() -> TeacherBank:
    """Random ones."""
    keys = jax.random.split(jax.random.key(1), TEACHERS)
    state = jax.vmap(lambda key: networks.init(NETWORK, key, 26, normalize=True))(keys)
    return TeacherBank.of(NETWORK, state, range(TEACHERS), ("teacher",))


def programs(num_envs: int, steps: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is measured, by its name: with one teacher and with many, compiled."""
    bank = make_teachers()
    cfg = AgentCfg(num_steps_per_env=steps, algorithm=AlgorithmCfg(use_two_stage_training=True, phase1_iterations=500))
    drawn = jax.random.randint(jax.random.key(2), (num_envs,), 0, TEACHERS, jnp.int32)
    shares = dict(zip(SHARES, (jnp.arange(num_envs, dtype=jnp.int32) % TEACHERS, drawn), strict=True))
    variants: dict[str, tuple[PolicyActor | TeacherBank, jax.Array]] = {"one": (bank.teacher(0), shares["evenly"])}
    variants |= {share: (bank, ids) for share, ids in shares.items()}
    found: dict[str, dict[str, Callable[[], Any]]] = {}
    for variant, (teacher, ids) in variants.items():
        task = Fleet(PointControlCfg(num_envs=num_envs))
        task.ids = ids
        alg = Distillation(AutoReset(task), STUDENT, cfg)
        state = jax.jit(alg.init)(jax.random.key(0), teacher)
        iteration = jax.jit(lambda *args, alg=alg: alg.iteration(*args)[:2]).lower(state, teacher).compile()
        for phase, number in PHASES.items():
            then = state.replace(iteration=jnp.asarray(number, jnp.int32))
            found.setdefault(f"iteration, {phase}", {})[variant] = partial(iteration, then, teacher)
        obs = {"teacher": jax.random.normal(jax.random.key(3), (steps, num_envs, 26))}
        obs["teacher_id"] = jnp.broadcast_to(ids, (steps, num_envs))
        for name, function in {"step by step": by_step, "a whole rollout": at_once}.items():
            program = jax.jit(function).lower(teacher, obs).compile()
            found.setdefault(f"the teachers alone, {name}", {})[variant] = partial(program, teacher, obs)
    return found


def by_step(teacher: Actor, obs: Mapping[str, jax.Array]) -> jax.Array:
    """Actions, as in phase 1."""
    return jax.lax.scan(lambda carry, obs: teacher.act(carry, obs), (), obs)[1]


def at_once(teacher: Actor, obs: Mapping[str, jax.Array]) -> jax.Array:
    """Actions, as in phase 2."""
    return follow(teacher, (), obs, jnp.zeros(obs["teacher"].shape[:2], bool))[1]


def measure(num_envs: int, steps: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of processor time of each program, and the ratios to one teacher's."""
    results: dict[str, Any] = {}
    for name, variants in programs(num_envs, steps).items():
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(rounds + 1):
            for variant, program in variants.items():
                began = time.process_time()
                jax.block_until_ready(program())
                times[variant].append(1e3 * (time.process_time() - began))
        results[name] = {variant: {"ms": statistics.median(t[1:])} for variant, t in times.items()}
        for share in SHARES:
            ratios = [a / b for a, b in zip(times[share][1:], times["one"][1:], strict=True)]
            results[name][share]["ratio"] = statistics.median(ratios)
        print(f"{num_envs} x {steps}, {name}: {json.dumps(results[name])}", flush=True)
    return results


def table(results: Mapping[str, Any]) -> str:
    """The table of docs/teachers.md."""
    lines = ["| environments x steps | | one teacher | 100, evenly | 100, at random |", "|---|---|---|---|---|"]
    for size, found in results["sizes"].items():
        for name, variants in found.items():
            shares = (f"{variants[share]['ms']:.0f} ms ({variants[share]['ratio']:.2f}x)" for share in SHARES)
            lines.append(f"| {size} | {name} | {variants['one']['ms']:.0f} ms | {' | '.join(shares)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    compilation.prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    found = {f"{envs} x {steps}": measure(envs, steps, args.rounds) for envs, steps in SIZES}
    args.out.write_text(json.dumps({"machine": machine(), "teachers": TEACHERS, "sizes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
