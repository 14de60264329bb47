"""What a run left behind: its settings, its student, its teacher."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jdistill
from bridge.isaaclab.cfg import IsaacLabCfg, is_simulators
from bridge.tasks import TASKS, Task, isaaclab_task
from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import ConfigError
from jdistill.export.policy_file import load_policy
from jdistill.run.compose import RunCfg, compose
from jdistill.run.folders import settings_of, starts


class Saved(NamedTuple):
    """A policy as :func:`jdistill.export.policy_file.load_policy` gives it."""

    policy: Policy
    state: PolicyState
    header: dict[str, Any]


def load_config(run: Path, overrides: Sequence[str] = ()) -> RunCfg:
    """The settings of a run, changed by ``overrides`` (``key=value``).

    Raises:
        ConfigError: it is no run folder, it was written by a version with other settings, or an override that cannot
            be used.
    """
    settings = settings_of(run)
    cfg_cls = TASKS[settings["task"]]().cfg_cls if settings["task"] in TASKS else IsaacLabCfg
    try:
        compose(settings["task"], cfg_cls, [settings], [])
    except ConfigError as e:
        by = next((f"jdistill {start['versions']['jdistill']}" for start in starts(run)[-1:]), "another version")
        raise ConfigError(f"{run}: a run of {by}, this is jdistill {jdistill.__version__} ({e})") from e
    theirs = [o for o in overrides if cfg_cls is IsaacLabCfg and is_simulators(o)]
    kept = (settings.get("env") or {}).get("overrides") or []
    layer = {"env": {"overrides": [*kept, *theirs]}} if theirs else {}
    return compose(settings["task"], cfg_cls, [settings, layer], [o for o in overrides if o not in theirs])


def load_student(run: Path, best: bool = False) -> Saved:
    """The newest student of a run, or its best.

    Raises:
        PolicyFileError: there is none yet, or it cannot be read.
    """
    return Saved(*load_policy(run / ("best_student.safetensors" if best else "student.safetensors")))


def load_teacher(run: Path) -> Saved:
    """The teacher of a run.

    Raises:
        PolicyFileError: it cannot be read.
    """
    return Saved(*load_policy(run / "teacher.safetensors"))


def find_task(name: str, flags: Sequence[str] = (), device: str | None = None) -> Task:
    """The task of a run; ``flags`` are for Isaac Lab's launcher, ``device`` for its simulator.

    Raises:
        ConfigError: Isaac Lab is needed and not installed, or there is no such task; one line.
    """
    if name in TASKS:
        if flags:
            raise ConfigError(f"unknown flag {flags[0]}")
        return TASKS[name]()
    if importlib.util.find_spec("isaaclab") is None:
        raise ConfigError(f"{name} needs Isaac Lab, use 'uv run --extra isaaclab python -m ...'")
    # The simulator needs memory on the GPU that JAX would otherwise take for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from bridge.isaaclab.launch import parse_flags

    launch, rest = parse_flags(flags, device and device.partition(":")[0].replace("gpu", "cuda"))
    if rest:
        raise ConfigError(f"unknown flag {rest[0]}")
    try:
        return isaaclab_task(name, launch)
    except ValueError as e:
        raise ConfigError(str(e)) from e
