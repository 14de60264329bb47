"""A task's registered rsl_rl config as defaults for ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isaaclab_rl.rsl_rl import handle_deprecated_rsl_rl_cfg
from isaaclab_rl.rsl_rl.utils import is_missing
from isaaclab_tasks.utils import load_cfg_from_registry

from bridge.isaaclab.launch import LaunchError, agent_entry_points
from bridge.rsl_rl_cfg import merge, of_distillation, of_ppo

RSL_RL = "5.5.1"
"""The version of rsl_rl whose form configs are brought into before they are read."""
KEYS = ("rsl_rl_distillation_cfg_entry_point", "rsl_rl_cfg_entry_point")
"""Where tasks register distillation configs; the second may be PPO's instead."""


def agent_defaults(name: str, key: str | None) -> dict[str, Any]:
    """What the task ``name`` has registered, as the ``agent`` section of a config.

    A distillation config gives runner, student, teacher, algorithm and observation groups. Of a PPO config only what
    concerns its actor is taken, for that is the teacher. ``key`` (``--agent``) names the entry point; None takes
    the first of ``KEYS`` that there is.

    Raises:
        LaunchError: no such entry point.
    """
    entry_points = agent_entry_points(name)
    if key is not None and key not in entry_points:
        known = ", ".join(k for k in entry_points if k.startswith("rsl_rl")) or "none of rsl_rl's"
        raise LaunchError(f"--agent {key}: {name} has no such entry point; there are {known}")
    key = key or next((k for k in KEYS if k in entry_points), None)
    # rsl_rl has no output activation, and a task's actions need not end at 1.
    defaults: dict[str, Any] = {"student": {"output_activation": "identity"}}
    if key is None:
        return defaults
    cfg = handle_deprecated_rsl_rl_cfg(load_cfg_from_registry(name, key), RSL_RL)
    if getattr(cfg, "class_name", "") == "DistillationRunner":
        return merge(defaults, of_distillation(_plain(cfg)))
    return merge(defaults, of_ppo(_plain(cfg)))


def _plain(cfg: Any) -> dict[str, Any]:
    """A config class as nested dicts, without what is missing."""
    if isinstance(cfg, Mapping):
        items = dict(cfg)
    elif hasattr(cfg, "__dataclass_fields__"):
        items = dict(vars(cfg))  # Fields that are out of use are deleted from an instance.
    else:
        return cfg
    return {name: _plain(value) for name, value in items.items() if not is_missing(value)}
