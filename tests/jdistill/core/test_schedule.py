"""Who steps the environments: beta, the draws per step and per episode, the end of phase 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdistill.core.config import AlgorithmCfg
from jdistill.core.networks import Policy
from jdistill.core.schedule import Schedule

MLP = Policy(4, (8,))
STAGES = {"use_two_stage_training": True, "phase1_iterations": 4}


@pytest.mark.parametrize(
    ("settings", "expected", "decay_iterations"),
    [
        ({}, [0, 0, 0, 0, 0, 0, 0], 0),
        (STAGES, [1, 1, 1, 1, 0, 0, 0], 0),
        ({"beta_schedule": "linear", "beta_iterations": 4}, [1, 0.75, 0.5, 0.25, 0, 0, 0], 4),
        ({**STAGES, "beta_schedule": "linear", "beta_iterations": 2}, [1, 1, 1, 1, 1, 0.5, 0], 2),
        ({**STAGES, "beta_schedule": "exponential", "beta_half_life": 1}, [1, 1, 1, 1, 1, 0.5, 0.25], 7),
    ],
)
def test_beta(settings, expected, decay_iterations):
    schedule = Schedule(AlgorithmCfg(**settings), 8)
    beta = [float(schedule.beta(i, schedule.phase1_iterations)) for i in range(7)]
    np.testing.assert_allclose(beta, expected, atol=1e-6)
    assert schedule.decay_iterations == decay_iterations
    alone = schedule.phase1_iterations + decay_iterations
    assert float(schedule.beta(alone, schedule.phase1_iterations)) == 0.0
    assert alone == 0 or float(schedule.beta(alone - 1, schedule.phase1_iterations)) > 0.0


def test_draws_follow_beta_and_spare_the_student_only_envs():
    schedule = Schedule(AlgorithmCfg(**STAGES, phase1_until_return=5.0), 1000)
    assert schedule.student_only_envs == 100
    drawn = np.asarray(schedule.draw(jnp.array(0.3), jax.random.key(0)))
    assert not drawn[:100].any() and 0.25 < drawn[100:].mean() < 0.35
    assert schedule.draw(jnp.array(1.0), jax.random.key(0))[100:].all()
    assert not schedule.draw(jnp.array(0.0), jax.random.key(0)).any()


@pytest.mark.parametrize(
    ("iteration", "mean_return", "episodes", "expected"),
    [(2, 6.0, 20, 3), (2, 4.0, 20, 9), (2, 6.0, 0, 9), (2, float("nan"), 20, 9), (10, 6.0, 20, 9)],
    ids=["reached", "too low", "too few episodes", "none", "over anyway"],
)
def test_phase_1_ends_when_the_student_is_good_enough(iteration, mean_return, episodes, expected):
    schedule = Schedule(AlgorithmCfg(**STAGES, phase1_until_return=5.0), 8)
    end = schedule.phase1_end(jnp.array(iteration), jnp.array(9), jnp.array(mean_return), jnp.array(episodes))
    assert int(end) == expected


def executed(steps):
    """Which policy's command each step's successor remembers, where an episode goes on (T-1, B): 1 the teacher's."""
    commands = steps.pipeline_state.last_action[1:]
    teacher, student = steps.teacher_action[:-1], steps.student_action[:-1]
    return np.asarray(jnp.abs(commands - teacher).max(axis=-1) < jnp.abs(commands - student).max(axis=-1))


@pytest.mark.full
@pytest.mark.parametrize("per", ["step", "episode"])
def test_a_mixture_steps_as_it_says(make_distillation, teacher_actor, per):
    alg = make_distillation(MLP, num_steps=60, beta_schedule="linear", beta_iterations=2, beta_per=per)
    state = alg.init(jax.random.key(0), teacher_actor).replace(iteration=jnp.array(1, jnp.int32))
    after, rollout = jax.jit(alg.rollout)(state, teacher_actor)
    acts, going_on = np.asarray(rollout.steps.teacher_acts), ~np.asarray(rollout.steps.done[:-1])
    assert acts.shape == (60, 8)
    assert (executed(rollout.steps)[going_on] == acts[:-1][going_on]).all()
    changes = (acts[1:] != acts[:-1]) & going_on
    if per == "step":
        assert 0.4 < acts.mean() < 0.6 and changes.mean() > 0.3 and after.teacher_acts is None
    else:
        assert not changes.any(), "whoever begins an episode ends it"
        assert (np.asarray(after.teacher_acts) == acts[-1])[~np.asarray(rollout.steps.done[-1])].all()


@pytest.mark.full
def test_student_only_envs_alone_count_in_phase_1_and_end_it(make_distillation, teacher_actor):
    alg = make_distillation(
        MLP, num_steps=60, gradient_length=60, num_learning_epochs=1, phase1_until_return=-1e9, **STAGES
    )
    state = jax.jit(alg.init)(jax.random.key(0), teacher_actor)
    # The student's episode is about to end by time: whatever its return, it is above the goal.
    ages = jnp.where(alg.schedule.is_student_only(), alg.env.max_episode_length - 5, 0)
    info = {**state.env_state.info, "episode_length_buf": ages}
    state = state.replace(env_state=state.env_state.replace(info=info))
    after, metrics, _ = jax.jit(alg.iteration)(state, teacher_actor)
    scalars = metrics.scalars
    assert float(scalars["Distillation/beta"]) == 1.0
    assert float(scalars["Distillation/teacher_share"]) == pytest.approx(7 / 8)
    assert int(state.phase1_end) == 4 and int(after.phase1_end) == 1
    assert float(alg.beta(after)) == 0.0
    assert 1 <= int(after.episodes.count) <= 3, "the student's episodes"
