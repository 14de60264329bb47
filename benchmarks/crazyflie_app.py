"""A student's exported Crazyflie app in flight, beside the student itself in JAX.

    python -m benchmarks.crazyflie_app RUN                   # 1000 episodes of its task
    python -m benchmarks.crazyflie_app RUN --scenario noise --episodes 100

The app's controller is built by this machine's C compiler, with the stand-in for the firmware around it, and flies in
the simulator: estimates, gyro and setpoints go in in the firmware's units, the motors' thrusts come out as the firmware
rounds them. Both fly the run's task, or a scenario, from the same states, with the same targets and the same noise.
Exits with 1 where survival differs by more than half a percent, or the steady error by more than 2 mm.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge.crazyflie import PointControl
from bridge.crazyflie.scenarios import scenarios
from bridge.env import State
from jdistill.core import networks, observations
from jdistill.errors import ConfigError
from jdistill.export import c, crazyflie
from jdistill.export.crazyflie_loop import Loop
from jdistill.export.formats import Student
from jdistill.run.saved_run import load_config, load_student

SURVIVAL_TOLERANCE, STEADY_TOLERANCE = 0.005, 0.002
"""Share of the episodes; m."""
SETTLE_S = 3.0
SEED = 20_000


class Flights(NamedTuple):
    """Episodes of one policy."""

    survival: float
    """Share that reached the time limit."""
    steady_error: float
    """Mean distance to the target after ``SETTLE_S`` seconds, m, while in flight."""
    fallbacks: int
    """Episodes in which the PID controller flew."""


Act = Callable[[State], tuple[np.ndarray, np.ndarray]]
"""Actions (B, 4), and whether something else than the policy flew (B,)."""


def fly(env: PointControl, act: Act, steps: int | None = None, seed: int = SEED) -> Flights:
    """One episode of each of the environments."""
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state = reset(jax.random.key(seed))
    alive, gave_up = np.ones(env.num_envs, bool), np.zeros(env.num_envs, bool)
    errors, count, settle = 0.0, 0, round(SETTLE_S / env.step_dt)
    steps = steps or env.max_episode_length
    for i in range(steps):
        action, is_other = act(state)
        gave_up |= alive & (is_other > 0)
        state = step(state, jnp.asarray(action))
        alive &= ~np.asarray(state.done)
        if i >= min(settle, steps // 2):
            errors += float(np.asarray(state.metrics["Metrics/position_error"])[alive].sum())
            count += int(alive.sum())
    return Flights(float(alive.mean()), errors / max(count, 1), int(gave_up.sum()))


def in_jax(student: Student, count: int) -> Act:
    """The student."""
    carry = networks.initial_carry(student.policy, student.state, count)
    infer = jax.jit(lambda carry, obs: networks.act(student.policy, student.state, carry, obs))
    groups = student.agent.obs_groups["student"]

    def act(state: State) -> tuple[np.ndarray, np.ndarray]:
        nonlocal carry
        carry, action = infer(carry, observations.select(state.obs, groups))
        return np.asarray(action), np.zeros(count)

    return act


def in_c(loop: Loop, count: int) -> Act:
    """The app's controller: it gets the state that the sensors measure, and the target as setpoint."""
    craft = loop.craft(count)

    def act(state: State) -> tuple[np.ndarray, np.ndarray]:
        sim: Any = state.pipeline_state
        seen = sim.craft if sim.sensors is None else sim.sensors.seen
        parts = [np.asarray(x.array) for x in (seen.pos, seen.vel, seen.quat, seen.ang_vel)]
        target = np.concatenate([np.asarray(sim.target.pos.array), np.asarray(sim.target.vel.array)], axis=1)
        return craft.act(np.concatenate(parts, axis=1), target)

    return act


def build(student: Student, folder: Path) -> Loop:
    """The app of a student, compiled.

    Raises:
        ConfigError: there is no C compiler.
    """
    crazyflie.export(student, folder)
    compiler = c.find_compiler()
    loop = compiler and Loop.compiled(compiler, folder / crazyflie.NAME / "src", student.header["motors"])
    if not loop:
        raise ConfigError("no C compiler for this machine: install gcc or clang, or say which by CC")
    return loop


def main(argv: Sequence[str] | None = None) -> int:
    """Fly, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run of point control")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--scenario", default="default", help="of point control's evaluation (default: the run's task)")
    args = parser.parse_args(argv)
    cfg = load_config(args.run, [f"env.num_envs={args.episodes}"])
    policy, state, header = load_student(args.run, False)
    known = scenarios(cfg.env)
    if args.scenario not in known:
        parser.error(f"--scenario {args.scenario}: expected one of {', '.join(known)}")
    env = PointControl(known[args.scenario].cfg)
    student = Student(policy, state, {**env.deployment, **header}, cfg.agent, args.run / "teacher.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        loop = build(student, Path(folder))
    found = {"JAX": fly(env, in_jax(student, args.episodes)), "C": fly(env, in_c(loop, args.episodes))}
    title = f"{args.scenario}, {args.episodes} episodes"
    print(f"| {title} | survival | steady error | with the PID controller |\n|---|---|---|---|")
    for name, numbers in found.items():
        print(f"| {name} | {numbers.survival:.1%} | {1000 * numbers.steady_error:.2f} mm | {numbers.fallbacks} |")
    return 0 if agree(*found.values()) else 1


def agree(ours: Flights, theirs: Flights) -> bool:
    """Whether two policies fly as well as each other."""
    return (
        abs(ours.survival - theirs.survival) <= SURVIVAL_TOLERANCE
        and abs(ours.steady_error - theirs.steady_error) <= STEADY_TOLERANCE
    )


if __name__ == "__main__":
    raise SystemExit(main())
