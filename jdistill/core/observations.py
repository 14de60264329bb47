"""Which numbers a policy sees: observation groups by name, whole or in part.

An entry of ``agent.obs_groups.student`` or ``.teacher`` is the name of one of the environment's groups, or a part of it
in brackets, written as in NumPy: ``policy``, ``policy[:22]``, ``policy[0,2]``, ``policy[0:3,6]``. The entries' numbers
stand side by side, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdistill.errors import ObservationError

_ENTRY = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<part>[^\[\]]*)\])?")
_PIECE = re.compile(r"\s*(-?\d*)\s*(?:(:)\s*(-?\d*)\s*)?")


def group_names(entries: Sequence[str]) -> list[str]:
    """The groups that ``entries`` take from, without repetition."""
    return list(dict.fromkeys(_parse(entry)[0] for entry in entries))


def size(entries: Sequence[str], sizes: Mapping[str, int]) -> int:
    """How many numbers ``entries`` are, given the groups' ``sizes``.

    Raises:
        ObservationError: a group that there is not, or a part that reaches beyond it.
    """
    return sum(len(_columns(entry, sizes)) for entry in entries)


def select(obs: Mapping[str, Any], entries: Sequence[str]) -> Any:
    """The observation that ``entries`` make of the groups ``obs``, each (..., size), of JAX's arrays or NumPy's."""
    sizes = {name: obs[name].shape[-1] for name in group_names(entries)}
    parts = []
    for entry in entries:
        group, columns = obs[_parse(entry)[0]], _columns(entry, sizes)
        if len(columns) == 0 or (np.diff(columns) != 1).any():
            parts.append(group[..., columns])
        else:
            parts.append(group[..., columns[0] : columns[-1] + 1])
    if len(parts) == 1:
        return parts[0]
    return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts, axis=-1)


def describe(env: Any, entries: Sequence[str]) -> dict[str, Any]:
    """What goes into a policy that sees ``entries`` of ``env`` and what comes out, for the header of its file."""
    groups = []
    for entry in entries:
        name = _parse(entry)[0]
        layout = env.obs_layouts.get(name, ()) if entry == name else ()
        parts = [dict(zip(("name", "size", "unit"), part, strict=True)) for part in layout]
        frame = env.obs_frames.get(name)
        groups.append({"name": entry, "size": size([entry], env.obs_sizes), "frame": frame, "layout": parts})
    return {
        "observation": {"groups": groups, "frame": groups[0]["frame"], "size": size(entries, env.obs_sizes)},
        "action": {"size": env.num_actions, **env.action_layout},
        "control_rate_hz": 1.0 / env.step_dt,
    }


def _parse(entry: str) -> tuple[str, str | None]:
    match = _ENTRY.fullmatch(entry.strip())
    if not match:
        raise ObservationError(f"'{entry}': expected a group, or a part of one as in 'policy[:22]' or 'policy[0,2]'")
    return match["name"], match["part"]


def _columns(entry: str, sizes: Mapping[str, int]) -> np.ndarray:
    name, part = _parse(entry)
    if name not in sizes:
        known = ", ".join(f"{g} ({n})" for g, n in sizes.items())
        raise ObservationError(f"no observation group '{name}'; there are {known}")
    every = np.arange(sizes[name])
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
            raise ObservationError(f"'{entry}': reaches beyond the group, which has {sizes[name]} numbers")
        if not is_range and int(first) == len(every):
            raise ObservationError(f"'{entry}': reaches beyond the group, which has {sizes[name]} numbers")
        columns.append(every[slice(*ends)] if is_range else every[[int(first)]])
    return np.concatenate(columns)
