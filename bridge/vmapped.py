"""One environment of Brax's shape becomes a batch: ``reset(rng) -> state`` and ``step(state, action) -> state``, whose
state has ``obs``, ``reward``, ``done``, ``metrics`` and ``info``. Brax, MuJoCo Playground and gymnax come in this way.

All of the simulator's state, ``info`` included, travels in ``pipeline_state``, so that a restart restores all of it and
a checkpoint holds it. The wrappers of Brax and Playground restore the physics and the observations alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.env import SIZES, Color, Renderer, State, require
from bridge.errors import RenderError, SettingError

GROUP = "policy"
"""The name of observations that have none."""
EPISODE_LENGTH = 1000
"""Steps of an episode where nothing says how many: Brax's default."""


class Vmapped:
    """``num_envs`` copies of ``env``; see :class:`bridge.env.Env`.

    Observations keep their names; an array without one is ``policy``. Numbers of ``metrics`` become ``Metrics/<name>``.
    Where ``info`` tells time-outs in ``truncation``, as under Brax's ``EpisodeWrapper``, they are told on.
    """

    key_per_env = True

    def __init__(
        self,
        env: Any,
        num_envs: int,
        *,
        num_actions: int,
        max_episode_length: int,
        step_dt: float,
        action_layout: Mapping[str, Any] | None = None,
        clip: bool = True,
        is_batch: bool = False,
        draw: Callable[[int, int], Renderer] | None = None,
    ):
        """``clip`` says whether actions are cut to -1..1, ``is_batch`` whether ``env`` is a batch already; ``draw``
        makes a renderer, given width and height."""
        self.env, self.num_envs = env, num_envs
        self.num_actions, self.max_episode_length, self.step_dt = num_actions, max_episode_length, step_dt
        require(self, *SIZES)
        self.action_layout = {**({"range": [-1, 1]} if clip else {}), "rate_hz": round(1 / step_dt, 3)}
        self.action_layout |= action_layout or {}
        self._clip, self._draw = clip, draw
        self._reset, self._step = (env.reset, env.step) if is_batch else (jax.vmap(env.reset), jax.vmap(env.step))

    def reset(self, rng: Array) -> State:
        """Start all episodes from (num_envs,) keys."""
        # Brax's wrappers count axes, and take a key for the array of two numbers that it was once.
        return self._state(self._reset(jax.random.key_data(rng)))

    def step(self, state: State, action: Array) -> State:
        """Advance by one step with ``action`` (num_envs, num_actions)."""
        # Wrappers write into the dicts that they are given.
        sim = jax.tree.map(lambda x: x, state.pipeline_state)
        return self._state(self._step(sim, jnp.clip(action, -1.0, 1.0) if self._clip else action))

    def observe_pipeline_state(self, pipeline_state: Any) -> dict[str, Array]:
        """The observation groups of a simulator's state."""
        obs = pipeline_state.obs
        groups = _flat(obs) if isinstance(obs, Mapping) else {GROUP: obs}
        return {name: _group(value) for name, value in groups.items()}

    def _state(self, sim: Any) -> State:
        numbers = {k: v for k, v in _flat(sim.metrics).items() if v.shape == (self.num_envs,)}
        truncation = sim.info.get("truncation")
        return State(
            pipeline_state=sim,
            obs=self.observe_pipeline_state(sim),
            reward=sim.reward.astype(jnp.float32),
            done=sim.done.astype(bool),
            metrics={f"Metrics/{name}": value.astype(jnp.float32) for name, value in numbers.items()},
            info={} if truncation is None else {"truncation": truncation.astype(bool)},
        )

    def renderer(self, width: int, height: int, color: Color) -> Renderer:
        """See :class:`bridge.env.Renderer`."""
        if self._draw is None:
            raise RenderError("this environment draws no pictures; 'jdistill evaluate' has its numbers")
        return self._draw(width, height)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Array]:
    """Nested names as one, ``pixels/view_0``."""
    found: dict[str, Array] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _group(value: Array) -> Array:
    """An observation as (B, D) float32, or the image that it is."""
    if value.ndim == 4 and value.dtype == jnp.uint8:
        return value
    value = value.astype(jnp.float32)
    return value if value.ndim in (2, 4) else value.reshape(value.shape[0], -1)


Pose = Callable[[Any], Mapping[str, Array]]
"""From a simulator's state to ``qpos`` and what else of MuJoCo's ``MjData`` a picture needs, each (num_envs, ...)."""


def of_brax_shape(env: Any, num_envs: int, model: Any, pose: Pose, is_batch: bool | None = None) -> Vmapped:
    """An environment with Brax's interface, plain or in wrappers, as a batch.

    How long its episodes are says an ``EpisodeWrapper``, or the config of a Playground environment, else
    :data:`EPISODE_LENGTH`.

    Args:
        env: the environment.
        num_envs: how many there are to be.
        model: MuJoCo's, which knows the actuators' names and can be drawn; None where there is none.
        pose: what of a state is drawn.
        is_batch: whether the environment is a batch already; None finds it out, which takes as long as tracing it.

    Raises:
        SettingError: it is a batch of another size.
    """
    repeat = int(_attribute(env, "action_repeat") or 1)
    steps = _attribute(env, "episode_length") or getattr(_attribute(env, "_config"), "episode_length", EPISODE_LENGTH)

    def draw(width: int, height: int) -> Renderer:
        from bridge.mujoco_render import MujocoRenderer

        return MujocoRenderer(model, pose, width, height)

    names = [model.actuator(i).name for i in range(model.nu)] if model is not None else []
    return Vmapped(
        env,
        num_envs,
        num_actions=env.action_size,
        max_episode_length=-(-int(steps) // repeat),
        step_dt=round(float(env.dt) * repeat, 6),
        action_layout={"layout": names} if len(names) == env.action_size and all(names) else {},
        is_batch=_is_batch(env, num_envs) if is_batch is None else is_batch,
        draw=None if model is None else draw,
    )


def _attribute(env: Any, name: str) -> Any:
    """Of the environment or what it wraps."""
    while env is not None:
        if (found := vars(env).get(name)) is not None:
            return found
        env = vars(env).get("env")
    return None


def _is_batch(env: Any, num_envs: int) -> bool:
    """Whether ``reset`` takes a key for each environment, which its wrappers do not say."""
    one = jax.random.key_data(jax.random.key(0))
    try:
        shape = jax.eval_shape(env.reset, one).reward.shape
    except (TypeError, ValueError):
        shape = jax.eval_shape(env.reset, jnp.broadcast_to(one, (num_envs, *one.shape))).reward.shape
        if shape != (num_envs,):
            raise
        return True
    if shape:
        raise SettingError(
            f"{type(env).__name__} is a batch of {shape[0]} that takes one key: leave out its batch_size, "
            "env.num_envs says it"
        )
    return False
