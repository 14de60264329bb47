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

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from bridge.env import EPISODE_METRIC_PREFIX, State, TrainingEnv
from jdistill import networks, observations
from jdistill.config import AgentCfg, AlgorithmCfg
from jdistill.networks import Carry, Policy, PolicyState

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


class Transition(NamedTuple):
    """One step, or stacked over time a rollout."""

    pipeline_state: Any
    """The simulator's state before the step."""
    obs: dict[str, Array]
    """The observation groups that the two policies use, before the step."""
    student_action: Array
    teacher_action: Array
    reward: Array
    done: Array
    metrics: dict[str, Array]


class Distillation:
    """Holds what is static (networks, environment, settings); every method is pure and can be jitted."""

    def __init__(self, env: TrainingEnv, student: Policy, teacher: Policy, cfg: AgentCfg):
        self.env = env
        self.student = student
        self.teacher = teacher
        self.cfg = cfg
        self.optimizer = make_optimizer(cfg.algorithm)
        self.loss = LOSS_FUNCTIONS[cfg.algorithm.loss_type]
        algorithm = cfg.algorithm
        self.phase1_iterations = algorithm.phase1_iterations if algorithm.use_two_stage_training else 0
        mixed = math.ceil(env.max_episode_length / cfg.num_steps_per_env) if self.phase1_iterations else 0
        self.first_pure_iteration = self.phase1_iterations + mixed
        """From here on every episode that ends was flown by the student from its start."""

    # -- state ---------------------------------------------------------------------------------------------------

    def init(self, rng: Array, teacher: PolicyState) -> TrainState:
        """A fresh student, optimiser and environment."""
        student_key, env_key, length_key, rng = jax.random.split(rng, 4)
        size = observations.size(self.cfg.obs_groups["student"], self.env.obs_sizes)
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
        )
        return jax.tree.map(_strong_type, state)

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

    def in_phase1(self, iteration: Array) -> Array:
        """() bool: whether the teacher's action steps the environment."""
        return iteration < self.phase1_iterations

    def rollout(self, state: TrainState) -> tuple[TrainState, Transition]:
        """Fly ``num_steps_per_env`` steps. The student's carry stays where it was: the update begins there."""
        teacher_steps = self.in_phase1(state.iteration)
        groups = observations.group_names([*self.cfg.obs_groups["student"], *self.cfg.obs_groups["teacher"]])
        rng, noise_key = jax.random.split(state.rng)

        def step(loop: Any, key: Array) -> Any:
            env_state, carries = loop
            obs = {g: env_state.obs[g] for g in groups}
            carries, student_action, teacher_action = self.act(state, carries, obs, key)
            action = jax.lax.cond(teacher_steps, lambda: teacher_action, lambda: student_action)
            if self.cfg.clip_actions is not None:
                action = jnp.clip(action, -self.cfg.clip_actions, self.cfg.clip_actions)
            with jax.named_scope("env_step"):
                after = self.env.step(env_state, action)
            carries = self._reset_carries(state, carries, after.done)
            transition = Transition(
                pipeline_state=env_state.pipeline_state,
                obs=obs,
                student_action=student_action,
                teacher_action=teacher_action,
                reward=after.reward,
                done=after.done,
                metrics=after.metrics,
            )
            return (after, carries), transition

        keys = jax.random.split(noise_key, self.cfg.num_steps_per_env)
        start = (state.env_state, (state.student_carry, state.teacher_carry))
        (env_state, (_, teacher_carry)), rollout = jax.lax.scan(step, start, keys)
        return state.replace(env_state=env_state, teacher_carry=teacher_carry, rng=rng), rollout

    def _reset_carries(self, state: TrainState, carries: tuple[Carry, Carry], done: Array) -> tuple[Carry, Carry]:
        """Where an episode ended, both policies forget."""
        first = (
            networks.initial_carry(self.student, state.student, self.env.num_envs),
            networks.initial_carry(self.teacher, state.teacher, self.env.num_envs),
        )
        return jax.tree.map(lambda f, c: jnp.where(done[:, None], f, c), first, carries)

    # -- update --------------------------------------------------------------------------------------------------

    def update(self, state: TrainState, rollout: Transition) -> tuple[TrainState, Array]:
        """Regress the student onto the teacher's actions; returns the mean loss per step."""
        length, epochs = self.cfg.algorithm.gradient_length, self.cfg.algorithm.num_learning_epochs
        horizon = rollout.done.shape[0]
        windows, leftover = divmod(epochs * horizon, length)
        raw_obs = self.obs_for("student", rollout.obs)
        data = (state.student.normalize(raw_obs), rollout.teacher_action, rollout.done)
        epoch_carry = state.student_carry
        decay = self.learning_rate_decay(state.iteration)

        def window_loss(params: Any, carry: Carry, start: Array, steps: int) -> tuple[Array, Carry]:
            at = start + jnp.arange(steps)
            obs, labels, dones = jax.tree.map(lambda x: x[at % horizon], data)
            # Every epoch begins where the rollout began; after the very last step nothing begins any more.
            restart = ((at + 1) % horizon == 0) & (at + 1 < epochs * horizon)
            sequence = (carry, obs, dones, restart, epoch_carry)
            out: Any = self.student.apply({"params": params}, *sequence, method=Policy.unroll)
            carry, actions = out
            return self.loss(actions, labels).mean(axis=(1, 2)).sum(), carry

        def learn(loop: Any, start: Array) -> Any:
            params, opt_state, carry = loop
            (loss, carry), grads = jax.value_and_grad(window_loss, has_aux=True)(params, carry, start, length)
            updates, opt_state = self.optimizer.update(grads, opt_state, params)
            updates = jax.tree.map(lambda u: decay * u, updates)
            return (optax.apply_updates(params, updates), opt_state, carry), loss

        loop = (state.student.params, state.opt_state, epoch_carry)
        (params, opt_state, carry), losses = jax.lax.scan(learn, loop, jnp.arange(windows) * length)
        total = losses.sum()
        if leftover:
            loss, carry = window_loss(params, carry, jnp.asarray(windows * length), leftover)
            total = total + loss
        normalizer = state.student.normalizer
        student = PolicyState(params=params, normalizer=normalizer and normalizer.update(raw_obs))
        state = state.replace(student=student, opt_state=opt_state, student_carry=carry)
        return state, total / (epochs * horizon)

    def learning_rate_decay(self, iteration: Array | int) -> Array | float:
        """Factor on the learning rate, 2^(-iteration / half-life); 1 without a half-life."""
        half_life = self.cfg.algorithm.learning_rate_half_life
        return 1.0 if half_life is None else 2.0 ** (-iteration / half_life)

    # -- iteration -----------------------------------------------------------------------------------------------

    def iteration(self, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        """Rollout and update; returns scalars to log (see :meth:`scalars`)."""
        # Episodes of phase 1, then those that saw the switch, say little of the student: the statistics start anew.
        anew = (state.iteration == self.phase1_iterations) | (state.iteration == self.first_pure_iteration)
        count = jnp.where(anew, 0, state.episodes.count)
        state = state.replace(episodes=state.episodes.replace(count=count))
        with jax.named_scope("rollout"):
            state, rollout = self.rollout(state)
        episodes = state.episodes.extend(
            rollout.done, rollout.metrics["episode_return"], rollout.metrics["episode_length"]
        )
        with jax.named_scope("update"):
            state, loss = self.update(state.replace(episodes=episodes), rollout)
        return state.replace(iteration=state.iteration + 1), self.scalars(state, rollout, loss)

    def scalars(self, state: TrainState, rollout: Transition, loss: Array) -> dict[str, Array]:
        """Scalars of one iteration by rsl_rl's log tags; ``finite/<rank>/<name>`` tells whether its data are finite."""
        mean_return, mean_length = state.episodes.means()
        # In the order of cause and effect: a broken observation breaks everything below it.
        finite = [(f"observation group '{name}'", x) for name, x in rollout.obs.items()]
        finite += [("the teacher's action", rollout.teacher_action), ("the student's action", rollout.student_action)]
        finite += [("the reward", rollout.reward), ("the loss", loss)]
        learnt = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((state.student, state.opt_state))])
        finite += [("the student's parameters", jnp.where(learnt.all(), 0.0, jnp.nan))]
        error = rollout.student_action - rollout.teacher_action
        return {
            "Loss/behavior": loss,
            "Policy/mean_action_error": jnp.abs(error).mean(),
            "Train/mean_reward": mean_return,
            "Train/mean_episode_length": mean_length,
            "Train/episodes": rollout.done.sum(),
            **episode_metrics(rollout),
            **{f"{FINITE}{rank}/{name}": jnp.isfinite(x).all() for rank, (name, x) in enumerate(finite)},
        }


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
    # Policies are many small arrays; as one flat vector the optimiser's arithmetic is a handful of kernels.
    return optax.flatten(optax.chain(*chain))


def _strong_type(x: Array) -> Array:
    """Drop JAX's weak typing, so that the first iteration's input is of the same type as every later one's."""
    return jax.lax.convert_element_type(x, x.dtype)
