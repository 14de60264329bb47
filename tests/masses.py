"""A task that is compiled in no time: ``--task tests/masses.py:masses``."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge.env import State


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
