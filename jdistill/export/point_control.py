"""Checkpoints of distillation for point control that are rsl_rl's in part only, by rsl_rl's names.

- ``StudentTeacherRecurrentCustom``, a class that forks of rsl_rl 2.x have: dense layers before and after a GRU, and a
  head behind those. Its ``model_state_dict`` holds ``pre_rnn_mlp.*``, ``rnn.*`` (``memory_s.rnn.*`` in older files),
  ``post_rnn_mlp.*``, ``student.*`` (the head, of whatever size it was built) and ``teacher.*``. All ends in a tanh.
- The student of a distiller from many teachers, a state_dict by itself: ``input_layer.*``, then a tanh, ``gru.*`` and
  ``output_layer.*``; its actions are clamped where they step the environment, and it has no normalizer.
- Teachers whose actor is wrapped: ``actor_architecture.actor.layers.*`` or ``actor.layers.*`` for ``actor.*``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jdistill.errors import PolicyFileError
from jdistill.export.rsl_rl import DEVIATIONS, STUDENT

RNN = re.compile(r"(?:memory_s\.)?rnn\.((?:weight|bias)_[ih]h_l\d+)")
DENSE = re.compile(r"(pre_rnn_mlp|post_rnn_mlp|student)\.(\d+)\.(weight|bias)")
OWN = re.compile(r"(?:pre_rnn_mlp|post_rnn_mlp|rnn)\..*")
"""Names that only this class has, beside those of rsl_rl's own."""
BARE = {"input_layer": "pre.0", "output_layer": "mlp.0"}
WRAPPED = re.compile(r"^(?:actor_architecture\.)?actor\.layers\.")
ACTIVATION, OUTPUT_ACTIVATION = "elu", "tanh"
"""Of ``StudentTeacherRecurrentCustom``, where nothing else is said."""


def custom_student(tensors: Mapping[str, Any]) -> dict[str, Any] | None:
    """The student of a ``StudentTeacherRecurrentCustom`` in a ``model_state_dict``, by the names of
    :data:`jdistill.export.rsl_rl.MODEL`; None for any other class.

    Raises:
        PolicyFileError: a part of it is missing.
    """
    if not any(OWN.fullmatch(name) for name in tensors):
        return None
    found: dict[str, Any] = {}
    parts: dict[str, dict[int, dict[str, Any]]] = {}
    for name, tensor in tensors.items():
        if m := RNN.fullmatch(name):
            found[f"rnn.rnn.{m[1]}"] = tensor
        elif m := DENSE.fullmatch(name):
            parts.setdefault(m[1], {}).setdefault(int(m[2]), {})[m[3]] = tensor
        elif name in DEVIATIONS or not re.fullmatch(STUDENT.others, name):  # What belongs nowhere is told later.
            found[name] = tensor
    if "student" not in parts:
        raise PolicyFileError("has no head of a student ('student.0.weight')")
    # torch counts the activations between the layers too.
    found |= _dense("pre", parts.get("pre_rnn_mlp", {}), 0)
    behind = parts.get("post_rnn_mlp", {})
    found |= _dense("mlp", behind, 0)
    return found | _dense("mlp", parts["student"], len(behind))


def _dense(prefix: str, layers: Mapping[int, Mapping[str, Any]], first: int) -> dict[str, Any]:
    """Dense layers by their places of a Sequential, as the layers from ``first`` on of another."""
    places = enumerate(sorted(layers), first)
    return {f"{prefix}.{2 * i}.{name}": x for i, place in places for name, x in layers[place].items()}


def bare_student(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The student that a file is by itself, by the same names; None for any other file."""
    if not {f"{name}.weight" for name in BARE} <= content.keys():
        return None
    renamed = {}
    for name, tensor in content.items():
        part, _, rest = name.partition(".")
        renamed[f"{BARE[part]}.{rest}" if part in BARE else f"rnn.rnn.{rest}" if part == "gru" else name] = tensor
    return renamed


def unwrapped(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with the names of a wrapped actor's layers as rsl_rl has them."""
    return {WRAPPED.sub("actor.", name): value for name, value in content.items()}
