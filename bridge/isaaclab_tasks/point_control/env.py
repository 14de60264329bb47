"""Point control on Isaac Lab: fly to a target and stay on it. The task is that of :mod:`bridge.crazyflie.task`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import gymnasium as gym
import torch
from isaaclab.assets import RigidObject
from isaaclab.envs import DirectRLEnv
from torch import Tensor

from bridge.crazyflie.cfg import MOTORS, OBSERVATION, RandomizationCfg, ResetCfg
from bridge.isaaclab_tasks.point_control import target as targets
from bridge.isaaclab_tasks.point_control.cfg import PointControlEnvCfg
from bridge.isaaclab_tasks.point_control.dynamics import Craft, rotation_matrix, rotor_acceleration, wrench
from bridge.isaaclab_tasks.point_control.fleet import MAX_ID, Fleet
from bridge.isaaclab_tasks.point_control.sensor import Measurement, Sensors


@dataclass
class Physics:
    """Multipliers on the nominal physical parameters, each (B,)."""

    mass: Tensor
    inertia: Tensor
    thrust: Tensor
    motor: Tensor

    @staticmethod
    def sample(cfg: RandomizationCfg, num_envs: int, device: str) -> Physics:
        """Draw each multiplier uniformly from [1 - width, 1 + width]."""
        widths = torch.tensor([cfg.mass, cfg.inertia, cfg.thrust, cfg.motor], device=device)
        unit = 2.0 * torch.rand(4, num_envs, device=device) - 1.0
        return Physics(*(1.0 + widths[:, None] * unit))


class PointControlEnv(DirectRLEnv):
    """The task as an Isaac Lab environment.

    Observation groups (body frame means rotated by the transposed rotation matrix):

    - ``policy`` (22), the student's: position minus target (3, m) and velocity minus target velocity (3, m/s), both in
      ``cfg.frame``; rotation matrix (9, body to world, row major); body rates (3, rad/s); previous motor commands
      (4, 0..1).
    - ``teacher`` (26): the same in ``cfg.teacher_frame``, then the rotor speeds (4, 0..1).
    - ``teacher_id`` (1), only with ``cfg.quadrotors``: the id of the craft that the environment flies.

    The student sees what ``cfg.sensor`` lets it measure, the teacher the truth.

    Actions (B, 4) in [-1, 1] are motor commands; -1 is the slowest and 1 the fastest rotor speed.
    """

    cfg: PointControlEnvCfg

    def __init__(self, cfg: PointControlEnvCfg, render_mode: str | None = None, **kwargs: Any):
        # Before the simulation starts, which takes longer than to see that the file is none.
        self.fleet = Fleet.read(cfg.quadrotors) if cfg.quadrotors else Fleet.of_drone(cfg.drone)
        # The user's name for the craft is env.robot; Isaac Lab builds and clones what the scene's settings hold.
        cfg.robot.spawn.drone = cfg.drone
        cfg.scene.robot = cfg.robot
        super().__init__(cfg, render_mode, **kwargs)
        self.robot: RigidObject = self.scene["robot"]
        n, device = self.num_envs, self.device
        self.fleet = self.fleet.to(device)
        """The nominal craft, on the simulation's device."""
        if self.fleet.ids is None:
            self.fleet.quadrotors.mass[:] = self.robot.data.body_mass.torch[:1]  # The asset may have its own.
        self.row = (cfg.first_env + torch.arange(n, device=device)) % self.fleet.size
        """(B,) the row of the fleet that each environment flies."""
        self.quadrotor = self.fleet.quadrotors.take(self.row)
        """The nominal craft of each environment."""
        self._weigh(torch.arange(n, dtype=torch.int32, device=device))
        self.rotor_vel = self.hover_rotor_vel.expand(n, 4).clone()
        """(B, 4) rpm."""
        self.last_action = self.hover_action.expand(n, 4).clone()
        """(B, 4) motor commands of the previous step, 0..1."""
        self.action_change = torch.zeros(n, device=device)
        """(B,) norm of the last change of the motor commands."""
        # What the bridge writes into policy files.
        self.obs_frames = {"policy": cfg.frame, "teacher": cfg.teacher_frame}
        self.obs_layouts = {"policy": OBSERVATION[:-1], "teacher": OBSERVATION}
        self.action_layout = {"layout": list(MOTORS), "range": [-1, 1], "rate_hz": round(1.0 / self.step_dt)}
        self.target = targets.reset(cfg.target, n, device)
        self.physics = Physics.sample(cfg.randomization, n, device)
        self.sensors = None if cfg.sensor.is_perfect else Sensors(cfg.sensor, n, device)
        """What the student has measured; None where its sensors are perfect."""

    @property
    def hover_rotor_vel(self) -> Tensor:
        """(B, 1) rotor speed that carries the nominal craft, rpm."""
        return self.quadrotor.hover_rotor_vel(math.hypot(*self.cfg.sim.gravity))

    @property
    def hover_action(self) -> Tensor:
        """(B, 1) the same as a motor command (0..1)."""
        return self.quadrotor.motor_speeds(self.hover_rotor_vel)

    @property
    def craft(self) -> Craft:
        """The crafts' state, read from the simulation."""
        pose, vel = self.robot.data.root_link_pose_w.torch, self.robot.data.root_com_vel_w.torch
        quat = pose[:, 3:]
        return Craft(
            pos=pose[:, :3] - self.scene.env_origins,
            quat=quat,
            vel=vel[:, :3],
            ang_vel=_to_body(rotation_matrix(quat), vel[:, 3:]),
            rotor_vel=self.rotor_vel,
        )

    def camera_view(self, index: int) -> tuple[list[float], list[float]]:
        """Eye and target (3, m, world frame) for a picture of environment ``index``: the target, from close by."""
        # In the empty sky the target is all that a movement is seen against.
        pos = self.target.pos[index] + self.scene.env_origins[index]
        return (pos + torch.tensor([0.6, -0.6, 0.4], device=pos.device)).tolist(), pos.tolist()

    def place(self, craft: Craft, env_ids: Tensor) -> None:
        """Put ``craft`` (K rows) into the environments ``env_ids`` (K,)."""
        pose = torch.cat([craft.pos + self.scene.env_origins[env_ids], craft.quat], dim=-1)
        rates = (rotation_matrix(craft.quat) @ craft.ang_vel[..., None])[..., 0]
        self.robot.write_root_pose_to_sim_index(root_pose=pose, env_ids=env_ids)
        self.robot.write_root_velocity_to_sim_index(root_velocity=torch.cat([craft.vel, rates], -1), env_ids=env_ids)
        self.rotor_vel[env_ids] = craft.rotor_vel

    def _configure_gym_env_spaces(self) -> None:
        super()._configure_gym_env_spaces()
        self.single_observation_space["teacher"] = gym.spaces.Box(-math.inf, math.inf, (26,))
        if self.fleet.ids is not None:
            self.single_observation_space["teacher_id"] = gym.spaces.Box(0.0, MAX_ID, (1,))

    def _pre_physics_step(self, actions: Tensor) -> None:
        command = 0.5 * (actions.clamp(-1.0, 1.0) + 1.0)
        self.action_change = (command - self.last_action).norm(dim=-1)
        self.last_action = command
        targets.step(self.cfg.target, self.target, self.step_dt)

    def _apply_action(self) -> None:
        """Called before every physics step: set the wrench of this moment, then let the rotors move on."""
        command = self.quadrotor.command(self.last_action)
        rotor_acc = rotor_acceleration(self.quadrotor, self.rotor_vel, command, self.physics.motor)
        craft = self.craft
        vel = _to_body(rotation_matrix(craft.quat), craft.vel)
        force, torque = wrench(self.quadrotor, self.rotor_vel, rotor_acc, vel, craft.ang_vel, self.physics.thrust)
        # A heavier craft with gravity unchanged flies as the nominal one does under a smaller force; the same holds for
        # inertia and torque, gyroscopic term included. So what an episode draws is never written to the simulation.
        self.robot.permanent_wrench_composer.set_forces_and_torques_index(
            forces=(force / self.physics.mass[:, None])[:, None],
            torques=(torque / self.physics.inertia[:, None])[:, None],
        )
        self.rotor_vel += rotor_acc * self.physics_dt

    def _get_dones(self) -> tuple[Tensor, Tensor]:
        craft = self.craft
        if self.sensors is not None:  # Here, before episodes that are over begin anew.
            self.sensors.step(craft)
        self.limits = self._limits(craft)
        terminated = torch.stack(list(self.limits.values())).any(dim=0)
        time_out = (self.episode_length_buf >= self.max_episode_length) & ~terminated
        error = (craft.pos - self.target.pos).norm(dim=-1)
        self.position_error = torch.where(self.limits["nan"], 0.0, error)
        log = {"Metrics/position_error": self.position_error.mean()}
        ended = terminated | time_out
        if ended.any():
            log |= {f"Episode_Termination/{name}": hit[ended].float().mean() for name, hit in self.limits.items()}
        self.extras["log"] = log
        return terminated, time_out

    def _get_rewards(self) -> Tensor:
        weights = self.cfg.reward
        reward = (
            weights.alive
            - weights.position * self.position_error
            - weights.orientation * (1.0 - _vertical(self.craft.quat))
            - weights.action_change * self.action_change
        )
        # A state that is not finite must not reach the reward either: only the penalty is left of it.
        return torch.where(self.limits["nan"], 0.0, reward) - weights.termination * self.reset_terminated

    def _get_observations(self) -> dict[str, Tensor]:
        craft = self.craft
        measured = craft if self.sensors is None else self.sensors.seen
        student = teacher = self._observe_without_motors(measured, self.cfg.frame)
        if measured is not craft or self.cfg.frame != self.cfg.teacher_frame:
            teacher = self._observe_without_motors(craft, self.cfg.teacher_frame)
        teacher = torch.cat([teacher, self.quadrotor.motor_speeds(craft.rotor_vel)], dim=-1)
        ids = {} if self.fleet.ids is None else {"teacher_id": self.fleet.ids[self.row][:, None]}
        return {"policy": student, "teacher": teacher, **ids}

    def _observe_without_motors(self, craft: Craft | Measurement, frame: str) -> Tensor:
        rotation = rotation_matrix(craft.quat)
        position, velocity = craft.pos - self.target.pos, craft.vel - self.target.vel
        if frame == "body":
            position, velocity = _to_body(rotation, position), _to_body(rotation, velocity)
        return torch.cat([position, velocity, rotation.flatten(1), craft.ang_vel, self.last_action], dim=-1)

    def _limits(self, craft: Craft) -> dict[str, Tensor]:
        """Which limits the craft (B) breaks, by name."""
        limit = self.cfg.termination
        finite = torch.cat([getattr(craft, f.name) for f in fields(craft)], dim=-1).isfinite().all(dim=-1)
        return {
            "distance": craft.pos.norm(dim=-1) > limit.max_distance,
            "linear_velocity": craft.vel.abs().amax(dim=-1) > limit.max_linear_velocity,
            "body_rate": craft.ang_vel.abs().amax(dim=-1) > limit.max_body_rate,
            "tilt": _vertical(craft.quat) < math.cos(math.radians(limit.max_tilt)),
            "nan": ~finite,
        }

    def _reset_idx(self, env_ids: Sequence[int] | Tensor | None) -> None:
        if env_ids is None:
            env_ids = range(self.num_envs)
        env_ids = torch.as_tensor(env_ids, dtype=torch.int32, device=self.device)
        super()._reset_idx(env_ids)
        n = len(env_ids)
        if self.cfg.quadrotor_assignment == "random" and self.fleet.size > 1:
            self.row[env_ids] = torch.randint(self.fleet.size, (n,), device=self.device)
            self.quadrotor.put(env_ids, self.fleet.quadrotors.take(self.row[env_ids]))
            self._weigh(env_ids)
        craft = self._initial_craft(self.cfg.reset, env_ids)
        self.place(craft, env_ids)
        if self.sensors is not None:
            self.sensors.reset(env_ids, craft)
        self.last_action[env_ids] = self.hover_action[env_ids]
        for state, fresh in (
            (self.target, targets.reset(self.cfg.target, n, self.device)),
            (self.physics, Physics.sample(self.cfg.randomization, n, self.device)),
        ):
            for name, value in vars(fresh).items():
                getattr(state, name)[env_ids] = value

    def _weigh(self, env_ids: Tensor) -> None:
        """Give the bodies of the environments ``env_ids`` (K,) mass and inertia of the crafts of a file."""
        if self.fleet.ids is None:
            return
        # Newton's bodies take them as exactly as a rescaled wrench would: bodies of 20 g to 5 kg accelerated as they
        # should but for rounding, also after a second write to some of them. So whatever else pushes at them later is
        # answered by the craft's mass, and a step costs what it costs with one craft.
        mass, inertia = self.quadrotor.mass[env_ids], self.quadrotor.inertia[env_ids]
        self.robot.set_masses_index(masses=mass, env_ids=env_ids)
        self.robot.set_inertias_index(inertias=torch.diag_embed(inertia).reshape(-1, 1, 9), env_ids=env_ids)

    def _initial_craft(self, cfg: ResetCfg, env_ids: Tensor) -> Craft:
        """Start states (K) of the crafts of the environments ``env_ids`` (K,)."""
        n, device = len(env_ids), self.device
        away = (torch.rand(n, 1, device=device) >= cfg.on_target_fraction).float()
        angle = torch.deg2rad(torch.tensor([cfg.tilt, cfg.tilt, cfg.yaw], device=device))
        euler = angle * (2.0 * torch.rand(n, 3, device=device) - 1.0)
        level = torch.tensor([0.0, 0.0, 1.0], device=device)
        return Craft(
            pos=away * cfg.position * self.quadrotor.arm_length[env_ids] * _in_unit_ball(n, device),
            quat=euler_to_quat(euler * torch.maximum(away, level)),
            vel=away * cfg.linear_velocity * _in_unit_ball(n, device),
            ang_vel=away * cfg.angular_velocity * _in_unit_ball(n, device),
            rotor_vel=self.hover_rotor_vel[env_ids].expand(n, 4),
        )


def _to_body(rotation: Tensor, vector: Tensor) -> Tensor:
    """World vectors (B, 3) in the body frame of ``rotation`` (B, 3, 3)."""
    return (rotation.transpose(-1, -2) @ vector[..., None])[..., 0]


def _vertical(quat: Tensor) -> Tensor:
    """Cosine of the tilt (B,): the world's z component of the body's z axis."""
    return 1.0 - 2.0 * (quat[:, 0] ** 2 + quat[:, 1] ** 2)


def _in_unit_ball(n: int, device: str) -> Tensor:
    """Points (n, 3) uniform in the unit ball: a uniform direction times the cube root of a uniform number."""
    direction = torch.randn(n, 3, device=device)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    return direction * torch.rand(n, 1, device=device) ** (1 / 3)


def euler_to_quat(euler: Tensor) -> Tensor:
    """Roll, pitch, yaw (n, 3) in rad, applied yaw after pitch after roll, to quaternions xyzw (n, 4)."""
    (sr, sp, sy), (cr, cp, cy) = torch.sin(0.5 * euler).T, torch.cos(0.5 * euler).T
    return torch.stack(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ],
        dim=-1,
    )
