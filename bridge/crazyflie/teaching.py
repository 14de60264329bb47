"""Point control as its teachers are trained on it: harder starts, a smooth cost, and where a policy should rest.

See :class:`bridge.teaching.Lesson`.
"""

from __future__ import annotations

import copy
import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from bridge.crazyflie.cfg import OBSERVATION, PointControlCfg, ResetCfg, TargetCfg
from bridge.crazyflie.dynamics import Quadrotor
from bridge.crazyflie.physics import felt
from bridge.crazyflie.task import PointControl
from bridge.crazyflie.vectors import Vector
from bridge.env import ObservationSpec, State, where_done

GROUP = "teacher"
RESTARTED = 0.15
"""Share of the environments that begin anew after each stretch."""


class PointControlLesson:
    """Point control, see :class:`bridge.teaching.Lesson`."""

    group = GROUP
    num_actions = 4

    def __init__(self, cfg: PointControlCfg, width: float = 0.03):
        """``cfg`` is the task; ``width`` (m) is the distance below which being closer is worth less."""
        harder = dataclasses.replace(
            cfg,
            target=TargetCfg(sigma=1.0, max_speed_limit=2.0),
            reset=ResetCfg(position=15.0, linear_velocity=1.5, angular_velocity=3.0, tilt=70.0),
        )
        still = dataclasses.replace(harder, target=TargetCfg(kind="fixed"), reset=ResetCfg(on_target_fraction=1.0))
        self.env, self.still = PointControl(harder), PointControl(still)
        self.width, self.num_envs = width, cfg.num_envs
        seen = sum(size for _, size, _ in OBSERVATION[:-1])
        self.unsure = slice(seen, seen + OBSERVATION[-1][1])
        nominal = self.env.quadrotor if self.env.fleet is None else self.env.fleet.quadrotors
        number = 1 if self.env.fleet is None else self.env.fleet.ids.shape[0]
        self.parameters: Quadrotor = jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), (number,)), nominal
        )

    @property
    def obs_spec(self) -> ObservationSpec:
        """Of the teacher's group."""
        return self.env.obs_specs[GROUP]

    def of_craft(self, parameters: Quadrotor) -> PointControlLesson:
        """All environments fly the craft of these parameters, each ()."""
        other = copy.copy(self)
        other.env, other.still = (copy.copy(env) for env in (self.env, self.still))
        for env in (other.env, other.still):
            env.quadrotor, env.fleet = parameters, None
        return other

    def reset(self, rng: Array) -> State:
        """Start all."""
        return self.env.reset(rng)

    def step(self, state: State, action: Array) -> State:
        """Advance."""
        return self.env.step(state, action)

    def cost(self, before: State, after: State) -> Array:
        """Distance and speed error, rates, change of the commands, tilt, and walls before the task's limits."""
        then, now = before.pipeline_state, after.pipeline_state
        craft, target = now.craft, now.target
        tracking = huber(craft.pos - target.pos, self.width) + 0.15 * huber(craft.vel - target.vel, 0.2)
        rate = craft.ang_vel
        rates = 0.003 * rate.x**2 + 0.003 * rate.y**2 + 0.01 * rate.z**2
        roughness = 4.0 * sum((a - b) ** 2 for a, b in zip(now.last_action, then.last_action, strict=True))
        tilt = 0.1 * (1.0 - craft.vertical)
        # The task's limits are 4 m/s and 90 degrees. Walls that rise well before them have a gradient that a
        # termination lacks.
        walls = jnp.sum(jax.nn.relu(jnp.abs(craft.vel.array) - 3.0) ** 2, axis=-1)
        walls += 10.0 * jax.nn.relu(0.3 - craft.vertical) ** 2
        return tracking + rates + roughness + tilt + walls

    def refresh(self, state: State, rng: Array) -> State:
        """Restart :data:`RESTARTED` of the environments and all that have left the limits."""
        fresh_key, pick_key = jax.random.split(rng)
        fresh = self.env.reset(fresh_key)
        craft = state.pipeline_state.craft
        error = (craft.pos - state.pipeline_state.target.pos).norm()
        # `<` is false for what is not a number, so that such states restart as well.
        fine = (error < 5.0) & (jnp.abs(craft.vel.array).max(axis=-1) < 6.0) & (craft.vertical > -0.2)
        fine &= jnp.abs(craft.ang_vel.array).max(axis=-1) < 35.0
        done = ~fine | (jax.random.uniform(pick_key, fine.shape) < RESTARTED)
        chosen = where_done(done, (fresh.pipeline_state, fresh.obs), (state.pipeline_state, state.obs))
        return state.replace(pipeline_state=chosen[0], obs=chosen[1])

    def at_rest(self, rng: Array) -> tuple[Array, Array]:
        """Craft that hover level on a resting target, with any heading and any physical parameters."""
        sim = self.still.at_rest(self.still.reset(rng).pipeline_state)
        return self.still.observe_pipeline_state(sim)[GROUP], 2.0 * jnp.stack(sim.last_action, axis=-1) - 1.0

    def first_action(self) -> Array:
        """The action that hovers."""
        return 2.0 * self.env.hover_action - 1.0

    def facts(self) -> Array:
        """See :data:`bridge.crazyflie.cfg.PHYSICS`."""
        return jnp.stack([jnp.asarray(fact) for fact in felt(self.env.quadrotor)])


def huber(x: Vector, width: float) -> Array:
    """Smooth length of vectors, pseudo-Huber: ``|x|^2 / (2 width)`` near zero, ``|x|`` far away."""
    return jnp.sqrt(x.dot(x) + width * width) - width
