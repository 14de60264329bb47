"""What a run left behind: its settings, its student, its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jdistill
from bridge import registry
from bridge.tasks import Request
from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import ConfigError
from jdistill.export.policy_file import load_policy
from jdistill.run.compose import RunCfg, compose_task
from jdistill.run.folders import STUDENT_FILE, settings_of, starts


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
    name = settings["task"]
    simulator = registry.find(Request(name, settings.get("sim")))
    cfg_cls = registry.settings_class(simulator, name)
    try:
        compose_task(name, cfg_cls, simulator, [settings], [])
    except ConfigError as e:
        by = next((f"jdistill {start['versions']['jdistill']}" for start in starts(run)[-1:]), "another version")
        raise ConfigError(f"{run}: a run of {by}, this is jdistill {jdistill.__version__} ({e})") from e
    return compose_task(name, cfg_cls, simulator, [settings], overrides)


def request_of(cfg: RunCfg, flags: Sequence[str] = (), program: str = "...") -> Request:
    """What a run's settings say about its task; ``flags`` and ``program`` are the command line's."""
    return Request(cfg.task, cfg.sim, (), flags, program)


def load_student(run: Path, best: bool = False) -> Saved:
    """The newest student of a run, or its best.

    Raises:
        PolicyFileError: there is none yet, or it cannot be read.
    """
    return Saved(*load_policy(run / ("best_student.safetensors" if best else STUDENT_FILE)))


def load_teacher(run: Path) -> Saved:
    """The teacher of a run, or its teachers (see :func:`jdistill.export.policy_file.load_policy`).

    Raises:
        PolicyFileError: it cannot be read.
    """
    return Saved(*load_policy(run / "teacher.safetensors", many=True))
