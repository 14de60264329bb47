"""A rollout: the environments' steps, and what both policies say of every observation.

Only the policy whose actions step the environments has to act step by step. What the other one would have done on the
same observations follows afterwards, for all steps at once: in one product of matrices a layer, in which only a
recurrence goes on step by step. Where environments differ in whose actions step them, and where a branch on the device
cannot be had, both act in every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bridge.env import State, TrainingEnv, where_done
from jdistill.core import observations
from jdistill.core.actor import Actor, follow, follow_step_by_step
from jdistill.core.networks import Carry
from jdistill.core.schedule import Schedule
from jdistill.core.sharding import WHOLE, Shards
from jdistill.core.statistics import is_first_step


class Transition(NamedTuple):
    """One step, or stacked over time a rollout."""

    pipeline_state: Any
    """The simulator's state before the step."""
    obs: dict[str, Array]
    """The observation groups that the two policies use, before the step; of many teachers also what chooses one."""
    is_first: Array
    """(B,) bool, whether an episode begins with the step."""
    student_action: Array
    teacher_action: Array
    teacher_acts: Array
    """(B,) bool, whether the teacher's action stepped the environment; () where it was the same for all."""
    reward: Array
    done: Array
    metrics: dict[str, Array]
    student_carry: Carry
    """The student's recurrent state before the step; () where the sampler stores none."""
    nonfinite: Any = ()
    """(B,) bool, whether the environment broke in the step and was restarted, so that ``done`` is set too; () unless
    the environments do that, see :func:`bridge.nonfinite.restarting`."""


class Rollout(NamedTuple):
    """The steps of one iteration."""

    steps: Transition
    """(T, B, ...)"""
    start_carry: Carry
    """The student's recurrent state before the first step, as the rollout before it left it."""


class Loop(NamedTuple):
    """What one step hands to the next, named as in :class:`jdistill.core.distillation.TrainState`."""

    env_state: State
    student_carry: Carry
    teacher_carry: Any
    teacher_acts: Array | None
    """(B,) bool, whether the teacher acts in the present episode; None unless that is drawn per episode."""


@dataclass(frozen=True)
class Collector:
    """Static settings of a rollout; :meth:`collect` can be traced."""

    env: TrainingEnv
    schedule: Schedule
    groups: Sequence[str]
    """The observation groups that the two policies use. A teacher may have ``groups`` of its own beside them."""
    num_steps: int
    """T."""
    clip_actions: float | None
    """Actions are clipped to [-clip_actions, clip_actions] before they step; None leaves them as they are."""
    noise_std: float
    """Standard deviation of the noise on the student's actions."""
    stores_carries: bool
    """Whether the student's recurrent state is kept of every step."""
    both_act: bool
    """Whether both policies act in every step, and ``Transition.teacher_acts`` is (T, B)."""
    shards: Shards = WHOLE
    """How the environments are divided."""
    restarts_nonfinite: bool = False
    """Whether the environments restart what is not finite, and say so."""

    def collect(self, start: Loop, student: Actor, teacher: Actor, beta: Array, rng: Array) -> tuple[Loop, Transition]:
        """The loop after ``num_steps`` steps, and the steps (T, B, ...); ``beta`` () is the teacher's share of them."""
        collector = dataclasses.replace(self, groups=[*self.groups, *getattr(teacher, "groups", ())])
        if self.both_act:
            return collector._mixed(start, student, teacher, beta, rng)
        return collector._one_acts(start, student, teacher, beta, rng)

    def _one_acts(
        self, start: Loop, student: Actor, teacher: Actor, beta: Array, rng: Array
    ) -> tuple[Loop, Transition]:
        """One of the two acts step by step, the other's actions follow."""
        teacher_acts = beta > 0
        initial = student.initial_carry(self.env.num_envs), teacher.initial_carry(self.env.num_envs)
        noise = self._noise(rng)

        def act(carries: tuple[Carry, Any], obs: dict[str, Array], is_first: Array, noise: Array | None) -> Any:
            student_carry, teacher_carry = before = where_done(is_first, initial, carries)

            def by_student() -> Any:
                with jax.named_scope("student"):
                    carry, action = student.act(student_carry, obs)
                return (carry, teacher_carry), action if noise is None else action + noise

            def by_teacher() -> Any:
                with jax.named_scope("teacher"):
                    carry, action = teacher.act(teacher_carry, obs)
                return (student_carry, carry), action

            carries, action = self._choose(teacher_acts, by_teacher, by_student)
            return carries, action, (action, before[0] if self.stores_carries else ())

        def teacher_follows() -> Any:
            with jax.named_scope("teacher"):
                carry, labels = follow(teacher, start.teacher_carry, steps["obs"], steps["is_first"])
            return (carries[0], carry), stored, action, labels

        def student_follows() -> Any:
            along, stored = (student, start.student_carry, steps["obs"], steps["is_first"]), ()
            with jax.named_scope("student"):
                if self.stores_carries:
                    carry, followed, stored = follow_step_by_step(*along)
                else:
                    carry, followed = follow(*along)
            return (carry, carries[1]), stored, followed if noise is None else followed + noise, action

        loop = (start.student_carry, start.teacher_carry)
        env_state, carries, steps, (action, stored) = self._steps(start.env_state, loop, act, noise)
        carries, stored, action, labels = self._choose(teacher_acts, student_follows, teacher_follows)
        acts = jnp.broadcast_to(teacher_acts, self.num_steps)
        return Loop(env_state, carries[0], carries[1], None), self._transition(steps, action, labels, acts, stored)

    def _choose(self, teacher_acts: Array, if_teacher: Callable[[], Any], if_student: Callable[[], Any]) -> Any:
        """What one of the two says; a teacher that never acts is not even compiled."""
        return jax.lax.cond(teacher_acts, if_teacher, if_student) if self.schedule.ever_teacher else if_student()

    def _mixed(self, start: Loop, student: Actor, teacher: Actor, beta: Array, rng: Array) -> tuple[Loop, Transition]:
        """Both act step by step: in each environment one of them steps, drawn per step or per episode."""
        noise_key, draw_key = jax.random.split(rng)
        initial = student.initial_carry(self.env.num_envs), teacher.initial_carry(self.env.num_envs)

        def act(loop: Any, obs: dict[str, Array], is_first: Array, inputs: tuple[Array, Array | None]) -> Any:
            *carries, per_episode = loop
            key, noise = inputs
            drawn = self.schedule.draw(beta, key)
            acts = drawn if per_episode is None else jnp.where(is_first, drawn, per_episode)
            before = where_done(is_first, initial, tuple(carries))
            with jax.named_scope("student"):
                carry, action = student.act(before[0], obs)
                action = action if noise is None else action + noise
            with jax.named_scope("teacher"):
                teacher_carry, label = teacher.act(before[1], obs)
            said = (action, label, acts, before[0] if self.stores_carries else ())
            loop = (carry, teacher_carry, None if per_episode is None else acts)
            return loop, jnp.where(acts[:, None], label, action), said

        inputs = (jax.random.split(draw_key, self.num_steps), self._noise(noise_key))
        env_state, loop, steps, said = self._steps(start.env_state, start[1:], act, inputs)
        action, label, acts, carries = said
        return Loop(env_state, loop[0], loop[1], loop[2]), self._transition(steps, action, label, acts, carries)

    def _steps(self, env_state: State, loop: Any, act: Callable[..., Any], inputs: Any) -> Any:
        """``act(loop, obs, is_first, inputs) -> (loop, action, kept)`` and step the environments, T times.

        Returns:
            The environments' last state, the last ``loop``, what the environments said and what was ``kept`` (T, ...).
        """

        def step(carried: Any, inputs: Any) -> Any:
            env_state, loop = carried
            seen = observations.visible(env_state)
            obs = {group: seen[group] for group in self.groups}
            is_first = is_first_step(env_state)
            loop, action, kept = act(loop, obs, is_first, inputs)
            if self.clip_actions is not None:
                action = jnp.clip(action, -self.clip_actions, self.clip_actions)
            with jax.named_scope("env_step"):
                after = self.env.step(env_state, action)
            said = {
                "pipeline_state": env_state.pipeline_state,
                "obs": obs,
                "is_first": is_first,
                "reward": after.reward,
                "done": after.done,
                "metrics": after.metrics,
                "nonfinite": after.info["nonfinite"] if self.restarts_nonfinite else (),
            }
            return (after, loop), (said, kept)

        (env_state, loop), (steps, kept) = jax.lax.scan(step, (env_state, loop), inputs, length=self.num_steps)
        return env_state, loop, steps, kept

    def _noise(self, rng: Array) -> Array | None:
        """(T, B, A) for the student's actions; None where there is none."""
        if self.noise_std <= 0:
            return None
        shape = (self.num_steps, self.env.num_actions)
        keys = self.shards.keys(rng, self.env.num_envs)
        return self.noise_std * jax.vmap(lambda key: jax.random.normal(key, shape), out_axes=1)(keys)

    @staticmethod
    def _transition(steps: Any, action: Array, label: Array, acts: Array, carries: Any) -> Transition:
        return Transition(
            student_action=action, teacher_action=label, teacher_acts=acts, student_carry=carries, **steps
        )
