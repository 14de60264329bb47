"""Forest flight as its teacher is trained on it: no episode ends, and what should be avoided has a slope.

See :class:`bridge.teaching.Course`.
"""

from __future__ import annotations

import copy
import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from bridge.crazyflie.cfg import SensorCfg
from bridge.crazyflie.forest.cfg import ForestFlightCfg
from bridge.crazyflie.forest.task import RADIUS, ForestFlight, ForestState, wall_distance
from bridge.crazyflie.vectors import heading
from bridge.env import ObservationSpec, State, where_done

RESTARTED = 0.05
"""Share of the environments that begin anew after each stretch."""
PHYSICS_STEPS = 4
"""Of a control step, fewer than in the task: a gradient is as good, in half the time."""
CRUISE = 1.6
"""Speed at which the teacher should fly, m/s."""
MARGIN, DEEPEST = 0.4, -0.2
"""Clearance below which being closer costs more and more, and beyond which it costs no more, m."""
DANGER = 4.0
"""Weight of the closeness, which is 1 at a surface."""


class ForestCourse:
    """Forest flight, see :class:`bridge.teaching.Course`."""

    group = "teacher"
    num_actions = 4
    unsure = slice(0, 0)
    """The teacher may lean on all that it sees: what the student lacks it can see for itself."""

    def __init__(self, cfg: ForestFlightCfg):
        """``cfg`` is the task."""
        physics_freq = PHYSICS_STEPS * cfg.policy_freq
        self.env = ForestFlight(dataclasses.replace(cfg, camera="none", sensor=SensorCfg(), physics_freq=physics_freq))
        self.num_envs = cfg.num_envs
        self.danger: Array | float = DANGER

    def with_danger(self, danger: Array | float) -> ForestCourse:
        """The course where closeness weighs ``danger``, at most :data:`DANGER`. Who begins with little learns to fly to
        the goal first, and then around what is in the way; who begins with all of it learns to stand still."""
        other = copy.copy(self)
        other.danger = danger
        return other

    @property
    def obs_spec(self) -> ObservationSpec:
        """Of the teacher's group."""
        return self.env.obs_specs[self.group]

    def reset(self, rng: Array) -> State:
        """Start all."""
        return self.env.reset(rng)

    def step(self, state: State, action: Array) -> State:
        """Advance."""
        return self.env.step(state, action)

    def cost(self, before: State, after: State) -> Array:
        """Distance from the wanted velocity, closeness to whatever can be hit, height, a heading away from where it
        flies, and change of the commands."""
        then, now = before.pipeline_state, after.pipeline_state
        craft, way = now.craft, now.goal - now.craft.pos
        ahead = jax.lax.rsqrt(way.x * way.x + way.y * way.y + 0.25)
        off_x, off_y = craft.vel.x - CRUISE * way.x * ahead, craft.vel.y - CRUISE * way.y * ahead
        pace = jnp.sqrt(off_x**2 + off_y**2 + 0.25)
        height = 0.5 * way.z**2 + 0.1 * craft.vel.z**2
        cos, sin = heading(craft.quat.rotation())
        speed = jnp.sqrt(craft.vel.x**2 + craft.vel.y**2 + 0.04)
        looking = speed - (cos * craft.vel.x + sin * craft.vel.y)
        roughness = sum((a - b) ** 2 for a, b in zip(now.last_action, then.last_action, strict=True))
        rates = 0.01 * craft.ang_vel.dot(craft.ang_vel)
        return 1.5 * pace + height + 0.5 * looking + 0.5 * roughness + rates + self.danger * self._danger(now)

    def _danger(self, sim: ForestState) -> Array:
        """(B,) closeness to columns and walls."""
        walls = wall_distance(sim.craft.pos, self.env.cfg.forest)[:, None]
        clearance = jnp.concatenate([sim.columns.clearance(sim.craft.pos), walls], axis=1) - RADIUS
        return jnp.sum((jax.nn.relu(MARGIN - jnp.maximum(clearance, DEEPEST)) / MARGIN) ** 2, axis=1)

    def refresh(self, state: State, rng: Array) -> State:
        """Restart :data:`RESTARTED` of the environments, and all that are at the goal or inside of something."""
        fresh_key, pick_key = jax.random.split(rng)
        fresh = self.env.reset(fresh_key)
        sim = state.pipeline_state
        craft = sim.craft
        deepest = sim.columns.clearance(craft.pos).min(axis=-1, initial=jnp.inf)
        # `<` and `>` are false for what is not a number, so that such states restart as well.
        fine = (deepest > 0.0) & (wall_distance(craft.pos, self.env.cfg.forest) > 0.0) & (craft.vertical > 0.2)
        fine &= (craft.pos - sim.goal).norm() > self.env.cfg.forest.goal_radius
        done = ~fine | (jax.random.uniform(pick_key, fine.shape) < RESTARTED)
        chosen = where_done(done, (fresh.pipeline_state, fresh.obs), (sim, state.obs))
        return state.replace(pipeline_state=chosen[0], obs=chosen[1])

    def first_action(self) -> Array:
        """To hover."""
        return jnp.zeros(())
