"""Whose action steps the environments: beta, the probability that it is the teacher's, and how it falls.

The two stages of two-stage training are the special case of beta = 1, then 0. DAgger (Ross, Gordon, Bagnell 2011,
algorithm 3.1) asks for a beta that falls to 0; the schedules differ in how it falls once phase 1 is over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jdistill.core.config import AlgorithmCfg
from jdistill.core.sharding import WHOLE, Shards

SMALLEST = 0.01
"""An exponential beta below this is 0, so that there comes a time when the student acts alone."""
STUDENT_ONLY_EVERY = 10
"""With ``phase1_until_return``, the student acts in one of this many environments in phase 1 too."""


@dataclass(frozen=True)
class PhaseInfo:
    """The phase of an iteration."""

    use_two_stage_training: bool
    """Whether there are phases to speak of."""
    training_phase: int
    """1 or 2."""
    current_iteration: int
    phase1_iterations: int
    """The iteration at which phase 1 ends, as far as is known."""
    action_source: str
    """Whose actions step the environments: ``teacher``, ``student``, ``mixed``; ``dataset`` where nobody's do."""

    @property
    def is_switch(self) -> bool:
        """Whether phase 2 begins with this iteration, after a phase 1."""
        return self.current_iteration == self.phase1_iterations > 0 and self.action_source != "dataset"


class Schedule:
    """Static settings of the schedule; its methods can be traced."""

    def __init__(self, cfg: AlgorithmCfg, num_envs: int, rollouts_per_episode: int = 1, shards: Shards = WHOLE):
        """``num_envs`` of each of the ``shards``; ``rollouts_per_episode``: how many the longest episode may span."""
        self.cfg = cfg
        self.num_envs = num_envs
        self.shards = shards
        self.rollouts_per_episode = rollouts_per_episode
        self.phase1_iterations = cfg.phase1_iterations if cfg.use_two_stage_training else 0
        """Iterations of phase 1, in which beta is 1; with ``phase1_until_return`` the most of them."""
        self.decay_iterations = {
            "two_stage": 0,
            "linear": cfg.beta_iterations,
            "exponential": math.ceil(cfg.beta_half_life * math.log2(1 / SMALLEST)),
        }[cfg.beta_schedule]
        """Iterations after phase 1 in which beta falls to 0."""
        self.ever_teacher = self.phase1_iterations + self.decay_iterations > 0
        """Whether the teacher's action ever steps an environment."""
        self.student_only_envs = (
            -(-shards.count * num_envs // STUDENT_ONLY_EVERY) if cfg.phase1_until_return is not None else 0
        )
        """Environments, the first ones of all, in which the student always acts."""
        self.per_env = cfg.beta_schedule != "two_stage" or self.student_only_envs > 0
        """Whether environments differ in whose action steps them."""
        self.per_episode = self.per_env and cfg.beta_per == "episode"

    def beta(self, iteration: Array | int, phase1_end: Array | int) -> Array:
        """() float32, the probability that the teacher's action steps an environment in ``iteration``."""
        after = jnp.asarray(iteration - phase1_end, jnp.float32)
        decaying = {
            "two_stage": lambda: jnp.zeros(()),
            "linear": lambda: 1.0 - after / self.cfg.beta_iterations,
            "exponential": lambda: 2.0 ** (-after / self.cfg.beta_half_life),
        }[self.cfg.beta_schedule]()
        return jnp.where(after < 0, 1.0, jnp.where(after < self.decay_iterations, decaying, 0.0))

    def student_alone_from(self, phase1_end: Array | int) -> Array | int:
        """From this iteration on, in every episode that ends the student acted from its start."""
        return phase1_end + self.decay_iterations + (self.rollouts_per_episode if self.ever_teacher else 0)

    def is_student_only(self) -> Array:
        """(num_envs,) bool: environments in which the student always acts."""
        return self.shards.numbers(self.num_envs) < self.student_only_envs

    def draw(self, beta: Array, rng: Array) -> Array:
        """(num_envs,) bool: where the teacher acts, each with probability ``beta``."""
        drawn = jax.vmap(jax.random.uniform)(self.shards.keys(rng, self.num_envs))
        return (drawn < beta) & ~self.is_student_only()

    def phase1_end(self, iteration: Array, phase1_end: Array, mean_return: Array, episodes: Array) -> Array:
        """The iteration at which phase 1 ends, given the student's ``mean_return`` over ``episodes`` after this one."""
        assert self.cfg.phase1_until_return is not None
        reached = (mean_return >= self.cfg.phase1_until_return) & (episodes >= self.student_only_envs)
        return jnp.where((iteration < phase1_end) & reached, iteration + 1, phase1_end)

    def info(self, iteration: int, phase1_end: int, is_offline: bool = False) -> PhaseInfo:
        """The phase of ``iteration``; ``is_offline`` where a dataset takes the place of rollouts."""
        phase = 1 if iteration < phase1_end else 2
        source = "teacher" if phase == 1 else "mixed" if float(self.beta(iteration, phase1_end)) > 0 else "student"
        return PhaseInfo(
            use_two_stage_training=self.cfg.use_two_stage_training and not is_offline,
            training_phase=phase,
            current_iteration=iteration,
            phase1_iterations=phase1_end,
            action_source="dataset" if is_offline else source,
        )
