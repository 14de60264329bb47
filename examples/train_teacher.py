"""Train the teacher of the embedded point-control task from scratch, with analytic policy gradients.

The algorithm is that of :mod:`jdistill.core.apg`, which ``jdistill teach`` runs for many craft at once; the task's part
of it, harder starts and a smooth cost, is :mod:`bridge.crazyflie.teaching`. ::

    python examples/train_teacher.py --out jdistill/teachers/crazyflie.safetensors

``--quadrotors`` trains a teacher for quadrotors that differ widely; it observes the physical parameters of its own
one. The bundled one was made in three runs: from scratch, then twice more with the trim loss that takes away its
offsets, the last time with larger errors for a firmer hold. ::

    train="python examples/train_teacher.py --quadrotors --width 0.01"
    again="--learning_rate 1e-3 --updates"
    $train --trim 0 --out a.safetensors
    $train --init a.safetensors $again 300 --action_error 0.03 --seed 1 --out b.safetensors
    $train --init b.safetensors $again 350 --action_error 0.2 --seed 2 --out quadrotors.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax

from bridge.crazyflie import PointControl, PointControlCfg
from bridge.crazyflie.cfg import ACTIONS, RandomizationCfg, ResetCfg, TargetCfg
from bridge.crazyflie.teaching import GROUP, PointControlLesson
from bridge.env import AutoReset
from jdistill.core import apg
from jdistill.core.apg import ApgCfg
from jdistill.core.networks import Policy, PolicyState
from jdistill.evaluation.evaluate import evaluate
from jdistill.export.policy_file import load_policy, save_policy


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="policy file to write")
    parser.add_argument("--quadrotors", action="store_true", help="for quadrotors that differ widely")
    parser.add_argument("--action", choices=ACTIONS, default="motors", help="what it commands (%(default)s)")
    parser.add_argument("--init", type=Path, help="policy file to begin with, in place of a fresh policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_envs", type=int, default=256)
    parser.add_argument("--horizon", type=int, default=120, help="control steps the gradient flows through")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="decays to zero along a cosine")
    parser.add_argument("--rotor_noise", type=float, default=0.03, help="standard deviation, per step, 0..1")
    parser.add_argument("--action_error", type=float, default=0.1, help="the same, per stretch, -1..1")
    parser.add_argument("--trim", type=float, default=20.0, help="weight of the trim loss, with --quadrotors")
    parser.add_argument("--width", type=float, default=0.03, help="below this distance (m) being closer is worth less")
    return parser.parse_args()


def task_cfg(args: argparse.Namespace) -> PointControlCfg:
    """The task that the teacher is for: the default one, or that of ``configs/crazyflie_raptor.yaml``."""
    if not args.quadrotors:
        return PointControlCfg(action=args.action)
    return PointControlCfg(
        action=args.action,
        drone="cf2x_T350",
        teacher_sees_physics=True,
        randomization=RandomizationCfg(mass=0.1, inertia=0.4, thrust=0.3, motor=0.5),
    )


def make_lesson(args: argparse.Namespace) -> PointControlLesson:
    """The task made harder; a single Crazyflie's physical parameters vary more, too."""
    cfg = dataclasses.replace(task_cfg(args), num_envs=args.num_envs)
    if not args.quadrotors:
        cfg.randomization = RandomizationCfg(mass=0.04, inertia=0.05, thrust=0.04, motor=0.05)
    return PointControlLesson(cfg, args.width)


def train(args: argparse.Namespace) -> tuple[Policy, PolicyState]:
    """Run all updates; returns the network, its parameters and its normalizer."""
    lesson = make_lesson(args)
    cfg = ApgCfg(
        updates=args.updates,
        horizon=args.horizon,
        learning_rate=args.learning_rate,
        noise=args.rotor_noise,
        action_error=args.action_error,
        trim=args.trim if args.quadrotors else 0.0,
    )
    policy = Policy(num_actions=4, hidden_dims=(64, 64, 64), activation="elu", output_activation="tanh")
    init_key, rng = jax.random.split(jax.random.key(args.seed))
    if args.init:
        policy, state, _ = load_policy(args.init)
    else:
        state = apg.fresh_policy(lesson, policy, init_key)
    learner = apg.init(lesson, cfg, state, rng)
    update = jax.jit(lambda learner, normalize: apg.update(lesson, policy, cfg, learner, normalize))
    begin = time.perf_counter()
    for i in range(args.updates):
        learner, metrics = update(learner, i < cfg.normalizer_updates and not args.init)
        if i % 50 == 0 or i == args.updates - 1:
            elapsed = time.perf_counter() - begin
            cost, norm = (float(metrics[name]) for name in ("cost", "gradient_norm"))
            print(f"{i:5d}  cost {cost:.4f}  gradient norm {norm:7.3f}  {elapsed:5.0f} s", flush=True)
    return policy, learner.policy


# ---------------------------------------------------------------------------------------- evaluation


def evaluate_all(task: PointControlCfg, policy: Policy, policy_state: PolicyState, seed: int = 1000) -> dict[str, dict]:
    """The bundled numbers: 1000 episodes of the task and of variations of it."""
    cases: dict[str, dict[str, Any]] = {
        "mixed": {},
        "fixed": {"target": TargetCfg(kind="fixed")},
        "langevin": {"target": TargetCfg(kind="langevin")},
        "figure_eight": {"target": TargetCfg(kind="figure_eight")},
        "mixed_tilt_60": {"reset": ResetCfg(tilt=60.0)},
        "mixed_tilt_90": {"reset": ResetCfg(tilt=90.0)},
    }
    numbers = {}
    for i, (name, changes) in enumerate(cases.items()):
        cfg = dataclasses.replace(task, num_envs=1000, **changes)
        numbers[name] = evaluate(AutoReset(PointControl(cfg)), policy, policy_state, [GROUP], seed + i)
        print(f"{name}: {json.dumps(numbers[name])}", flush=True)
    return numbers


def describe(env_cfg: PointControlCfg, numbers: dict[str, dict]) -> dict[str, Any]:
    """The policy file's header: what goes in, what comes out, what it is worth."""
    env = PointControl(env_cfg)
    return {
        "observation": {
            "group": GROUP,
            "frame": env_cfg.teacher_frame,
            "layout": [dict(zip(("name", "size", "unit"), part, strict=True)) for part in env.obs_specs[GROUP].layout],
        },
        "action": env.action_layout,
        "drone": env_cfg.drone,
        "trained_by": "examples/train_teacher.py",
        "numbers": numbers,
    }


def main() -> None:
    """Train, evaluate, write."""
    args = parse_args()
    policy, policy_state = train(args)
    task = task_cfg(args)
    numbers = evaluate_all(task, policy, policy_state)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_policy(args.out, policy, policy_state, describe(task, numbers))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
