"""A lesson that is compiled in no time: masses on a line that are pushed to the origin."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp

from bridge.env import ObservationSpec, State, where_done

DT = 0.1


class PointMasses:
    """See :class:`bridge.teaching.Lesson`; the observation is position, velocity and the last push."""

    num_actions, group, unsure = 1, "teacher", slice(2, 3)
    obs_spec = ObservationSpec((3,))

    def __init__(self, masses, num_envs=4):
        self.parameters, self.num_envs = jnp.asarray(masses, jnp.float32), num_envs
        self.mass = None

    def of_craft(self, parameters):
        other = copy.copy(self)
        other.mass = parameters
        return other

    def reset(self, rng):
        x, v = jax.random.normal(rng, (2, self.num_envs))
        return self._state(jnp.stack([x, v, jnp.zeros(self.num_envs)], axis=-1))

    def step(self, state, action):
        x, v, _ = state.obs["teacher"].T
        v = v + action[:, 0] / self.mass * DT
        return self._state(jnp.stack([x + v * DT, v, action[:, 0]], axis=-1))

    def _state(self, obs):
        zeros = jnp.zeros(self.num_envs)
        return State(obs, {"teacher": obs}, zeros, zeros > 0, {}, {})

    def cost(self, before, after):
        return jnp.sum(after.obs["teacher"] ** 2, axis=-1)

    def refresh(self, state, rng):
        fresh_key, key = jax.random.split(rng)
        done = jax.random.uniform(key, (self.num_envs,)) < 0.2
        return where_done(done, self.reset(fresh_key), state)

    def at_rest(self, rng):
        return jnp.zeros((self.num_envs, 3)), jnp.zeros((self.num_envs, 1))

    def first_action(self):
        return jnp.zeros(())

    def facts(self):
        return self.mass[None]
