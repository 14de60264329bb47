"""The samplers by name. ``streaming`` and ``minibatch`` take their batches from the newest rollout, the others
(:mod:`jdistill.core.history_samplers`) from the history.

- ``streaming``: rsl_rl's windows. All environments at once, windows run on across epochs.
- ``minibatch``: every epoch deals the environments out into ``num_mini_batches`` parts and goes through each part's
  rollout window by window.
- ``uniform``, ``recent``: every gradient step draws sequences from the history, each rollout as likely as the others,
  or half as likely as one ``recency_half_life`` rollouts newer.
- ``packed``: rows of ``row_length`` steps that begin where an episode begins, episodes one behind the other with
  resets between them, gradients through the whole row (RAPTOR, arXiv 2509.11481).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from bridge.env import where_done
from jdistill.core.config import AlgorithmCfg, sampler_name
from jdistill.core.history import History
from jdistill.core.history_samplers import Packed, Recent, Uniform
from jdistill.core.networks import Carry, PolicyState
from jdistill.core.observations import Observation, vector_of, with_vector
from jdistill.core.sampling import Batch, Experience, RolloutData, Sampler, strata
from jdistill.core.sharding import WHOLE, Shards


class RolloutSampler(Sampler):
    """What the samplers of the newest rollout share."""

    def data(self, student: PolicyState, experience: Experience, history: History | None, key: Array) -> RolloutData:
        """The rollout with normalized observations."""
        return RolloutData(
            obs=student.normalize(experience.obs),
            teacher_action=experience.teacher_action,
            is_first=experience.is_first,
            carry=experience.start_carry,
            key=key,
            counts=experience.counts,
        )


class Streaming(RolloutSampler):
    """rsl_rl's windows, one after the other, the state going on from window to window."""

    is_random = False
    update_leaves_carry = True

    @property
    def steps(self) -> int:
        """Whole windows of all epochs."""
        return self.cfg.num_learning_epochs * self.horizon // self.length

    @property
    def leftover(self) -> int:
        """The last partial window."""
        return self.cfg.num_learning_epochs * self.horizon % self.length

    @property
    def loss_steps(self) -> float:
        """Every step once an epoch."""
        return self.cfg.num_learning_epochs * self.horizon

    def data(self, student: PolicyState, experience: Experience, history: History | None, key: Array) -> RolloutData:
        """The rollout, and once more its beginning, so that a window that runs on into the next epoch is one slice.

        Images are too large for that.
        """
        data = super().data(student, experience, history, key)
        steps = self.horizon + self.length - 1
        rounds = -(-steps // self.horizon)
        repeated = (vector_of(data.obs), data.teacher_action, data.is_first, data.counts)
        vector, teacher_action, is_first, counts = jax.tree.map(
            lambda x: jnp.concatenate([x] * rounds)[:steps], repeated
        )
        obs = with_vector(data.obs, vector)
        return data._replace(obs=obs, teacher_action=teacher_action, is_first=is_first, counts=counts)

    def batch(self, data: RolloutData, number: Array, carry: Carry, initial_carry: Carry, length: int) -> Batch:
        """The steps from ``number * gradient_length`` on."""
        start = number * self.length
        vector, teacher_action, is_first, counts = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start % self.horizon, length),
            (vector_of(data.obs), data.teacher_action, data.is_first, data.counts),
        )
        obs = with_vector(data.obs, vector)
        if isinstance(obs, Observation):
            row = (start + jnp.arange(length)) % self.horizon
            obs = obs.replace(images=jax.tree.map(lambda x: x[row], obs.images))
        # Every epoch begins with the state in which the rollout began.
        epoch_starts = ((start + jnp.arange(length)) % self.horizon == 0)[:, None]
        back = (epoch_starts & ~is_first)[..., None]
        return Batch(
            obs=obs,
            teacher_action=teacher_action,
            carry=carry,
            reset=is_first | epoch_starts,
            reset_carry=jax.tree.map(lambda s, i: jnp.where(back, s, i), data.carry, initial_carry),
            weight=jnp.ones(is_first.shape) if counts is None else counts.astype(jnp.float32),
        )


class Minibatch(RolloutSampler):
    """The newest rollout, some environments at a time."""

    @property
    def windows(self) -> int:
        """Windows of a rollout; the last one may be partial."""
        return -(-self.horizon // self.length)

    @property
    def steps(self) -> int:
        """Every window of every part, in every epoch."""
        return self.cfg.num_learning_epochs * self.cfg.num_mini_batches * self.windows

    def batch(self, data: RolloutData, number: Array, carry: Carry, initial_carry: Carry, length: int) -> Batch:
        """Part by part, window by window."""
        part, window = number // self.windows, number % self.windows
        epoch, part = part // self.cfg.num_mini_batches, part % self.cfg.num_mini_batches
        env = self._parts(jax.random.fold_in(data.key, epoch))[part]
        time = window * self.length + jnp.arange(length)
        row = jnp.minimum(time, self.horizon - 1)[:, None]
        is_first = data.is_first[row, env]
        counts = jnp.broadcast_to((time < self.horizon)[:, None], (length, self.sequences))
        if data.counts is not None:
            counts &= data.counts[row, env]
        if self.carry_start == "burn_in":
            # What follows an episode's start is known exactly, however early in the rollout.
            after_a_start = jnp.cumsum(data.is_first[:, env], axis=0)[row[:, 0]] > 0
            counts &= (time >= self.cfg.burn_in_steps)[:, None] | after_a_start
        start = jax.tree.map(lambda x: x[env], data.carry) if self.carry_start == "stored" else initial_carry
        return Batch(
            obs=jax.tree.map(lambda x: x[row, env], data.obs),
            teacher_action=data.teacher_action[row, env],
            carry=where_done(jnp.broadcast_to(window == 0, env.shape), start, carry),
            reset=is_first,
            reset_carry=initial_carry,
            weight=counts.astype(jnp.float32),
        )

    def _parts(self, key: Array) -> Array:
        """The environments of each part (parts, N): one of every ``parts`` neighbours, dealt out at random.

        So every device has its share of every part. Where the environments cannot be dealt out evenly, a few are left
        out, each time others.
        """
        members, held = strata(self.num_envs, self.sequences)
        drawn = jax.vmap(jax.random.uniform)(self.shards.keys(key, self.num_envs))
        order = jnp.argsort(jnp.where(held, drawn[members], jnp.inf), axis=1)
        return jnp.take_along_axis(jnp.asarray(members), order, axis=1).T


SAMPLERS: dict[str, type[Sampler]] = {
    "streaming": Streaming,
    "minibatch": Minibatch,
    "uniform": Uniform,
    "recent": Recent,
    "packed": Packed,
}


def make_sampler(
    cfg: AlgorithmCfg,
    num_envs: int,
    horizon: int,
    max_episode_length: int,
    is_recurrent: bool = True,
    shards: Shards = WHOLE,
) -> Sampler:
    """The sampler that ``cfg`` names, for rollouts of ``horizon`` steps in ``num_envs`` environments of each shard."""
    carry_start = cfg.carry_start or ("burn_in" if cfg.dataset else "stored")
    # Without a recurrent state there is none to store or to burn in.
    start = carry_start if is_recurrent else "zero"
    return SAMPLERS[sampler_name(cfg)](cfg, num_envs, horizon, max_episode_length, start, shards)
