"""A simulator that costs next to nothing, with Isaac Lab's vectorised Gymnasium API and its habits.

It exists to measure, and to test, what stands between a simulator and the learner: it rewrites its buffers in place,
hands out the same tensors at every step, keeps the action that it was given, and restarts finished environments itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Space:
    def __init__(self, size: int):
        self.shape = (size,)


class TrivialEnv:
    """A random linear system x' = A x + B u that is restarted when it strays, or after ``max_episode_length`` steps.

    Observation groups: ``policy`` (B, obs_size), the head of the state, and ``critic`` (B, state_size), all of it.
    """

    def __init__(
        self,
        num_envs: int,
        obs_size: int = 22,
        state_size: int = 26,
        num_actions: int = 4,
        max_episode_length: int = 50,
        device: str = "cpu",
    ):
        self.num_envs, self.max_episode_length, self.device = num_envs, max_episode_length, torch.device(device)
        self.step_dt = 0.01
        self.single_action_space = _Space(num_actions)
        fixed = torch.Generator().manual_seed(0)
        self._a = (0.97 * torch.linalg.qr(torch.randn(state_size, state_size, generator=fixed))[0]).to(device)
        self._b = (0.1 * torch.randn(num_actions, state_size, generator=fixed)).to(device)
        self._state = torch.zeros(num_envs, state_size, device=device)
        self._obs = {"policy": torch.zeros(num_envs, obs_size, device=device), "critic": self._state}
        self._reward = torch.zeros(num_envs, device=device)
        self._terminated = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self._truncated = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.extras: dict[str, Any] = {"log": {}}
        self.actions = torch.zeros(num_envs, num_actions, device=device)

    def reset(self, seed: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Start all episodes; ``seed`` sets torch's global generator, as in Isaac Lab."""
        if seed is not None:
            torch.manual_seed(seed)
        self._restart(torch.ones_like(self._terminated))
        self._observe()
        return self._obs, self.extras

    def step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """One step with ``actions`` (B, A)."""
        self.actions = actions
        self._state.copy_(self._state @ self._a + actions @ self._b)
        self.episode_length_buf += 1
        self._reward.copy_(-self._state.square().mean(dim=1))
        self._terminated.copy_(self._state.abs().amax(dim=1) > 3.0)
        # Both at once is possible, as in many of Isaac Lab's tasks.
        self._truncated.copy_(self.episode_length_buf >= self.max_episode_length)
        ended = self._terminated | self._truncated
        if ended.any():
            self.extras["log"] = {"Metrics/distance": self._state.norm(dim=1).mean(), "ended": ended.float().mean()}
            self._restart(ended)
        self._observe()
        return self._obs, self._reward, self._terminated, self._truncated, self.extras

    def _restart(self, ended: Tensor) -> None:
        fresh = torch.randn(self._state.shape).to(self.device) / math.sqrt(self._state.shape[1])
        self._state.copy_(torch.where(ended[:, None], fresh, self._state))
        self.episode_length_buf.masked_fill_(ended, 0)

    def _observe(self) -> None:
        self._obs["policy"].copy_(self._state[:, : self._obs["policy"].shape[1]])
