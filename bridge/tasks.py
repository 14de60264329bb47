"""Tasks by name: what ``--task`` accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bridge.env import AutoReset


@dataclass(frozen=True)
class Task:
    """A task: its settings and how to build it from them."""

    name: str
    """The name under which its runs, presets and bundled teacher are filed."""
    cfg_cls: type
    """Dataclass of its settings; it has ``num_envs`` and ``validate()``."""
    make: Callable[[Any], Any]
    """Builds the environment (a :class:`bridge.env.Env`), without auto-reset, from an instance of ``cfg_cls``."""
    old_teacher_output_activation: str = "identity"
    """What ends this task's actors in checkpoints of rsl_rl 2.x and 3.x, which do not say."""


def _crazyflie() -> Task:
    from bridge.crazyflie import PointControl, PointControlCfg

    # The task comes from a fork of rsl_rl whose actors end in a tanh.
    return Task(name="crazyflie", cfg_cls=PointControlCfg, make=PointControl, old_teacher_output_activation="tanh")


TASKS: dict[str, Callable[[], Task]] = {"crazyflie": _crazyflie, "distillation": _crazyflie}
"""Every name that ``--task`` accepts; ``distillation`` is an alias. Entries import nothing until they are called."""


def make_env(task: Task, cfg: Any) -> AutoReset:
    """The environment that training runs on.

    Raises:
        ValueError: a setting that cannot be used; one line.
    """
    return AutoReset(task.make(cfg))
