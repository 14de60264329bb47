"""Point control: fly to a target and stay on it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie import sensor as sensors
from bridge.crazyflie import target as targets
from bridge.crazyflie import wind as winds
from bridge.crazyflie.cfg import MOTORS, OBSERVATION, PHYSICS, PointControlCfg
from bridge.crazyflie.dynamics import Craft, Crazyflie, Physics, rotation_matrix
from bridge.crazyflie.sensor import Sensors
from bridge.crazyflie.target import Target, in_unit_ball
from bridge.crazyflie.wind import Wind
from bridge.env import Color, ObservationSpec, Renderer, State, Viewer


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
    heading: Array | None = None
    """(B, 2) cosine and sine of the heading in which the episode began; None where nobody's frame needs it."""
    wind: Wind | None = None
    """What blows; None in calm air."""
    sensors: Sensors | None = None
    """What the student has measured; None where its sensors are perfect."""


class PointControl:
    """The task as a batch of environments; see :class:`bridge.env.Env` for the interface.

    Observation groups, in this order (body frame means rotated by the transposed rotation matrix):

    - ``student`` (22): position minus target (3, m) and velocity minus target velocity (3, m/s), both in
      ``cfg.frame``; rotation matrix (9, body to world, row major); body rates (3, rad/s); previous motor commands
      (4, 0..1).
    - ``teacher`` (26): the same in ``cfg.teacher_frame``, then the rotor speeds (4, 0..1); with
      ``cfg.teacher_sees_physics`` (30) the episode's physical parameters behind them (4, see
      :data:`bridge.crazyflie.cfg.PHYSICS`).

    The student sees what ``cfg.sensor`` lets it measure, the teacher the truth.

    Actions (B, 4) in [-1, 1] are motor commands; -1 is the slowest and 1 the fastest rotor speed.
    """

    num_actions = 4

    def __init__(self, cfg: PointControlCfg):
        cfg.validate()
        self.cfg = cfg
        teacher = OBSERVATION + PHYSICS if cfg.teacher_sees_physics else OBSERVATION
        self.obs_specs: Mapping[str, ObservationSpec] = {
            "student": ObservationSpec.of_layout(OBSERVATION[:-1], cfg.frame),
            "teacher": ObservationSpec.of_layout(teacher, cfg.teacher_frame),
        }
        self.action_layout = {"layout": list(MOTORS), "range": [-1, 1], "rate_hz": cfg.policy_freq}
        self.num_envs = cfg.num_envs
        self.step_dt = 1.0 / cfg.policy_freq
        self.max_episode_length = round(cfg.episode_length_s * cfg.policy_freq)
        self.craft = Crazyflie(cfg.drone, cfg.num_envs, cfg.physics_freq, cfg.physics_freq // cfg.policy_freq)
        self._keeps_heading = "start" in (cfg.frame, cfg.teacher_frame)
        self._is_windy, self._is_sensing = cfg.wind.force > 0, not cfg.sensor.is_perfect
        hover = (self.craft.hover_rotor_vel - self.craft.rotor_min) / (self.craft.rotor_max - self.craft.rotor_min)
        self.hover_action = float(hover)
        """Motor command (0..1) that carries the nominal craft."""

    @property
    def structure(self) -> Hashable:
        """See :class:`bridge.env.Parametric`; drones, widths and other numbers are no part of it."""
        _, fixed = _split(dataclasses.replace(self.cfg, drone=""))
        return json.dumps([fixed, self.max_episode_length, self._is_windy, self._is_sensing])

    @property
    def parameters(self) -> dict[str, Any]:
        """See :class:`bridge.env.Parametric`."""
        return {
            "cfg": _split(self.cfg)[0],
            "craft": self.craft.parameters,
            "hover_action": self.hover_action,
        }

    def with_parameters(self, parameters: dict[str, Any]) -> PointControl:
        """See :class:`bridge.env.Parametric`."""
        other = copy.copy(self)
        other.cfg = _joined(self.cfg, parameters["cfg"])
        other.craft = self.craft.with_parameters(parameters["craft"])
        other.hover_action = parameters["hover_action"]
        return other

    def reset(self, rng: Array) -> State:
        """Draw targets, physical parameters and start states."""
        craft_key, target_key, physics_key, rng = jax.random.split(rng, 4)
        craft = self._initial_craft(craft_key)
        sim = PhysicalState(
            craft=craft,
            target=targets.reset(self.cfg.target, target_key, self.num_envs),
            physics=Physics.sample(self.cfg.randomization, physics_key, self.num_envs),
            last_action=jnp.full((self.num_envs, 4), self.hover_action),
            heading=_heading(craft) if self._keeps_heading else None,
            wind=winds.reset(self.num_envs) if self._is_windy else None,
            sensors=sensors.reset(self.cfg.sensor, craft, jax.random.fold_in(craft_key, 1))
            if self._is_sensing
            else None,
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
        # Keys of their own, so that targets are the same with and without wind and noise.
        wind_key, sensor_key = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
        wind, force = before.wind, None
        if wind is not None:
            wind = winds.step(cfg.wind, wind, wind_key, self.craft.weight, self.step_dt)
            force = wind.force
        craft = self.craft.step(before.craft, before.physics, self.craft.command(command), force)
        sim = before.replace(
            craft=craft,
            target=targets.step(cfg.target, before.target, key, self.step_dt),
            last_action=command,
            wind=wind,
            sensors=before.sensors and sensors.step(cfg.sensor, before.sensors, craft, sensor_key),
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

    def viewer(self, colors: Sequence[Color]) -> Viewer:
        """See :class:`bridge.env.Viewer`."""
        from bridge.crazyflie.render import LiveViewer

        return LiveViewer(self.cfg.drone, colors)

    def observe(self, sim: PhysicalState) -> dict[str, Array]:
        """The observation groups ``student`` (B, 22) and ``teacher`` (B, 26, or 30 with the physical parameters)."""
        craft = sim.craft
        measured = craft if sim.sensors is None else craft.replace(**vars(sim.sensors.seen))
        student = self._observe_without_motors(sim, measured, self.cfg.frame)
        same = self.cfg.frame == self.cfg.teacher_frame and measured is craft
        teacher = [student if same else self._observe_without_motors(sim, craft, self.cfg.teacher_frame)]
        teacher.append(self.craft.motor_speeds(craft))
        if self.cfg.teacher_sees_physics:
            teacher.append(self.craft.felt(sim.physics))
        return {"student": student, "teacher": jnp.concatenate(teacher, axis=-1)}

    def _observe_without_motors(self, sim: PhysicalState, craft: Craft, frame: str) -> Array:
        rotation = rotation_matrix(craft.quat)
        errors = jnp.stack([craft.pos - sim.target.pos, craft.vel - sim.target.vel], axis=-1)  # (B, 3, 2)
        if frame == "body":
            errors = jnp.swapaxes(rotation, -1, -2) @ errors
        elif sim.heading is not None and frame == "start":
            errors, rotation = _turn_back(sim.heading, errors), _turn_back(sim.heading, rotation)
        flat = rotation.reshape(self.num_envs, 9)
        return jnp.concatenate([errors[..., 0], errors[..., 1], flat, craft.ang_vel, sim.last_action], axis=-1)

    def trace(self, state: State) -> dict[str, Array]:
        """What a picture of an episode shows: ``position`` and ``target``, (B, 3) m in the world frame."""
        return {"position": state.pipeline_state.craft.pos, "target": state.pipeline_state.target.pos}

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
            pos=away * cfg.position * self.craft.arm_length * in_unit_ball(keys[2], n),
            quat=_euler_to_quat(euler * jnp.maximum(away, level)),
            vel=away * cfg.linear_velocity * in_unit_ball(keys[3], n),
            ang_vel=away * cfg.angular_velocity * in_unit_ball(keys[4], n),
            rotor_vel=rotor_vel,
        )


def _split(cfg: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The real numbers among the settings, and all else, both nested as the settings are."""
    numbers: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in vars(cfg).items():
        if dataclasses.is_dataclass(value):
            numbers[name], rest[name] = _split(value)
        elif isinstance(value, float):
            numbers[name] = value
        else:
            rest[name] = value
    return numbers, rest


def _joined(cfg: Any, numbers: dict[str, Any]) -> Any:
    """The settings ``cfg`` with other real numbers."""
    parts = {k: _joined(getattr(cfg, k), v) if isinstance(v, dict) else v for k, v in numbers.items()}
    return dataclasses.replace(cfg, **parts)


def _heading(craft: Craft) -> Array:
    """Cosine and sine (B, 2) of the direction in which the body's x axis points, seen from above."""
    forward = rotation_matrix(craft.quat)[:, :2, 0]
    return forward / jnp.linalg.norm(forward, axis=-1, keepdims=True)


def _turn_back(heading: Array, columns: Array) -> Array:
    """World vectors, the columns of (B, 3, K), in the world frame turned by ``heading`` (B, 2)."""
    cos, sin = heading[:, :1], heading[:, 1:]
    x, y, z = columns[:, 0], columns[:, 1], columns[:, 2]
    return jnp.stack([cos * x + sin * y, cos * y - sin * x, z], axis=1)


def _vertical(craft: Craft) -> Array:
    """Cosine of the tilt (B,): the world's z component of the body's z axis."""
    x, y = craft.quat[:, 0], craft.quat[:, 1]
    return 1.0 - 2.0 * (x * x + y * y)


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
