"""Whether an exported policy acts as the original does, step after step.

Both sides of a comparison are a :data:`Start`: whatever runs the policy, behind plain NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def rollout_difference(env: TrainingEnv, groups: Sequence[str], original: Start, exported: Start) -> float:
    """The largest difference of the two policies' actions in ``STEPS`` steps of one environment.

    The original's actions step the environment. Where an episode ends, both policies begin anew.

    Args:
        env: an environment with ``num_envs`` 1.
        groups: what the policies observe, see :mod:`jdistill.core.observations`.
        original: the policy that acts.
        exported: the policy that is compared with it.

    Returns:
        NaN where an action is NaN, infinity where the shapes differ.
    """
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state, differences = reset(jax.random.key(0)), []
    ours, theirs = original(), exported()
    for _ in range(STEPS):
        obs = jax.tree.map(np.asarray, observations.select(state.obs, groups))
        action = ours(obs)
        differences.append(action_difference(action, theirs(obs)))
        state = step(state, action)
        if bool(state.done.any()):
            ours, theirs = original(), exported()
    return float(np.max(differences))


def drawn_difference(layers: PolicyLayers, original: Start, exported: Start) -> float:
    """The same over ``STEPS`` observations drawn from the moments of what the policy ``layers`` has seen."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(STEPS, 1, layers.obs_size)).astype(np.float32)
    if layers.normalizer is not None:
        draws = draws * layers.normalizer.std + layers.normalizer.mean
    ours, theirs = original(), exported()
    cnns = [cnn.cfg for cnn in layers.cnns]
    seen = [images.drawn(cnns, vector, rng) for vector in draws]
    return float(np.max([action_difference(ours(obs), theirs(obs)) for obs in seen]))


def action_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays of actions; NaN if there is a NaN, infinity if the shapes differ."""
    # np.max keeps a NaN, which Python's max loses.
    return float(np.max(np.abs(ours - theirs))) if ours.shape == theirs.shape else float("inf")
