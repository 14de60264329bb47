"""What a robot's program needs to know of a policy, as text by mjlab's keys.

mjlab writes these beside its ONNX policies, and programs for real robots read them: lists are separated by commas, what
an entry of a list has several of by semicolons. Its own keys are

- ``joint_names``, ``default_joint_pos``, ``joint_stiffness``, ``joint_damping``: of all joints of the robot, in the
  simulator's order;
- ``observation_names``, ``observation_terms_scale``, ``observation_terms_clip`` (low;high),
  ``observation_terms_history_length``, ``observation_terms_flatten_history_dim``: of the parts of the observation, in
  its order;
- ``action_scale``: of each action, which becomes ``offset + scale * action``;
- ``command_names``.

Beside them stand ``observation_sizes``, ``action_names``, ``action_offset`` and ``control_rate_hz``. A key is missing
where the environment does not say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ROBOT = ("joint_names", "joint_stiffness", "joint_damping", "default_joint_pos")


def metadata(header: Mapping[str, Any]) -> dict[str, str]:
    """The texts by their keys, from the header of a policy file."""
    known: dict[str, Any] = {name: header["robot"][name] for name in ROBOT if name in header.get("robot", {})}
    known |= {name: header[name] for name in ("command_names", "control_rate_hz") if name in header}
    parts = [part for group in header.get("observation", {}).get("groups", ()) for part in group["layout"]]
    if parts and sum(part["size"] for part in parts) == header["observation"]["size"]:
        known |= _observation(parts)
    known |= _action(header.get("action", {}))
    return {name: _text(value) for name, value in known.items()}


def _observation(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "observation_names": [part["name"] for part in parts],
        "observation_sizes": [part["size"] for part in parts],
        "observation_terms_scale": [part.get("scale", 1.0) for part in parts],
        "observation_terms_clip": [part.get("clip", (-math.inf, math.inf)) for part in parts],
        "observation_terms_history_length": [part.get("history_length", 0) for part in parts],
        "observation_terms_flatten_history_dim": [part.get("flatten_history_dim", True) for part in parts],
    }


def _action(action: Mapping[str, Any]) -> dict[str, Any]:
    terms = action.get("terms", ())
    known = {"action_names": action["layout"]} if "layout" in action else {}
    for name in ("scale", "offset"):
        if terms and all(name in term for term in terms):
            known[f"action_{name}"] = [x for term in terms for x in term[name]]
    return known


def _text(value: Any, separator: str = ",") -> str:
    """A number, a name, or a list of them."""
    if isinstance(value, list | tuple):
        return separator.join(_text(x, ";") for x in value)
    return str(value) if isinstance(value, str) else f"{float(value):.9g}"
