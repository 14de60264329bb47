"""Samplers that draw from the history; :mod:`jdistill.core.samplers` has the overview."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jdistill.core.history import History
from jdistill.core.networks import Carry, PolicyState
from jdistill.core.sampling import Batch, Experience, HistoryData, Sampler
from jdistill.errors import ConfigError


class HistorySampler(Sampler):
    """What the samplers of the history share: storing rollouts, and columns drawn by their lengths."""

    def empty_history(self, obs: Array, teacher_action: Array, carry: Carry) -> History | None:
        """Room for as many rollouts as ``max_buffer_size`` allows; None for a dataset, which is a history already."""
        if not self.cfg.use_dagger:
            return None
        rollouts = self._num_rollouts()
        rows = rollouts * self.stored_states
        kept = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape)), carry) if rows else ()
        return History.create(
            rollouts * self.horizon, obs, teacher_action, kept, dtype=jnp.dtype(self.cfg.history_dtype)
        )

    def remember(self, history: History | None, experience: Experience) -> History | None:
        """The history with the newest rollout over its oldest one."""
        if history is None:
            return None
        carry: Carry = jax.tree.map(lambda x: x[:: self.length][: self.stored_states], experience.carry)
        return history.append(experience.obs, experience.teacher_action, experience.is_first, carry)

    def data(self, student: PolicyState, experience: Experience, history: History | None, key: Array) -> HistoryData:
        """The history with the newest rollout in it."""
        assert history is not None
        return HistoryData(history, student, key)

    def _num_rollouts(self) -> int:
        """How many rollouts the history holds.

        Raises:
            ConfigError: not even one.
        """
        transitions = self.horizon * self.num_envs
        rollouts = self.cfg.max_buffer_size // transitions
        if rollouts < 1:
            raise ConfigError(
                f"agent.algorithm.max_buffer_size={self.cfg.max_buffer_size}: smaller than one rollout, which has "
                f"{transitions} transitions (num_steps_per_env * num_envs)"
            )
        return rollouts


class Uniform(HistorySampler):
    """Sequences from anywhere in the history, all rollouts alike."""

    @property
    def stored_states(self) -> int:  # type: ignore[override]
        """Recurrent states that the history keeps of a rollout, one at each place where a sequence may begin."""
        return -(-self.horizon // self.length) if self.carry_start == "stored" else 0

    @property
    def burn_in(self) -> int:
        """See :class:`Sampler`."""
        return self.cfg.burn_in_steps if self.carry_start == "burn_in" else 0

    def batch(self, data: HistoryData, number: Array, carry: Carry, initial_carry: Carry, length: int) -> Batch:
        """Sequences drawn anew for every number."""
        history = data.history
        rollout_key, place_key, column_key = jax.random.split(jax.random.fold_in(data.key, number), 3)
        n, slots = self.sequences, history.obs.shape[0] // self.horizon
        filled = -(-history.length.max() // self.horizon)
        rollout = self.draw_rollouts(rollout_key, filled, slots)
        column = draw_columns(column_key, history, n)
        if self.carry_start != "stored":
            # The columns of a dataset end anywhere: what is drawn is a share of each one's own length.
            share = (rollout + jax.random.uniform(place_key, (n,))) / filled
            steps = history.length[column]
            start = jnp.minimum((share * steps).astype(jnp.int32), steps - 1)
            return self._from_initial_carry(data, start, column, initial_carry)
        place = jax.random.randint(place_key, (n,), 0, self.stored_states)
        found = history.sequences(rollout * self.horizon + place * self.length, column, length)
        slot = (history.origin // self.horizon + rollout) % slots
        return Batch(
            obs=data.student.normalize(found.obs),
            teacher_action=found.teacher_action,
            carry=history.carry_at(slot * self.stored_states + place, column),
            reset=found.reset,
            reset_carry=initial_carry,
            weight=self.weigh(found.known),
        )

    def _from_initial_carry(self, data: HistoryData, start: Array, column: Array, initial_carry: Carry) -> Batch:
        """Sequences that know no state to begin with: from the initial one, at once or after burning in."""
        before = self.burn_in
        found = data.history.sequences(start - before, column, before + self.length)
        # Where the history reaches less far back than the burn-in, only what follows an episode's start is exact.
        begun = jnp.cumsum(found.is_first, axis=0) > 0
        time = start - before + jnp.arange(before + self.length)[:, None]
        return Batch(
            obs=data.student.normalize(found.obs),
            teacher_action=found.teacher_action,
            carry=initial_carry,
            reset=found.reset,
            reset_carry=initial_carry,
            weight=self._weigh_after_burn_in(found.known & ((time >= before) | begun)),
        )

    def _weigh_after_burn_in(self, counts: Array) -> Array:
        weight = self.weigh(counts[self.burn_in :])
        return jnp.concatenate([jnp.zeros_like(counts[: self.burn_in], weight.dtype), weight])

    def draw_rollouts(self, rng: Array, filled: Array, slots: int) -> Array:
        """Which rollouts (N,) the sequences begin in; 0 is the oldest of the ``filled`` ones."""
        return jax.random.randint(rng, (self.sequences,), 0, filled)


class Recent(Uniform):
    """Sequences from the history, newer rollouts more often."""

    def draw_rollouts(self, rng: Array, filled: Array, slots: int) -> Array:
        """Rollout of age a with weight 2^(-a / half-life)."""
        age = filled - 1 - jnp.arange(slots)
        logits = jnp.where(age >= 0, -age * (jnp.log(2.0) / self.cfg.recency_half_life), -jnp.inf)
        return jax.random.categorical(rng, logits, shape=(self.sequences,))


class Packed(HistorySampler):
    """Rows of whole episodes."""

    @property
    def length(self) -> int:
        """A row."""
        return self.cfg.row_length or self.max_episode_length

    def check(self) -> None:
        """Raise :class:`jdistill.errors.ConfigError` if the history is too short for a row."""
        super().check()
        if self.cfg.use_dagger and self.cfg.max_buffer_size < self.length * self.num_envs:
            raise ConfigError(
                f"agent.algorithm.max_buffer_size={self.cfg.max_buffer_size}: shorter than one row of {self.length} "
                f"steps in {self.num_envs} environments; raise it to {self.length * self.num_envs}"
            )

    def batch(self, data: HistoryData, number: Array, carry: Carry, initial_carry: Carry, length: int) -> Batch:
        """Rows that begin with the episodes of times drawn at random, so that long and short ones are seen alike."""
        history = data.history
        time_key, column_key = jax.random.split(jax.random.fold_in(data.key, number))
        column = draw_columns(column_key, history, self.sequences)
        time = jax.random.randint(time_key, (self.sequences,), 0, history.length[column])
        row = history.sequences(self._episode_start(history, time, column), column, length)
        # What precedes the first episode whose start is known has no known state.
        counts = row.known & (jnp.cumsum(row.is_first, axis=0) > 0)
        return Batch(
            obs=data.student.normalize(row.obs),
            teacher_action=row.teacher_action,
            carry=initial_carry,
            reset=row.reset,
            reset_carry=initial_carry,
            weight=self.weigh(counts),
        )

    def _episode_start(self, history: History, time: Array, column: Array) -> Array:
        """Where the episodes at ``time`` (N,) began, or the next ones do if that is not known."""
        reach = max(self.length, self.max_episode_length)
        starts = history.episode_starts(time - reach + 1, column, 2 * reach)
        index = jnp.arange(2 * reach)[:, None]
        last = jnp.where(starts & (index < reach), index, -1).max(axis=0)
        following = jnp.where(starts & (index >= reach), index, 2 * reach).min(axis=0)
        return time - reach + 1 + jnp.where(last >= 0, last, jnp.where(following < 2 * reach, following, reach - 1))


def draw_columns(rng: Array, history: History, number: int) -> Array:
    """Columns (number,), each as likely as it is long, so that all steps are alike."""
    ends = jnp.cumsum(history.length)
    return jnp.searchsorted(ends, jax.random.randint(rng, (number,), 0, ends[-1]), side="right")
