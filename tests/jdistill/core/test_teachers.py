"""Many teachers are what each of them is alone, however the environments are shared out."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bridge.env import AutoReset
from jdistill.core import networks, observations, teachers
from jdistill.core.actor import follow
from jdistill.core.config import AgentCfg, AlgorithmCfg, TeacherCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import Policy
from jdistill.core.teachers import TeacherBank
from jdistill.errors import ObservationError
from tests.masses import Swarm

IDS = (2, 3, 5, 7)
STEPS = 7
MLP = Policy(4, (8, 8), output_activation="tanh")
GRU = Policy(4, (8,), rnn_type="gru", rnn_hidden_dim=6)
SHARES = [2, 3, 5, 7, 2, 3, 5, 7], [7, 7, 7, 2, 7, 7, 7, 5], [5, 2, 5]
"""Evenly, unevenly, and among fewer environments than teachers."""
FOLLOW, ACT = jax.jit(follow), jax.jit(lambda actor, *inputs: actor.act(*inputs))
INITIAL = jax.jit(lambda actor, batch: actor.initial_carry(batch), static_argnums=1)


def make_bank(policy: Policy = MLP, obs_size: int = 26, **fields) -> TeacherBank:
    """Teachers that differ in their parameters and in what they have seen."""

    def one(key):
        state = networks.init(policy, key, obs_size, normalize=True)
        return state.replace(normalizer=state.normalizer.update(3 * jax.random.normal(key, (50, obs_size)) + 1))

    states = jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), len(IDS))))
    return TeacherBank.of(policy, states, IDS, ("teacher",), **fields)


@pytest.mark.parametrize("policy", [MLP, GRU], ids=["mlp", "gru"])
def test_every_environment_hears_its_own_teacher(policy, monkeypatch):
    monkeypatch.setattr(teachers, "BLOCK_ROWS", 3)
    bank = make_bank(policy, clip_actions=0.2)
    for who in map(np.array, SHARES):
        rng = np.random.default_rng(2)
        obs = rng.normal(size=(STEPS, who.size, 26)).astype(np.float32)
        seen, is_first = {"teacher": obs, "teacher_id": np.tile(who, (STEPS, 1))}, rng.random(obs.shape[:2]) < 0.2
        outcome = said(bank, seen, is_first)
        assert np.abs(outcome[1]).max() == np.float32(0.2)
        for index, key in enumerate(IDS):
            for ours, theirs in zip(outcome, said(bank.teacher(index), seen, is_first), strict=True):
                mine = (..., who == key, slice(None))
                np.testing.assert_allclose(ours[mine], theirs[mine], atol=2e-6)


def said(actor, seen, is_first) -> list[np.ndarray]:
    """Actions (B, A) of one more step, those (T, B, A) of a rollout, and carries (B, H) after either."""
    carry, actions = FOLLOW(actor, INITIAL(actor, is_first.shape[1]), seen, is_first)
    again, action = ACT(actor, carry, {name: x[0] for name, x in seen.items()})
    return [np.asarray(x) for x in (action, actions, *jax.tree.leaves((carry, again)))]


def test_an_id_without_a_teacher_is_no_number_and_touches_nobody_else():
    bank, obs = make_bank(), np.random.default_rng(2).normal(size=(1, 4, 26)).astype(np.float32)
    found = [said(bank, {"teacher": obs, "teacher_id": np.array([[2, 3, 5, x]])}, obs[..., 0] > 9) for x in (7, 4)]
    for good, bad in zip(*found, strict=True):
        np.testing.assert_allclose(good[..., :3, :], bad[..., :3, :], atol=1e-6)
        assert np.isfinite(good).all() and np.isnan(bad[..., 3, :]).all()


def test_ids_come_from_a_group_a_part_of_one_or_info():
    obs = {"teacher": np.zeros((2, 26)), "who": np.array([[0.0, 7.0], [0.0, 2.0]]), "flat": np.array([7, 2])}
    expected = ACT(make_bank(id_group="flat"), (), obs)[1]
    np.testing.assert_array_equal(ACT(make_bank(id_group="who[1]"), (), obs)[1], expected)
    for entry, complaint in (("who", "'who' has 2 numbers, the id of a teacher is one"), ("no", "no 'no' here")):
        with pytest.raises(ObservationError, match=complaint):
            ACT(make_bank(id_group=entry), (), obs)


@pytest.mark.parametrize(("mode", "id_group"), [("two_stage", "teacher_id"), ("exponential", "who[1]")])
def test_labels_of_both_phases_are_the_environments_teachers(mode, id_group):
    """With a teacher for a whole run, and with one that is drawn for every episode."""
    algorithm = AlgorithmCfg(
        use_two_stage_training=True, phase1_iterations=1, beta_schedule=mode, num_learning_epochs=1, gradient_length=5
    )
    cfg = AgentCfg(num_steps_per_env=30, algorithm=algorithm, teacher=TeacherCfg(id_group=id_group))
    alg, bank = Distillation(AutoReset(Swarm(8, IDS)), Policy(4, (8,)), cfg), make_bank(id_group=id_group)
    state, iteration = jax.jit(alg.init)(jax.random.key(0), bank), jax.jit(alg.iteration)
    changes = 0
    for _ in range(2):
        state, metrics, steps = jax.device_get(iteration(state, bank))
        assert metrics.first_cause(8) is None
        who = observations.teacher_ids(steps.obs, id_group, 2)
        for index, key in enumerate(IDS):
            _, expected = FOLLOW(bank.teacher(index), (), steps.obs, steps.is_first)
            np.testing.assert_allclose(steps.teacher_action[who == key], expected[who == key], atol=1e-5)
        changes += (who[1:] != who[:-1]).sum()
        assert not ((who[1:] != who[:-1]) & ~steps.is_first[1:]).any()
    assert (changes > 0) == (mode == "exponential")
