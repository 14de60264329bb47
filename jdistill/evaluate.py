"""What a policy is worth: one whole episode in every environment of a batch, in one compiled program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.env import EPISODE_METRIC_PREFIX, State, TrainingEnv
from jdistill import networks, observations
from jdistill.networks import Carry, Policy, PolicyState

TERMINATION = "Episode_Termination/"


def evaluate(
    env: TrainingEnv, policy: Policy, learnt: PolicyState, groups: list[str], seed: int = 1000, settle_s: float = 3.0
) -> dict[str, Any]:
    """Fly ``env.num_envs`` episodes with the policy's deterministic actions.

    Args:
        groups: what makes up the policy's observation (see :mod:`jdistill.observations`).
        seed: of the start states; any number but a training run's own gives starts that it never met.
        settle_s: seconds after which an episode counts as settled.

    Returns:
        ``episodes``; ``survival``, the share that reached the time limit; ``return`` and ``length`` (steps), means
        over episodes; ``steady``, every metric of the environment averaged over the settled steps of all episodes
        under way; ``action_change``, the mean absolute change of an action from step to step; ``terminations``, how
        many episodes each limit ended.
    """
    settle = round(settle_s / env.step_dt)

    def step(loop: tuple[State, Carry, Array, Array], _: None) -> Any:
        state, carry, before, flying = loop
        carry, action = networks.act(policy, learnt, carry, observations.select(state.obs, groups))
        after = env.step(state, action)
        going_on = flying & ~after.done
        outputs = {
            "flying": flying,
            "survived": flying & after.info["time_outs"],
            "reward": after.reward,
            "action_change": jnp.abs(action - before).mean(axis=-1),
            "metrics": after.metrics,
            "ended": flying & after.done,
        }
        return (after, carry, action, going_on), outputs

    @jax.jit
    def fly(rng: Array) -> Any:
        state = env.reset(rng)
        carry = networks.initial_carry(policy, learnt, env.num_envs)
        start = (state, carry, jnp.zeros((env.num_envs, env.num_actions)), jnp.ones(env.num_envs, bool))
        _, out = jax.lax.scan(step, start, None, length=env.max_episode_length)
        flying, settled = out["flying"], out["flying"] & ~out["ended"]
        settled = settled.at[:settle].set(False)
        metrics = {k: v for k, v in out["metrics"].items() if k not in ("episode_return", "episode_length")}
        return {
            "survival": out["survived"].sum() / env.num_envs,
            "return": (out["reward"] * flying).sum() / env.num_envs,
            "length": flying.sum() / env.num_envs,
            "action_change": (out["action_change"] * flying)[1:].sum() / flying[1:].sum(),
            "steady": {
                k.removeprefix("Metrics/"): (v * settled).sum() / settled.sum()
                for k, v in metrics.items()
                if not k.startswith(EPISODE_METRIC_PREFIX)
            },
            "terminations": {
                k.removeprefix(TERMINATION): (v * out["ended"]).sum()
                for k, v in metrics.items()
                if k.startswith(TERMINATION)
            },
        }

    numbers = jax.tree.map(float, env.drive(fly, jax.random.key(seed)))
    numbers["terminations"] = {k: int(v) for k, v in numbers["terminations"].items() if v}
    return {"episodes": env.num_envs, **numbers}
