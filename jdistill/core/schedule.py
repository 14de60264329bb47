"""Who steps the environments: beta, the probability that it is the teacher, and how it falls.

The two stages of two-stage training are the special case of beta = 1, then 0. DAgger (Ross, Gordon, Bagnell 2011,
algorithm 3.1) asks for a beta that falls to 0; the schedules differ in how it falls once phase 1 is over.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jdistill.core.config import AlgorithmCfg

SMALLEST = 0.01
"""An exponential beta below this is 0, so that there comes a time when the student is alone."""
PROBE_EVERY = 10
"""With ``phase1_until_return``, one of this many environments is flown by the student in phase 1 too."""


class Schedule:
    """Static settings of the schedule; its methods can be traced."""

    def __init__(self, cfg: AlgorithmCfg, num_envs: int):
        self.cfg = cfg
        self.num_envs = num_envs
        self.phase1_iterations = cfg.phase1_iterations if cfg.use_two_stage_training else 0
        """Iterations of phase 1, in which beta is 1; with ``phase1_until_return`` the most of them."""
        self.fall = {
            "two_stage": 0,
            "linear": cfg.beta_iterations,
            "exponential": math.ceil(cfg.beta_half_life * math.log2(1 / SMALLEST)),
        }[cfg.beta_schedule]
        """Iterations after phase 1 in which beta falls to 0."""
        self.probes = -(-num_envs // PROBE_EVERY) if cfg.phase1_until_return is not None else 0
        """Environments, the first ones, that the student always flies."""
        self.per_env = cfg.beta_schedule != "two_stage" or self.probes > 0
        """Whether environments differ in who steps them."""
        self.per_episode = self.per_env and cfg.beta_per == "episode"

    def beta(self, iteration: Array | int, phase1_end: Array | int) -> Array:
        """() float32, the probability that the teacher steps an environment in ``iteration``."""
        after = jnp.asarray(iteration - phase1_end, jnp.float32)
        falling = {
            "two_stage": lambda: jnp.zeros(()),
            "linear": lambda: 1.0 - after / self.cfg.beta_iterations,
            "exponential": lambda: 2.0 ** (-after / self.cfg.beta_half_life),
        }[self.cfg.beta_schedule]()
        return jnp.where(after < 0, 1.0, jnp.where(after < self.fall, falling, 0.0))

    def is_probe(self) -> Array:
        """(num_envs,) bool: environments that the student always flies."""
        return jnp.arange(self.num_envs) < self.probes

    def draw(self, beta: Array, rng: Array) -> Array:
        """(num_envs,) bool: which environments the teacher steps, each with probability ``beta``."""
        return (jax.random.uniform(rng, (self.num_envs,)) < beta) & ~self.is_probe()

    def phase1_end(self, iteration: Array, phase1_end: Array, mean_return: Array, episodes: Array) -> Array:
        """The iteration at which phase 1 ends, given the student's ``mean_return`` over ``episodes`` after this one."""
        assert self.cfg.phase1_until_return is not None
        reached = (mean_return >= self.cfg.phase1_until_return) & (episodes >= self.probes)
        return jnp.where((iteration < phase1_end) & reached, iteration + 1, phase1_end)

    def source(self, phase: int, beta: float) -> str:
        """Whose actions step the environments, in a word for the console."""
        if phase == 1:
            return "teacher"
        return "mixed" if beta > 0 else "student"


def select(teacher_steps: Array, teacher_action: Any, student_action: Any) -> Array:
    """The action (B, A) that steps: the same policy's everywhere if ``teacher_steps`` is (), else by each (B,)."""
    if teacher_steps.ndim == 0:
        return jax.lax.cond(teacher_steps, lambda: teacher_action, lambda: student_action)
    return jnp.where(teacher_steps[:, None], teacher_action, student_action)
