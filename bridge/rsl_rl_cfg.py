"""A runner config of rsl_rl 5, which simulators register with their tasks, as defaults for ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RUNNER = ("num_steps_per_env", "max_iterations", "save_interval", "experiment_name", "clip_actions")
NETWORK = ("hidden_dims", "activation", "obs_normalization", "rnn_type", "rnn_hidden_dim", "rnn_num_layers")


def of_distillation(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The ``agent`` section of our config that a distillation runner's means."""
    agent = {name: cfg[name] for name in RUNNER if name in cfg}
    student = cfg.get("student", {})
    agent["student"] = network(student)
    if student.get("cnn_cfg"):
        agent["student"]["cnn_cfg"] = _listed(student["cnn_cfg"])
    agent["student"]["init_noise_std"] = (student.get("distribution_cfg") or {}).get("init_std", 0.0)
    agent["teacher"] = _teacher(cfg.get("teacher", {}))
    agent["algorithm"] = dict(cfg.get("algorithm", {}))
    groups = cfg.get("obs_groups") or {}
    agent["obs_groups"] = {name: list(groups[name]) for name in ("student", "teacher") if name in groups}
    return agent


def of_ppo(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The same of PPO's, of which only what concerns its actor is taken, for that is the teacher."""
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


def network(model: Mapping[str, Any]) -> dict[str, Any]:
    """A student with the network of ``model``."""
    found = {name: model[name] for name in NETWORK if name in model}
    if "hidden_dims" in found:
        found["hidden_dims"] = list(found["hidden_dims"])
    return {"pre_dims": [], "rnn_type": None, **found}


def _listed(value: Any) -> Any:
    """Nested settings with lists for tuples, as files have them."""
    if isinstance(value, Mapping):
        return {name: _listed(x) for name, x in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _teacher(model: Mapping[str, Any]) -> dict[str, Any]:
    teacher = {"activation": model["activation"]} if "activation" in model else {}
    if str((model.get("distribution_cfg") or {}).get("class_name")).endswith("BetaDistribution"):
        teacher["output_activation"] = "beta"
    return teacher


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings; those ``above`` win."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged
