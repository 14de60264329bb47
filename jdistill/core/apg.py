"""Teachers by analytic policy gradients.

Where a simulator is differentiable, a policy needs no reward samples and no critic: the cost of a stretch of an episode
is differentiated through simulator and policy with respect to the policy's parameters. A stretch begins where the last
one ended, so the policy learns on the states it meets itself; some environments start afresh between stretches.

A teacher is worth what its student can copy, so it is trained with two handicaps. What the student does not observe is
noisy: a teacher that leans on it gives actions that the student cannot reproduce. And its actions are executed with
errors, as a student's are, which makes it hold its point firmly in spite of them. A trim loss takes away its offsets:
how far it is from rest where it should rest, which the cost of an episode barely tells from the rest.

:func:`update` is one teacher's; a batch of teachers is ``jax.vmap`` of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from bridge.env import State
from bridge.teaching import Lesson
from jdistill.core import networks
from jdistill.core.networks import Policy, PolicyState


@dataclass(frozen=True)
class ApgCfg:
    """How a teacher is trained."""

    updates: int = 1000
    """Gradient steps."""
    horizon: int = 120
    """Control steps of a stretch, through which the gradient flows."""
    learning_rate: float = 2e-3
    """Adam's step size at the beginning; it decays to zero along a cosine."""
    normalizer_updates: int = 100
    """Updates after which the normalizer is frozen: by then the policy can fly, and what it observes is typical."""
    noise: float = 0.03
    """Standard deviation of the noise on what the student does not observe, drawn anew every step."""
    action_error: float = 0.1
    """Standard deviation of the error of the actions (-1..1), drawn anew for every stretch."""
    trim: float = 20.0
    """Weight of the trim loss."""

    def optimizer(self) -> optax.GradientTransformation:
        """Adam on clipped gradients."""
        schedule = optax.cosine_decay_schedule(self.learning_rate, self.updates)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))


class Learner(struct.PyTreeNode):
    """A teacher in training, and all that is needed to go on."""

    policy: PolicyState
    """Parameters and normalizer."""
    opt_state: Any
    """Adam's."""
    env_state: State
    """Where the environments are."""
    rng: Array
    """Of the next update."""


def init(lesson: Lesson, cfg: ApgCfg, policy: PolicyState, rng: Array) -> Learner:
    """Begin with ``policy``."""
    reset_key, rng = jax.random.split(rng)
    return Learner(policy, cfg.optimizer().init(policy.params), lesson.reset(reset_key), rng)


def fresh_policy(lesson: Lesson, policy: Policy, rng: Array) -> PolicyState:
    """Untrained parameters that command about :meth:`bridge.teaching.Lesson.first_action`, whatever is observed."""
    state = networks.init(policy, rng, lesson.obs_spec.shape[0], normalize=True)
    last = max(name for name in state.params if name.startswith("mlp_"))
    dense = state.params[last]["dense"]
    first = jnp.clip(lesson.first_action(), -0.95, 0.95)
    dense = {"kernel": 0.1 * dense["kernel"], "bias": jnp.full_like(dense["bias"], jnp.arctanh(first))}
    begun: PolicyState = state.replace(params={**state.params, last: {"dense": dense}})
    return begun


def num_inputs(state: PolicyState) -> int:
    """Size of the observation."""
    return int(state.params[min(state.params)]["dense"]["kernel"].shape[0])


def specialize(generalist: PolicyState, facts: Array) -> PolicyState:
    """A policy for one craft out of one for all, whose last inputs are ``facts`` (F,): they become a part of the bias.

    What lies outside of the generalist's experience counts as its edge: uniform numbers lie within sqrt(3) deviations.
    """
    assert generalist.normalizer is not None
    first = min(generalist.params)
    dense, size = generalist.params[first]["dense"], generalist.normalizer.mean.shape[0] - facts.shape[0]
    known = jax.tree.map(lambda x: x[size:] if x.ndim else x, generalist.normalizer)
    others = jax.tree.map(lambda x: x[:size] if x.ndim else x, generalist.normalizer)
    seen = jnp.clip(known(facts), -(3**0.5), 3**0.5)
    dense = {"kernel": dense["kernel"][:size], "bias": dense["bias"] + seen @ dense["kernel"][size:]}
    return PolicyState(params={**generalist.params, first: {"dense": dense}}, normalizer=others)


def update(
    lesson: Lesson, policy: Policy, cfg: ApgCfg, learner: Learner, normalize: Array | bool
) -> tuple[Learner, dict[str, Array]]:
    """One gradient step; ``normalize`` says whether the normalizer learns too.

    Returns:
        The learner after it, and ``cost`` and ``gradient_norm``, each ().
    """
    rng, key = jax.random.split(learner.rng)
    refresh_key, handicap_key = jax.random.split(key)
    state = lesson.refresh(learner.env_state, refresh_key)

    def loss(params: Any) -> tuple[Array, Any]:
        candidate = learner.policy.replace(params=params)
        value, after = stretch(lesson, policy, cfg, candidate, state, handicap_key)
        if cfg.trim > 0:
            value += cfg.trim * trim_loss(lesson, policy, candidate, handicap_key)
        return value, after

    (value, (state, obs)), gradient = jax.value_and_grad(loss, has_aux=True)(learner.policy.params)
    norm = optax.global_norm(gradient)
    gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(norm), g, 0.0), gradient)
    change, opt_state = cfg.optimizer().update(gradient, learner.opt_state)
    normalizer = learner.policy.normalizer
    if normalizer is not None:
        normalizer = jax.lax.cond(normalize, normalizer.update, lambda _: learner.policy.normalizer, obs)
    after = PolicyState(params=optax.apply_updates(learner.policy.params, change), normalizer=normalizer)
    return Learner(after, opt_state, state, rng), {"cost": value, "gradient_norm": norm}


def stretch(
    lesson: Lesson, policy: Policy, cfg: ApgCfg, policy_state: PolicyState, state: State, rng: Array
) -> tuple[Array, tuple[State, Array]]:
    """Fly the steps of a stretch: mean cost, and beside it the last State and all observations (T, B, D)."""
    noise_key, error_key = jax.random.split(rng)
    columns = len(range(*lesson.unsure.indices(lesson.obs_spec.shape[0])))
    noise = cfg.noise * jax.random.normal(noise_key, (cfg.horizon, lesson.num_envs, columns))
    error = cfg.action_error * jax.random.normal(error_key, (lesson.num_envs, lesson.num_actions))

    # Recomputing each step in the backward pass is faster here than storing what it needs.
    @jax.checkpoint
    def step(state: State, noise: Array) -> tuple[State, tuple[Array, Array]]:
        seen = state.obs[lesson.group]
        _, action = networks.act(policy, policy_state, (), seen.at[:, lesson.unsure].add(noise))
        after = lesson.step(state, action + error)
        return after, (lesson.cost(state, after), seen)

    state, (costs, obs) = jax.lax.scan(step, state, noise)
    return costs.mean(), (state, obs)


def trim_loss(lesson: Lesson, policy: Policy, policy_state: PolicyState, rng: Array) -> Array:
    """The mean squared difference from the actions that keep a craft at rest, where it is."""
    obs, wanted = lesson.at_rest(rng)
    _, action = networks.act(policy, policy_state, (), obs)
    return jnp.mean((action - wanted) ** 2)
