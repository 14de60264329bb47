"""What the regression is fed: every mode of training is a sampler that yields windows for the same loss.

A window is ``L`` steps of ``N`` sequences, a recurrent state to begin with, a flag where episodes end and a weight for
every step. ``streaming`` and ``minibatch`` take theirs from the newest rollout, the others from the history.

- ``streaming``: rsl_rl's windows. All environments at once, windows run on across epochs.
- ``minibatch``: every epoch shuffles the environments into ``num_mini_batches`` parts and goes through each part's
  rollout window by window.
- ``uniform``, ``recent``: every gradient step draws sequences from the history, each rollout as likely as the others,
  or half as likely as one ``recency_half_life`` rollouts newer.
- ``packed``: rows of ``row_length`` steps that begin where an episode begins, episodes one behind the other with
  resets between them, gradients through the whole row (RAPTOR, arXiv 2509.11481).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdistill.core.config import AlgorithmCfg, sampler_name
from jdistill.core.history import History
from jdistill.core.networks import Carry
from jdistill.errors import ConfigError


class Window(NamedTuple):
    """What one gradient step trains on: ``L`` steps of ``N`` sequences."""

    obs: Array
    """(L, N, D), normalised."""
    label: Array
    """(L, N, A), the teacher's actions."""
    done: Array
    """(L, N) bool, whether an episode ends with the step."""
    carry: Carry
    """The recurrent states at the first step, each (N, hidden)."""
    restart: Array | None = None
    """(L,) bool: after this step all sequences begin anew from ``restart_carry``. None: nowhere."""
    restart_carry: Carry | None = None
    begins: Array | None = None
    """(N,) bool: the sequence begins with an episode's initial state instead of ``carry``. None: nowhere."""
    burn_in: tuple[Array, Array] | None = None
    """``obs`` and ``done`` of the steps before the window: run from the initial state they give the state to begin with
    (in place of ``carry``), and nothing is learnt from them."""
    weight: Array | None = None
    """(L, N) of each step in the loss; None weighs all alike. The mean over sequences, summed over steps, is that of
    rsl_rl's window: ``gradient_length``."""


class Source(NamedTuple):
    """What an iteration's windows are made of."""

    normalize: Callable[[Array], Array]
    """The student's normaliser, as it was before the iteration."""
    key: Array
    """For all that is drawn at random."""
    carry: Carry
    """The student's recurrent states at the start of the rollout; shapes of (B, hidden) are all that is looked at
    where there is no rollout."""
    obs: Array | None = None
    """The newest rollout's observations (T, B, D), normalised; None without a rollout, like the next three."""
    label: Array | None = None
    done: Array | None = None
    begins: Array | None = None
    """(B,) bool: whether an episode begins with the rollout's first step."""
    history: History | None = None


@dataclass(frozen=True)
class Sampler:
    """Static sizes of a sampler. ``window`` can be traced and may be called for numbers 0 .. ``steps`` - 1."""

    cfg: AlgorithmCfg
    num_envs: int
    horizon: int
    """Steps of a rollout."""
    max_episode_length: int
    carry_start: str
    """``stored``, ``zero`` or ``burn_in``."""
    keeps_carry: ClassVar[bool] = True
    """Whether the next rollout goes on from the state in which the student ended this one, and not from that in
    which the update ended."""

    @property
    def sequences(self) -> int:
        """Sequences of a window (N)."""
        return self.num_envs // self.cfg.num_mini_batches

    @property
    def length(self) -> int:
        """Steps of a window (L)."""
        return self.cfg.gradient_length

    @property
    def steps(self) -> int:
        """Gradient steps of an iteration."""
        if self.cfg.gradient_steps is not None:
            return self.cfg.gradient_steps
        transitions = self.cfg.num_learning_epochs * self.horizon * self.num_envs
        return max(1, transitions // (self.length * self.sequences))

    @property
    def rest(self) -> int:
        """Steps left over at the end, which are evaluated and not learnt from."""
        return 0

    @property
    def total(self) -> float:
        """Steps that the sum of an iteration's losses stands for."""
        return self.steps * self.cfg.gradient_length

    def check(self) -> None:
        """Raise :class:`ConfigError` if the sizes do not go together."""
        if self.sequences < 1:
            raise ConfigError(
                f"agent.algorithm.num_mini_batches={self.cfg.num_mini_batches}: more than the {self.num_envs} "
                "environments"
            )

    def prepare(self, source: Source) -> Source:
        """What :meth:`window` is going to take its windows from, once for all of them."""
        return source

    def window(self, source: Source, number: Array, carry: Carry, steps: int) -> Window:
        """Window ``number`` of ``steps`` steps, after one that ended with ``carry``."""
        raise NotImplementedError

    def weigh(self, counts: Array) -> Array:
        """Weights (L, N) of the steps that count, the same for each and ``gradient_length`` in sum over a sequence."""
        return counts * (self.cfg.gradient_length * counts.shape[1] / jnp.maximum(counts.sum(), 1))


class Streaming(Sampler):
    """rsl_rl's windows, one after the other, the state going on from window to window."""

    keeps_carry = False

    @property
    def steps(self) -> int:
        """Whole windows of all epochs."""
        return self.cfg.num_learning_epochs * self.horizon // self.length

    @property
    def rest(self) -> int:
        """The last partial window."""
        return self.cfg.num_learning_epochs * self.horizon % self.length

    @property
    def total(self) -> float:
        """Every step once an epoch."""
        return self.cfg.num_learning_epochs * self.horizon

    def prepare(self, source: Source) -> Source:
        """The rollout, and once more its beginning, so that a window that runs on into the next epoch is one slice."""
        steps = self.horizon + self.length - 1
        rounds = -(-steps // self.horizon)
        obs, label, done = jax.tree.map(
            lambda x: jnp.concatenate([x] * rounds)[:steps], (source.obs, source.label, source.done)
        )
        return source._replace(obs=obs, label=label, done=done)

    def window(self, source: Source, number: Array, carry: Carry, steps: int) -> Window:
        """The steps from ``number * gradient_length`` on."""
        start = number * self.length
        obs, label, done = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start % self.horizon, steps),
            (source.obs, source.label, source.done),
        )
        at = start + jnp.arange(steps)
        # Every epoch begins where the rollout began; after the very last step nothing begins any more.
        restart = ((at + 1) % self.horizon == 0) & (at + 1 < self.total)
        return Window(obs, label, done, carry, restart, source.carry)


class Minibatch(Sampler):
    """The newest rollout, some environments at a time."""

    @property
    def windows(self) -> int:
        """Windows of a rollout; the last one may be partial."""
        return -(-self.horizon // self.length)

    @property
    def steps(self) -> int:
        """Every window of every part, in every epoch."""
        return self.cfg.num_learning_epochs * self.cfg.num_mini_batches * self.windows

    def window(self, source: Source, number: Array, carry: Carry, steps: int) -> Window:
        """Part by part, window by window."""
        assert source.obs is not None and source.label is not None and source.done is not None
        part, place = number // self.windows, number % self.windows
        epoch, part = part // self.cfg.num_mini_batches, part % self.cfg.num_mini_batches
        order = jax.random.permutation(jax.random.fold_in(source.key, epoch), self.num_envs)
        env = jax.lax.dynamic_slice_in_dim(order, part * self.sequences, self.sequences)
        at = place * self.length + jnp.arange(steps)
        row = jnp.minimum(at, self.horizon - 1)[:, None]
        counts = jnp.broadcast_to((at < self.horizon)[:, None], (steps, self.sequences))
        begins = source.begins[env] if source.begins is not None else jnp.zeros(self.sequences, bool)
        if self.carry_start == "burn_in":
            # What follows an episode's start is known exactly, however early in the rollout.
            ended = source.done[:, env]
            after_a_start = (jnp.cumsum(ended, axis=0) - ended)[row[:, 0]] > 0
            counts &= (at >= self.cfg.burn_in_steps)[:, None] | after_a_start | begins
        start = jax.tree.map(lambda x: x[env], source.carry)
        begins = begins | (self.carry_start != "stored")
        return Window(
            obs=source.obs[row, env],
            label=source.label[row, env],
            done=source.done[row, env],
            carry=jax.tree.map(lambda new, on: jnp.where(place == 0, new, on), start, carry),
            begins=begins & (place == 0),
            weight=self.weigh(counts),
        )


class Uniform(Sampler):
    """Sequences from anywhere in the history, all rollouts alike."""

    @property
    def states(self) -> int:
        """Recurrent states that the history keeps of a rollout, one at each place where a sequence may begin."""
        return -(-self.horizon // self.length) if self.carry_start == "stored" else 0

    def window(self, source: Source, number: Array, carry: Carry, steps: int) -> Window:
        """Sequences drawn anew for every number."""
        history = source.history
        assert history is not None
        rollout_key, place_key, flight_key = jax.random.split(jax.random.fold_in(source.key, number), 3)
        n, slots = self.sequences, history.obs.shape[0] // self.horizon
        filled = -(-history.length.max() // self.horizon)
        rollout = self.draw_rollouts(rollout_key, filled, slots)
        flight = draw_flights(flight_key, history, n)
        if self.carry_start != "stored":
            # The flights of a dataset end anywhere: what is drawn is a share of each one's own length.
            share = (rollout + jax.random.uniform(place_key, (n,))) / filled
            length = history.length[flight]
            start = jnp.minimum((share * length).astype(jnp.int32), length - 1)
            return self._with_initial_state(source, history, start, flight)
        place = jax.random.randint(place_key, (n,), 0, self.states)
        there = history.stretch(rollout * self.horizon + place * self.length, flight, steps)
        slot = (history.origin // self.horizon + rollout) % slots
        return Window(
            obs=source.normalize(there.obs),
            label=there.label,
            done=there.done,
            carry=history.carry_at(slot * self.states + place, flight),
            begins=there.begins[0],
            weight=self.weigh(there.known),
        )

    def _with_initial_state(self, source: Source, history: History, start: Array, flight: Array) -> Window:
        """Sequences that know no state to begin with: from the initial one, at once or after burning in."""
        before = self.cfg.burn_in_steps if self.carry_start == "burn_in" else 0
        there = history.stretch(start - before, flight, before + self.length)
        past, now = (jax.tree.map(lambda x: x[:before], there), jax.tree.map(lambda x: x[before:], there))
        # Where the history reaches less far back than the burn-in, only what follows an episode's start is exact.
        begun = jnp.cumsum(there.begins, axis=0)[before:] > 0
        at = start + jnp.arange(self.length)[:, None]
        return Window(
            obs=source.normalize(now.obs),
            label=now.label,
            done=now.done,
            carry=jax.tree.map(lambda x: jnp.zeros((self.sequences, *x.shape[1:])), source.carry),
            begins=now.begins[0] if before else jnp.ones(self.sequences, bool),
            burn_in=(source.normalize(past.obs), past.done) if before else None,
            weight=self.weigh(now.known & ((at >= before) | begun)),
        )

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


class Packed(Sampler):
    """Rows of whole episodes."""

    @property
    def length(self) -> int:
        """A row."""
        return self.cfg.row_length or self.max_episode_length

    def check(self) -> None:
        """Raise :class:`ConfigError` if the history is too short for a row."""
        super().check()
        if self.cfg.use_dagger and self.cfg.max_buffer_size < self.length * self.num_envs:
            raise ConfigError(
                f"agent.algorithm.max_buffer_size={self.cfg.max_buffer_size}: shorter than one row of {self.length} "
                f"steps in {self.num_envs} environments; raise it to {self.length * self.num_envs}"
            )

    def window(self, source: Source, number: Array, carry: Carry, steps: int) -> Window:
        """Rows that begin with the episodes of times drawn at random, so that long and short ones are seen alike."""
        history = source.history
        assert history is not None
        time_key, flight_key = jax.random.split(jax.random.fold_in(source.key, number))
        flight = draw_flights(flight_key, history, self.sequences)
        time = jax.random.randint(time_key, (self.sequences,), 0, history.length[flight])
        row = history.stretch(self._episode_start(history, time, flight), flight, steps)
        # What precedes the first episode whose start is known has no known state.
        counts = row.known & (jnp.cumsum(row.begins, axis=0) > 0)
        return Window(
            obs=source.normalize(row.obs),
            label=row.label,
            done=row.done,
            carry=jax.tree.map(lambda x: jnp.zeros((self.sequences, *x.shape[1:])), source.carry),
            begins=jnp.ones(self.sequences, bool),
            weight=self.weigh(counts),
        )

    def _episode_start(self, history: History, time: Array, flight: Array) -> Array:
        """Where the episodes at ``time`` (N,) began, or the next ones do if that is not known."""
        reach = max(self.length, self.max_episode_length)
        begins = history.begins(time - reach + 1, flight, 2 * reach)
        index = jnp.arange(2 * reach)[:, None]
        last = jnp.where(begins & (index < reach), index, -1).max(axis=0)
        following = jnp.where(begins & (index >= reach), index, 2 * reach).min(axis=0)
        return time - reach + 1 + jnp.where(last >= 0, last, jnp.where(following < 2 * reach, following, reach - 1))


def draw_flights(rng: Array, history: History, number: int) -> Array:
    """Flights (number,), each as likely as it is long, so that all steps are alike."""
    ends = jnp.cumsum(history.length)
    return jnp.searchsorted(ends, jax.random.randint(rng, (number,), 0, ends[-1]), side="right")


SAMPLERS: dict[str, type[Sampler]] = {
    "streaming": Streaming,
    "minibatch": Minibatch,
    "uniform": Uniform,
    "recent": Recent,
    "packed": Packed,
}


def make_sampler(
    cfg: AlgorithmCfg, num_envs: int, horizon: int, max_episode_length: int, carry_start: str | None = None
) -> Sampler:
    """The sampler that ``cfg`` names, for rollouts of ``horizon`` steps in ``num_envs`` environments."""
    start = cfg.carry_start or carry_start or "stored"
    return SAMPLERS[sampler_name(cfg)](cfg, num_envs, horizon, max_episode_length, start)
