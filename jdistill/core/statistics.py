"""What an iteration says of itself: episode statistics, scalars by rsl_rl's log tags, whether its data are finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.env import EPISODE_METRIC_PREFIX, State

if TYPE_CHECKING:
    from jdistill.core.distillation import TrainState
    from jdistill.core.rollout import Transition

EPISODES = 100
"""Mean return and length are taken over this many episodes, as in rsl_rl."""


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

    def extend(self, done: Array, returns: Array, lengths: Array) -> EpisodeBuffer:
        """Enter the episodes that end where ``done`` (T, B), oldest first."""
        done = done.reshape(-1)
        order = jnp.cumsum(done)
        total = order[-1]
        # Only the newest EPISODES may write, else two of them could land in one slot.
        keep = done & (order > total - EPISODES)
        slot = jnp.where(keep, (self.count + order - 1) % EPISODES, EPISODES)
        return EpisodeBuffer(
            returns=self.returns.at[slot].set(returns.reshape(-1), mode="drop"),
            lengths=self.lengths.at[slot].set(lengths.reshape(-1), mode="drop"),
            count=self.count + total.astype(jnp.int32),
        )

    def means(self) -> tuple[Array, Array]:
        """Mean return and mean length; NaN while there are none."""
        filled = jnp.arange(EPISODES) < self.count
        number = filled.sum()
        return (self.returns * filled).sum() / number, (self.lengths * filled).sum() / number


class Metrics(struct.PyTreeNode):
    """The outcome of one iteration."""

    scalars: dict[str, Array]
    """() each, by rsl_rl's log tags; NaN where there is nothing to average."""
    finite: Array
    """(K,) bool, whether the data called ``finite_names`` are finite."""
    finite_names: tuple[str, ...] = struct.field(pytree_node=False)
    """In the order of cause and effect: a broken observation breaks everything behind it."""

    @staticmethod
    def create(scalars: dict[str, Array], checked: Sequence[tuple[str, Array]]) -> Metrics:
        """Scalars, and whether the named arrays are finite."""
        names, arrays = zip(*checked, strict=True)
        return Metrics(scalars=scalars, finite=jnp.stack([is_finite(x) for x in arrays]), finite_names=names)


def is_finite(x: Array) -> Array:
    """() bool, whether no number is NaN or infinite: its extremes tell, without a temporary array of its size."""
    return jnp.isfinite(x.max()) & jnp.isfinite(x.min())


def is_first_step(state: State) -> Array:
    """(B,) bool: where an episode begins with the next step: after a step that ended one, or after none at all."""
    return state.done | (state.metrics["episode_length"] == 0)


def rollout_metrics(state: TrainState, rollout: Transition, loss: Array, groups: Sequence[str]) -> Metrics:
    """Scalars and checks of an iteration that collected ``rollout`` (T, B, ...) and ended in ``state``.

    ``groups`` are the observation groups in the order in which they are checked: a dict that went through a compiled
    program has its keys sorted as text.
    """
    mean_return, mean_length = state.episodes.means()
    checked = [(f"observation group '{name}'", rollout.obs[name]) for name in groups]
    checked += [("the teacher's action", rollout.teacher_action), ("the student's action", rollout.student_action)]
    checked += [("the reward", rollout.reward), *update_checks(state, loss)]
    error = rollout.student_action - rollout.teacher_action
    scalars = {
        "Loss/behavior": loss,
        "Policy/mean_action_error": jnp.abs(error).mean(),
        "Train/mean_reward": mean_return,
        "Train/mean_episode_length": mean_length,
        "Train/episodes": rollout.done.sum(),
        "Distillation/teacher_share": rollout.teacher_acts.mean(),
        **env_scalars(rollout),
    }
    return Metrics.create(scalars, checked)


def update_checks(state: TrainState, loss: Array) -> list[tuple[str, Array]]:
    """What must be finite after an update."""
    updated = jnp.stack([is_finite(x) for x in jax.tree.leaves((state.student, state.opt_state))])
    return [("the loss", loss), ("the student's parameters", jnp.where(updated.all(), 0.0, jnp.nan))]


def env_scalars(rollout: Transition) -> dict[str, Array]:
    """The environment's metrics, averaged over steps or, by their prefix, over finished episodes."""
    ended = rollout.done.sum()  # Where it is 0 the means are NaN, and the runner drops them.
    means = {}
    for name, value in rollout.metrics.items():
        if name.startswith(EPISODE_METRIC_PREFIX):
            means[name] = (value * rollout.done).sum() / ended
        elif name not in ("episode_return", "episode_length"):
            means[name] = value.mean()
    return means
