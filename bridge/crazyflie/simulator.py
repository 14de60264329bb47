"""Crazyflow as a back end: the embedded simulator and its task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.tasks import Session, Simulator, Task

if TYPE_CHECKING:
    from bridge.env import TrainingEnv


FOUNDATION = {"student": ["student[0:3,6:15,3:6,15:22]"], "teacher": ["teacher[0:3,6:15,3:6,15:26]"]}
"""The order in which policies of the fork that the task comes from see it: the rotation matrix before the velocity."""


class Crazyflow(Simulator):
    """Quadrotors in JAX."""

    name = "crazyflow"
    title = "Crazyflow"
    packages = ("crazyflow", "mujoco")
    twins: ClassVar = {"crazyflie": "crazyflie", "distillation": "crazyflie"}


def point_control() -> Task:
    """Point control of a Crazyflie."""
    from bridge.crazyflie import PointControl, PointControlCfg
    from bridge.crazyflie.scenarios import scenarios
    from bridge.env import AutoReset

    @contextmanager
    def open_env(cfg: Any, session: Session) -> Iterator[TrainingEnv]:
        yield AutoReset(PointControl(cfg))

    # The task comes from a fork of rsl_rl whose actors end in a tanh.
    return Task(
        name="crazyflie",
        cfg_cls=PointControlCfg,
        open=open_env,
        scenarios=scenarios,
        preset="crazyflie",
        teacher="crazyflie",
        old_teacher_output_activation="tanh",
        obs_groups={"foundation": FOUNDATION},
        main_metric="position_error",
    )
