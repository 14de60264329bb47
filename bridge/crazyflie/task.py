"""Point control: fly to a target and stay on it."""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import json
import math
import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie import dynamics
from bridge.crazyflie import sensor as sensors
from bridge.crazyflie import target as targets
from bridge.crazyflie import wind as winds
from bridge.crazyflie.airframe import Airframe
from bridge.crazyflie.cfg import OBSERVATION, PHYSICS, PREVIOUS, PointControlCfg
from bridge.crazyflie.commands import commands_of
from bridge.crazyflie.constants import Constants
from bridge.crazyflie.dynamics import Craft, Motors, Quadrotor
from bridge.crazyflie.fleet import Fleet
from bridge.crazyflie.parameters import joined, split
from bridge.crazyflie.physics import Physics, felt
from bridge.crazyflie.random import Stream
from bridge.crazyflie.sensor import Measurement, Sensors
from bridge.crazyflie.target import Target
from bridge.crazyflie.vectors import Quaternion, Rotation, heading, in_memory, turned_back
from bridge.crazyflie.wind import Wind
from bridge.env import Color, ObservationSpec, Renderer, State, Viewer
from bridge.keys import split_keys
from bridge.quadrotors import read_csv

DELAY_ROOM_S = 0.03
"""Delay of the measurements that a program for any parameters has room for, s; that of the longest scenario."""


class Purpose(enum.IntEnum):
    """What random numbers are for. Each has its own, so that targets are the same with and without wind and noise."""

    TARGET, WIND, SENSOR, DELAY, PHYSICS = range(5)
    ON_TARGET, ATTITUDE, POSITION, VELOCITY, RATE = range(5, 10)
    QUADROTOR = 10


class PhysicalState(struct.PyTreeNode):
    """All that an episode carries from step to step."""

    craft: Craft
    """Position, rotation, velocities, rotor speeds."""
    target: Target
    """Where to be."""
    physics: Physics
    """This episode's physical parameters."""
    last_action: Motors
    """The command of the previous step, 0..1."""
    heading: tuple[Array, Array] | None = None
    """Cosine and sine, each (B,), of the heading in which the episode began; None where nobody's frame needs it."""
    wind: Wind | None = None
    """What blows; None in calm air."""
    sensors: Sensors | None = None
    """What the student has measured; None where its sensors are perfect."""
    row: Array | None = None
    """(B,) int32, the row of the quadrotor that flies; None where all are ``cfg.drone``."""


class PointControl:
    """The task as a batch of environments; see :class:`bridge.env.Env` for the interface.

    Observation groups, in this order (body frame means rotated by the transposed rotation matrix):

    - ``student`` (22): position minus target (3, m) and velocity minus target velocity (3, m/s), both in
      ``cfg.frame``; rotation matrix (9, body to world, row major); body rates (3, rad/s); the command of the step
      before (4, 0..1).
    - ``teacher`` (26): the same in ``cfg.teacher_frame``, then the rotor speeds (4, 0..1); with
      ``cfg.teacher_sees_physics`` (30) the episode's physical parameters behind them (4, see
      :data:`bridge.crazyflie.cfg.PHYSICS`).

    The student sees what ``cfg.sensor`` lets it measure, the teacher the truth.

    Actions (B, 4) in [-1, 1] are motor commands, -1 the slowest and 1 the fastest rotor speed, or with
    ``cfg.action="ctbr"`` collective thrust and body rates: see :mod:`bridge.crazyflie.commands`.

    With ``cfg.quadrotors`` each environment flies a craft of that file, whose id is ``info["teacher_id"]`` (B,) int32.
    """

    num_actions = 4
    key_per_env = True

    def __init__(self, cfg: PointControlCfg):
        cfg.validate()
        self.cfg = cfg
        self._commands = commands_of(cfg.action, cfg.rate_controller)
        seen = tuple((self._commands.observed if n == PREVIOUS else n, size, unit) for n, size, unit in OBSERVATION)
        teacher = seen + PHYSICS if cfg.teacher_sees_physics else seen
        self.obs_specs: Mapping[str, ObservationSpec] = {
            "student": ObservationSpec.of_layout(seen[:-1], cfg.frame),
            "teacher": ObservationSpec.of_layout(teacher, cfg.teacher_frame),
        }
        self.action_layout = {"layout": list(self._commands.layout), "range": [-1, 1], "rate_hz": cfg.policy_freq}
        self.num_envs = cfg.num_envs
        self.step_dt = 1.0 / cfg.policy_freq
        self.max_episode_length = round(cfg.episode_length_s * cfg.policy_freq)
        airframe = Airframe.load(cfg.drone)
        self.quadrotor = Quadrotor.of(Constants.of(airframe))
        """The nominal craft, where no file says otherwise."""
        self.fleet = Fleet.of(read_csv(cfg.quadrotors)) if cfg.quadrotors else None
        """The craft of the file."""
        self.deployment = {} if cfg.quadrotors else {"motors": {"airframe": cfg.drone, **airframe.motors}}
        """What a program that flies the real craft needs to know."""
        self._keeps_heading = "start" in (cfg.frame, cfg.teacher_frame)
        self._is_windy, self._is_sensing = cfg.wind.force > 0, not cfg.sensor.is_perfect
        self._delay_room = cfg.sensor.delay_steps

    @property
    def hover_action(self) -> Array:
        """(4,) the command (0..1) that carries the nominal craft."""
        return jnp.stack(self._commands.at_rest(self.quadrotor, self.quadrotor.hover_rotor_vel))

    @property
    def structure(self) -> Hashable:
        """See :class:`bridge.env.Parametric`; drones, kinds of targets, disturbances and widths are no part of it."""
        _, fixed = split(dataclasses.replace(self.cfg, drone="", quadrotors=""))
        size = None if self.fleet is None else self.fleet.ids.shape[0]
        return json.dumps([fixed, self.max_episode_length, self._longest_delay, size])

    @property
    def parameters(self) -> dict[str, Any]:
        """See :class:`bridge.env.Parametric`."""
        return {"cfg": split(self.cfg)[0], "quadrotor": self.quadrotor, "fleet": self.fleet}

    def with_parameters(self, parameters: dict[str, Any]) -> PointControl:
        """See :class:`bridge.env.Parametric`. It has wind and sensors, whatever their strength."""
        other = copy.copy(self)
        other.cfg = joined(self.cfg, parameters["cfg"])
        other.quadrotor, other.fleet = parameters["quadrotor"], parameters["fleet"]
        other._is_windy = other._is_sensing = True
        other._delay_room = self._longest_delay
        return other

    @property
    def _longest_delay(self) -> int:
        """Steps that a program for any parameters has room for."""
        return max(self.cfg.sensor.delay_steps, math.ceil(DELAY_ROOM_S * self.cfg.policy_freq))

    def reset(self, rng: Array) -> State:
        """Draw targets, physical parameters and start states; ``rng`` is one key or (B,)."""
        start_key, rng = split_keys(rng)
        n, start = self.num_envs, Stream.create(start_key, self.num_envs)
        row = None if self.fleet is None else self.fleet.assign(self.cfg.quadrotor_assignment, start, Purpose.QUADROTOR)
        quadrotor = self.quadrotor_in(row)
        hover = quadrotor.hover_rotor_vel
        craft = self._initial_craft(start, quadrotor)
        purposes = (Purpose.SENSOR, Purpose.DELAY)
        sim = PhysicalState(
            craft=craft,
            target=targets.reset(self.cfg.target, start, Purpose.TARGET),
            physics=Physics.sample(self.cfg.randomization, start, Purpose.PHYSICS),
            last_action=self._at_rest(quadrotor, hover),
            heading=heading(craft.quat.rotation()) if self._keeps_heading else None,
            wind=winds.reset(n) if self._is_windy else None,
            sensors=sensors.reset(self.cfg.sensor, craft, start, purposes, self._delay_room)
            if self._is_sensing
            else None,
            row=row,
        )
        limits = dict.fromkeys(self._limits(sim.craft), jnp.zeros(n, bool))
        return State(
            pipeline_state=sim,
            obs=self.observe_pipeline_state(sim),
            reward=jnp.zeros(n),
            done=jnp.zeros(n, bool),
            metrics=self._metrics(sim, limits),
            info={"random": Stream.create(rng, n), **self._teacher_id(sim)},
        )

    def step(self, state: State, action: Array) -> State:
        """Advance by one control step; ``action`` (B, 4) is clipped to [-1, 1]."""
        cfg, before, stream = self.cfg, state.pipeline_state, state.info["random"]
        command: Any = tuple(0.5 * (jnp.clip(action[:, i], -1.0, 1.0) + 1.0) for i in range(4))
        wind, quadrotor = before.wind, self.quadrotor_in(before.row)
        if wind is not None:
            wind = winds.step(cfg.wind, wind, stream, Purpose.WIND, quadrotor.weight, self.step_dt)
        craft = dynamics.step(
            before.physics.apply(quadrotor),
            before.craft,
            self._commands.controller(quadrotor, command),
            None if wind is None else wind.force,
            1.0 / cfg.physics_freq,
            cfg.physics_freq // cfg.policy_freq,
        )
        sim = before.replace(
            craft=craft,
            target=in_memory(targets.step(cfg.target, before.target, stream, Purpose.TARGET, self.step_dt)),
            last_action=command,
            wind=wind,
            sensors=before.sensors and sensors.step(cfg.sensor, before.sensors, craft, stream, Purpose.SENSOR),
        )
        limits = in_memory(self._limits(sim.craft))
        done = functools.reduce(operator.or_, limits.values())
        metrics = in_memory(self._metrics(sim, limits))
        change = sum((now - then) ** 2 for now, then in zip(command, before.last_action, strict=True))
        weights = cfg.reward
        reward = (
            weights.alive
            - weights.position * metrics["Metrics/position_error"]
            - weights.orientation * _orientation_cost(weights.orientation_cost, sim.craft)
            - weights.action_change * jnp.sqrt(change)
        )
        # A state that is not finite must not reach the reward either: only the penalty is left of it.
        reward = jnp.where(limits["nan"], 0.0, reward) - weights.termination * done
        return state.replace(
            pipeline_state=sim,
            obs=self.observe_pipeline_state(sim),
            reward=reward,
            done=done,
            metrics=metrics,
            info={**state.info, "random": stream.next(), **self._teacher_id(sim)},
        )

    def at_rest(self, sim: PhysicalState) -> PhysicalState:
        """``sim`` with the motors at the speed that carries its craft, commanded to it."""
        nominal = self.quadrotor_in(sim.row)
        hover = sim.physics.apply(nominal).hover_rotor_vel
        return sim.replace(craft=sim.craft.replace(rotor_vel=(hover,) * 4), last_action=self._at_rest(nominal, hover))

    def _at_rest(self, quadrotor: Quadrotor, rotor_vel: Array) -> Motors:
        found: Any = tuple(jnp.broadcast_to(c, self.num_envs) for c in self._commands.at_rest(quadrotor, rotor_vel))
        return found

    def quadrotor_in(self, row: Array | None) -> Quadrotor:
        """The nominal craft of each environment, ``row`` being its row of the file, or of all."""
        return self.quadrotor if row is None or self.fleet is None else self.fleet.take(row)

    def _teacher_id(self, sim: PhysicalState) -> dict[str, Array]:
        return {} if self.fleet is None else {"teacher_id": jnp.asarray(self.fleet.ids)[sim.row]}

    def renderer(self, width: int, height: int, color: Color) -> Renderer:
        """See :class:`bridge.env.Renderer`; ``color`` is the path's."""
        from bridge.crazyflie.render import OffscreenRenderer, Scene

        return OffscreenRenderer(Scene(self.cfg.drone, [color]), width, height)

    def viewer(self, colors: Sequence[Color]) -> Viewer:
        """See :class:`bridge.env.Viewer`."""
        from bridge.crazyflie.render import LiveViewer, Scene

        return LiveViewer(lambda: Scene(self.cfg.drone, colors))

    def observe_pipeline_state(self, sim: PhysicalState) -> dict[str, Array]:
        """The observation groups ``student`` (B, 22) and ``teacher`` (B, 26, or 30 with the physical parameters)."""
        craft = sim.craft
        measured = craft if sim.sensors is None else sim.sensors.seen
        student = in_memory(self._observe_without_motors(sim, measured, self.cfg.frame))
        teacher = student
        if measured is not craft or self.cfg.frame != self.cfg.teacher_frame:
            teacher = in_memory(self._observe_without_motors(sim, craft, self.cfg.teacher_frame))
        quadrotor = self.quadrotor_in(sim.row)
        teacher = [*teacher, *quadrotor.motor_speeds(craft.rotor_vel)]
        if self.cfg.teacher_sees_physics:
            teacher += felt(sim.physics.apply(quadrotor))
        return {"student": jnp.stack(student, axis=-1), "teacher": jnp.stack(teacher, axis=-1)}

    def _observe_without_motors(self, sim: PhysicalState, craft: Craft | Measurement, frame: str) -> list[Array]:
        rotation = craft.quat.rotation()
        position, velocity = craft.pos - sim.target.pos, craft.vel - sim.target.vel
        if frame == "body":
            position, velocity = rotation.apply_inverse(position), rotation.apply_inverse(velocity)
        elif sim.heading is not None and frame == "start":
            position, velocity = turned_back(sim.heading, position), turned_back(sim.heading, velocity)
            columns = (turned_back(sim.heading, column) for column in rotation.transposed())
            rotation = Rotation(*columns).transposed()
        vectors = (position, velocity, *rotation, craft.ang_vel)
        return [*(x for vector in vectors for x in vector.parts), *sim.last_action]

    def trace(self, state: State) -> dict[str, Array]:
        """What a picture of an episode shows: ``position`` and ``target``, (B, 3) m in the world frame."""
        sim = state.pipeline_state
        return {"position": sim.craft.pos.array, "target": sim.target.pos.array}

    def tracking(self, state: State) -> dict[str, Array]:
        """Where craft and target are and how they move, each (B, 3): ``position``, ``target`` (m), ``velocity``,
        ``target_velocity`` (m/s), world frame."""
        craft, target = state.pipeline_state.craft, state.pipeline_state.target
        found = {"position": craft.pos, "target": target.pos, "velocity": craft.vel, "target_velocity": target.vel}
        return {name: vector.array for name, vector in found.items()}

    def _limits(self, craft: Craft) -> dict[str, Array]:
        """Which limits the craft (B) breaks, by name."""
        limit = self.cfg.termination
        return {
            "distance": craft.pos.norm() > limit.max_distance,
            "linear_velocity": craft.vel.largest() > limit.max_linear_velocity,
            "body_rate": craft.ang_vel.largest() > limit.max_body_rate,
            "tilt": craft.vertical < jnp.cos(jnp.deg2rad(limit.max_tilt)),
            "nan": ~craft.is_finite,
        }

    def _metrics(self, sim: PhysicalState, limits: dict[str, Array]) -> dict[str, Array]:
        error = (sim.craft.pos - sim.target.pos).norm()
        ended = {f"Episode_Termination/{name}": hit.astype(jnp.float32) for name, hit in limits.items()}
        return {"Metrics/position_error": jnp.where(limits["nan"], 0.0, error), **ended}

    def _initial_craft(self, stream: Stream, quadrotor: Quadrotor) -> Craft:
        cfg = self.cfg.reset
        (chance,) = stream.uniform(Purpose.ON_TARGET, 1)
        away = (chance >= cfg.on_target_fraction).astype(jnp.float32)
        roll, pitch, yaw = (2.0 * u - 1.0 for u in stream.uniform(Purpose.ATTITUDE, 3))
        tilt = away * jnp.deg2rad(cfg.tilt)
        craft = Craft(
            pos=stream.in_unit_ball(Purpose.POSITION) * (away * cfg.position * quadrotor.arm_length),
            quat=Quaternion.of_euler(tilt * roll, tilt * pitch, jnp.deg2rad(cfg.yaw) * yaw),
            vel=stream.in_unit_ball(Purpose.VELOCITY) * (away * cfg.linear_velocity),
            ang_vel=stream.in_unit_ball(Purpose.RATE) * (away * cfg.angular_velocity),
            rotor_vel=(jnp.full(self.num_envs, quadrotor.hover_rotor_vel),) * 4,
        )
        return in_memory(craft)


def _orientation_cost(kind: str, craft: Craft) -> Array:
    """(B,), see :class:`bridge.crazyflie.cfg.RewardCfg`."""
    if kind == "tilt":
        return 1.0 - craft.vertical
    return jnp.arccos(jnp.clip(1.0 - jnp.abs(craft.quat.normalized().z), -1.0, 1.0))
