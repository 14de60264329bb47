"""The one interface every simulator stands behind, shaped like Brax's.

An environment is a batch of ``num_envs`` independent copies of a task. ``reset(rng)`` starts them all,
``step(state, action)`` advances them all by one control step. Both are pure and can be traced by JAX; everything
that changes lives in the :class:`State` pytree.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from bridge.episodes import begin_episodes, count_episodes
from bridge.errors import RenderError, SettingError
from bridge.errors import SimulatorError as SimulatorError
from bridge.keys import keys_for, random_ages, split_keys
from bridge.nonfinite import finite_envs
from bridge.observation import Layout as Layout
from bridge.observation import ObservationSpec as ObservationSpec

Color = tuple[float, float, float]
"""Red, green, blue, each 0..1."""

EPISODE_METRIC_PREFIX = "Episode_"
"""Metrics whose name starts like this speak of a whole episode and are read at its last step only; all other
metrics are averaged over all steps."""
EPISODE_INFO = ("teacher_id",)
"""Entries of ``info``, each (B,), that belong to an episode: ``teacher_id`` (int32) is that of its craft's teacher."""


class State(struct.PyTreeNode):
    """What an environment hands back; the leading axis of every array is ``num_envs`` (B)."""

    pipeline_state: Any
    """The simulator's own state, a pytree (Brax's name for it). Leaves have the leading axis B too, so that finished
    environments can be replaced one by one; what is shared, a random key for one, belongs in ``info``."""
    obs: dict[str, Array]
    """Observation groups by name: vectors (B, D) float32, images (B, height, width, channels) uint8 or float32; see
    :class:`bridge.observation.ObservationSpec`."""
    reward: Array
    """(B,) float32, the reward of the step that led here."""
    done: Array
    """(B,) bool, whether that step ended an episode (by termination or by time)."""
    metrics: dict[str, Array]
    """Numbers to log, each (B,) float32; see :data:`EPISODE_METRIC_PREFIX`."""
    info: dict[str, Any]
    """Everything else; ``time_outs`` (B,) bool tells ends by time from terminations."""


@runtime_checkable
class Env(Protocol):
    """A batch of environments, itself immutable: all that changes is in the State.

    What it observes need not be declared, for it can be traced; see :func:`bridge.check.check_env`.
    """

    num_envs: int
    """Number of environments in the batch (B)."""
    num_actions: int
    """Size of one action (A). Actions are (B, A) float32 of any size: the task decides what they mean and where it
    clips them."""
    max_episode_length: int
    """Steps after which an episode is cut by time."""
    step_dt: float
    """Seconds of simulated time per step."""

    def reset(self, rng: Array) -> State:
        """Start all episodes.

        ``rng`` is one JAX key; where the environment has ``key_per_env = True``, (num_envs,) keys, each for one of
        them. Then a run's numbers do not depend on how many devices share its environments.
        """
        ...

    def step(self, state: State, action: Array) -> State:
        """Advance every environment by one control step."""
        ...


@runtime_checkable
class TrainingEnv(Env, Protocol):
    """What the learner takes: an :class:`Env` that restarts its own episodes and says what it is made of.

    After a step that ends an episode, ``obs`` and ``pipeline_state`` are those of the new episode, while ``reward``,
    ``done`` and ``metrics`` speak of the step that ended the old one. That is the convention of Isaac Lab and rsl_rl.
    ``info["time_outs"]`` (B,) bool tells ends by time from terminations; ``metrics["episode_return"]`` and
    ``metrics["episode_length"]`` (B,) float32 are the running sums, the finished episode's at a step with ``done``.
    """

    action_layout: Mapping[str, Any]
    """``layout`` (names in order), ``range``, ``rate_hz`` and ``terms`` of the actions, where the environment says."""
    restorable: bool
    """Whether a State holds all of the simulator, so that a saved one can be gone on with. One whose ``step`` calls the
    host back also has ``calls_back = True``."""

    @property
    def obs_specs(self) -> Mapping[str, ObservationSpec]:
        """Every observation group that there is. A State may hold only those that were asked for."""
        ...

    def reset(self, rng: Array) -> State:
        """See :class:`Env`; ``rng`` is one key or (num_envs,). Whoever draws for all at once takes the first."""
        ...

    def randomize_episode_length(self, state: State, rng: Array) -> State:
        """Pretend the episodes began at different times, rsl_rl's ``init_at_random_ep_len``; ``rng`` as for a reset."""
        ...

    def drive[T](self, program: Callable[..., T], *args: Any) -> T:
        """Run a compiled ``program`` that resets or steps this environment, and wait for its results.

        Raises:
            SimulatorError: the simulator failed.
        """
        ...

    def pop_log(self) -> dict[str, float]:
        """Scalars that the simulator has reported by itself since the last call, averaged."""
        ...


class Renderer(Protocol):
    """Draws one environment of a batch, step by step.

    An environment that can be drawn has ``renderer(width, height, color) -> Renderer``, where ``color`` is that of the
    path or whatever else marks a policy. It raises :class:`RenderError` where this machine cannot draw.
    """

    def frame(self, state: State, index: int = 0) -> np.ndarray:
        """Environment ``index`` of a state, which must be the simulator's newest: (height, width, 3) uint8."""
        ...

    def close(self) -> None:
        """Free what drawing takes."""
        ...


class Viewer(Protocol):
    """A window that shows several policies' episodes in one scene.

    An environment that opens one has ``viewer(colors) -> Viewer``, a color for each policy. It raises
    :class:`RenderError` where there is no display.
    """

    def show(self, states: Sequence[State], index: int = 0) -> bool:
        """Draw environment ``index`` of each policy's state; returns whether the window is still open."""
        ...

    def close(self) -> None:
        """Close the window."""
        ...


@runtime_checkable
class Parametric(Protocol):
    """An environment some of whose settings may be arguments of a compiled program.

    Environments of equal ``structure`` differ in their ``parameters`` alone, so a program that is traced with
    ``env.with_parameters(parameters)`` serves all of them.
    """

    structure: Hashable
    """What a compiled program depends on."""
    parameters: Any
    """A pytree of numbers."""

    def with_parameters(self, parameters: Any) -> Any:
        """The environment with other parameters, concrete or traced."""
        ...


SIZES = ("num_envs", "num_actions", "max_episode_length", "step_dt")
"""Of an environment: what is countable or lasts, and so is positive."""


def require(env: Any, *members: str) -> None:
    """Raise :class:`SettingError` unless ``env`` has all ``members`` of :class:`Env`, and its sizes make sense."""
    if missing := [name for name in members if not hasattr(env, name)]:
        raise SettingError(f"{type(env).__name__} has no {' and no '.join(missing)}; bridge.env.Env says what it needs")
    for name in set(members).intersection(SIZES):
        if not getattr(env, name) > 0:
            raise SettingError(f"{name} is {getattr(env, name)}, expected a positive number")


class Starts(struct.PyTreeNode):
    """Fresh states, one for each environment, drawn all at once."""

    fresh: Any
    """What each environment's next episode begins with; the leading axis of every array is B."""
    used: Array
    """(B,) bool, whether an episode has begun with it already."""
    rng: Array
    """The key of the next draw; (B,) keys where each environment draws for itself."""


class AutoReset:
    """Restarts finished environments inside ``step``, tells time-outs from terminations, keeps episode sums.

    It makes a :class:`TrainingEnv` of an :class:`Env`, which reports terminations in ``done`` and need not know about
    time. One that does says in ``info["truncation"]`` (B,) bool, Brax's name, which of them are ends by time. Where
    the environment has ``obs_layouts`` (group to :data:`bridge.observation.Layout`) and ``obs_frames`` (group to name),
    or ``obs_specs`` with both, the specs say so. Where it has ``observe_pipeline_state(pipeline_state) -> obs``,
    observations are made once a step, after the restarts. Added to the State:

    - ``info["time_outs"]`` (B,) bool: the episode ended by time alone.
    - ``info["episode_length_buf"]`` (B,) int32: the episode's age in steps, which the time limit is held against.
    - ``info["episode_steps_buf"]`` (B,) int32: steps really taken; see :meth:`randomize_episode_length`.
    - ``info["episode_return_buf"]`` (B,) float32: undiscounted return since the episode began.
    - ``info["starts"]`` (:class:`Starts`): what the next episodes begin with.
    - ``metrics["episode_return"]``, ``metrics["episode_length"]`` (B,) float32: the running sums, the finished
      episode's at a step with ``done``.
    """

    def __init__(self, env: Env, restarts_nonfinite: bool = False):
        """``restarts_nonfinite`` does what :func:`bridge.nonfinite.restarting` does. Raises :class:`SettingError` where
        ``env`` does not say how large it is."""
        require(env, *SIZES)
        self.env = env
        self.num_envs = env.num_envs
        self.num_actions = env.num_actions
        self.max_episode_length = env.max_episode_length
        self.step_dt = env.step_dt
        self.action_layout: Mapping[str, Any] = getattr(env, "action_layout", {})
        self.deployment: Mapping[str, Any] = getattr(env, "deployment", {})
        self.restorable = True
        self.restarts_nonfinite = restarts_nonfinite
        self._observe: Callable[[Any], dict[str, Array]] | None = getattr(env, "observe_pipeline_state", None)

    @cached_property
    def obs_specs(self) -> Mapping[str, ObservationSpec]:
        """See :class:`TrainingEnv`; found by :func:`bridge.check.check_env`, whose errors it raises."""
        from bridge.check import check_env  # It builds on this module.

        return check_env(self.env)

    @property
    def structure(self) -> Hashable:
        """See :class:`Parametric`; an environment that is not parametric is like no other."""
        return self.env.structure if isinstance(self.env, Parametric) else id(self.env)

    @property
    def parameters(self) -> Any:
        """See :class:`Parametric`."""
        return self.env.parameters if isinstance(self.env, Parametric) else ()

    def with_parameters(self, parameters: Any) -> AutoReset:
        """See :class:`Parametric`."""
        return self._with(self.env.with_parameters(parameters)) if isinstance(self.env, Parametric) else self

    def restarting_nonfinite(self) -> AutoReset:
        """See :func:`bridge.nonfinite.restarting`."""
        return self._with(self.env, restarts_nonfinite=True)

    def _with(self, env: Env, restarts_nonfinite: bool = False) -> AutoReset:
        other = AutoReset(env, restarts_nonfinite or self.restarts_nonfinite)
        # Shapes are a matter of the structure, so a traced program need not find them again.
        vars(other).update({k: v for k, v in vars(self).items() if k == "obs_specs"})
        return other

    def trace(self, state: State) -> dict[str, Array]:
        """What a picture of an episode shows, each (B, ...); empty where the environment has nothing to show."""
        return self.env.trace(state) if hasattr(self.env, "trace") else {}

    def reset(self, rng: Array) -> State:
        """Start all episodes at step 0."""
        rng, key = split_keys(keys_for(self.env, rng))
        state = self.env.reset(key)
        zeros, no, start = jnp.zeros(self.num_envs), jnp.zeros(self.num_envs, bool), self._start(state)
        return state.replace(
            done=no,
            metrics={**state.metrics, "episode_return": zeros, "episode_length": zeros},
            info={
                **state.info,
                **begin_episodes(self.num_envs),
                **({"nonfinite": no} if self.restarts_nonfinite else {}),
                "starts": Starts(start, ~no, rng),
                "time_outs": no,
                "episode_length_buf": jnp.zeros(self.num_envs, jnp.int32),
            },
        )

    def step(self, state: State, action: Array) -> State:
        """Advance, then restart what has ended."""
        stepped = self.env.step(state, action)
        if self.restarts_nonfinite:
            stepped = self._end_nonfinite(stepped)
        length, truncated = state.info["episode_length_buf"] + 1, stepped.info.get("truncation", False)
        terminated = stepped.done & jnp.logical_not(truncated)
        time_outs = (truncated | (length >= self.max_episode_length)) & ~terminated
        done = terminated | time_outs
        sums, counts = count_episodes(state.info, stepped.reward, done)

        starts = self._enough_starts(state.info["starts"], done)
        pipeline_state, obs, of_episode = where_done(done, starts.fresh, self._start(stepped))
        obs = self._observe(pipeline_state) if self._observe else obs
        return stepped.replace(
            pipeline_state=pipeline_state,
            obs=obs,
            done=done,
            metrics={**stepped.metrics, **sums},
            info={
                **stepped.info,
                **of_episode,
                **counts,
                "starts": starts.replace(used=starts.used | done),
                "time_outs": time_outs,
                "episode_length_buf": jnp.where(done, 0, length),
            },
        )

    def _end_nonfinite(self, stepped: State) -> State:
        """Episodes end where what an environment says is not finite."""
        obs = self._observe(stepped.pipeline_state) if self._observe else stepped.obs
        finite = finite_envs((obs, stepped.reward))
        said = (stepped.reward, stepped.metrics)
        reward, metrics = where_done(finite, said, jax.tree.map(jnp.zeros_like, said))
        info = {**stepped.info, "nonfinite": ~finite}
        return stepped.replace(reward=reward, metrics=metrics, done=stepped.done | ~finite, info=info)

    def _enough_starts(self, starts: Starts, done: Array) -> Starts:
        """Draw anew once an environment that is ``done`` (B,) has taken its start before.

        Drawing states of all environments costs about as much as a step. Episodes end at different times, so that in
        most steps nobody needs a new one.
        """

        def draw(starts: Starts) -> Starts:
            rng, key = split_keys(starts.rng)
            fresh = self._start(self.env.reset(key))
            if rng.ndim:  # What an environment draws does not hang on when the others need something.
                fresh, rng = where_done(starts.used, (fresh, rng), (starts.fresh, starts.rng))
            return Starts(fresh, jnp.zeros_like(starts.used), rng)

        return jax.lax.cond(jnp.any(done & starts.used), draw, lambda starts: starts, starts)

    def _start(self, state: State) -> Any:
        """What an episode begins with, of those that ``state`` is in: all that is needed to go on from there."""
        of_episode = {name: state.info[name] for name in EPISODE_INFO if name in state.info}
        return (state.pipeline_state, () if self._observe else state.obs, of_episode)

    def randomize_episode_length(self, state: State, rng: Array) -> State:
        """See :class:`TrainingEnv`: afterwards time-outs do not fall together."""
        length = random_ages(rng, self.num_envs, self.max_episode_length)
        return state.replace(info={**state.info, "episode_length_buf": length})

    def drive[T](self, program: Callable[..., T], *args: Any) -> T:
        """Run the program."""
        return jax.block_until_ready(program(*args))

    def pop_log(self) -> dict[str, float]:
        """Nothing: all scalars are in ``metrics``."""
        return {}

    def renderer(self, width: int, height: int, color: Color) -> Renderer:
        """See :class:`Renderer`."""
        return self._drawn().renderer(width, height, color)

    def viewer(self, colors: Sequence[Color]) -> Viewer:
        """See :class:`Viewer`."""
        return self._drawn().viewer(colors)

    def _drawn(self) -> Any:
        if not hasattr(self.env, "renderer"):
            raise RenderError(f"{type(self.env).__name__} draws no pictures; 'jdistill evaluate' has its numbers")
        return self.env


def where_done(done: Array, fresh: Any, current: Any) -> Any:
    """Per environment, take ``fresh`` where ``done`` (B,) and ``current`` elsewhere, leaf by leaf."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(done.reshape(done.shape + (1,) * (b.ndim - 1)), a, b)

    return jax.tree.map(choose, fresh, current)
