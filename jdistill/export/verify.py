"""Whether an exported policy acts as the original does, step after step.

Both sides of a comparison are a :data:`Start`: whatever runs the policy, behind plain NumPy arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bridge.env import TrainingEnv
from jdistill.core import networks, observations
from jdistill.core.networks import Policy, PolicyState
from jdistill.export import images
from jdistill.export.layers import PolicyLayers

STEPS = 100
"""Steps of a comparison."""
TOLERANCE = 1e-5
"""The largest difference of two actions that counts as none."""

Step = Callable[[Any], np.ndarray]
"""A policy in the middle of an episode: observation (1, D), or an ``Observation`` of NumPy's arrays, to actions
(1, A)."""
Start = Callable[[], Step]
"""A policy; a call begins an episode."""


def jax_policy(policy: Policy, state: PolicyState) -> Start:
    """The policy in JAX."""
    step = jax.jit(lambda carry, obs: networks.act(policy, state, carry, obs))

    def start() -> Step:
        carry = networks.initial_carry(policy, state, 1)

        def act(obs: Any) -> np.ndarray:
            nonlocal carry
            carry, action = step(carry, obs)
            return np.asarray(action)

        return act

    return start


@dataclass(frozen=True, eq=False)
class Recording:
    """What a policy observed and did, step after step."""

    observations: Any
    """(T, D) float32, or an ``Observation`` of such and of images."""
    actions: np.ndarray
    """(T, A) float32."""
    begins: np.ndarray
    """(T,) bool, whether an episode begins with the step, so that a recurrent state does too."""
    source: str
    """``task``, or ``drawn`` where nobody flew."""


def flights(env: TrainingEnv, groups: Sequence[str], policy: Start) -> Iterator[Recording]:
    """``STEPS`` steps of one environment, stepped by the policy's actions; then others, from another seed each time.

    Args:
        env: an environment with ``num_envs`` 1.
        groups: what the policy observes, see :mod:`jdistill.core.observations`.
        policy: begins anew where an episode ends, and with every seed.
    """
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    for seed in itertools.count():
        state, act, is_first = reset(jax.random.key(seed)), policy(), True
        seen, done, begins = [], [], []
        for _ in range(STEPS):
            seen.append(jax.tree.map(np.asarray, observations.select(state.obs, groups)))
            done.append(act(seen[-1]))
            begins.append(is_first)
            state = step(state, done[-1])
            if is_first := bool(state.done.any()):
                act = policy()
        yield Recording(joined(seen), np.concatenate(done), np.array(begins), "task")


def draws(layers: PolicyLayers, policy: Start) -> Iterator[Recording]:
    """The same over observations drawn from the moments of what the policy ``layers`` has seen."""
    begins = np.arange(STEPS) == 0
    for seed in itertools.count():
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(STEPS, layers.obs_size)).astype(np.float32)
        if layers.normalizer is not None:
            vectors = vectors * layers.normalizer.std + layers.normalizer.mean
        drawn = images.drawn([cnn.cfg for cnn in layers.cnns], vectors, rng)
        yield Recording(drawn, np.concatenate(_actions(policy, drawn, begins)), begins, "drawn")


def joined(parts: Sequence[Any]) -> Any:
    """Observations behind one another."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def difference(recording: Recording, exported: Start) -> float:
    """The largest difference between the actions of ``recording`` and those of ``exported`` on its observations.

    Returns:
        NaN where an action is NaN, infinity where the shapes differ.
    """
    theirs = _actions(exported, recording.observations, recording.begins)
    return float(np.max([action_difference(a[None], b) for a, b in zip(recording.actions, theirs, strict=True)]))


def _actions(policy: Start, observations: Any, begins: np.ndarray) -> list[np.ndarray]:
    """What ``policy`` does on the observations of T steps, each (1, A)."""
    found: list[np.ndarray] = []
    act = policy()
    for t, is_first in enumerate(begins):
        if is_first and found:
            act = policy()
        found.append(act(jax.tree.map(lambda x, t=t: x[t : t + 1], observations)))
    return found


def action_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays of actions; NaN if there is a NaN, infinity if the shapes differ."""
    # np.max keeps a NaN, which Python's max loses.
    return float(np.max(np.abs(ours - theirs))) if ours.shape == theirs.shape else float("inf")
