"""Tasks that are compiled in no time: ``--task tests/masses.py:masses``, and one as large as the Crazyflie's."""

from __future__ import annotations

import csv
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge.env import State
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.run.inputs import Teacher


class Masses:
    """Masses on a line, to be pushed to the origin; one is lost at a distance of 1."""

    num_actions, max_episode_length, step_dt, key_per_env = 1, 12, 0.1, True

    def __init__(self, num_envs: int):
        self.num_envs = num_envs

    def reset(self, rng: jax.Array) -> State:
        """``rng`` is (B,) keys."""
        place = jax.vmap(lambda key: jax.random.uniform(key, (2,), minval=-0.7, maxval=0.7))(rng)
        no = jnp.zeros(self.num_envs)
        return State(place, self.observe(place), no, no > 0, {"Metrics/distance": no}, {})

    def step(self, state: State, action: jax.Array) -> State:
        """An action is a push."""
        x, v = state.pipeline_state.T
        v = v + 0.1 * jnp.clip(action[:, 0], -1, 1)
        place = jnp.stack([x + 0.1 * v, v], axis=1)
        far = jnp.abs(place[:, 0])
        return state.replace(
            pipeline_state=place,
            obs=self.observe(place),
            reward=1 - far,
            done=far > 1,
            metrics={"Metrics/distance": far},
        )

    @staticmethod
    def observe(place: jax.Array) -> dict[str, jax.Array]:
        """Both see all there is."""
        return {"student": place, "teacher": place}


def masses(num_envs: int = 8) -> Masses:
    """The task."""
    return Masses(num_envs)


def masses_teacher() -> Teacher:
    """A random teacher of the task."""
    policy = Policy(1, (8,), output_activation="tanh")
    return Teacher(policy, networks.init(policy, jax.random.key(5), 2, normalize=False), {})


class MotorsState(NamedTuple):
    """Places and speeds (B, 11), and the last pushes (B, 4)."""

    pos: jax.Array
    vel: jax.Array
    last_action: jax.Array


class Motors:
    """Eleven masses on springs, pushed by four motors; an episode ends where one is far away.

    Observations and actions have the sizes of the Crazyflie's, and the teacher sees more than the student: the pushes.
    """

    num_actions, max_episode_length, step_dt, key_per_env = 4, 1000, 0.1, True

    def __init__(self, num_envs: int):
        self.num_envs = num_envs

    def reset(self, rng: jax.Array) -> State:
        """``rng`` is (B,) keys."""
        pos, vel = jnp.moveaxis(jax.vmap(lambda key: jax.random.uniform(key, (2, 11), minval=-1))(rng), 1, 0)
        state = MotorsState(pos, vel, jnp.zeros((self.num_envs, 4)))
        no = jnp.zeros(self.num_envs)
        return State(state, self.observe(state), no, no > 0, {"Metrics/distance": no}, {})

    def step(self, state: State, action: jax.Array) -> State:
        """Motor ``i`` pushes the masses ``i``, ``i + 4`` and ``i + 8``."""
        pos, vel, _ = state.pipeline_state
        vel = 0.98 * vel + 0.1 * (jnp.tile(action, 3)[:, :11] - pos)
        after = MotorsState(pos + 0.1 * vel, vel, action)
        far = jnp.abs(after.pos).max(axis=1)
        return state.replace(
            pipeline_state=after,
            obs=self.observe(after),
            reward=1 - far,
            done=far > 3,
            metrics={"Metrics/distance": far},
        )

    @staticmethod
    def observe(state: MotorsState) -> dict[str, jax.Array]:
        """The student sees places and speeds."""
        seen = jnp.concatenate(state[:2], axis=1)
        return {"student": seen, "teacher": jnp.concatenate([seen, state.last_action], axis=1)}


class Swarm(Motors):
    """The motors, each environment with a teacher of its own: ``info`` and the group ``who`` say its id.

    That of ``info`` is the same in every episode, that of the group is drawn anew.
    """

    max_episode_length = 12

    def __init__(self, num_envs: int, ids: tuple[int, ...] = (2, 3, 5, 7)):
        super().__init__(num_envs)
        self.ids = jnp.asarray(ids, jnp.int32)

    def reset(self, rng: jax.Array) -> State:
        """``rng`` is (B,) keys; the first environments have the first ids."""
        state = super().reset(rng)
        drawn = jax.vmap(lambda key: jax.random.choice(key, self.ids))(rng)
        mine = self.ids[jnp.arange(self.num_envs) % len(self.ids)]
        who = jnp.stack([jnp.zeros(self.num_envs), drawn], axis=1)
        return state.replace(obs={**state.obs, "who": who}, info={"teacher_id": mine})

    def step(self, state: State, action: jax.Array) -> State:
        """Nobody changes teachers within an episode."""
        after = super().step(state, action)
        return after.replace(obs={**after.obs, "who": state.obs["who"]})


def swarm(num_envs: int = 8, quadrotors: str = "") -> Swarm:
    """The task; ``quadrotors`` is a CSV file with a column ``id``."""
    if not quadrotors:
        return Swarm(num_envs)
    with open(quadrotors) as file:
        return Swarm(num_envs, tuple(int(row["id"]) for row in csv.DictReader(file)))
