"""The bridge in reverse: any environment of ours as an rsl_rl ``VecEnv``, for rsl_rl's own runners to train on.

Tensors cross by DLPack in both directions. What torch gets are outputs of a compiled step that nothing in JAX reads
again, so torch may write into them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import Array
from rsl_rl.env import VecEnv
from tensordict import TensorDict

from bridge.dlpack import to_jax, to_torch
from bridge.env import EPISODE_METRIC_PREFIX, State, TrainingEnv


class TorchVecEnv(VecEnv):
    """``env`` on the device JAX runs on.

    ``step`` returns observation groups (B, ...), rewards (B,), dones (B,) and extras with ``time_outs`` (B,) and
    ``log``, the environment's metrics: means over the batch, those of whole episodes over the episodes that ended.
    """

    def __init__(self, env: TrainingEnv, cfg: Any = None, seed: int = 0):
        self.env = env
        self.cfg = cfg if cfg is not None else {}
        self.num_envs = env.num_envs
        self.num_actions = env.num_actions
        self.max_episode_length = env.max_episode_length
        self._step = jax.jit(self._pure_step, donate_argnums=0)
        self._state = jax.jit(env.reset)(jax.random.key(seed))
        self.device = to_torch(self._state.reward).device

    def get_observations(self) -> TensorDict:
        """The current observation groups."""
        return self._tensordict(self._state.obs, copy=True)

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance by one control step with ``actions`` (B, A)."""
        # A view will do: the rewards are waited for below, and then the actions have been read.
        self._state, out = self._step(self._state, to_jax(actions.to(torch.float32)))
        reward, done, time_outs = (to_torch(out[k]) for k in ("reward", "done", "time_outs"))
        log = {k: to_torch(v) for k, v in out["log"].items()}
        if not done.any():
            log = {k: v for k, v in log.items() if not k.startswith(EPISODE_METRIC_PREFIX)}
        return self._tensordict(out["obs"]), reward, done, {"time_outs": time_outs, "log": log}

    @property
    def episode_length_buf(self) -> torch.Tensor:
        """(B,) int32 steps since each episode began, a copy; assign to it to set the ages."""
        return to_torch(self._state.info["episode_length_buf"], copy=True)

    @episode_length_buf.setter
    def episode_length_buf(self, value: torch.Tensor) -> None:
        ages = to_jax(value.to(torch.int32), copy=True)
        self._state = self._state.replace(info={**self._state.info, "episode_length_buf": ages})

    def _pure_step(self, state: State, action: Array) -> tuple[State, dict[str, Any]]:
        after = self.env.step(state, action)
        ended = jnp.maximum(after.done.sum(), 1)
        log = {
            name: (value * after.done).sum() / ended if name.startswith(EPISODE_METRIC_PREFIX) else value.mean()
            for name, value in after.metrics.items()
            if name not in ("episode_return", "episode_length")
        }
        return after, {
            "obs": after.obs,
            "reward": after.reward,
            "done": after.done,
            "time_outs": after.info["time_outs"],
            "log": log,
        }

    def _tensordict(self, obs: dict[str, Array], copy: bool = False) -> TensorDict:
        groups = {name: to_torch(value, copy) for name, value in obs.items()}
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)
