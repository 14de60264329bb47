"""A task's registered rsl_rl config as defaults for ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isaaclab_rl.rsl_rl import handle_deprecated_rsl_rl_cfg
from isaaclab_rl.rsl_rl.utils import is_missing
from isaaclab_tasks.utils import load_cfg_from_registry

from bridge.isaaclab.launch import LaunchError, agent_entry_points

RSL_RL = "5.5.1"
"""The version of rsl_rl whose form configs are brought into before they are read."""
KEYS = ("rsl_rl_distillation_cfg_entry_point", "rsl_rl_cfg_entry_point")
"""Where tasks register distillation configs; the second may be PPO's instead."""
RUNNER = ("num_steps_per_env", "max_iterations", "save_interval", "experiment_name", "clip_actions")
STUDENT = ("hidden_dims", "activation", "obs_normalization", "rnn_type", "rnn_hidden_dim", "rnn_num_layers")


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
        return _merge(defaults, _of_distillation(_plain(cfg)))
    return _merge(defaults, _of_ppo(_plain(cfg)))


def _of_distillation(cfg: dict[str, Any]) -> dict[str, Any]:
    agent = {name: cfg[name] for name in RUNNER if name in cfg}
    student = cfg.get("student", {})
    agent["student"] = {"pre_dims": [], "rnn_type": None}
    agent["student"] |= {name: student[name] for name in STUDENT if name in student}
    agent["student"]["init_noise_std"] = (student.get("distribution_cfg") or {}).get("init_std", 0.0)
    agent["teacher"] = _teacher(cfg.get("teacher", {}))
    agent["algorithm"] = dict(cfg.get("algorithm", {}))
    groups = cfg.get("obs_groups") or {}
    agent["obs_groups"] = {name: list(groups[name]) for name in ("student", "teacher") if name in groups}
    return agent


def _of_ppo(cfg: dict[str, Any]) -> dict[str, Any]:
    groups = cfg.get("obs_groups") or {}
    actor = groups.get("actor") or groups.get("policy")
    agent: dict[str, Any] = {"teacher": _teacher(cfg.get("actor", {}))}
    if "experiment_name" in cfg:
        agent["experiment_name"] = f"{cfg['experiment_name']}_distillation"
    if cfg.get("clip_actions") is not None:
        agent["clip_actions"] = cfg["clip_actions"]
    if actor:
        agent["obs_groups"] = {"teacher": list(actor)}
    return agent


def _teacher(model: Mapping[str, Any]) -> dict[str, Any]:
    teacher = {"activation": model["activation"]} if "activation" in model else {}
    if str((model.get("distribution_cfg") or {}).get("class_name")).endswith("BetaDistribution"):
        teacher["output_activation"] = "beta"
    return teacher


def _plain(cfg: Any) -> dict[str, Any]:
    """A config class as nested dicts, without what is missing."""
    if isinstance(cfg, Mapping):
        items = dict(cfg)
    elif hasattr(cfg, "__dataclass_fields__"):
        items = dict(vars(cfg))  # Fields that are out of use are deleted from an instance.
    else:
        return cfg
    return {name: _plain(value) for name, value in items.items() if not is_missing(value)}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged
