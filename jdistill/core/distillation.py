"""The algorithm, top to bottom: act, rollout, update, iteration. Pure functions over pytrees, nothing else.

One iteration flies ``num_steps_per_env`` steps with two policies side by side, the action of one of which steps the
environment, and then regresses the student onto the teacher's actions by truncated backpropagation through time.
Arrays of a rollout are (T, B, ...): time first, environments second.

The numbers follow rsl_rl 5.5's ``Distillation``: losses are means over environments and action dimensions, summed
over ``gradient_length`` steps; windows run on across epochs; a leftover partial window is evaluated but not learnt
from; every epoch starts from the recurrent state that the previous update left behind; the normaliser is updated
after the update. One thing differs: a recurrent teacher's state goes on from where its rollout ended (rsl_rl winds it
back to where the rollout began).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree

from bridge.env import EPISODE_METRIC_PREFIX, State, TrainingEnv
from jdistill.core import history as histories
from jdistill.core import networks, observations
from jdistill.core.config import AgentCfg, AlgorithmCfg
from jdistill.core.history import History
from jdistill.core.networks import Carry, Policy, PolicyState
from jdistill.core.samplers import Source, Uniform, Window, make_sampler
from jdistill.core.schedule import Schedule, select

EPISODES = 100
"""Mean return and length are taken over this many episodes, as in rsl_rl."""

FINITE = "finite/"


class Episodes(struct.PyTreeNode):
    """Return and length of the last finished episodes, a ring."""

    returns: Array
    """(EPISODES,) float32."""
    lengths: Array
    """(EPISODES,) float32."""
    count: Array
    """() int32, episodes ever entered."""

    @staticmethod
    def create() -> Episodes:
        """No episodes yet."""
        zeros = jnp.zeros(EPISODES)
        return Episodes(returns=zeros, lengths=zeros, count=jnp.zeros((), jnp.int32))

    def extend(self, done: Array, returns: Array, lengths: Array) -> Episodes:
        """Enter the episodes that end where ``done`` (T, B), oldest first."""
        done = done.reshape(-1)
        order = jnp.cumsum(done)
        total = order[-1]
        # Only the newest EPISODES may write, else two of them could land in one slot.
        keep = done & (order > total - EPISODES)
        slot = jnp.where(keep, (self.count + order - 1) % EPISODES, EPISODES)
        return Episodes(
            returns=self.returns.at[slot].set(returns.reshape(-1), mode="drop"),
            lengths=self.lengths.at[slot].set(lengths.reshape(-1), mode="drop"),
            count=self.count + total.astype(jnp.int32),
        )

    def means(self) -> tuple[Array, Array]:
        """Mean return and mean length; NaN while there are none."""
        filled = jnp.arange(EPISODES) < self.count
        number = filled.sum()
        return (self.returns * filled).sum() / number, (self.lengths * filled).sum() / number


class TrainState(struct.PyTreeNode):
    """Everything that training needs to go on. This pytree is the checkpoint."""

    iteration: Array
    """() int32, iterations completed; it decides the phase."""
    student: PolicyState
    opt_state: optax.OptState
    teacher: PolicyState
    """Frozen, its normaliser too."""
    student_carry: Carry
    """At the start of the next rollout, which is also where each epoch of the next update starts."""
    teacher_carry: Carry
    env_state: State
    episodes: Episodes
    rng: Array
    history: History | None = None
    """What was collected so far; None without ``use_dagger``."""
    phase1_end: Array | None = None
    """() int32, the iteration at which phase 1 ends as far as is known; None where that is fixed."""
    teacher_drives: Array | None = None
    """(B,) bool, whether the teacher flies the present episode; None unless that is drawn per episode."""


class Transition(NamedTuple):
    """One step, or stacked over time a rollout."""

    pipeline_state: Any
    """The simulator's state before the step."""
    obs: dict[str, Array]
    """The observation groups that the two policies use, before the step."""
    student_action: Array
    teacher_action: Array
    teacher_steps: Array
    """(B,) bool, whether the teacher's action stepped the environment; () where it was the same for all."""
    reward: Array
    done: Array
    metrics: dict[str, Array]
    student_carry: Carry | None = None
    """The student's state after the step; None where the update needs only the state at the rollout's start."""


class Distillation:
    """Holds what is static (networks, environment, settings); every method is pure and can be jitted."""

    def __init__(self, env: TrainingEnv, student: Policy, teacher: Policy, cfg: AgentCfg):
        self.env = env
        self.student = student
        self.teacher = teacher
        self.cfg = cfg
        self.optimizer = make_optimizer(cfg.algorithm)
        self.loss = LOSS_FUNCTIONS[cfg.algorithm.loss_type]
        self.schedule = Schedule(cfg.algorithm, env.num_envs)
        self.phase1_iterations = self.schedule.phase1_iterations
        self.sampler = self._make_sampler("burn_in" if cfg.algorithm.dataset else "stored")

    def _make_sampler(self, carry_start: str) -> Any:
        # Without a recurrent state there is none to store or to burn in.
        algorithm = self.cfg.algorithm
        if not self.student.is_recurrent:
            algorithm = dataclasses.replace(algorithm, carry_start="zero")
        env = self.env
        return make_sampler(algorithm, env.num_envs, self.cfg.num_steps_per_env, env.max_episode_length, carry_start)

    def first_pure_iteration(self, phase1_end: Array | int) -> Array | int:
        """From here on every episode that ends was flown by the student from its start."""
        alone = phase1_end + self.schedule.fall
        mixed = math.ceil(self.env.max_episode_length / self.cfg.num_steps_per_env)
        ever = self.phase1_iterations + self.schedule.fall > 0
        return alone + (mixed if ever else 0)

    # -- state ---------------------------------------------------------------------------------------------------

    def init(self, rng: Array, teacher: PolicyState) -> TrainState:
        """A fresh student, optimiser and environment."""
        student_key, env_key, length_key, rng = jax.random.split(rng, 4)
        size = observations.size(self.cfg.obs_groups["student"], self.env.obs_specs)
        student = networks.init(self.student, student_key, size, self.cfg.student.obs_normalization)
        env_state = self.env.reset(env_key)
        if self.cfg.init_at_random_ep_len:
            env_state = self.env.randomize_episode_length(env_state, length_key)
        state = TrainState(
            iteration=jnp.zeros((), jnp.int32),
            student=student,
            opt_state=self.optimizer.init(student.params),
            teacher=teacher,
            student_carry=networks.initial_carry(self.student, student, self.env.num_envs),
            teacher_carry=networks.initial_carry(self.teacher, teacher, self.env.num_envs),
            env_state=env_state,
            episodes=Episodes.create(),
            rng=rng,
            history=self.empty_history(student),
            phase1_end=jnp.asarray(self.phase1_iterations, jnp.int32) if self.schedule.probes else None,
            teacher_drives=self.first_drivers(jax.random.fold_in(rng, 1)) if self.schedule.per_episode else None,
        )
        return jax.tree.map(_strong_type, state)

    def empty_history(self, student: PolicyState) -> History | None:
        """Room for as many rollouts as ``max_buffer_size`` allows; None without ``use_dagger``."""
        cfg, envs, steps = self.cfg.algorithm, self.env.num_envs, self.cfg.num_steps_per_env
        if not cfg.use_dagger:
            return None
        rollouts = histories.num_rollouts(cfg, steps * envs)
        states = rollouts * self.sampler.states if isinstance(self.sampler, Uniform) else 0
        carry = networks.initial_carry(self.student, student, envs) if states else ()
        return History.create(
            rollouts * steps,
            obs=jnp.zeros((envs, observations.size(self.cfg.obs_groups["student"], self.env.obs_specs))),
            label=jnp.zeros((envs, self.env.num_actions)),
            carry=jax.tree.map(lambda x: jnp.zeros((states, *x.shape)), carry),
            dtype=jnp.dtype(cfg.history_dtype),
        )

    def plan(self) -> histories.Plan | None:
        """How much the history is going to hold; None where there is none.

        Raises:
            ConfigError: it is too small for a rollout or for the sampler, or too large for the memory.
        """
        self.sampler.check()
        if not self.cfg.algorithm.use_dagger:
            return None
        size = observations.size(self.cfg.obs_groups["student"], self.env.obs_specs)
        empty = jax.eval_shape(
            lambda: self.empty_history(networks.init(self.student, jax.random.key(0), size, normalize=False))
        )
        return histories.plan(self.cfg.algorithm, empty, self.cfg.num_steps_per_env)

    def restart_episodes(self, state: TrainState) -> TrainState:
        """Begin all episodes anew, for environments whose saved state is not all of the simulator's."""
        env_key, rng = jax.random.split(state.rng)
        state = state.replace(
            student_carry=networks.initial_carry(self.student, state.student, self.env.num_envs),
            teacher_carry=networks.initial_carry(self.teacher, state.teacher, self.env.num_envs),
            env_state=self.env.reset(env_key),
            rng=rng,
        )
        return jax.tree.map(_strong_type, state)

    def obs_for(self, name: str, obs: dict[str, Array]) -> Array:
        """The observation of ``student`` or ``teacher``: its groups side by side (..., D)."""
        return observations.select(obs, self.cfg.obs_groups[name])

    # -- act -----------------------------------------------------------------------------------------------------

    def act(self, state: TrainState, carries: tuple[Carry, Carry], obs: dict[str, Array], rng: Array) -> Any:
        """Both policies' actions (B, A) for one step, and their next carries."""
        student_carry, teacher_carry = carries
        with jax.named_scope("teacher"):
            teacher_carry, teacher_action = networks.act(
                self.teacher, state.teacher, teacher_carry, self.obs_for("teacher", obs)
            )
        with jax.named_scope("student"):
            student_carry, student_action = networks.act(
                self.student, state.student, student_carry, self.obs_for("student", obs)
            )
            if self.cfg.student.init_noise_std > 0:
                noise = jax.random.normal(rng, student_action.shape)
                student_action = student_action + self.cfg.student.init_noise_std * noise
        return (student_carry, teacher_carry), student_action, teacher_action

    # -- rollout -------------------------------------------------------------------------------------------------

    def phase1_end(self, state: TrainState) -> Array | int:
        """The iteration at which phase 1 ends, as far as is known."""
        return self.phase1_iterations if state.phase1_end is None else state.phase1_end

    def beta(self, state: TrainState) -> Array:
        """() float32, the probability that the teacher's action steps an environment."""
        return self.schedule.beta(state.iteration, self.phase1_end(state))

    def first_drivers(self, rng: Array) -> Array:
        """Who flies the first episodes, where that is drawn per episode."""
        return self.schedule.draw(self.schedule.beta(0, self.phase1_iterations), rng)

    def rollout(self, state: TrainState) -> tuple[TrainState, Transition]:
        """Fly ``num_steps_per_env`` steps. The student's carry stays where it was: the update begins there."""
        beta = self.beta(state)
        groups = observations.group_names([*self.cfg.obs_groups["student"], *self.cfg.obs_groups["teacher"]])
        rng, noise_key = jax.random.split(state.rng)

        def step(loop: Any, key: Array) -> Any:
            env_state, carries, drivers = loop
            obs = {g: env_state.obs[g] for g in groups}
            carries, student_action, teacher_action = self.act(state, carries, obs, key)
            teacher_steps = self._teacher_steps(beta, drivers, key)
            action = select(teacher_steps, teacher_action, student_action)
            if self.cfg.clip_actions is not None:
                action = jnp.clip(action, -self.cfg.clip_actions, self.cfg.clip_actions)
            with jax.named_scope("env_step"):
                after = self.env.step(env_state, action)
            carries = self._reset_carries(state, carries, after.done)
            if drivers is not None:
                drivers = jnp.where(after.done, self.schedule.draw(beta, jax.random.fold_in(key, 1)), drivers)
            transition = Transition(
                pipeline_state=env_state.pipeline_state,
                obs=obs,
                student_action=student_action,
                teacher_action=teacher_action,
                teacher_steps=teacher_steps,
                reward=after.reward,
                done=after.done,
                metrics=after.metrics,
                student_carry=carries[0] if self.sampler.keeps_carry else None,
            )
            return (after, carries, drivers), transition

        keys = jax.random.split(noise_key, self.cfg.num_steps_per_env)
        start = (state.env_state, (state.student_carry, state.teacher_carry), state.teacher_drives)
        (env_state, (_, teacher_carry), drivers), rollout = jax.lax.scan(step, start, keys)
        after = state.replace(env_state=env_state, teacher_carry=teacher_carry, teacher_drives=drivers, rng=rng)
        return after, rollout

    def _teacher_steps(self, beta: Array, drivers: Array | None, key: Array) -> Array:
        """Whether the teacher's action steps: () where one policy steps all environments, else (B,)."""
        if not self.schedule.per_env:
            return beta > 0
        return drivers if drivers is not None else self.schedule.draw(beta, jax.random.fold_in(key, 1))

    def _reset_carries(self, state: TrainState, carries: tuple[Carry, Carry], done: Array) -> tuple[Carry, Carry]:
        """Where an episode ended, both policies forget."""
        first = (
            networks.initial_carry(self.student, state.student, self.env.num_envs),
            networks.initial_carry(self.teacher, state.teacher, self.env.num_envs),
        )
        return jax.tree.map(lambda f, c: jnp.where(done[:, None], f, c), first, carries)

    # -- update --------------------------------------------------------------------------------------------------

    def update(self, state: TrainState, rollout: Transition, begins: Array | None = None) -> tuple[TrainState, Array]:
        """Regress the student onto the teacher's actions; returns the mean loss per step.

        ``state`` is that after the rollout; ``begins`` (B,) tells where an episode begins with its first step.
        """
        raw_obs = self.obs_for("student", rollout.obs)
        key, rng = state.rng, state.rng
        if self.sampler.keeps_carry:
            rng, key = jax.random.split(state.rng)
        state = state.replace(rng=rng, history=self._remember(state, rollout, raw_obs, begins))
        source = Source(
            normalize=state.student.normalize,
            key=key,
            carry=state.student_carry,
            obs=state.student.normalize(raw_obs),
            label=rollout.teacher_action,
            done=rollout.done,
            begins=begins,
            history=state.history,
        )
        state, carry, loss = self.regress(state, self.sampler, source)
        if self.sampler.keeps_carry:
            carry = jax.tree.map(lambda x: x[-1], rollout.student_carry)
        normalizer = state.student.normalizer
        student = state.student.replace(normalizer=normalizer and normalizer.update(raw_obs))
        return state.replace(student=student, student_carry=carry), loss

    def _remember(self, state: TrainState, rollout: Transition, raw_obs: Array, begins: Array | None) -> History | None:
        """The history with the rollout in it."""
        if state.history is None:
            return None
        first = begins if begins is not None else jnp.zeros_like(rollout.done[0])
        carry: Carry = ()
        if isinstance(self.sampler, Uniform) and self.sampler.states:
            # A state after step t is one before step t + 1; the rollout's own start was before step 0.
            stride, states = self.sampler.length, self.sampler.states
            carry = jax.tree.map(
                lambda start, after: jnp.concatenate([start[None], after[stride - 1 :: stride][: states - 1]]),
                state.student_carry,
                rollout.student_carry,
            )
        first = jnp.concatenate([first[None], rollout.done[:-1]])
        return state.history.append(raw_obs, rollout.teacher_action, first, carry)

    def regress(self, state: TrainState, sampler: Any, source: Source) -> tuple[TrainState, Carry, Array]:
        """The one regression: a gradient step for each window; also the last carry and the mean loss per step."""
        decay = self.learning_rate_decay(state.iteration)
        source = sampler.prepare(source)
        # Policies are many small arrays; as one flat vector their gradients and the optimiser are a handful of kernels.
        flat, unravel = ravel_pytree(state.student.params)

        def flat_loss(flat: Array, window: Window) -> tuple[Array, Carry]:
            return self.window_loss(unravel(flat), window)

        def learn(loop: Any, number: Array) -> Any:
            flat, opt_state, carry = loop
            window = sampler.window(source, number, carry, sampler.length)
            (loss, carry), grads = jax.value_and_grad(flat_loss, has_aux=True)(flat, window)
            updates, opt_state = self.optimizer.update(grads, opt_state, flat)
            return (flat + decay * updates, opt_state, carry), loss

        start = jax.tree.map(lambda x: x[: sampler.sequences], source.carry)
        (flat, opt_state, carry), losses = jax.lax.scan(
            learn, (flat, state.opt_state, start), jnp.arange(sampler.steps)
        )
        params = unravel(flat)
        total = losses.sum()
        if sampler.rest:
            window = sampler.window(source, jnp.asarray(sampler.steps), carry, sampler.rest)
            loss, carry = self.window_loss(params, window)
            total = total + loss
        state = state.replace(student=state.student.replace(params=params), opt_state=opt_state)
        return state, carry, total / sampler.total

    def window_loss(self, params: Any, window: Window) -> tuple[Array, Carry]:
        """The loss of one window, summed over its steps, and the carry after it."""
        carry = self._first_carry(params, window)
        no_restart = (jnp.zeros(window.done.shape[0], bool), carry)
        restart = no_restart if window.restart is None else (window.restart, window.restart_carry)
        sequence = (carry, window.obs, window.done, *restart)
        out: Any = self.student.apply({"params": params}, *sequence, method=Policy.unroll)
        carry, actions = out
        losses = self.loss(actions, window.label)
        if window.weight is None:
            return losses.mean(axis=(1, 2)).sum(), carry
        return (window.weight * losses.mean(axis=2)).mean(axis=1).sum(), carry

    def _first_carry(self, params: Any, window: Window) -> Carry:
        """The recurrent states at the window's first step."""
        carry = window.carry
        student = PolicyState(params=params, normalizer=None)
        first = networks.initial_carry(self.student, student, window.done.shape[1])
        if window.burn_in is not None:
            obs, done = window.burn_in
            nowhere = jnp.zeros(done.shape[0], bool)
            out: Any = self.student.apply(
                {"params": jax.lax.stop_gradient(params)}, first, obs, done, nowhere, first, method=Policy.unroll
            )
            carry = jax.lax.stop_gradient(out[0])
        if window.begins is None:
            return carry
        begins = window.begins[:, None]
        return jax.tree.map(lambda f, c: jnp.where(begins, f, c), first, carry)

    def learning_rate_decay(self, iteration: Array | int) -> Array | float:
        """Factor on the learning rate, 2^(-iteration / half-life); 1 without a half-life."""
        half_life = self.cfg.algorithm.learning_rate_half_life
        return 1.0 if half_life is None else 2.0 ** (-iteration / half_life)

    # -- iteration -----------------------------------------------------------------------------------------------

    def iteration(self, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        """Rollout and update; returns scalars to log (see :meth:`scalars`)."""
        return self.recorded_iteration(state)[:2]

    def offline_iteration(self, state: TrainState, data: History) -> tuple[TrainState, dict[str, Array]]:
        """The update alone, on recorded ``data``."""
        rng, key = jax.random.split(state.rng)
        source = Source(normalize=state.student.normalize, key=key, carry=state.student_carry, history=data)
        with jax.named_scope("update"):
            state, _, loss = self.regress(state.replace(rng=rng), self.sampler, source)
        scalars = {"Loss/behavior": loss, **_finite([("the loss", loss), self._learnt(state)])}
        return state.replace(iteration=state.iteration + 1), scalars

    def recorded_iteration(self, state: TrainState) -> tuple[TrainState, dict[str, Array], Transition]:
        """The same as :meth:`iteration`, with the rollout."""
        # Episodes of phase 1, then those that saw the switch, say little of the student: the statistics start anew.
        phase1_end, beta = self.phase1_end(state), self.beta(state)
        anew = (state.iteration == phase1_end) | (state.iteration == self.first_pure_iteration(phase1_end))
        count = jnp.where(anew, 0, state.episodes.count)
        state = state.replace(episodes=state.episodes.replace(count=count))
        begins = first_steps(state.env_state)
        with jax.named_scope("rollout"):
            state, rollout = self.rollout(state)
        state = self._count_episodes(state, rollout)
        with jax.named_scope("update"):
            state, loss = self.update(state, rollout, begins)
        scalars = {**self.scalars(state, rollout, loss), "Distillation/beta": beta}
        return state.replace(iteration=state.iteration + 1), scalars, rollout

    def _count_episodes(self, state: TrainState, rollout: Transition) -> TrainState:
        """Enter the episodes that ended into the statistics, and end phase 1 where these say so."""
        ended = rollout.done
        if state.phase1_end is not None:
            ended &= self.schedule.is_probe() | (state.iteration >= state.phase1_end)
        episodes = state.episodes.extend(ended, rollout.metrics["episode_return"], rollout.metrics["episode_length"])
        state = state.replace(episodes=episodes)
        if state.phase1_end is None:
            return state
        end = self.schedule.phase1_end(state.iteration, state.phase1_end, episodes.means()[0], episodes.count)
        return state.replace(phase1_end=end)

    def scalars(self, state: TrainState, rollout: Transition, loss: Array) -> dict[str, Array]:
        """Scalars of one iteration by rsl_rl's log tags; ``finite/<rank>/<name>`` tells whether its data are finite."""
        mean_return, mean_length = state.episodes.means()
        # In the order of cause and effect: a broken observation breaks everything below it.
        finite = [(f"observation group '{name}'", x) for name, x in rollout.obs.items()]
        finite += [("the teacher's action", rollout.teacher_action), ("the student's action", rollout.student_action)]
        finite += [("the reward", rollout.reward), ("the loss", loss)]
        finite += [self._learnt(state)]
        error = rollout.student_action - rollout.teacher_action
        return {
            "Loss/behavior": loss,
            "Policy/mean_action_error": jnp.abs(error).mean(),
            "Train/mean_reward": mean_return,
            "Train/mean_episode_length": mean_length,
            "Train/episodes": rollout.done.sum(),
            "Distillation/teacher_share": rollout.teacher_steps.mean(),
            **episode_metrics(rollout),
            **_finite(finite),
        }

    @staticmethod
    def _learnt(state: TrainState) -> tuple[str, Array]:
        """A number that is finite if all that was learnt is."""
        learnt = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((state.student, state.opt_state))])
        return "the student's parameters", jnp.where(learnt.all(), 0.0, jnp.nan)


def _finite(named: Sequence[tuple[str, Array]]) -> dict[str, Array]:
    """Whether each is finite, in the order given."""
    return {f"{FINITE}{rank}/{name}": jnp.isfinite(x).all() for rank, (name, x) in enumerate(named)}


def first_steps(state: State) -> Array:
    """(B,) bool: where an episode begins with the next step: after a step that ended one, or after none at all."""
    return state.done | (state.metrics["episode_length"] == 0)


def episode_metrics(rollout: Transition) -> dict[str, Array]:
    """The environment's metrics, averaged over steps or, by their prefix, over finished episodes."""
    ended = rollout.done.sum()  # Where it is 0 the means are NaN, and the runner drops them.
    means = {}
    for name, value in rollout.metrics.items():
        if name.startswith(EPISODE_METRIC_PREFIX):
            means[name] = (value * rollout.done).sum() / ended
        elif name not in ("episode_return", "episode_length"):
            means[name] = value.mean()
    return means


LOSS_FUNCTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "mse": lambda prediction, label: jnp.square(prediction - label),
    "huber": lambda prediction, label: optax.huber_loss(prediction, label, delta=1.0),
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


def _strong_type(x: Array) -> Array:
    """Drop JAX's weak typing, so that the first iteration's input is of the same type as every later one's."""
    return jax.lax.convert_element_type(x, x.dtype)
