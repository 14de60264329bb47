"""Train the bundled teacher of the task ``crazyflie_forest`` from scratch: jdistill's own algorithm, with an expert.

The expert (:mod:`bridge.crazyflie.forest.planner`) looks at all columns and chooses a free heading. An MLP that sees
the observation group ``teacher`` learns from it as students learn from teachers: what it does on its own flights is
compared with what the expert would have done (DAgger). About five minutes on two cores. ::

    python examples/train_forest_teacher.py --out jdistill/teachers/crazyflie_forest.safetensors
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import struct
from jax import Array

from bridge.crazyflie.forest.cfg import ForestFlightCfg
from bridge.crazyflie.forest.task import ForestFlight
from bridge.crazyflie.forest.teaching import EXPERT, GuidedForestFlight
from bridge.env import AutoReset
from bridge.episodes import SUCCESS
from jdistill.core.actor import PolicyActor
from jdistill.core.config import AgentCfg, AlgorithmCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import Policy, PolicyState
from jdistill.evaluation.rollouts import Evaluator
from jdistill.export.policy_file import save_policy
from jdistill.run import compilation

GROUP = "teacher"
NETWORK: dict[str, Any] = {"hidden_dims": (256, 128, 64), "activation": "elu", "output_activation": "tanh"}
SEED = 1000
"""Of the forests in which it is tried out."""


class Expert(struct.PyTreeNode):
    """The planner as an actor, see :class:`jdistill.core.actor.Actor`."""

    def initial_carry(self, batch: int) -> Any:
        """None."""
        return ()

    def act(self, carry: Any, obs: Mapping[str, Array]) -> tuple[Any, Array]:
        """What it has written into the observations."""
        return carry, obs[EXPERT]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="policy file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_envs", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=400)
    return parser.parse_args()


def train(args: argparse.Namespace) -> tuple[Policy, PolicyState]:
    """Run all iterations; returns the network, its parameters and its normalizer."""
    algorithm = AlgorithmCfg(
        use_two_stage_training=True,
        phase1_iterations=args.iterations // 10,
        use_dagger=True,
        max_buffer_size=150 * 100 * args.num_envs,
        gradient_length=4,
        num_learning_epochs=4,
        learning_rate_half_life=args.iterations / 4,
    )
    cfg = AgentCfg(num_steps_per_env=100, obs_groups={"student": [GROUP], "teacher": [EXPERT]}, algorithm=algorithm)
    env = AutoReset(GuidedForestFlight(ForestFlightCfg(num_envs=args.num_envs)))
    policy = Policy(num_actions=env.num_actions, **NETWORK)
    algorithm_on_env, expert = Distillation(env, policy, cfg), Expert()
    state = jax.jit(algorithm_on_env.init)(jax.random.key(args.seed), expert)
    state = state.replace(env_state=env.randomize_episode_length(state.env_state, jax.random.key(args.seed)))
    iterate = jax.jit(lambda state: algorithm_on_env.iteration(state, expert)[:2], donate_argnums=0)
    begin = time.perf_counter()
    for i in range(args.iterations):
        state, metrics = iterate(state)
        if i % 25 == 0 or i == args.iterations - 1:
            loss, success = (float(metrics.scalars[name]) for name in ("Loss/behavior", SUCCESS))
            elapsed = time.perf_counter() - begin
            print(f"{i:5d}  loss {loss:.4f}  success {success:6.1%}  {elapsed:5.0f} s", flush=True)
    return policy, state.student


def measure(policy: Policy, state: PolicyState, episodes: int = 1000) -> dict[str, Any]:
    """The policy and the expert in as many other forests."""
    env = AutoReset(GuidedForestFlight(ForestFlightCfg(num_envs=episodes)))
    evaluator = Evaluator({"default": PolicyActor(policy, state, (GROUP,)), EXPERT: Expert()})
    numbers = {}
    for name in ("default", EXPERT):
        found = evaluator.rollout(env, name, SEED).numbers
        numbers[name] = {k: found[k] for k in ("success", "survival", "return", "length", "terminations")}
    return numbers


def describe(numbers: dict[str, Any]) -> dict[str, Any]:
    """The policy file's header: what goes in, what comes out, what it is worth."""
    env = ForestFlight(ForestFlightCfg(num_envs=1))
    spec = env.obs_specs[GROUP]
    return {
        "observation": {
            "group": GROUP,
            "frame": spec.frame,
            "layout": [dict(zip(("name", "size", "unit"), part, strict=True)) for part in spec.layout],
        },
        "action": env.action_layout,
        "drone": env.cfg.drone,
        "trained_by": "examples/train_forest_teacher.py",
        "numbers": numbers,
    }


def main() -> None:
    """Train, try out, write."""
    args = parse_args()
    compilation.prepare()
    policy, state = train(args)
    numbers = measure(policy, state)
    print(json.dumps(numbers), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_policy(args.out, policy, state, describe(numbers))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
