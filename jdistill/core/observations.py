"""Which numbers a policy sees: observation groups by name, whole or in part.

Up to here an observation is a dict of groups of any shape. A policy takes one vector (B, D), or, where it sees images
too, an :class:`Observation` of that vector and of them. Groups that are neither can be there, but not be selected.

An entry of ``agent.obs_groups.student`` or ``.teacher`` is the name of one of the environment's groups, or a part of it
in brackets, written as in NumPy: ``policy``, ``policy[:22]``, ``policy[0,2]``, ``policy[0:3,6]``. The entries' numbers
stand side by side, in their order; images are taken whole. Of a group that is a dictionary, ``policy/joint_pos`` is one
member and ``policy`` stands for all, in the environment's order (see :func:`members`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bridge.env import ObservationSpec, State
from jdistill.errors import ObservationError

_ENTRY = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<part>[^\[\]]*)\])?")
IMAGE_AXES = 4
"""A group with so many axes or more, the environments' and the time's included, is an image."""
_PIECE = re.compile(r"\s*(-?\d*)\s*(?:(:)\s*(-?\d*)\s*)?")


class Observation(struct.PyTreeNode):
    """What a policy with images sees. One that sees vectors alone takes the plain array (..., D)."""

    vector: Any
    """(..., D) float32, the numbers of all vectors side by side; D may be 0."""
    images: tuple[Any, ...]
    """In the order of the entries, each (..., height, width, channels) or, where its
    :class:`bridge.observation.ObservationSpec` says so, (..., channels, height, width), uint8 or floats."""


def vector_of(obs: Any) -> Any:
    """The numbers (..., D) of an observation."""
    return obs.vector if isinstance(obs, Observation) else obs


def with_vector(obs: Any, vector: Any) -> Any:
    """``obs`` with ``vector`` for its numbers."""
    return obs.replace(vector=vector) if isinstance(obs, Observation) else vector


def flat(obs: Any, axes: int = 2) -> Any:
    """``obs`` with its leading axes, so many of them, in one."""
    # Not -1: a vector of no numbers, beside images, would leave it open.
    return jax.tree.map(lambda x: x.reshape(math.prod(x.shape[:axes]), *x.shape[axes:]), obs)


def group_names(entries: Sequence[str]) -> list[str]:
    """The groups that ``entries`` take from, without repetition."""
    return list(dict.fromkeys(_parse(entry)[0] for entry in entries))


def size(entries: Sequence[str], specs: Mapping[str, ObservationSpec]) -> int:
    """How many numbers the vectors of ``entries`` are, given the ``specs`` of an environment's groups.

    Raises:
        ObservationError: a group that there is not or that no policy can take, or a part that reaches beyond it.
    """
    taken = [(entry, _spec(entry, specs)) for entry in entries]
    return sum(len(_columns(entry, spec.shape[0])) for entry, spec in taken if not spec.is_image)


def images(entries: Sequence[str], specs: Mapping[str, ObservationSpec]) -> dict[str, ObservationSpec]:
    """The images among ``entries``, in their order.

    Raises:
        ObservationError: as in :func:`size`.
    """
    return {entry: spec for entry in entries if (spec := _spec(entry, specs)).is_image}


def shapes(entries: Sequence[str], specs: Mapping[str, ObservationSpec]) -> Any:
    """The observation that ``entries`` are for one environment, each array as a ``jax.ShapeDtypeStruct``."""
    array: Any = jax.ShapeDtypeStruct
    vector = array((size(entries, specs),), np.dtype(np.float32))
    seen = [array(spec.shape, spec.dtype) for spec in images(entries, specs).values()]
    return Observation(vector, tuple(seen)) if seen else vector


def select(obs: Mapping[str, Any], entries: Sequence[str]) -> Any:
    """The observation that ``entries`` make of the groups ``obs``, each (..., size), of JAX's arrays or NumPy's.

    Truth values become 0.0 and 1.0. Groups (B, ., ., .) or (T, B, ., ., .) are images.
    """
    parts, seen = [], []
    for entry in entries:
        group = obs[_parse(entry)[0]]
        if group.ndim >= IMAGE_AXES:
            seen.append(group)
            continue
        columns = _columns(entry, group.shape[-1])
        group = group.astype(np.float32) if group.dtype == bool else group
        if len(columns) == 0 or (np.diff(columns) != 1).any():
            parts.append(group[..., columns])
        else:
            parts.append(group[..., columns[0] : columns[-1] + 1])
    numpy: Any = np if isinstance((parts or seen)[0], np.ndarray) else jnp
    if not parts:
        parts = [numpy.zeros((*seen[0].shape[:-3], 0), np.float32)]
    vector = parts[0] if len(parts) == 1 else numpy.concatenate(parts, axis=-1)
    return Observation(vector, tuple(seen)) if seen else vector


def members(entry: str, specs: Mapping[str, ObservationSpec]) -> list[str]:
    """What ``entry`` stands for: a dictionary's members, in the environment's order; else itself."""
    return [entry] if entry in specs else [name for name in specs if name.startswith(f"{entry}/")] or [entry]


def visible(state: State) -> dict[str, Any]:
    """The observation groups of ``state``, and of its ``info`` the integers (B,), one of which may say who teaches."""
    batch = state.done.shape
    numbers = {
        name: value
        for name, value in state.info.items()
        if getattr(value, "shape", None) == batch and jnp.issubdtype(value.dtype, jnp.integer)
    }
    return {**numbers, **state.obs}


def teacher_ids(obs: Mapping[str, Any], entry: str, axes: int) -> Any:
    """The ids (...) int32 that ``entry`` means, an observation group, a part of one or an entry of ``State.info``.

    ``axes`` is the number of leading axes: 1 for (B,), 2 for (T, B). A group of one number has one axis more.

    Raises:
        ObservationError: there is nothing of that name, or more than one number for each environment.
    """
    name = _parse(entry)[0]
    if name not in obs:
        raise ObservationError(f"nothing says which teacher an environment has: no '{name}' here")
    ids = obs[name] if obs[name].ndim == axes else select(obs, [entry])
    if ids.ndim > axes and ids.shape[-1] != 1:
        raise ObservationError(f"'{entry}' has {ids.shape[-1]} numbers, the id of a teacher is one: name a part of it")
    ids = ids.reshape(ids.shape[:axes])
    return (ids if jnp.issubdtype(ids.dtype, jnp.integer) else ids.round()).astype(np.int32)


def parts(entries: Sequence[str], specs: Mapping[str, ObservationSpec]) -> list[str] | None:
    """What each number of an observation is, ``velocity_error[0]`` for one; None where a group does not say."""
    found = []
    for entry in entries:
        spec = specs[_parse(entry)[0]]
        if spec.is_image:
            continue
        named = part_names((name, size) for name, size, _ in spec.layout)
        if not named:
            return None
        found += [named[i] for i in _columns(entry, len(named))]
    return found


def part_names(layout: Iterable[tuple[str, int]]) -> list[str]:
    """The same for the numbers of a layout: names and sizes."""
    return [f"{name}[{i}]" for name, size in layout for i in range(size)]


def describe(env: Any, entries: Sequence[str]) -> dict[str, Any]:
    """What goes into a policy that sees ``entries`` of ``env`` and what comes out, for the header of its file.

    Where the environment has ``deployment``, what that says stands beside it: ``robot`` (``joint_names``,
    ``default_joint_pos``, ``joint_stiffness``, ``joint_damping``), ``command_names``, ``physics_dt``, ``decimation``;
    of point control ``motors`` (:attr:`bridge.crazyflie.airframe.Airframe.motors`).
    """
    groups = []
    for entry in entries:
        spec, number = env.obs_specs[_parse(entry)[0]], size([entry], env.obs_specs)
        groups.append({"name": entry, "size": number, "frame": spec.frame, "layout": _parts(entry, spec)})
        if spec.is_image:
            order = "channels, height, width" if spec.channels_first else "height, width, channels"
            groups[-1] |= {"shape": list(spec.shape), "axes": order, "dtype": str(spec.dtype)}
    return {
        "observation": {"groups": groups, "frame": groups[0]["frame"], "size": size(entries, env.obs_specs)},
        "action": {"size": env.num_actions, **env.action_layout},
        "control_rate_hz": 1.0 / env.step_dt,
        **getattr(env, "deployment", {}),
    }


def names(entry: str, specs: Mapping[str, ObservationSpec]) -> list[str]:
    """What each number of ``entry`` is called: ``joint_vel.knee``, ``position_error[0]``, with a history
    ``joint_vel.knee@-1`` for the step before; nothing where the environment does not say."""
    parts = _parts(entry, specs[_parse(entry)[0]])
    return [name for part in parts for name in _part_names(part)]


def _part_names(part: Mapping[str, Any]) -> list[str]:
    steps = 1 if part.get("history_order") == "time" else max(part.get("history_length", 0), 1)
    one, name, elements = part["size"] // steps, part["name"], part.get("elements", ())
    if len(elements) == one:
        numbers = [f"{name}.{element}" for element in elements]
    else:
        numbers = [name] if one == 1 else [f"{name}[{i}]" for i in range(one)]
    return [f"{number}@{age}" if age else number for age in range(1 - steps, 1) for number in numbers]


def _parts(entry: str, spec: ObservationSpec) -> list[dict[str, Any]]:
    """The parts of the group's layout that ``entry`` takes, in its order; of one that is not whole, ``name[i:j]``."""
    starts = np.cumsum([0, *(size for _, size, _ in spec.layout)])
    parts: list[dict[str, Any]] = []
    columns = _columns(entry, spec.shape[0]) if spec.layout else np.arange(0)
    while len(columns):
        index = int(np.searchsorted(starts, columns[0], "right")) - 1
        (name, whole, unit), place = spec.layout[index], int(columns[0] - starts[index])
        run = int((columns == columns[0] + np.arange(len(columns))).cumprod().sum())
        taken = min(run, whole - place)
        about, part = spec.terms.get(name, {}), slice(place, place + taken)
        if taken < whole:  # A list (a scale, names) has an entry for each number. Part of a history is none.
            about = {} if "history_length" in about else about
            about = {k: v[part] if isinstance(v, list) and k != "clip" else v for k, v in about.items()}
            name = f"{name}[{part.start}:{part.stop}]"
        parts.append({"name": name, "size": taken, "unit": unit, **about})
        columns = columns[taken:]
    return parts


def _parse(entry: str) -> tuple[str, str | None]:
    match = _ENTRY.fullmatch(entry.strip())
    if not match:
        raise ObservationError(f"'{entry}': expected a group, or a part of one as in 'policy[:22]' or 'policy[0,2]'")
    return match["name"], match["part"]


def _spec(entry: str, specs: Mapping[str, ObservationSpec]) -> ObservationSpec:
    """The group that ``entry`` takes from, a vector or an image."""
    name, part = _parse(entry)
    known = ", ".join(f"{g} ({'x'.join(map(str, spec.shape))})" for g, spec in specs.items())
    if name not in specs:
        raise ObservationError(f"no observation group '{name}'; there are {known}")
    spec = specs[name]
    if spec.is_image:
        if part is not None:
            raise ObservationError(f"'{entry}': '{name}' is an image, {spec}, which a policy takes whole")
        if 0 in spec.shape:
            raise ObservationError(f"observation group '{name}' is {spec} for each environment, an image of nothing")
    elif len(spec.shape) != 1 or not (jnp.issubdtype(spec.dtype, jnp.floating) or spec.dtype == bool):
        raise ObservationError(
            f"observation group '{name}' is {spec} for each environment, a policy takes vectors of floats (float32[D]) "
            f"and images (uint8 or float32[height, width, channels]); there are {known}"
        )
    return spec


def _columns(entry: str, group_size: int) -> np.ndarray:
    """Which of the group's numbers ``entry`` takes."""
    _, part = _parse(entry)
    every = np.arange(group_size)
    if part is None:
        return every
    columns = []
    for piece in part.split(","):
        match = _PIECE.fullmatch(piece)
        if not match or not (match[1] or match[2]):
            raise ObservationError(f"'{entry}': '{piece}' is neither a number nor a range as in 0:3")
        first, is_range, last = match.groups()
        ends = [int(x) if x else None for x in (first, last)]
        if any(x is not None and not -len(every) <= x <= len(every) for x in ends):
            raise ObservationError(f"'{entry}': reaches beyond the group, which has {group_size} numbers")
        if not is_range and int(first) == len(every):
            raise ObservationError(f"'{entry}': reaches beyond the group, which has {group_size} numbers")
        columns.append(every[slice(*ends)] if is_range else every[[int(first)]])
    return np.concatenate(columns)
