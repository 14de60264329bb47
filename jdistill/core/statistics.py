"""What an iteration says of itself: episode statistics, scalars by rsl_rl's log tags, whether its data are finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from bridge.env import EPISODE_METRIC_PREFIX, State
from jdistill.core.sharding import WHOLE, Shards

if TYPE_CHECKING:
    from jdistill.core.distillation import TrainState
    from jdistill.core.rollout import Transition

EPISODES = 100
"""Mean return and length are taken over this many episodes, as in rsl_rl."""
BROKEN = "Train/nonfinite_episodes"
"""Tag of how many episodes ended with NaN or infinity, where the environments are restarted then."""


class EpisodeBuffer(struct.PyTreeNode):
    """Return and length of the last finished episodes, a ring."""

    returns: Array
    """(EPISODES,) float32."""
    lengths: Array
    """(EPISODES,) float32."""
    count: Array
    """() int32, episodes ever entered."""

    @staticmethod
    def create() -> EpisodeBuffer:
        """No episodes yet."""
        zeros = jnp.zeros(EPISODES)
        return EpisodeBuffer(returns=zeros, lengths=zeros, count=jnp.zeros((), jnp.int32))

    def extend(self, done: Array, returns: Array, lengths: Array, shards: Shards = WHOLE) -> EpisodeBuffer:
        """Enter the episodes of all ``shards`` that end where ``done`` (T, B), oldest first."""
        steps, envs = done.shape
        time = jnp.broadcast_to(jnp.arange(steps)[:, None], done.shape)
        of_all = time * (shards.count * envs) + shards.numbers(envs)
        when, values = _newest(done.reshape(-1), of_all.reshape(-1), (returns.reshape(-1), lengths.reshape(-1)))
        if not shards.is_alone:  # None but the newest of each can be among the newest of all.
            when, values = shards.concatenate((when, values))
            oldest_first = jnp.argsort(when)
            when, values = jax.tree.map(lambda x: x[oldest_first][-EPISODES:], (when, values))
        total = shards.concatenate(done.sum()[None]).sum()
        # The newest stand at the end, behind what is no episode at all.
        slot = jnp.where(when >= 0, (self.count + total - EPISODES + jnp.arange(EPISODES)) % EPISODES, EPISODES)
        returns, lengths = values
        return EpisodeBuffer(
            returns=self.returns.at[slot].set(returns, mode="drop"),
            lengths=self.lengths.at[slot].set(lengths, mode="drop"),
            count=self.count + total.astype(jnp.int32),
        )

    def means(self) -> tuple[Array, Array]:
        """Mean return and mean length; NaN while there are none."""
        filled = jnp.arange(EPISODES) < self.count
        number = filled.sum()
        return (self.returns * filled).sum() / number, (self.lengths * filled).sum() / number


def _newest(done: Array, when: Array, values: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    """``when`` and ``values`` (N,) of the last EPISODES that are ``done``, at the end of (EPISODES,).

    Before them ``when`` is -1.
    """
    order = jnp.cumsum(done)
    slot = jnp.where(done, EPISODES - 1 + order - order[-1], EPISODES)
    slot = jnp.where(slot < 0, EPISODES, slot)  # A negative index would count from the end.
    when = jnp.full(EPISODES, -1, when.dtype).at[slot].set(when, mode="drop")
    return when, tuple(jnp.zeros(EPISODES, x.dtype).at[slot].set(x, mode="drop") for x in values)


class Metrics(struct.PyTreeNode):
    """The outcome of one iteration."""

    scalars: dict[str, Array]
    """() each, by rsl_rl's log tags; NaN where there is nothing to average."""
    finite: Array
    """(K,) bool, whether the data called ``finite_names`` are finite."""
    first_broken: Array
    """(K,) int32, where the first number of each that is not finite lies: step times environments plus environment; -1
    where there is none, and of what has no steps."""
    finite_names: tuple[str, ...] = struct.field(pytree_node=False)
    """In the order of cause and effect: a broken observation breaks everything behind it."""

    @staticmethod
    def create(scalars: dict[str, Array], checked: Sequence[tuple[str, Array]], shards: Shards = WHOLE) -> Metrics:
        """Scalars, and whether the named arrays are finite in all ``shards``."""
        names, arrays = zip(*checked, strict=True)
        finite = shards.all(jnp.stack([is_finite(x) for x in arrays]))
        first = jnp.stack([_first_broken(x, shards) for x in arrays])
        if not shards.is_alone:
            firsts = shards.concatenate(first[None])
            first = jnp.where(firsts < 0, _NOWHERE, firsts).min(axis=0)
            first = jnp.where(first == _NOWHERE, -1, first)
        return Metrics(scalars=scalars, finite=finite, first_broken=first, finite_names=names)

    def first_cause(self, num_envs: int) -> str | None:
        """What is not finite and was so first: its name, with environment and step; None if all is finite."""
        broken = np.flatnonzero(~np.asarray(self.finite)).tolist()
        if not broken:
            return None
        places = [(*divmod(int(self.first_broken[k]), num_envs), k) for k in broken if self.first_broken[k] >= 0]
        if not places:
            return self.finite_names[broken[0]]
        # Of the same step the first in the order of cause and effect.
        step, env, k = min(places, key=lambda place: (place[0], place[2]))
        return f"{self.finite_names[k]} of environment {env} at step {step}"


def is_finite(x: Array) -> Array:
    """() bool, whether no number is NaN or infinite, without a temporary array of its size."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.ones((), bool)
    # Zero times anything else is NaN, which a sum keeps. Extremes do not tell: those of XLA lose a NaN on CPUs.
    return (0 * x).sum() == 0


_NOWHERE = np.iinfo(np.int32).max


def _first_broken(x: Array, shards: Shards) -> Array:
    """() int32: see ``Metrics.first_broken``, of ``x`` (T, B, ...); -1 of anything else."""
    if x.ndim < 2:
        return jnp.full((), -1, jnp.int32)
    steps, envs = x.shape[:2]

    def find(x: Array) -> Array:
        broken = ~jnp.isfinite(x).reshape(steps, envs, -1).all(axis=2)
        place = jnp.arange(steps)[:, None] * (shards.count * envs) + shards.numbers(envs)
        return jnp.where(broken, place, _NOWHERE).min().astype(jnp.int32)

    # Hardly ever looked for.
    place: Array = jax.lax.cond(is_finite(x), lambda x: jnp.full((), -1, jnp.int32), find, x)
    return place


def whole_episodes(rollout: Transition) -> Array:
    """(T, B) bool: where an episode ended of itself, and its sums say something."""
    return rollout.done if isinstance(rollout.nonfinite, tuple) else rollout.done & ~rollout.nonfinite


def is_first_step(state: State) -> Array:
    """(B,) bool: where an episode begins with the next step: after a step that ended one, or after none at all."""
    return state.done | (state.metrics["episode_length"] == 0)


def rollout_metrics(
    state: TrainState, rollout: Transition, loss: Array, groups: Sequence[str], shards: Shards = WHOLE
) -> Metrics:
    """Scalars and checks of an iteration that collected ``rollout`` (T, B, ...) and ended in ``state``.

    ``groups`` are the observation groups in the order in which they are checked: a dict that went through a compiled
    program has its keys sorted as text.
    """
    mean_return, mean_length = state.episodes.means()
    checked = [(f"observation group '{name}'", rollout.obs[name]) for name in groups]
    checked += [("the teacher's action", rollout.teacher_action), ("the student's action", rollout.student_action)]
    checked += [("the reward", rollout.reward), *update_checks(state, loss)]
    error = jnp.abs(rollout.student_action - rollout.teacher_action).mean()
    means = {
        "Policy/mean_action_error": error,
        "Distillation/teacher_share": rollout.teacher_acts.mean(),
        "Train/episodes": whole_episodes(rollout).sum().astype(jnp.float32),
        **env_means(rollout),
    }
    if not isinstance(rollout.nonfinite, tuple):
        means[BROKEN] = rollout.nonfinite.sum().astype(jnp.float32)
    means = shards.mean(means)
    episodes = means["Train/episodes"]  # Where there are none the means over them are NaN, and the runner drops them.
    over_episodes = {k: v / episodes for k, v in means.items() if k.startswith(EPISODE_METRIC_PREFIX)}
    scalars = {
        "Loss/behavior": loss,
        "Train/mean_reward": mean_return,
        "Train/mean_episode_length": mean_length,
        **means,
        **over_episodes,
        "Train/episodes": shards.count * episodes,
        **{tag: shards.count * means[tag] for tag in [BROKEN] if tag in means},
    }
    return Metrics.create(scalars, checked, shards)


def update_checks(state: TrainState, loss: Array) -> list[tuple[str, Array]]:
    """What must be finite after an update."""
    updated = jnp.stack([is_finite(x) for x in jax.tree.leaves((state.student, state.opt_state))])
    return [("the loss", loss), ("the student's parameters", jnp.where(updated.all(), 0.0, jnp.nan))]


def env_means(rollout: Transition) -> dict[str, Array]:
    """The environment's metrics, averaged over steps or, by their prefix, summed over finished episodes."""
    means = {}
    for name, value in rollout.metrics.items():
        if name.startswith(EPISODE_METRIC_PREFIX):
            means[name] = (value * whole_episodes(rollout)).sum()
        elif name not in ("episode_return", "episode_length"):
            means[name] = value.mean()
    return means
