"""Whether an environment keeps to the interface, found out by tracing it: nothing is run.

A slip in an environment of one's own (a group of the wrong rank, a counter that is an integer, a metric that only
``step`` has) would surface as JAX's complaint about some program of ours. Here it is one line that names the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.env import SIZES, Env, ObservationSpec, State, require
from bridge.errors import SettingError
from bridge.keys import keys_for
from bridge.observation import looks_channels_first


def check_env(env: Env) -> dict[str, ObservationSpec]:
    """The observation groups of ``env``, which is traced, not run, to see that it keeps to :class:`Env`.

    Raises:
        SettingError: it does not; one line names the field, what it is and what it should be.
    """
    name = type(env).__name__
    require(env, *SIZES, "reset", "step")
    action = jax.ShapeDtypeStruct((env.num_envs, env.num_actions), jnp.float32)
    first = _traced(f"{name}.reset", env.num_envs, lambda: env.reset(keys_for(env, jax.random.key(0))))
    after = _traced(f"{name}.step", env.num_envs, env.step, first, action)
    leaves = [{jax.tree_util.keystr(path)[1:]: leaf for path, leaf in _leaves(state)} for state in (first, after)]
    for path in {**leaves[0], **leaves[1]}:
        one, other = (_text(found[path]) if path in found else "missing" for found in leaves)
        if one != other:
            raise SettingError(f"{name}: {path} is {one} after reset and {other} after step, expected the same")
    structures = {jax.tree.structure(state) for state in (first, after)}
    if len(structures) > 1:
        raise SettingError(f"{name}: the States of reset and step are trees of different structure")
    return _specs(env, first.obs)


def _traced(where: str, batch: int, function: Callable[..., Any], *args: Any) -> State:
    """The shapes of the State that ``function`` returns, checked."""

    def checked(*args: Any) -> State:
        state = function(*args)
        if not isinstance(state, State):
            raise SettingError(f"{where} returns a {type(state).__name__}, expected a bridge.env.State")
        for field in ("obs", "metrics", "info"):
            if not isinstance(value := getattr(state, field), dict):
                raise SettingError(f"{where}: {field} is {_text(value)}, expected a dict of arrays by name")
        for path, leaf in _leaves(state):
            if not isinstance(leaf, bool | int | float) and not hasattr(leaf, "dtype"):
                raise SettingError(f"{where}: {jax.tree_util.keystr(path)[1:]} is {_text(leaf)}, expected an array")
        return state

    state = jax.eval_shape(checked, *args)

    def expect(field: str, value: Any, fits: bool, expected: str) -> None:
        if not fits:
            raise SettingError(f"{where}: {field} is {_text(value)}, expected {expected}")

    def is_number(value: Any) -> bool:
        return hasattr(value, "dtype") and bool(jnp.issubdtype(value.dtype, jnp.floating) or value.dtype == bool)

    for field, value in {"reward": state.reward, **{f"metrics['{k}']": v for k, v in state.metrics.items()}}.items():
        expect(field, value, is_number(value) and value.shape == (batch,), f"float32[{batch}]")
    done = state.done
    expect("done", done, is_number(done) and done.dtype == bool and done.shape == (batch,), f"bool[{batch}]")
    expect("obs", {}, bool(state.obs), "at least one observation group")
    for name, value in state.obs.items():
        fits = value.ndim >= 2 and value.shape[0] == batch
        expect(f"obs['{name}']", value, fits, f"(batch, size) with a batch of {batch}")
        expect(f"obs['{name}']", value, is_number(value) or (value.ndim > 2 and value.dtype == jnp.uint8), "float32")
    for path, value in _leaves(state.pipeline_state):
        fits = value.ndim >= 1 and value.shape[0] == batch
        what = f"a leading axis of {batch}; what all environments share belongs in info"
        expect(f"pipeline_state{jax.tree_util.keystr(path)}", value, fits, what)
    return state


def _specs(env: Any, obs: Mapping[str, Any]) -> dict[str, ObservationSpec]:
    """The specs of the groups ``obs`` (shapes with the batch axis), with what ``env`` declares of them."""
    name, declared = type(env).__name__, dict(getattr(env, "obs_specs", {}))
    shapes = {g: (int(size),) for g, size in getattr(env, "obs_sizes", {}).items()}
    shapes |= {g: spec.shape for g, spec in declared.items()}
    layouts = {g: spec.layout for g, spec in declared.items()} | dict(getattr(env, "obs_layouts", {}))
    frames = {g: spec.frame for g, spec in declared.items()} | dict(getattr(env, "obs_frames", {}))
    specs = {}
    for group in {**obs, **shapes, **layouts}:
        if group not in obs:
            raise SettingError(f"{name}: there is no obs['{group}'], which it declares; there are {', '.join(obs)}")
        layout = tuple(layouts.get(group, ()))
        terms = declared[group].terms if group in declared else {}
        shape = tuple(obs[group].shape[1:])
        first = declared[group].channels_first if group in declared else looks_channels_first(shape)
        spec = ObservationSpec(shape, np.dtype(obs[group].dtype), layout, frames.get(group), terms, first)
        total = (sum(size for _, size, _ in layout),) if layout else spec.shape
        for expected in (shapes.get(group, spec.shape), total):
            if spec.shape != expected:
                raise SettingError(f"{name}: obs['{group}'] is {spec} without its batch axis, declared is {expected}")
        specs[group] = spec
    return specs


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _text(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    return "empty" if value == {} else f"a {type(value).__name__}"
