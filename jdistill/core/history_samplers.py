"""Samplers that draw from the history; :mod:`jdistill.core.samplers` has the overview."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdistill.core.history import History
from jdistill.core.networks import Carry, PolicyState
from jdistill.core.sampling import Batch, Experience, HistoryData, Sampler, strata
from jdistill.errors import ConfigError


class HistorySampler(Sampler):
    """What the samplers of the history share: storing rollouts, and the columns that sequences are drawn from."""

    def empty_history(self, obs: Any, teacher_action: Array, carry: Carry, leaves_out: bool = False) -> History | None:
        """Room for as many rollouts as ``max_buffer_size`` allows; None for a dataset, which is a history already."""
        if not self.cfg.use_dagger:
            return None
        rollouts = self._num_rollouts()
        rows = rollouts * self.stored_states
        kept = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape)), carry) if rows else ()
        dtype = jnp.dtype(self.cfg.history_dtype)
        return History.create(rollouts * self.horizon, obs, teacher_action, kept, dtype, leaves_out)

    def remember(self, history: History | None, experience: Experience) -> History | None:
        """The history with the newest rollout over its oldest one."""
        if history is None:
            return None
        carry: Carry = jax.tree.map(lambda x: x[:: self.length][: self.stored_states], experience.carry)
        steps = experience.obs, experience.teacher_action, experience.is_first
        return history.append(*steps, carry, experience.counts)

    def data(self, student: PolicyState, experience: Experience, history: History | None, key: Array) -> HistoryData:
        """The history with the newest rollout in it."""
        assert history is not None
        return HistoryData(history, student, key)

    def draw(self, data: HistoryData, number: Array, kinds: int) -> tuple[list[Array], Array, Array]:
        """What the sequences of batch ``number`` are drawn with and from.

        Each has a few neighbouring columns to itself, or shares one with others, so that no two devices draw from the
        same. Of these it takes one, as likely as it is long; its weight makes all steps alike.

        Returns:
            ``kinds`` times keys (N,), a column (N,) and a weight (N,) for each sequence.
        """
        keys = self.shards.keys(jax.random.fold_in(data.key, number), self.sequences)
        column_key, *others = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, kinds + 1))(keys), 1, 0)
        rows, columns = data.history.is_first.shape
        groups = min(columns, self.sequences)
        shared = strata(self.sequences, groups)[1].sum(axis=1)
        members, held = (np.repeat(x, shared, axis=0) for x in strata(columns, groups))
        ends = jnp.cumsum(jnp.where(held, data.history.length[members], 0), axis=1)
        steps = ends[:, -1]
        drawn = jax.vmap(lambda key, most: jax.random.randint(key, (), 0, most))(column_key, jnp.maximum(steps, 1))
        place = (ends <= drawn[:, None]).sum(axis=1)
        column = jnp.take_along_axis(jnp.asarray(members), place[:, None], axis=1)[:, 0]
        # In units of what a sequence of a full history stands for.
        weight = steps / (np.repeat(shared, shared) * rows * columns / self.sequences)
        return others, column, weight

    def _num_rollouts(self) -> int:
        """How many rollouts the history holds.

        Raises:
            ConfigError: not even one.
        """
        transitions = self.horizon * self.shards.count * self.num_envs
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
        history, slots = data.history, data.history.is_first.shape[0] // self.horizon
        (rollout_keys, place_keys), column, weight = self.draw(data, number, 2)
        # A dataset is as long as its longest column, which may be another device's.
        filled = jnp.asarray(slots) if self.cfg.dataset else -(-history.length.max() // self.horizon)
        rollout = jax.vmap(lambda key: self.draw_rollout(key, filled, slots))(rollout_keys)
        if self.carry_start != "stored":
            # The columns of a dataset end anywhere: what is drawn is a share of each one's own length.
            share = (rollout + jax.vmap(jax.random.uniform)(place_keys)) / filled
            steps = history.length[column]
            start = jnp.minimum((share * steps).astype(jnp.int32), steps - 1)
            return self._from_initial_carry(data, start, column, weight, initial_carry)
        place = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.stored_states))(place_keys)
        found = history.sequences(rollout * self.horizon + place * self.length, column, length)
        slot = (history.origin // self.horizon + rollout) % slots
        return Batch(
            obs=data.student.normalize(found.obs),
            teacher_action=found.teacher_action,
            carry=history.carry_at(slot * self.stored_states + place, column),
            reset=found.reset,
            reset_carry=initial_carry,
            weight=weight * found.known,
        )

    def _from_initial_carry(
        self, data: HistoryData, start: Array, column: Array, weight: Array, initial_carry: Carry
    ) -> Batch:
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
            weight=weight * (found.known & ((time >= before) | begun)),
        )

    def draw_rollout(self, rng: Array, filled: Array, slots: int) -> Array:
        """() which rollout a sequence begins in; 0 is the oldest of the ``filled`` ones."""
        return jax.random.randint(rng, (), 0, filled)


class Recent(Uniform):
    """Sequences from the history, newer rollouts more often."""

    def draw_rollout(self, rng: Array, filled: Array, slots: int) -> Array:
        """Rollout of age a with weight 2^(-a / half-life)."""
        age = filled - 1 - jnp.arange(slots)
        logits = jnp.where(age >= 0, -age * (jnp.log(2.0) / self.cfg.recency_half_life), -jnp.inf)
        return jax.random.categorical(rng, logits)


class Packed(HistorySampler):
    """Rows of whole episodes."""

    @property
    def length(self) -> int:
        """A row."""
        return self.cfg.row_length or self.max_episode_length

    def check(self) -> None:
        """Raise :class:`jdistill.errors.ConfigError` if the history is too short for a row."""
        super().check()
        num_envs = self.shards.count * self.num_envs
        if self.cfg.use_dagger and self.cfg.max_buffer_size < self.length * num_envs:
            raise ConfigError(
                f"agent.algorithm.max_buffer_size={self.cfg.max_buffer_size}: shorter than one row of {self.length} "
                f"steps in {num_envs} environments; raise it to {self.length * num_envs}"
            )

    def batch(self, data: HistoryData, number: Array, carry: Carry, initial_carry: Carry, length: int) -> Batch:
        """Rows that begin with the episodes of times drawn at random, so that long and short ones are seen alike."""
        history = data.history
        (time_keys,), column, weight = self.draw(data, number, 1)
        length_of_column = jnp.maximum(history.length[column], 1)
        time = jax.vmap(lambda key, most: jax.random.randint(key, (), 0, most))(time_keys, length_of_column)
        row = history.sequences(self._episode_start(history, time, column), column, length)
        # What precedes the first episode whose start is known has no known state.
        counts = row.known & (jnp.cumsum(row.is_first, axis=0) > 0)
        return Batch(
            obs=data.student.normalize(row.obs),
            teacher_action=row.teacher_action,
            carry=initial_carry,
            reset=row.reset,
            reset_carry=initial_carry,
            weight=weight * counts,
        )

    def _episode_start(self, history: History, time: Array, column: Array) -> Array:
        """Where the episodes at ``time`` (N,) began, or the next ones do if that is not known."""
        reach = max(self.length, self.max_episode_length)
        starts = history.episode_starts(time - reach + 1, column, 2 * reach)
        index = jnp.arange(2 * reach)[:, None]
        last = jnp.where(starts & (index < reach), index, -1).max(axis=0)
        following = jnp.where(starts & (index >= reach), index, 2 * reach).min(axis=0)
        return time - reach + 1 + jnp.where(last >= 0, last, jnp.where(following < 2 * reach, following, reach - 1))
