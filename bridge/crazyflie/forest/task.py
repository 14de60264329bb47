"""Forest flight: reach the goal behind a forest of columns and hit nothing."""

from __future__ import annotations

import copy
import enum
import functools
import itertools
import json
import math
import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.crazyflie import dynamics
from bridge.crazyflie import sensor as sensors
from bridge.crazyflie.airframe import Airframe
from bridge.crazyflie.constants import Constants
from bridge.crazyflie.dynamics import Craft, Motors, Quadrotor
from bridge.crazyflie.forest import camera as cameras
from bridge.crazyflie.forest import pilot
from bridge.crazyflie.forest.camera import CAMERAS
from bridge.crazyflie.forest.cfg import COMMANDS, KNOWN, NEAREST, SENSED, ForestFlightCfg
from bridge.crazyflie.forest.columns import Columns, nearest, plant
from bridge.crazyflie.parameters import joined, split
from bridge.crazyflie.physics import Physics
from bridge.crazyflie.random import Stream
from bridge.crazyflie.sensor import Measurement, Sensors
from bridge.crazyflie.vectors import Quaternion, Vector, heading, in_memory, turned_back, turned_forth
from bridge.env import Color, ObservationSpec, Renderer, State, Viewer
from bridge.episodes import SUCCESS
from bridge.keys import split_keys

RADIUS = 0.1
"""Of the ball that holds the craft, propellers included, m: what comes closer is hit."""
MAX_TILT = 75.0
"""Degrees beyond which the craft has lost control."""
SIGHT = 5.0
"""How far the teacher knows of columns, m."""
START_X, GOAL_X = 0.8, 0.8
"""Of start and goal from the ends of the hall, m."""
LEVEL = 1.0
"""Middle of the heights of start and goal, m."""
DELAY_ROOM_S = 0.1
"""Delay of the measurements that a program for any parameters has room for, s."""
VIEW_COLUMNS = 8
"""Columns of a picture in a trace."""


class Purpose(enum.IntEnum):
    """What random numbers are for. A picture takes as many as it needs, so it is the last."""

    SENSOR, DELAY, PHYSICS, PLACES, ATTITUDE, VELOCITY, PICTURE = range(7)


class ForestState(struct.PyTreeNode):
    """All that an episode carries from step to step. The world's origin is on the floor, where the hall begins."""

    craft: Craft
    """Position, rotation, velocities, rotor speeds."""
    columns: Columns
    """This episode's forest."""
    goal: Vector
    """Its middle, m."""
    physics: Physics
    """This episode's physical parameters."""
    last_action: Motors
    """Commands of the previous step, -1..1."""
    sensors: Sensors | None
    """What the student has measured of itself; None where its sensors are perfect."""
    image: Array | None
    """(B, H, W) the newest picture; None without a camera."""


class ForestFlight:
    """The task as a batch of environments; see :class:`bridge.env.Env` for the interface.

    Observation groups (heading frame means the world frame turned by the craft's heading):

    - ``student`` (19): from the craft to the goal (3, m) and velocity (3, m/s), both in the heading frame; the world's
      up in the body frame (3); body rates (3, rad/s); cosine and sine of the heading, which is 0 along the hall; height
      (m); previous commands (4).
    - ``tof`` (8, 8, 1) or ``depth`` (60, 100, 1): the newest picture, see :mod:`bridge.crazyflie.forest.camera`.
    - ``teacher`` (44): the numbers of ``student``, exact; the distance from the hall's middle plane (m); for each of
      the 8 nearest columns, nearest first, direction, closeness and radius, see
      :func:`bridge.crazyflie.forest.columns.nearest`.

    Actions (B, 4) in [-1, 1] are velocities forward, to the left and up, in the heading frame of the step's beginning,
    and the yaw rate; :mod:`bridge.crazyflie.forest.pilot` flies them.

    All cameras of a batch share a clock, so that most steps draw none; an episode begins with one of its own.
    """

    num_actions = 4
    key_per_env = True

    def __init__(self, cfg: ForestFlightCfg):
        cfg.validate()
        self.cfg = cfg
        self.camera = CAMERAS.get(cfg.camera)
        """What the student sees with."""
        self.obs_specs: Mapping[str, ObservationSpec] = {
            "student": ObservationSpec.of_layout(SENSED, "heading"),
            "teacher": ObservationSpec.of_layout(SENSED + KNOWN, "heading"),
        }
        if self.camera is not None:
            self.obs_specs = {**self.obs_specs, cfg.camera: ObservationSpec((*self.camera.shape, 1))}
        self.action_layout = {"layout": list(COMMANDS), "range": [-1, 1], "rate_hz": cfg.policy_freq}
        self.num_envs = cfg.num_envs
        self.step_dt = 1.0 / cfg.policy_freq
        self.max_episode_length = round(cfg.episode_length_s * cfg.policy_freq)
        self.quadrotor = Quadrotor.of(Constants.of(Airframe.load(cfg.drone)))
        """The nominal craft."""
        self._is_sensing, self._delay_room = not cfg.sensor.is_perfect, cfg.sensor.delay_steps

    @property
    def structure(self) -> Hashable:
        """See :class:`bridge.env.Parametric`; numbers of columns, cameras and rates are part of it."""
        return json.dumps([split(self.cfg)[1], self.max_episode_length, self._longest_delay])

    @property
    def parameters(self) -> dict[str, Any]:
        """See :class:`bridge.env.Parametric`."""
        return {"cfg": split(self.cfg)[0], "quadrotor": self.quadrotor}

    def with_parameters(self, parameters: dict[str, Any]) -> ForestFlight:
        """See :class:`bridge.env.Parametric`. It has sensors, whatever their noise."""
        other = copy.copy(self)
        other.cfg, other.quadrotor = joined(self.cfg, parameters["cfg"]), parameters["quadrotor"]
        other._is_sensing, other._delay_room = True, self._longest_delay
        return other

    @property
    def _longest_delay(self) -> int:
        """Steps that a program for any parameters has room for."""
        return max(self.cfg.sensor.delay_steps, math.ceil(DELAY_ROOM_S * self.cfg.policy_freq))

    def reset(self, rng: Array) -> State:
        """Plant forests, draw physical parameters, starts and goals; ``rng`` is one key or (B,)."""
        n, cfg = self.num_envs, self.cfg
        keys = rng if rng.ndim else jax.random.split(rng, n)
        start_key, rng = split_keys(keys)
        forest_key, start_key = split_keys(start_key)
        start = Stream.create(start_key, n)
        craft, goal = self._start_and_goal(start)
        columns = plant(cfg.forest, forest_key)
        purposes = (Purpose.SENSOR, Purpose.DELAY)
        sim = ForestState(
            craft=craft,
            columns=columns,
            goal=goal,
            physics=Physics.sample(cfg.randomization, start, Purpose.PHYSICS),
            last_action=(jnp.zeros(n),) * 4,
            sensors=sensors.reset(cfg.sensor, craft, start, purposes, self._delay_room) if self._is_sensing else None,
            image=self._picture(columns, craft, start),
        )
        ends = dict.fromkeys(self._ends(sim), jnp.zeros(n, bool))
        return State(
            pipeline_state=sim,
            obs=self.observe_pipeline_state(sim),
            reward=jnp.zeros(n),
            done=jnp.zeros(n, bool),
            metrics=self._metrics(sim, ends),
            info={"random": Stream.create(rng, n)},
        )

    def step(self, state: State, action: Array) -> State:
        """Advance by one control step; ``action`` (B, 4) is clipped to [-1, 1]."""
        cfg, before, stream = self.cfg, state.pipeline_state, state.info["random"]
        command: Any = tuple(jnp.clip(action[:, i], -1.0, 1.0) for i in range(4))
        craft = self._fly(before, command)
        sim = before.replace(
            craft=craft,
            last_action=command,
            sensors=before.sensors and sensors.step(cfg.sensor, before.sensors, craft, stream, Purpose.SENSOR),
            image=self._newest(before, craft, stream),
        )
        ends = in_memory(self._ends(sim))
        done = functools.reduce(operator.or_, ends.values())
        crashed = done & ~ends["goal"]
        change = sum((now - then) ** 2 for now, then in zip(command, before.last_action, strict=True))
        weights = cfg.reward
        progress = (before.craft.pos - before.goal).norm() - (craft.pos - sim.goal).norm()
        reward = weights.progress * progress - weights.action_change * jnp.sqrt(change)
        # A state that is not finite must not reach the reward.
        reward = jnp.where(ends["nan"], 0.0, reward) + weights.goal * ends["goal"] - weights.crash * crashed
        return state.replace(
            pipeline_state=sim,
            obs=self.observe_pipeline_state(sim),
            reward=reward,
            done=done,
            metrics=in_memory(self._metrics(sim, ends)),
            info={**state.info, "random": stream.next()},
        )

    def _fly(self, before: ForestState, command: Motors) -> Craft:
        """The craft after a control step of ``command`` (-1..1)."""
        cfg, craft = self.cfg, before.craft
        forward, left, up = (c * x for c, x in zip(command, (*[cfg.pilot.speed] * 2, cfg.pilot.climb), strict=False))
        velocity = turned_forth(heading(craft.quat.rotation()), Vector(forward, left, up))
        velocity, yaw_rate = in_memory((velocity, command[3] * cfg.pilot.yaw_rate))
        return dynamics.step(
            before.physics.apply(self.quadrotor),
            craft,
            lambda craft: pilot.rotor_speeds(cfg.pilot, self.quadrotor, craft, velocity, yaw_rate),
            None,
            1.0 / cfg.physics_freq,
            cfg.physics_freq // cfg.policy_freq,
        )

    def renderer(self, width: int, height: int, color: Color) -> Renderer:
        """See :class:`bridge.env.Renderer`; ``color`` is the path's."""
        from bridge.crazyflie.forest.render import ForestRenderer

        return ForestRenderer(self.cfg, width, height, color)

    def viewer(self, colors: Sequence[Color]) -> Viewer:
        """See :class:`bridge.env.Viewer`."""
        from bridge.crazyflie.forest.render import ForestScene
        from bridge.crazyflie.render import LiveViewer

        return LiveViewer(lambda: ForestScene(self.cfg, colors))

    def observe_pipeline_state(self, sim: ForestState) -> dict[str, Array]:
        """The observation groups, see the class."""
        craft = sim.craft
        measured = craft if sim.sensors is None else sim.sensors.seen
        student = in_memory(self._sensed(sim, measured))
        truth = student if measured is craft else in_memory(self._sensed(sim, craft))
        known = nearest(sim.columns, craft.pos, heading(craft.quat.rotation()), NEAREST, SIGHT)
        teacher = jnp.concatenate([jnp.stack([*truth, craft.pos.y], axis=-1), known], axis=1)
        obs = {"student": jnp.stack(student, axis=-1), "teacher": teacher}
        return obs if sim.image is None else {**obs, self.cfg.camera: sim.image[..., None]}

    def _sensed(self, sim: ForestState, craft: Craft | Measurement) -> list[Array]:
        rotation = craft.quat.rotation()
        turn = heading(rotation)
        goal, velocity = (turned_back(turn, v) for v in (sim.goal - craft.pos, craft.vel))
        vectors = (goal, velocity, rotation.z, craft.ang_vel)
        return [*(x for vector in vectors for x in vector.parts), *turn, craft.pos.z, *sim.last_action]

    def _picture(self, columns: Columns, craft: Craft, stream: Stream) -> Array | None:
        """What the camera sees now (B, H, W)."""
        if self.camera is None:
            return None
        words, cfg = cameras.draw(self.camera, stream, Purpose.PICTURE), self.cfg
        return cameras.picture(
            self.camera, cfg.image, cfg.forest, columns, craft.pos, craft.quat.rotation(), in_memory(words)
        )

    def _newest(self, before: ForestState, craft: Craft, stream: Stream) -> Array | None:
        """The picture after a step. On average ``rate_hz`` of a second's steps take one."""
        steps, rate = self.cfg.policy_freq, self.cfg.image.rate_hz
        if before.image is None or rate >= steps:
            return self._picture(before.columns, craft, stream)
        # The clock is the same in all environments, so the first one's tells.
        is_due = (stream.step[0] % jnp.uint32(steps)) * jnp.uint32(rate) % jnp.uint32(steps) < rate
        return jax.lax.cond(is_due, lambda: self._picture(before.columns, craft, stream), lambda: before.image)

    def trace(self, state: State) -> dict[str, Array]:
        """What a picture of an episode shows: ``position`` and ``target``, (B, 3) m in the world frame; ``view``
        (B, 8), the nearest that the camera sees in each eighth of its width, from left to right."""
        sim = state.pipeline_state
        found = {"position": sim.craft.pos.array, "target": sim.goal.array}
        if sim.image is None:
            return found
        width = sim.image.shape[2]
        edges = [round(i * width / VIEW_COLUMNS) for i in range(VIEW_COLUMNS + 1)]
        parts = itertools.pairwise(edges)
        return {**found, "view": jnp.stack([sim.image[:, :, a:b].min(axis=(1, 2)) for a, b in parts], axis=-1)}

    def _ends(self, sim: ForestState) -> dict[str, Array]:
        """What has ended the episodes (B), by name."""
        craft, hall = sim.craft, self.cfg.forest
        pos, at_goal = craft.pos, (craft.pos - sim.goal).norm() < hall.goal_radius
        hit = sim.columns.clearance(pos).min(axis=-1, initial=jnp.inf) < RADIUS
        ends = {
            "obstacle": hit,
            "wall": wall_distance(pos, hall) < RADIUS,
            "tilt": craft.vertical < math.cos(math.radians(MAX_TILT)),
            "nan": ~craft.is_finite,
        }
        failed = functools.reduce(operator.or_, ends.values())
        return {"goal": at_goal & ~failed, **ends}

    def _metrics(self, sim: ForestState, ends: dict[str, Array]) -> dict[str, Array]:
        distance, speed = (sim.craft.pos - sim.goal).norm(), sim.craft.vel.norm()
        steps = {"goal_distance": distance, "speed": speed}
        failed = functools.reduce(operator.or_, (hit for name, hit in ends.items() if name != "goal"))
        episode = {
            SUCCESS: ends["goal"],
            "Episode_Collision": ends["obstacle"] | ends["wall"],
            # Whoever ends neither way ends by time.
            "Episode_TimeOut": ~(ends["goal"] | failed),
            **{f"Episode_Termination/{name}": hit for name, hit in ends.items()},
        }
        return {
            **{f"Metrics/{name}": jnp.where(ends["nan"], 0.0, value) for name, value in steps.items()},
            **{name: value.astype(jnp.float32) for name, value in episode.items()},
        }

    def _start_and_goal(self, stream: Stream) -> tuple[Craft, Vector]:
        """Craft that hover before the forest, about level and about looking into it, and goals behind it."""
        hall, n = self.cfg.forest, self.num_envs
        across, goal_across, height, goal_height = (2.0 * u - 1.0 for u in stream.uniform(Purpose.PLACES, 4))
        roll, pitch, yaw = (2.0 * u - 1.0 for u in stream.uniform(Purpose.ATTITUDE, 3))
        side = 0.5 * hall.width - 0.8
        craft = Craft(
            pos=Vector(jnp.full(n, START_X), side * across, LEVEL + 0.2 * height),
            quat=Quaternion.of_euler(0.1 * roll, 0.1 * pitch, 0.5 * yaw),
            vel=stream.in_unit_ball(Purpose.VELOCITY) * 0.3,
            ang_vel=Vector.zeros(n),
            rotor_vel=(jnp.full(n, self.quadrotor.hover_rotor_vel),) * 4,
        )
        goal = Vector(jnp.full(n, hall.length - GOAL_X), side * goal_across, LEVEL + 0.2 * goal_height)
        return in_memory((craft, goal))


def wall_distance(pos: Vector, hall: Any) -> Array:
    """(B,) from ``pos`` to the nearest of walls, floor and ceiling, m; negative beyond them."""
    ways = (pos.x, hall.length - pos.x, 0.5 * hall.width - jnp.abs(pos.y), pos.z, hall.height - pos.z)
    return functools.reduce(jnp.minimum, ways)
