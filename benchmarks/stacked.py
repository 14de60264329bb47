"""A task of one's own made of somebody else's: Brax's halfcheetah with a group of stacked observations.

jdistill train --task benchmarks/stacked.py:halfcheetah agent.obs_groups.student=stack agent.student.rnn_type=null
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from brax import envs
from brax.envs.wrappers.training import EpisodeWrapper


class Stacked(envs.Wrapper):
    """Adds the group ``stack``: the first ``width`` numbers of the last ``depth`` observations, the newest first.

    Where an episode begins, its first observation stands for those before it.
    """

    def __init__(self, env: envs.Env, depth: int, width: int):
        super().__init__(env)
        self._depth, self._width = depth, width

    def reset(self, rng: Any) -> envs.State:
        """Begin with copies of the first observation."""
        state = self.env.reset(rng)
        return self._observed(state, jnp.tile(state.obs[: self._width], self._depth))

    def step(self, state: envs.State, action: Any) -> envs.State:
        """Push the new observation in."""
        after = self.env.step(state.replace(obs=state.obs["policy"]), action)
        older = state.obs["stack"][: -self._width]
        return self._observed(after, jnp.concatenate([after.obs[: self._width], older]))

    def _observed(self, state: envs.State, stack: Any) -> envs.State:
        return state.replace(obs={"policy": state.obs, "stack": stack})


def halfcheetah(num_envs: int = 100, backend: str = "spring", depth: int = 4, episode_length: int = 1000) -> envs.Env:
    """The task: Brax's backend, how many observations of the joints' positions are stacked, steps of an episode."""
    return EpisodeWrapper(Stacked(envs.get_environment("halfcheetah", backend=backend), depth, 8), episode_length, 1)
