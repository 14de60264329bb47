"""Train the bundled teacher of the task ``crazyflie_forest`` from scratch, with analytic policy gradients.

The algorithm is that of :mod:`jdistill.core.apg`; the task's part of it, a cost with slopes where something can be hit,
is :mod:`bridge.crazyflie.forest.teaching`. About a quarter of an hour on two cores. ::

    python examples/train_forest_teacher.py --out jdistill/teachers/crazyflie_forest.safetensors
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
from jax import Array

from bridge.crazyflie.forest.cfg import ForestFlightCfg
from bridge.crazyflie.forest.task import ForestFlight
from bridge.crazyflie.forest.teaching import DANGER, ForestCourse
from bridge.env import AutoReset
from jdistill.core import apg
from jdistill.core.apg import ApgCfg, Learner
from jdistill.core.networks import Policy, PolicyState
from jdistill.evaluation.evaluate import evaluate
from jdistill.export.policy_file import save_policy

NETWORK: dict[str, Any] = {"hidden_dims": (128, 128, 64), "activation": "elu", "output_activation": "tanh"}

RAMP = 0.5
"""The share of the updates after which closeness has its full weight."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="policy file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_envs", type=int, default=192)
    parser.add_argument("--horizon", type=int, default=60, help="control steps the gradient flows through")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="decays to zero along a cosine")
    parser.add_argument("--action_error", type=float, default=0.1, help="standard deviation, per stretch, -1..1")
    return parser.parse_args()


def train(args: argparse.Namespace) -> tuple[Policy, PolicyState]:
    """Run all updates; returns the network, its parameters and its normalizer."""
    course = ForestCourse(ForestFlightCfg(num_envs=args.num_envs))
    cfg = ApgCfg(
        updates=args.updates,
        horizon=args.horizon,
        learning_rate=args.learning_rate,
        action_error=args.action_error,
        trim=0.0,
    )
    policy = Policy(num_actions=course.num_actions, **NETWORK)
    init_key, rng = jax.random.split(jax.random.key(args.seed))
    learner = apg.init(course, cfg, apg.fresh_policy(course, policy, init_key), rng)

    @jax.jit
    def update(learner: Learner, normalize: bool, danger: float) -> tuple[Learner, dict[str, Array]]:
        return apg.update(course.with_danger(danger), policy, cfg, learner, normalize)

    begin = time.perf_counter()
    for i in range(args.updates):
        danger = DANGER * min(1.0, 0.1 + i / (RAMP * args.updates))
        learner, metrics = update(learner, i < cfg.normalizer_updates, danger)
        if i % 50 == 0 or i == args.updates - 1:
            elapsed = time.perf_counter() - begin
            cost, norm = (float(metrics[name]) for name in ("cost", "gradient_norm"))
            print(f"{i:5d}  cost {cost:.4f}  gradient norm {norm:7.3f}  {elapsed:5.0f} s", flush=True)
    return policy, learner.policy


def describe(numbers: dict[str, Any]) -> dict[str, Any]:
    """The policy file's header: what goes in, what comes out, what it is worth."""
    env = ForestFlight(ForestFlightCfg(num_envs=1))
    spec = env.obs_specs[ForestCourse.group]
    return {
        "observation": {
            "group": ForestCourse.group,
            "frame": spec.frame,
            "layout": [dict(zip(("name", "size", "unit"), part, strict=True)) for part in spec.layout],
        },
        "action": env.action_layout,
        "drone": env.cfg.drone,
        "trained_by": "examples/train_forest_teacher.py",
        "numbers": numbers,
    }


def main() -> None:
    """Train, evaluate in 1000 other forests, write."""
    args = parse_args()
    policy, policy_state = train(args)
    env = AutoReset(ForestFlight(ForestFlightCfg(num_envs=1000, camera="none")))
    numbers = {"default": evaluate(env, policy, policy_state, [ForestCourse.group])}
    print(json.dumps(numbers), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_policy(args.out, policy, policy_state, describe(numbers))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
