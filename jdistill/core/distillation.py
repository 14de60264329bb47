"""The algorithm, top to bottom: act, rollout, loss, update, iteration. Pure functions over pytrees, nothing else.

One iteration collects ``num_steps_per_env`` steps, in which teacher and student both act on every observation and the
action of one of them steps the environment, and then regresses the student onto the teacher's actions by truncated
backpropagation through time. Arrays of a rollout are (T, B, ...): time first, environments second.

The numbers follow rsl_rl 5.5's ``Distillation``: losses are means over environments and action dimensions, summed over
``gradient_length`` steps; windows run on across epochs; a leftover partial window is evaluated but not trained on;
every epoch starts from the recurrent state that the previous update left behind; the normalizer is updated after the
update. What differs on purpose is in ``docs/algorithm.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree

from bridge.env import State, TrainingEnv
from jdistill.core import networks, observations
from jdistill.core.actor import Actor, PolicyActor
from jdistill.core.config import AgentCfg, AlgorithmCfg
from jdistill.core.history import History
from jdistill.core.networks import Carry, Policy, PolicyState
from jdistill.core.rollout import Collector, Loop, Rollout, Transition
from jdistill.core.samplers import make_sampler
from jdistill.core.sampling import Batch, Experience, HistoryData, RolloutData
from jdistill.core.schedule import Schedule
from jdistill.core.sharding import WHOLE, Shards
from jdistill.core.statistics import EpisodeBuffer, Metrics, rollout_metrics, update_checks, whole_episodes


class TrainState(struct.PyTreeNode):
    """Everything that training needs to go on, the teacher aside. This pytree is the checkpoint."""

    iteration: Array
    """() int32, iterations completed; it decides the phase."""
    student: PolicyState
    opt_state: optax.OptState
    student_carry: Carry
    """Recurrent states at the start of the next rollout; where an episode begins there, it resets them first."""
    teacher_carry: Any
    env_state: State
    episodes: EpisodeBuffer
    rng: Array
    history: History | None = None
    """What was collected so far; None without ``use_dagger``."""
    phase1_end: Array | None = None
    """() int32, the iteration at which phase 1 ends as far as is known; None where that is fixed."""
    teacher_acts: Array | None = None
    """(B,) bool, whether the teacher acts in the present episode; None unless that is drawn per episode."""
    ema_params: Any = None
    """The moving average of the student's parameters; None without ``ema_decay``."""

    @property
    def saved_student(self) -> PolicyState:
        """The student that is worth keeping: with the average of its parameters, where there is one."""
        return self.student if self.ema_params is None else self.student.replace(params=self.ema_params)


class Distillation:
    """Holds what is static (environment, student's network, settings); every method is pure and can be jitted."""

    def __init__(self, env: TrainingEnv, student: Policy, cfg: AgentCfg, shards: Shards = WHOLE):
        """``env`` is one of the ``shards``: the environments of one device, of as many as there are."""
        self.env = env
        self.student = student
        self.cfg = cfg
        self.shards = shards
        self.optimizer = make_optimizer(cfg.algorithm)
        self.step_loss = LOSS_FUNCTIONS[cfg.algorithm.loss_type]
        rollouts_per_episode = math.ceil(env.max_episode_length / cfg.num_steps_per_env)
        self.schedule = Schedule(cfg.algorithm, env.num_envs, rollouts_per_episode, shards)
        self.sampler = make_sampler(
            cfg.algorithm, env.num_envs, cfg.num_steps_per_env, env.max_episode_length, student.is_recurrent, shards
        )
        self.groups = observations.group_names([*cfg.obs_groups["student"], *cfg.obs_groups["teacher"]])
        """The observation groups that the two policies use."""
        self.collector = Collector(
            env=env,
            schedule=self.schedule,
            groups=self.groups,
            num_steps=cfg.num_steps_per_env,
            clip_actions=cfg.clip_actions,
            noise_std=cfg.student.init_noise_std,
            stores_carries=bool(self.sampler.stored_states),
            restarts_nonfinite=cfg.on_nonfinite == "mask",
            # On a GPU a branch beside a callback is decided by the host, which would wait for the device in every step.
            both_act=self.schedule.per_env or (self.schedule.ever_teacher and getattr(env, "calls_back", False)),
            shards=shards,
        )

    # -- rollout -------------------------------------------------------------------------------------------------

    def rollout(self, state: TrainState, teacher: Actor) -> tuple[TrainState, Rollout]:
        """Step the environments ``num_steps_per_env`` times; see :class:`jdistill.core.rollout.Collector`."""
        rng, key = jax.random.split(state.rng)
        start = Loop(state.env_state, state.student_carry, state.teacher_carry, state.teacher_acts)
        student = PolicyActor(self.student, state.student, tuple(self.cfg.obs_groups["student"]))
        end, steps = self.collector.collect(start, student, teacher, self.beta(state), key)
        return state.replace(**end._asdict(), rng=rng), Rollout(steps, start_carry=state.student_carry)

    # -- loss ----------------------------------------------------------------------------------------------------

    def loss(self, params: Any, batch: Batch) -> tuple[Array, tuple[Array, Carry]]:
        """The losses of one batch times their weights: the mean over sequences, summed over steps.

        Also the weights' own such sum, and the carry after the batch.
        """
        carry, burn_in = batch.carry, self.sampler.burn_in
        if burn_in:
            carry, _ = jax.lax.stop_gradient(self.unroll(params, carry, batch.steps(slice(None, burn_in))))
            batch = batch.steps(slice(burn_in, None))
        carry, actions = self.unroll(params, carry, batch)
        losses = self.step_loss(actions, batch.teacher_action).mean(axis=2)
        weighted = (batch.weight * losses).mean(axis=1).sum()
        return weighted, (batch.weight.mean(axis=1).sum(), carry)

    def unroll(self, params: Any, carry: Carry, batch: Batch) -> tuple[Carry, Array]:
        """The student along a batch: the carry after it and its actions (L, N, A)."""
        sequence = (carry, batch.obs, batch.reset, batch.reset_carry)
        out: tuple[Carry, Array] = self.student.apply({"params": params}, *sequence, method=Policy.unroll)  # type: ignore[assignment]
        return out

    # -- update --------------------------------------------------------------------------------------------------

    def update(self, state: TrainState, rollout: Rollout) -> tuple[TrainState, Array]:
        """Regress the student onto the teacher's actions of the ``rollout`` that led to ``state``.

        Returns:
            The state, and the mean loss per step.
        """
        steps = rollout.steps
        obs = self.student_obs(steps.obs)
        experience = Experience(obs, steps.teacher_action, steps.is_first, rollout.start_carry, steps.student_carry)
        if self.collector.restarts_nonfinite:
            experience = experience.without_broken(steps.nonfinite, steps.done)
        rng, key = jax.random.split(state.rng) if self.sampler.is_random else (state.rng, state.rng)
        history = self.sampler.remember(state.history, experience)
        data = self.sampler.data(state.student, experience, history, key)
        state, carry, loss = self.regress(state.replace(rng=rng, history=history), data)
        if self.sampler.update_leaves_carry:
            state = state.replace(student_carry=carry)
        normalizer, seen = state.student.normalizer, observations.vector_of(experience.obs)
        student = state.student.replace(
            normalizer=normalizer and normalizer.update(seen, self.shards, experience.counts)
        )
        return state.replace(student=student), loss

    def regress(self, state: TrainState, data: RolloutData | HistoryData) -> tuple[TrainState, Carry, Array]:
        """The one regression: a gradient step for each batch; also the last carry and the mean loss per step."""
        sampler, decay = self.sampler, self.learning_rate_decay(state.iteration)
        # Policies are many small arrays; as one flat vector their gradients and the optimizer are a handful of kernels.
        flat, unravel = ravel_pytree(state.student.params)

        def batch_loss(flat: Array, number: Array, carry: Carry, length: int) -> tuple[Array, tuple[Array, Carry]]:
            params = unravel(flat)
            batch = sampler.batch(data, number, carry, self.initial_carry(params, sampler.sequences), length)
            return self.loss(params, batch)

        def gradient_step(loop: Any, number: Array) -> Any:
            flat, opt_state, carry = loop
            grad = jax.value_and_grad(batch_loss, has_aux=True)
            (loss, (weight, carry)), grads = grad(flat, number, carry, sampler.length)
            loss, weight, grads = self.shards.mean((loss, weight, grads))
            scale = loss_scale(weight)
            updates, opt_state = self.optimizer.update(scale * grads, opt_state, flat)
            return (flat + decay * updates, opt_state, carry), scale * loss

        def loss_scale(weight: Array, steps: int = self.cfg.algorithm.gradient_length) -> Array:
            """Makes the mean over the steps that count of their weighted sum, times ``steps``: rsl_rl's loss."""
            return jnp.where(weight > 0, steps / weight, 0.0)

        start = (flat, state.opt_state, self.initial_carry(state.student.params, sampler.sequences))
        (flat, opt_state, carry), losses = jax.lax.scan(gradient_step, start, jnp.arange(sampler.steps))
        total = losses.sum()
        if sampler.leftover:
            loss, (weight, carry) = batch_loss(flat, jnp.asarray(sampler.steps), carry, sampler.leftover)
            loss, weight = self.shards.mean((loss, weight))
            total = total + loss_scale(weight, sampler.leftover) * loss
        state = state.replace(student=state.student.replace(params=unravel(flat)), opt_state=opt_state)
        return state, carry, total / sampler.loss_steps

    def learning_rate_decay(self, iteration: Array | int) -> Array | float:
        """Factor on the learning rate, 2^(-iteration / half-life); 1 without a half-life."""
        half_life = self.cfg.algorithm.learning_rate_half_life
        return 1.0 if half_life is None else 2.0 ** (-iteration / half_life)

    def average(self, state: TrainState) -> TrainState:
        """With the newest parameters in their moving average, where there is one."""
        if state.ema_params is None or self.cfg.algorithm.ema_decay is None:
            return state
        young = (state.iteration + 1) / (state.iteration + 10)
        share = 1 - jnp.minimum(self.cfg.algorithm.ema_decay, young)
        mixed = jax.tree.map(lambda mean, new: mean + share * (new - mean), state.ema_params, state.student.params)
        return state.replace(ema_params=mixed)

    # -- iteration -----------------------------------------------------------------------------------------------

    def iteration(self, state: TrainState, teacher: Actor) -> tuple[TrainState, Metrics, Transition]:
        """Rollout and update; returns scalars to log and the rollout's steps."""
        beta = self.beta(state)
        state = self._forget_episodes(state)
        with jax.named_scope("rollout"):
            state, rollout = self.rollout(state, teacher)
        state = self._count_episodes(state, rollout.steps)
        with jax.named_scope("update"):
            state, loss = self.update(state, rollout)
            state = self.average(state)
        metrics = rollout_metrics(state, rollout.steps, loss, self.groups, self.shards)
        metrics = metrics.replace(scalars={**metrics.scalars, "Distillation/beta": beta})
        return state.replace(iteration=state.iteration + 1), metrics, rollout.steps

    def offline_iteration(self, state: TrainState, history: History) -> tuple[TrainState, Metrics]:
        """The update alone, on recorded data."""
        rng, key = jax.random.split(state.rng)
        with jax.named_scope("update"):
            data = HistoryData(history, state.student, key)
            state, _, loss = self.regress(state.replace(rng=rng), data)
            state = self.average(state)
        metrics = Metrics.create({"Loss/behavior": loss}, update_checks(state, loss), self.shards)
        return state.replace(iteration=state.iteration + 1), metrics

    def _forget_episodes(self, state: TrainState) -> TrainState:
        """Episodes of phase 1, then those that saw the switch, say little of the student: statistics start anew."""
        phase1_end = self.phase1_end(state)
        alone = self.schedule.student_alone_from(phase1_end)
        anew = (state.iteration == phase1_end) | (state.iteration == alone)
        count = jnp.where(anew, 0, state.episodes.count)
        return state.replace(episodes=state.episodes.replace(count=count))

    def _count_episodes(self, state: TrainState, steps: Transition) -> TrainState:
        """Enter the episodes that ended into the statistics, and end phase 1 where these say so."""
        ended = whole_episodes(steps)
        if state.phase1_end is not None:
            ended &= self.schedule.is_student_only() | (state.iteration >= state.phase1_end)
        of_episodes = steps.metrics["episode_return"], steps.metrics["episode_length"]
        episodes = state.episodes.extend(ended, *of_episodes, self.shards)
        state = state.replace(episodes=episodes)
        if state.phase1_end is None:
            return state
        end = self.schedule.phase1_end(state.iteration, state.phase1_end, episodes.means()[0], episodes.count)
        return state.replace(phase1_end=end)

    def phase1_end(self, state: TrainState) -> Array | int:
        """The iteration at which phase 1 ends, as far as is known."""
        return self.schedule.phase1_iterations if state.phase1_end is None else state.phase1_end

    def beta(self, state: TrainState) -> Array:
        """() float32, the probability that the teacher's action steps an environment."""
        return self.schedule.beta(state.iteration, self.phase1_end(state))

    # -- state ---------------------------------------------------------------------------------------------------

    def init(self, rng: Array, teacher: Actor) -> TrainState:
        """A fresh student, optimizer and environment."""
        student_key, env_key, length_key, rng = jax.random.split(rng, 4)
        env_keys, length_keys = (self.shards.keys(key, self.env.num_envs) for key in (env_key, length_key))
        student = networks.init(self.student, student_key, self.obs_size, self.cfg.student.obs_normalization)
        env_state = self.env.reset(env_keys)
        if self.cfg.init_at_random_ep_len:
            env_state = self.env.randomize_episode_length(env_state, length_keys)
        schedule, per_episode = self.schedule, None
        if schedule.per_episode:
            per_episode = schedule.draw(schedule.beta(0, schedule.phase1_iterations), jax.random.fold_in(rng, 1))
        state = TrainState(
            iteration=jnp.zeros((), jnp.int32),
            student=student,
            opt_state=self.optimizer.init(student.params),
            student_carry=self.initial_carry(student.params),
            teacher_carry=teacher.initial_carry(self.env.num_envs),
            env_state=env_state,
            episodes=EpisodeBuffer.create(),
            rng=rng,
            history=self.empty_history(),
            phase1_end=jnp.asarray(schedule.phase1_iterations, jnp.int32) if schedule.student_only_envs else None,
            teacher_acts=per_episode,
            ema_params=None if self.cfg.algorithm.ema_decay is None else student.params,
        )
        return _strongly_typed(state)

    def empty_history(self) -> History | None:
        """Room for what the sampler remembers; None if that is nothing."""
        envs = self.env.num_envs
        key = jax.random.key(0)
        student = jax.eval_shape(lambda: networks.init(self.student, key, self.obs_size, normalize=False))
        return self.sampler.empty_history(
            obs=jax.tree.map(lambda x: jnp.zeros((envs, *x.shape), x.dtype), self.obs_shapes),
            teacher_action=jnp.zeros((envs, self.env.num_actions)),
            carry=jax.eval_shape(self.initial_carry, student.params),
            leaves_out=self.collector.restarts_nonfinite,
        )

    def restart_episodes(self, state: TrainState, teacher: Actor) -> TrainState:
        """Begin all episodes anew, for environments whose saved state is not all of the simulator's.

        A history goes on, or begins empty where ``state`` has none.
        """
        env_key, rng = jax.random.split(state.rng)
        state = state.replace(
            student_carry=self.initial_carry(state.student.params),
            teacher_carry=teacher.initial_carry(self.env.num_envs),
            env_state=self.env.reset(self.shards.keys(env_key, self.env.num_envs)),
            history=state.history or self.empty_history(),
            # Drawn anew where episodes begin, which they do everywhere.
            teacher_acts=jnp.zeros(self.env.num_envs, bool) if self.schedule.per_episode else None,
            rng=rng,
        )
        return _strongly_typed(state)

    def initial_carry(self, params: Any, batch: int | None = None) -> Carry:
        """The student's recurrent state where episodes begin, in ``batch`` (default: all) environments."""
        state = PolicyState(params=params, normalizer=None)
        return networks.initial_carry(self.student, state, self.env.num_envs if batch is None else batch)

    def student_obs(self, obs: dict[str, Array]) -> Any:
        """The student's raw observation (..., D): its groups side by side."""
        return observations.select(obs, self.cfg.obs_groups["student"])

    @property
    def obs_size(self) -> int:
        """How many numbers the student observes, images aside."""
        return observations.size(self.cfg.obs_groups["student"], self.env.obs_specs)

    @property
    def obs_shapes(self) -> Any:
        """The student's observation, of one environment, without its numbers."""
        return observations.shapes(self.cfg.obs_groups["student"], self.env.obs_specs)


LOSS_FUNCTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "mse": lambda prediction, target: jnp.square(prediction - target),
    "huber": lambda prediction, target: optax.huber_loss(prediction, target, delta=1.0),
}
"""Elementwise losses, as torch defines them."""


def make_optimizer(cfg: AlgorithmCfg) -> optax.GradientTransformation:
    """optax's counterpart of rsl_rl's optimizer, with torch's defaults, behind clipping by global norm."""
    rate = cfg.learning_rate
    optimizers = {
        "adam": lambda: optax.adam(rate, eps=1e-8),
        "adamw": lambda: optax.adamw(rate, eps=1e-8, weight_decay=1e-2),
        "sgd": lambda: optax.sgd(rate),
        "rmsprop": lambda: optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False),
    }
    chain: Sequence[optax.GradientTransformation] = [optimizers[cfg.optimizer]()]
    if cfg.max_grad_norm:
        chain = [optax.clip_by_global_norm(cfg.max_grad_norm), *chain]
    return optax.flatten(optax.chain(*chain))


def _strongly_typed(state: TrainState) -> TrainState:
    """Drop JAX's weak typing, so that the first iteration's input is of the same type as every later one's."""
    typed: TrainState = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)
    return typed
