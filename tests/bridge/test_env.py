"""Auto-reset: what happens when episodes end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.env import AutoReset, Env, State


class Counter:
    """Counts its own steps; environment i terminates at step ``limits[i]``; the reward is the action."""

    num_actions = 1
    max_episode_length = 5
    step_dt = 0.1
    obs_sizes = {"count": 1, "start": 1}  # noqa: RUF012

    def __init__(self, limits: list[int]):
        self.limits = jnp.array(limits)
        self.num_envs = len(limits)

    def reset(self, rng):
        start = jax.random.uniform(rng, (self.num_envs,))
        zeros = jnp.zeros(self.num_envs)
        state = State(
            pipeline_state={"count": zeros, "start": start},
            obs={},
            reward=zeros,
            done=jnp.zeros(self.num_envs, bool),
            metrics={"Metrics/twice": zeros},
            info={"steps": jnp.zeros((), jnp.int32)},
        )
        return state.replace(obs=self._obs(state.pipeline_state))

    def step(self, state, action):
        sim = {**state.pipeline_state, "count": state.pipeline_state["count"] + 1}
        return state.replace(
            pipeline_state=sim,
            obs=self._obs(sim),
            reward=action[:, 0],
            done=sim["count"] >= self.limits,
            metrics={"Metrics/twice": 2 * sim["count"]},
            info={**state.info, "steps": state.info["steps"] + 1},
        )

    def _obs(self, sim):
        return {k: v[:, None] for k, v in sim.items()}


def run(env: AutoReset, steps: int) -> list[State]:
    """States before the first and after every step, with rewards 1."""
    states = [env.reset(jax.random.key(0))]
    step = jax.jit(env.step)
    for _ in range(steps):
        states.append(step(states[-1], jnp.ones((env.num_envs, 1))))
    return states


def test_counter_and_wrapper_satisfy_the_protocol(crazyflie):
    assert isinstance(Counter([1]), Env)
    assert isinstance(AutoReset(Counter([1])), Env)
    assert isinstance(crazyflie, Env)


def test_termination_and_time_out_are_told_apart():
    # Environment 0 terminates at step 3, environment 1 runs into the limit of 5, environment 2 does both at step 5.
    states = run(AutoReset(Counter([3, 99, 5])), 5)
    done = np.stack([s.done for s in states])
    time_outs = np.stack([s.info["time_outs"] for s in states])
    assert done.T.tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]
    assert time_outs.T.tolist() == [[0] * 6, [0, 0, 0, 0, 0, 1], [0] * 6]


def test_only_finished_environments_restart():
    states = run(AutoReset(Counter([3, 99])), 4)
    assert [float(s.obs["count"][0, 0]) for s in states] == [0, 1, 2, 0, 1]
    assert [float(s.obs["count"][1, 0]) for s in states] == [0, 1, 2, 3, 4]
    starts = np.stack([s.obs["start"][:, 0] for s in states])
    assert len(set(starts[:, 0].tolist())) == 2, "the new episode draws a new start"
    assert len(set(starts[:, 1].tolist())) == 1
    assert int(states[-1].info["steps"]) == 4, "the wrapped environment's own info is left alone"


def test_metrics_speak_of_the_finished_episode():
    states = run(AutoReset(Counter([3, 99])), 4)
    assert [float(s.metrics["episode_return"][0]) for s in states] == [0, 1, 2, 3, 1]
    assert [float(s.metrics["episode_length"][0]) for s in states] == [0, 1, 2, 3, 1]
    assert float(states[3].metrics["Metrics/twice"][0]) == 6, "the last step's metric survives the reset"
    assert states[3].info["episode_length_buf"].tolist() == [0, 3]


def test_random_ages_spread_the_time_outs():
    env = AutoReset(Counter([99] * 64))
    state = env.randomize_episode_length(env.reset(jax.random.key(0)), jax.random.key(1))
    assert set(state.info["episode_length_buf"].tolist()) == {0, 1, 2, 3, 4}
    state = env.step(state, jnp.ones((64, 1)))
    assert 0 < int(state.info["time_outs"].sum()) < 64


@pytest.mark.parametrize("wrap", [AutoReset, lambda env: env])
def test_states_keep_their_types(crazyflie, wrap):
    """A step's state can be scanned over, and a second step compiles nothing new."""
    env = wrap(crazyflie)
    step = jax.jit(env.step)
    before = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), env.reset(jax.random.key(0)))
    after = step(before, jnp.zeros((8, 4)))
    step(after, jnp.zeros((8, 4)))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert step._cache_size() == 1
