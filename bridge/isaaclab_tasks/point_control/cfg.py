"""Settings of the point-control task on Isaac Lab.

The task's own settings are the dataclasses of :mod:`bridge.crazyflie.cfg`, defaults included; what the simulator
decides has Isaac Lab's names (``env.scene.num_envs``, ``env.sim.dt``, ``env.decimation``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import isaaclab.sim as sim_utils
from isaaclab.assets import AssetBaseCfg, RigidObjectCfg
from isaaclab.envs import DirectRLEnvCfg
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sim import SimulationCfg
from isaaclab.utils import configclass
from isaaclab_newton.physics import MJWarpSolverCfg, NewtonCfg
from isaaclab_tasks.utils import PresetCfg

from bridge.crazyflie.cfg import (
    PointControlCfg,
    RandomizationCfg,
    ResetCfg,
    RewardCfg,
    SensorCfg,
    TargetCfg,
    TerminationCfg,
)
from bridge.errors import SettingError

DEFAULTS = PointControlCfg()
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}
"""What values can be, in words."""
CRAZYFLIE_USD = str(Path(__file__).with_name("crazyflie.usda"))
"""The craft that comes with the task."""


@configclass
class CraftFileCfg(sim_utils.UsdFileCfg):
    """A USD file that is flown as one rigid body."""

    func: Callable | str = "{DIR}.asset:spawn_craft"
    usd_path: str = CRAZYFLIE_USD
    drone: str = DEFAULTS.drone
    """The airframe to take mass and inertia from where the asset has none; the environment sets it to ``env.drone``."""


@configclass
class PointControlPhysicsCfg(PresetCfg):
    """Physics backends of the task, for ``physics=NAME``."""

    # The craft touches nothing. Room for one constraint is kept all the same: without any, MuJoCo Warp 3.12's Euler
    # integrator uses forces of an earlier step.
    newton_mjwarp: NewtonCfg = NewtonCfg(
        solver_cfg=MJWarpSolverCfg(integrator="euler", disable_contacts=True, njmax=1, nconmax=1)
    )
    default: NewtonCfg = newton_mjwarp


@configclass
class PointControlSceneCfg(InteractiveSceneCfg):
    """What stands in the scene beside the craft."""

    light: AssetBaseCfg = AssetBaseCfg(prim_path="/World/Light", spawn=sim_utils.DistantLightCfg(intensity=2000.0))


@configclass
class PointControlEnvCfg(DirectRLEnvCfg):
    """Point control of a Crazyflie on Isaac Lab."""

    sim: SimulationCfg = SimulationCfg(
        dt=1.0 / DEFAULTS.physics_freq,
        render_interval=DEFAULTS.physics_freq // DEFAULTS.policy_freq,
        physics=PointControlPhysicsCfg(),
    )
    decimation: int = DEFAULTS.physics_freq // DEFAULTS.policy_freq
    episode_length_s: float = DEFAULTS.episode_length_s
    scene: PointControlSceneCfg = PointControlSceneCfg(num_envs=DEFAULTS.num_envs, env_spacing=2.0)
    action_space: int = 4
    observation_space: int = 22
    state_space: int = 0

    robot: RigidObjectCfg = RigidObjectCfg(prim_path="{ENV_REGEX_NS}/Robot", spawn=CraftFileCfg())
    """The craft, flown as one rigid body. ``env.robot.spawn.usd_path`` replaces the asset, and its mass and inertia
    with it; the asset that comes with the task has those of ``drone``."""
    drone: str = DEFAULTS.drone
    """Crazyflow's name of the airframe whose motors and drag the craft has."""
    quadrotors: str = DEFAULTS.quadrotors
    """CSV file of quadrotors to be flown in place of ``drone``, mass and inertia included, whatever ``robot`` says of
    them; see :mod:`bridge.quadrotors`. Empty flies ``drone``."""
    quadrotor_assignment: str = DEFAULTS.quadrotor_assignment
    """Which of them an environment flies, ``cycle`` or ``random``."""
    first_env: int = 0
    """Number of the first environment among those of all processes, along which ``cycle`` goes; a launcher sets it."""
    action: str = DEFAULTS.action
    """What the actions are: ``motors``, the speed of each."""
    frame: str = DEFAULTS.frame
    """Frame of the student's position and velocity errors: ``body`` or ``world``."""
    teacher_frame: str = DEFAULTS.teacher_frame
    """The same for the teacher."""
    target: TargetCfg = DEFAULTS.target
    """The point to be held or followed."""
    reset: ResetCfg = DEFAULTS.reset
    """Where episodes begin."""
    termination: TerminationCfg = DEFAULTS.termination
    """Limits that end an episode."""
    reward: RewardCfg = DEFAULTS.reward
    """Weights of the reward terms."""
    randomization: RandomizationCfg = DEFAULTS.randomization
    """Ranges of the physical parameters."""
    sensor: SensorCfg = DEFAULTS.sensor
    """Noise and delay of what the student sees; none."""

    def validate_config(self) -> None:
        """Isaac Lab's hook for checks: raise :class:`SettingError` on the first setting that makes no sense."""
        for name, value in (
            ("target.kind", self.target.kind),
            ("action", self.action),
            ("frame", self.frame),
            ("teacher_frame", self.teacher_frame),
            ("reward.orientation_cost", self.reward.orientation_cost),
        ):
            if value in ("step", "ctbr", "start", "quaternion"):
                raise SettingError(f"env.{name}={value!r}: known to the embedded simulator only, use --sim crazyflow")
        policy_freq = max(1, round(1.0 / (self.sim.dt * self.decimation)))
        embedded = PointControlCfg(
            drone=self.drone,
            quadrotors=self.quadrotors,
            quadrotor_assignment=self.quadrotor_assignment,
            num_envs=self.scene.num_envs,
            episode_length_s=self.episode_length_s,
            physics_freq=policy_freq * self.decimation,
            policy_freq=policy_freq,
            action=self.action,
            frame=self.frame,
            teacher_frame=self.teacher_frame,
            target=self.target,
            reset=self.reset,
            termination=self.termination,
            reward=self.reward,
            randomization=self.randomization,
            sensor=self.sensor,
        )
        _check_kinds(embedded, DEFAULTS)
        embedded.validate()


def _check_kinds(cfg: Any, defaults: Any, path: str = "env") -> None:
    """Raise :class:`SettingError` on a value of another kind than the default's: Isaac Lab takes any."""
    for name, default in vars(defaults).items():
        value, key = getattr(cfg, name), f"{path}.{name}"
        if is_dataclass(default):
            _check_kinds(value, default, key)
        elif type(value) is not type(default) and (type(default), type(value)) != (float, int):
            raise SettingError(f"{key}={value!r}: expected {KINDS[type(default)]}")
