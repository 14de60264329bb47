"""An environment of one's own: a pole on a motor, held upright. The student sees its angle, the teacher its speed too.

    python examples/custom_env.py                 # writes the teacher, pendulum_teacher.safetensors
    jdistill train --task examples/custom_env.py:inverted_pendulum --teacher pendulum_teacher.safetensors \
        --phase1 30 --max_iterations 100 env.length=0.4

The parameters of ``inverted_pendulum`` are the task's settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from jdistill import Policy, PolicyState, State, save_policy

GRAVITY = 9.81


@dataclass(frozen=True)
class InvertedPendulum:
    """``num_envs`` poles side by side; see :class:`jdistill.Env` for what each name means."""

    num_envs: int
    length: float
    torque: float
    num_actions: int = 1
    max_episode_length: int = 200
    step_dt: float = 0.02

    def reset(self, rng: jax.Array) -> State:
        """Start near the top."""
        pole = jax.random.uniform(rng, (self.num_envs, 2), minval=-0.2, maxval=0.2)
        zeros = jnp.zeros(self.num_envs)
        return self._state(State(pole, {}, zeros, zeros > 0, {}, {}), pole)

    def step(self, state: State, action: jax.Array) -> State:
        """Turn the motor with ``action`` (num_envs, 1) in [-1, 1] for one step."""
        angle, speed = state.pipeline_state.T
        push = self.torque * jnp.clip(action[:, 0], -1.0, 1.0)
        speed = speed + self.step_dt * (GRAVITY / self.length * jnp.sin(angle) + push)
        return self._state(state, jnp.stack([angle + self.step_dt * speed, speed], axis=-1))

    def _state(self, state: State, pole: jax.Array) -> State:
        angle = pole[:, 0]
        return state.replace(
            pipeline_state=pole,
            obs={"student": pole[:, :1], "teacher": pole},
            reward=jnp.cos(angle),
            done=jnp.abs(angle) > 0.8,
            metrics={"Metrics/angle_error": jnp.abs(angle)},
        )


def inverted_pendulum(num_envs: int = 64, length: float = 0.5, torque: float = 40.0) -> InvertedPendulum:
    """The task: the pole's length (m), the motor's strongest push (rad/s^2)."""
    return InvertedPendulum(num_envs, length, torque)


def write_teacher(file: Path) -> None:
    """A proportional-derivative controller as a policy of one layer."""
    gains = jnp.array([[-1.5], [-0.2]])
    layer = {"kernel": gains, "bias": jnp.zeros(1)}
    save_policy(file, Policy(num_actions=1), PolicyState(params={"mlp_0": {"dense": layer}}, normalizer=None), {})


if __name__ == "__main__":
    write_teacher(Path("pendulum_teacher.safetensors"))
