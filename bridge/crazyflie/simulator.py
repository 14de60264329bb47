"""Crazyflow as a back end: the embedded simulator and its task."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.tasks import Session, Simulator, Task

if TYPE_CHECKING:
    from bridge.crazyflie.cfg import PointControlCfg
    from bridge.env import TrainingEnv
    from bridge.quadrotors import QuadrotorSpec


FOUNDATION = {"student": ["student[0:3,6:15,3:6,15:22]"], "teacher": ["teacher[0:3,6:15,3:6,15:26]"]}
"""The order in which policies of the fork that the task comes from see it: the rotation matrix before the velocity."""

SEEING = {
    name: {"student": ["student", *image], "teacher": ["teacher"]}
    for name, image in {"tof": ["tof"], "depth": ["depth"], "blind": []}.items()
}
"""What students of the forest see: the first two by the name of the camera, the third its own state alone."""


class Crazyflow(Simulator):
    """Quadrotors in JAX."""

    name = "crazyflow"
    title = "Crazyflow"
    packages = ("crazyflow", "mujoco")
    twins: ClassVar = {
        "crazyflie": "crazyflie",
        "distillation": "crazyflie",
        "crazyflie_forest": "crazyflie_forest",
    }


def point_control() -> Task:
    """Point control of a Crazyflie."""
    from bridge.crazyflie import PointControl, PointControlCfg
    from bridge.crazyflie.scenarios import scenarios
    from bridge.crazyflie.teaching import PointControlLesson
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
        teacher=lambda cfg: {"motors": "crazyflie", "ctbr": "crazyflie_ctbr"}[cfg.action],
        old_teacher_output_activation="tanh",
        quadrotors=drones,
        with_quadrotors=with_quadrotors,
        lesson=PointControlLesson,
        generalist="quadrotors",
        obs_groups={"foundation": FOUNDATION},
        main_metric="position_error",
    )


def forest() -> Task:
    """Flight of a Crazyflie through a forest, with eyes."""
    from bridge.crazyflie.forest.cfg import ForestFlightCfg
    from bridge.crazyflie.forest.scenarios import scenarios
    from bridge.crazyflie.forest.task import ForestFlight
    from bridge.env import AutoReset

    @contextmanager
    def open_env(cfg: Any, session: Session) -> Iterator[TrainingEnv]:
        yield AutoReset(ForestFlight(cfg))

    return Task(
        name="crazyflie_forest",
        cfg_cls=ForestFlightCfg,
        open=open_env,
        scenarios=scenarios,
        preset="crazyflie_forest",
        teacher=lambda cfg: "crazyflie_forest",
        obs_groups=SEEING,
        main_metric="goal_distance",
    )


def with_quadrotors(cfg: PointControlCfg, file: str) -> PointControlCfg:
    """The settings ``cfg`` under which the quadrotors of ``file`` fly in turn, nothing about them randomized."""
    from bridge.crazyflie.cfg import RandomizationCfg

    exact = RandomizationCfg(mass=0.0, inertia=0.0, thrust=0.0, motor=0.0)
    return dataclasses.replace(cfg, quadrotors=file, quadrotor_assignment="cycle", randomization=exact)


def drones() -> Sequence[QuadrotorSpec]:
    """Crazyflow's drones as rows of a file."""
    from bridge.crazyflie.airframe import Airframe

    return [Airframe.load(name).spec(i, name) for i, name in enumerate(Airframe.names())]
