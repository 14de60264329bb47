"""A task's registered rsl_rl config as defaults for ours."""

from __future__ import annotations

import dataclasses
from typing import Any

from mjlab.tasks.registry import load_rl_cfg

from bridge.rsl_rl_cfg import merge, network, of_distillation, of_ppo


def agent_defaults(name: str) -> dict[str, Any]:
    """What the task ``name`` has registered, as the ``agent`` section of a config.

    A distillation config gives everything. Of PPO's what concerns its actor is taken: that is the teacher, and a
    student has the same network if not told otherwise.
    """
    cfg = dataclasses.asdict(load_rl_cfg(name))
    # rsl_rl has no output activation, and a task's actions need not end at 1.
    defaults: dict[str, Any] = {"student": {"output_activation": "identity"}}
    if "student" in cfg:
        return merge(defaults, of_distillation(cfg))
    return merge(merge(defaults, {"student": network(cfg.get("actor", {}))}), of_ppo(cfg))
