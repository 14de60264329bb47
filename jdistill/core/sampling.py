"""What the update trains on, and the interface of a sampler: every mode of training yields batches for the same loss.

A batch is ``L`` steps of ``N`` sequences, the recurrent state to begin with, where and to what that state is reset, and
a weight for every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdistill.core.config import AlgorithmCfg
from jdistill.core.history import History
from jdistill.core.networks import Carry, PolicyState
from jdistill.core.sharding import WHOLE, Shards
from jdistill.errors import ConfigError


class Batch(NamedTuple):
    """What one gradient step trains on: ``L`` steps of ``N`` sequences."""

    obs: Any
    """(L, N, D), normalized; where there are images, an :class:`jdistill.core.observations.Observation`."""
    teacher_action: Array
    """(L, N, A), the targets."""
    carry: Carry
    """The recurrent states before the first step, each (N, hidden)."""
    reset: Array
    """(L, N) bool: before this step the recurrent state becomes ``reset_carry``."""
    reset_carry: Carry
    """Each (L, N, hidden), or (N, hidden) where it is the same at all steps."""
    weight: Array
    """(L, N) of each step in the loss, 0 where it does not count, in any unit that is the same for all sequences."""

    def steps(self, part: slice) -> Batch:
        """Some of the steps."""
        return self._replace(
            obs=jax.tree.map(lambda x: x[part], self.obs),
            teacher_action=self.teacher_action[part],
            reset=self.reset[part],
            reset_carry=jax.tree.map(lambda x: x[part] if x.ndim == 3 else x, self.reset_carry),
            weight=self.weight[part],
        )


class Experience(NamedTuple):
    """What the student learns from in the newest rollout."""

    obs: Any
    """(T, B, D), the student's raw observation."""
    teacher_action: Array
    """(T, B, A)"""
    is_first: Array
    """(T, B) bool, whether an episode begins with the step."""
    start_carry: Carry
    """The student's recurrent states before the first step, each (B, hidden)."""
    carry: Carry
    """Those before every step, each (T, B, hidden), resets done; () where the sampler stores no states."""
    counts: Array | None = None
    """(T, B) bool, whether the step is learned from; None where all are."""

    def without_broken(self, nonfinite: Array, done: Array) -> Experience:
        """Leave out the episodes in which an environment broke: at ``nonfinite`` (T, B), where ``done`` (T, B) too.

        What came before may have been absurd for long. Their numbers become 0, which can be weighted with 0.
        """

        def step(broken: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            breaks, ends = inputs
            broken = breaks | (broken & ~ends)
            return broken, ~broken

        none = jnp.zeros(done.shape[1:], bool)
        counts = jax.lax.scan(step, none, (nonfinite, done), reverse=True)[1]

        def kept(x: Array) -> Array:
            return jnp.where(counts.reshape(*counts.shape, *[1] * (x.ndim - 2)), x, jnp.zeros((), x.dtype))

        return self._replace(
            obs=jax.tree.map(kept, self.obs),
            teacher_action=kept(self.teacher_action),
            carry=jax.tree.map(kept, self.carry),
            counts=counts,
        )


class RolloutData(NamedTuple):
    """The newest rollout, as the samplers of rollouts take their batches from it."""

    obs: Any
    """(T, B, D), normalized."""
    teacher_action: Array
    """(T, B, A)"""
    is_first: Array
    """(T, B) bool"""
    carry: Carry
    """The student's recurrent states before the first step, each (B, hidden)."""
    key: Array
    """For all that is drawn at random."""
    counts: Array | None = None
    """(T, B) bool, whether the step is learned from; None where all are."""


class HistoryData(NamedTuple):
    """A history, as its samplers take their batches from it."""

    history: History
    student: PolicyState
    """As it was before the iteration; its normalizer is the one in use."""
    key: Array
    """For all that is drawn at random."""


@dataclass(frozen=True)
class Sampler:
    """Static sizes of a sampler. ``batch`` can be traced and may be called for numbers 0 .. ``steps`` - 1."""

    cfg: AlgorithmCfg
    num_envs: int
    horizon: int
    """Steps of a rollout."""
    max_episode_length: int
    carry_start: str
    """``stored``, ``zero`` or ``burn_in``."""
    shards: Shards = WHOLE
    """How the environments are divided; all other sizes are those of one part."""
    is_random: ClassVar[bool] = True
    """Whether batches are drawn with a key."""
    update_leaves_carry: ClassVar[bool] = False
    """Whether the next rollout goes on from the state in which the update ended, as in rsl_rl, and not from that in
    which this rollout ended."""
    stored_states: ClassVar[int] = 0
    """Recurrent states that are kept of a rollout."""

    @property
    def sequences(self) -> int:
        """Sequences of a batch (N)."""
        return self.num_envs // self.cfg.num_mini_batches

    @property
    def length(self) -> int:
        """Steps of a batch that count in its loss (L)."""
        return self.cfg.gradient_length

    @property
    def burn_in(self) -> int:
        """Steps at the beginning of a batch, before the ``length`` others, that only bring the state up to date."""
        return 0

    @property
    def steps(self) -> int:
        """Gradient steps of an iteration."""
        if self.cfg.gradient_steps is not None:
            return self.cfg.gradient_steps
        transitions = self.cfg.num_learning_epochs * self.horizon * self.num_envs
        return max(1, transitions // (self.length * self.sequences))

    @property
    def leftover(self) -> int:
        """Steps left over at the end, which are evaluated and not trained on."""
        return 0

    @property
    def loss_steps(self) -> float:
        """Steps that the sum of an iteration's losses stands for."""
        return self.steps * self.cfg.gradient_length

    def check(self) -> None:
        """Raise :class:`jdistill.errors.ConfigError` if the sizes do not go together."""
        if self.sequences < 1:
            raise ConfigError(
                f"agent.algorithm.num_mini_batches={self.cfg.num_mini_batches}: more than the {self.num_envs} "
                f"environments{' of a device' if self.shards.count > 1 else ''}"
            )

    def empty_history(self, obs: Any, teacher_action: Array, carry: Carry, leaves_out: bool = False) -> History | None:
        """Room for what :meth:`remember` keeps; None if that is nothing.

        The arguments show the shapes of one step, (B, ...); ``leaves_out`` tells whether some may not count.
        """
        return None

    def remember(self, history: History | None, experience: Experience) -> History | None:
        """The history with the newest rollout in it."""
        return history

    def data(self, student: PolicyState, experience: Experience, history: History | None, key: Array) -> Any:
        """What :meth:`batch` takes its batches from, once for all of them."""
        raise NotImplementedError

    def batch(self, data: Any, number: Array, carry: Carry, initial_carry: Carry, length: int) -> Batch:
        """Batch ``number`` with ``length`` steps that count, after one that ended with ``carry``.

        ``initial_carry``, each (N, hidden), is the state in which episodes begin; gradients flow into it.
        """
        raise NotImplementedError


def strata(size: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """0 .. ``size`` - 1 in ``number`` groups of neighbours, as equal as can be.

    Returns:
        The members (number, W) of each group, and (number, W) bool, whether a place holds one.
    """
    groups = np.array_split(np.arange(size), number)
    width = max(map(len, groups))
    held = np.array([[i < len(group) for i in range(width)] for group in groups])
    return np.array([np.pad(group, (0, width - len(group))) for group in groups]), held
