"""Counting episodes: their steps and returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

SUCCESS = "Episode_Success"
"""The metric of a task with a goal that says whether the episode ended there, (B,) float32."""


def begin_episodes(num_envs: int) -> dict[str, Array]:
    """Entries of ``info`` with which :func:`count_episodes` counts."""
    return {
        "episode_steps_buf": jnp.zeros(num_envs, jnp.int32),
        "episode_return_buf": jnp.zeros(num_envs, jnp.float32),
    }


def count_episodes(info: Mapping[str, Any], reward: Array, done: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """The metrics ``episode_return`` and ``episode_length`` after a step, and the entries of ``info`` that follow.

    ``reward`` (B,) and ``done`` (B,) are the step's. Where ``done`` the metrics are the finished episode's.
    """
    steps = info["episode_steps_buf"] + 1
    total = info["episode_return_buf"] + reward
    metrics = {"episode_return": total, "episode_length": steps.astype(jnp.float32)}
    return metrics, {
        "episode_steps_buf": jnp.where(done, 0, steps),
        "episode_return_buf": jnp.where(done, 0.0, total),
    }
