"""A task with a camera, compiled in no time: a mass is seen as a bright spot."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge.env import ObservationSpec, State
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.run.inputs import Teacher

SIZE = 6, 5


class MassState(NamedTuple):
    """Places and speeds (B, 2)."""

    pos: jax.Array
    vel: jax.Array


class Cameras:
    """A mass in a plane, pushed by two actions; an episode ends where it leaves the picture.

    The student sees where it was pushed last and a picture (6, 5, 1), the teacher places and speeds.
    """

    num_actions, max_episode_length, step_dt, key_per_env = 2, 9, 0.1, True

    def __init__(self, num_envs: int, dtype=np.uint8, channels_first: bool = False):
        self.num_envs = num_envs
        shape = (1, *SIZE) if channels_first else (*SIZE, 1)
        self.image = ObservationSpec(shape, np.dtype(dtype), channels_first=channels_first)
        self.obs_specs = {
            "student": ObservationSpec((3,)),
            "camera": self.image,
            "teacher": ObservationSpec((4,)),
        }

    def reset(self, rng: jax.Array) -> State:
        """``rng`` is (B,) keys."""
        pos, vel = jnp.moveaxis(jax.vmap(lambda key: jax.random.uniform(key, (2, 2), minval=-0.5))(rng), 1, 0)
        no = jnp.zeros(self.num_envs)
        state = MassState(pos, vel)
        return State(state, self.observe(state, jnp.zeros((self.num_envs, 2))), no, no > 0, {}, {})

    def step(self, state: State, action: jax.Array) -> State:
        """An action is an acceleration."""
        pos, vel = state.pipeline_state
        after = MassState(pos + 0.1 * vel, vel + 0.1 * jnp.clip(action, -1, 1))
        far = jnp.abs(after.pos).max(axis=1)
        return state.replace(
            pipeline_state=after, obs=self.observe(after, action), reward=1 - far, done=far > 1, metrics={}
        )

    def observe(self, state: MassState, action: jax.Array) -> dict[str, jax.Array]:
        """A spot that fades with its distance from a pixel."""
        rows, columns = (jnp.linspace(-1, 1, n) for n in SIZE)
        gap = (rows[:, None] - state.pos[:, None, None, 0]) ** 2 + (columns - state.pos[:, None, None, 1]) ** 2
        picture = jnp.exp(-4 * gap)[..., None]
        if self.image.channels_first:
            picture = jnp.moveaxis(picture, -1, 1)
        if self.image.dtype == np.uint8:
            picture = jnp.round(255 * picture).astype(jnp.uint8)
        speed = jnp.linalg.norm(state.vel, axis=1, keepdims=True)
        return {
            "student": jnp.concatenate([action, speed], axis=1),
            "camera": picture,
            "teacher": jnp.concatenate(state, axis=1),
        }


def make_env(num_envs: int = 4) -> Cameras:
    """For ``--task``."""
    return Cameras(num_envs)


def cameras_teacher() -> Teacher:
    """A random teacher of the task."""
    policy = Policy(2, (4,), output_activation="tanh")
    return Teacher(policy, networks.init(policy, jax.random.key(0), 4, normalize=False), {})
