"""gymnax as a back end: ``gymnax/Pendulum-v1`` and its other environments. Importing this needs no gymnax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.library import Library, parameters, setting, settings_class

if TYPE_CHECKING:
    from bridge.env import Env


class Gymnax(Library):
    """Every environment that gymnax has registered.

    Its settings are gymnax's own: what the environment's class takes, and the fields of its ``EnvParams``.
    ``max_steps_in_episode`` is the length of an episode, which ends by time then.
    """

    name = "gymnax"
    title = "gymnax"
    package = "gymnax"
    extra = "gymnax"
    packages = ("gymnax",)
    sources: ClassVar = {"registration.py": "_BUILTIN_ENV_IDS"}

    def registered(self) -> Sequence[str]:
        """By gymnax's names."""
        import gymnax

        return list(gymnax.registered_envs)

    def settings(self, name: str) -> type:
        """Those of the environment's class and of its parameters."""
        env, params = self._made(name, {})
        fields = {key: rest for key, *rest in parameters(type(env))}
        for field in dataclasses.fields(params):
            if (plain := setting(getattr(params, field.name))) is not None:
                fields[field.name] = list(plain)
        return settings_class([(key, *rest) for key, rest in fields.items()])

    def make(self, name: str, num_envs: int, settings: dict[str, Any]) -> Env:
        """A batch of the environment."""
        own = {key for key, *_ in parameters(type(self._made(name, {})[0]))}
        env, params = self._made(name, {k: v for k, v in settings.items() if k in own})
        return adapted(env, params.replace(**{k: v for k, v in settings.items() if k not in own}), num_envs)

    def defaults(self, name: str) -> Mapping[str, Any]:
        """Preferences among discrete actions have no range."""
        env, params = self._made(name, {})
        return {"student": {"output_activation": "identity"}} if is_discrete(env, params) else {}

    def adapt(self, found: Any, num_envs: int) -> Env | None:
        """One of gymnax's, or what ``gymnax.make`` returns: the environment and its parameters."""
        env, params = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not all(hasattr(env, name) for name in ("step_env", "reset_env", "default_params")):
            return None
        return adapted(env, env.default_params if params is None else params, num_envs)

    def _made(self, name: str, kwargs: dict[str, Any]) -> Any:
        import gymnax

        return gymnax.make(name, **kwargs)


def is_discrete(env: Any, params: Any) -> bool:
    """Whether an action is one of a number of choices."""
    return hasattr(env.action_space(params), "n")


def adapted(env: Any, params: Any, num_envs: int) -> Env:
    """``env`` with ``params`` as a batch. Policies act in -1..1, which spans the ranges of a box where it has finite
    ones; of a discrete action they give a preference for each choice, and the largest one is taken."""
    from bridge.vmapped import Vmapped

    size, layout, spoken = _actions(env.action_space(params), is_discrete(env, params))
    dt = next((float(getattr(params, name)) for name in ("dt", "tau") if hasattr(params, name)), 1.0)
    return Vmapped(
        _single(env, params, spoken),
        num_envs,
        num_actions=size,
        max_episode_length=int(params.max_steps_in_episode),
        step_dt=dt,
        action_layout=layout,
        clip="low" in layout,
        is_batch=False,
    )


def _actions(space: Any, discrete: bool) -> tuple[int, dict[str, Any], Callable[[Any], Any]]:
    """The size of an action (A,), what is known of its numbers, and how gymnax wants it."""
    import jax.numpy as jnp
    import numpy as np

    if discrete:
        return int(space.n), {"choices": int(space.n)}, lambda action: jnp.argmax(action).astype(space.dtype)
    low, high = (np.broadcast_to(getattr(space, end), space.shape) for end in ("low", "high"))
    size = int(np.prod(space.shape))
    if np.isfinite(low).all() and np.isfinite(high).all():
        layout = {"low": low.ravel().tolist(), "high": high.ravel().tolist()}
        return size, layout, lambda action: low + (action.reshape(low.shape) + 1) / 2 * (high - low)
    return size, {}, lambda action: jnp.clip(action.reshape(low.shape), low, high)


def _single(env: Any, params: Any, spoken: Callable[[Any], Any]) -> Any:
    """One environment in Brax's shape."""
    import jax
    import jax.numpy as jnp
    from flax import struct

    class Sim(struct.PyTreeNode):
        """gymnax's state and what came with it, in Brax's names."""

        state: Any
        rng: Any
        obs: Any
        reward: Any
        done: Any
        metrics: dict[str, Any]
        info: dict[str, Any]

    class Single:
        """``reset`` and ``step``."""

        def reset(self, rng: Any) -> Sim:
            rng, key = jax.random.split(rng)
            obs, state = env.reset_env(key, params)
            no = jnp.bool(False)
            return Sim(state, rng, jnp.ravel(obs), jnp.float32(0), no, {}, {"truncation": no})

        def step(self, sim: Sim, action: Any) -> Sim:
            rng, key = jax.random.split(sim.rng)
            # ``step`` would restart it at once, and not tell why it ended.
            obs, state, reward, terminated, _ = env.step_env(key, sim.state, spoken(action), params)
            truncated = env.is_truncated(state, params) & ~terminated
            state = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), state, sim.state)
            reward = jnp.asarray(reward, jnp.float32).reshape(())
            return Sim(state, rng, jnp.ravel(obs), reward, terminated | truncated, {}, {"truncation": truncated})

    return Single()
