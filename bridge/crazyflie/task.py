"""Point control: fly to a target and stay on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie import target as targets
from bridge.crazyflie.cfg import MOTORS, OBSERVATION, PointControlCfg
from bridge.crazyflie.dynamics import Craft, Crazyflie, Physics, rotation_matrix
from bridge.crazyflie.target import Target
from bridge.env import Color, Layout, Renderer, State

if TYPE_CHECKING:
    from bridge.crazyflie.render import LiveViewer


class PhysicalState(struct.PyTreeNode):
    """All that an episode carries from step to step."""

    craft: Craft
    """Position, rotation, velocities, rotor speeds."""
    target: Target
    """Where to be."""
    physics: Physics
    """This episode's physical parameters."""
    last_action: Array
    """(B, 4) motor commands of the previous step, 0..1."""


class PointControl:
    """The task as a batch of environments; see :class:`bridge.env.Env` for the interface.

    Observation groups, in this order (body frame means rotated by the transposed rotation matrix):

    - ``student`` (22): position minus target (3, m) and velocity minus target velocity (3, m/s), both in
      ``cfg.frame``; rotation matrix (9, body to world, row major); body rates (3, rad/s); previous motor commands
      (4, 0..1).
    - ``teacher`` (26): the same in ``cfg.teacher_frame``, then the rotor speeds (4, 0..1).

    Actions (B, 4) in [-1, 1] are motor commands; -1 is the slowest and 1 the fastest rotor speed.
    """

    num_actions = 4
    obs_sizes: Mapping[str, int] = MappingProxyType({"student": 22, "teacher": 26})
    obs_layouts: Mapping[str, Layout] = MappingProxyType({"student": OBSERVATION[:-1], "teacher": OBSERVATION})

    def __init__(self, cfg: PointControlCfg):
        cfg.validate()
        self.cfg = cfg
        self.action_layout = {"layout": list(MOTORS), "range": [-1, 1], "rate_hz": cfg.policy_freq}
        self.obs_frames = {"student": cfg.frame, "teacher": cfg.teacher_frame}
        self.num_envs = cfg.num_envs
        self.step_dt = 1.0 / cfg.policy_freq
        self.max_episode_length = round(cfg.episode_length_s * cfg.policy_freq)
        self.craft = Crazyflie(cfg.drone, cfg.num_envs, cfg.physics_freq, cfg.physics_freq // cfg.policy_freq)
        hover = (self.craft.hover_rotor_vel - self.craft.rotor_min) / (self.craft.rotor_max - self.craft.rotor_min)
        self.hover_action = float(hover)
        """Motor command (0..1) that carries the nominal craft."""

    def reset(self, rng: Array) -> State:
        """Draw targets, physical parameters and start states."""
        craft_key, target_key, physics_key, rng = jax.random.split(rng, 4)
        sim = PhysicalState(
            craft=self._initial_craft(craft_key),
            target=targets.reset(self.cfg.target, target_key, self.num_envs),
            physics=Physics.sample(self.cfg.randomization, physics_key, self.num_envs),
            last_action=jnp.full((self.num_envs, 4), self.hover_action),
        )
        no = jnp.zeros(self.num_envs, bool)
        limits = dict.fromkeys(self._limits(sim.craft), no)
        zero = jnp.zeros(self.num_envs)
        return State(
            pipeline_state=sim,
            obs=self.observe(sim),
            reward=zero,
            done=no,
            metrics=self._metrics(sim, limits),
            info={"target_rng": rng},
        )

    def step(self, state: State, action: Array) -> State:
        """Advance by one control step; ``action`` (B, 4) is clipped to [-1, 1]."""
        cfg, before = self.cfg, state.pipeline_state
        command = 0.5 * (jnp.clip(action, -1.0, 1.0) + 1.0)
        rng, key = jax.random.split(state.info["target_rng"])
        sim = before.replace(
            craft=self.craft.step(before.craft, before.physics, self.craft.command(command)),
            target=targets.step(cfg.target, before.target, key, self.step_dt),
            last_action=command,
        )
        limits = self._limits(sim.craft)
        done = jnp.any(jnp.stack(list(limits.values())), axis=0)
        metrics = self._metrics(sim, limits)
        weights = cfg.reward
        reward = (
            weights.alive
            - weights.position * metrics["Metrics/position_error"]
            - weights.orientation * (1.0 - _vertical(sim.craft))
            - weights.action_change * jnp.linalg.norm(command - before.last_action, axis=-1)
        )
        # A state that is not finite must not reach the reward either: only the penalty is left of it.
        reward = jnp.where(limits["nan"], 0.0, reward) - weights.termination * done
        return state.replace(
            pipeline_state=sim,
            obs=self.observe(sim),
            reward=reward,
            done=done,
            metrics=metrics,
            info={**state.info, "target_rng": rng},
        )

    def renderer(self, width: int, height: int, color: Color) -> Renderer:
        """See :class:`bridge.env.Renderer`; ``color`` is the path's."""
        from bridge.crazyflie.render import OffscreenRenderer

        return OffscreenRenderer(self.cfg.drone, width, height, color)

    def viewer(self, colors: Sequence[Color]) -> LiveViewer:
        """A window for one craft per color."""
        from bridge.crazyflie.render import LiveViewer

        return LiveViewer(self.cfg.drone, colors)

    def observe(self, sim: PhysicalState) -> dict[str, Array]:
        """The observation groups ``student`` (B, 22) and ``teacher`` (B, 26)."""
        motors = self.craft.motor_speeds(sim.craft)
        student = self._observe_without_motors(sim, self.cfg.frame)
        same = self.cfg.frame == self.cfg.teacher_frame
        teacher = student if same else self._observe_without_motors(sim, self.cfg.teacher_frame)
        return {"student": student, "teacher": jnp.concatenate([teacher, motors], axis=-1)}

    def _observe_without_motors(self, sim: PhysicalState, frame: str) -> Array:
        craft = sim.craft
        rotation = rotation_matrix(craft.quat)
        errors = jnp.stack([craft.pos - sim.target.pos, craft.vel - sim.target.vel], axis=-1)  # (B, 3, 2)
        if frame == "body":
            errors = jnp.swapaxes(rotation, -1, -2) @ errors
        flat = rotation.reshape(self.num_envs, 9)
        return jnp.concatenate([errors[..., 0], errors[..., 1], flat, craft.ang_vel, sim.last_action], axis=-1)

    def _limits(self, craft: Craft) -> dict[str, Array]:
        """Which limits the craft (B) breaks, by name."""
        limit = self.cfg.termination
        finite = jnp.stack([jnp.isfinite(x).all(axis=-1) for x in jax.tree.leaves(craft)]).all(axis=0)
        return {
            "distance": jnp.linalg.norm(craft.pos, axis=-1) > limit.max_distance,
            "linear_velocity": jnp.abs(craft.vel).max(axis=-1) > limit.max_linear_velocity,
            "body_rate": jnp.abs(craft.ang_vel).max(axis=-1) > limit.max_body_rate,
            "tilt": _vertical(craft) < jnp.cos(jnp.deg2rad(limit.max_tilt)),
            "nan": ~finite,
        }

    def _metrics(self, sim: PhysicalState, limits: dict[str, Array]) -> dict[str, Array]:
        error = jnp.linalg.norm(sim.craft.pos - sim.target.pos, axis=-1)
        ended = {f"Episode_Termination/{name}": hit.astype(jnp.float32) for name, hit in limits.items()}
        return {"Metrics/position_error": jnp.where(limits["nan"], 0.0, error), **ended}

    def _initial_craft(self, rng: Array) -> Craft:
        cfg, n = self.cfg.reset, self.num_envs
        keys = jax.random.split(rng, 6)
        away = (jax.random.uniform(keys[0], (n, 1)) >= cfg.on_target_fraction).astype(jnp.float32)
        angle = jnp.deg2rad(jnp.array([cfg.tilt, cfg.tilt, cfg.yaw]))
        euler = jax.random.uniform(keys[1], (n, 3), minval=-angle, maxval=angle)
        level = jnp.array([0.0, 0.0, 1.0])
        rotor_vel = jnp.full((n, 4), self.craft.hover_rotor_vel)
        return Craft(
            pos=away * cfg.position * self.craft.arm_length * _in_unit_ball(keys[2], n),
            quat=_euler_to_quat(euler * jnp.maximum(away, level)),
            vel=away * cfg.linear_velocity * _in_unit_ball(keys[3], n),
            ang_vel=away * cfg.angular_velocity * _in_unit_ball(keys[4], n),
            rotor_vel=rotor_vel,
        )


def _vertical(craft: Craft) -> Array:
    """Cosine of the tilt (B,): the world's z component of the body's z axis."""
    x, y = craft.quat[:, 0], craft.quat[:, 1]
    return 1.0 - 2.0 * (x * x + y * y)


def _in_unit_ball(rng: Array, n: int) -> Array:
    """Points (n, 3) uniform in the unit ball: a uniform direction times the cube root of a uniform number."""
    direction_key, radius_key = jax.random.split(rng)
    direction = jax.random.normal(direction_key, (n, 3))
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return direction * jax.random.uniform(radius_key, (n, 1)) ** (1 / 3)


def _euler_to_quat(euler: Array) -> Array:
    """Roll, pitch, yaw (n, 3) in rad, applied yaw after pitch after roll, to quaternions xyzw (n, 4)."""
    (sr, sp, sy), (cr, cp, cy) = jnp.sin(0.5 * euler).T, jnp.cos(0.5 * euler).T
    return jnp.stack(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ],
        axis=-1,
    )
