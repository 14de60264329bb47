"""Samplers: what they draw, where sequences begin, which steps count. Every loss is checked by plain re-computation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.core.samplers import make_sampler
from jdistill.core.sampling import Experience, HistoryData, RolloutData

STEPS, ENVS, ROLLOUTS = 12, 8, 3
STUDENT = Policy(4, (8,), rnn_type="gru", rnn_hidden_dim=6, learn_initial_carry=True)
UNROLL = jax.jit(STUDENT.apply, static_argnames="method")
ACT = jax.jit(networks.act, static_argnums=0)


@pytest.fixture
def make(make_distillation, teacher_actor):
    """The algorithm with a recurrent student that trains its initial state, and its parameters."""

    def make(**settings):
        alg = make_distillation(STUDENT, STEPS, gradient_length=4, num_learning_epochs=1, **settings)
        state = networks.init(STUDENT, jax.random.key(0), 22, normalize=True)
        noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
        return alg, state.replace(params=jax.tree.map(noise, state.params))

    return make


def recorded(alg, state, begin_at_once: bool, ends: float = 0.12):
    """A history of three rollouts as the student acted in them, and the whole of it by name."""
    keys = jax.random.split(jax.random.key(3), 3)
    time = ROLLOUTS * STEPS
    obs = jax.random.normal(keys[0], (time, ENVS, 22))
    teacher_action = jax.random.normal(keys[1], (time, ENVS, 4))
    is_first = jax.random.bernoulli(keys[2], ends, (time, ENVS)).at[0].set(begin_at_once)
    carry = initial = networks.initial_carry(STUDENT, state, ENVS)
    if not begin_at_once:
        carry = jax.tree.map(lambda x: x + 0.5, carry)
    before, actions = [], []
    for t in range(time):
        carry = jax.tree.map(lambda i, c, t=t: jnp.where(is_first[t][:, None], i, c), initial, carry)
        before.append(carry)
        carry, action = ACT(STUDENT, state, carry, obs[t])
        actions.append(action)
    history = alg.empty_history()
    for start in range(0, time, STEPS):
        part = slice(start, start + STEPS)
        carries = jax.tree.map(lambda *x: jnp.stack(x), *before[part]) if alg.sampler.stored_states else ()
        experience = Experience(obs[part], teacher_action[part], is_first[part], before[start], carries)
        history = alg.sampler.remember(history, experience)
    line = {"obs": obs, "teacher_action": teacher_action, "is_first": is_first, "action": jnp.stack(actions)}
    return history, line


def batch_of(alg, state, data, number, carry=None, params=None):
    """A batch that counts ``gradient_length`` steps, or a row."""
    initial = alg.initial_carry(state.params if params is None else params, alg.sampler.sequences)
    return alg.sampler.batch(
        data, jnp.asarray(number), initial if carry is None else carry, initial, alg.sampler.length
    )


def data_of(state, history) -> HistoryData:
    return HistoryData(history, state, key=jax.random.key(9))


def loss_of(alg, state, data, number):
    """The loss of a batch as a function of the parameters, on which its initial states depend too."""

    def loss(params):
        total, (weight, carry) = alg.loss(params, batch_of(alg, state, data, number, params=params))
        return 4 * total / weight, carry

    return loss


def actions_in(alg, state, batch):
    """The student's actions in a batch, burn-in included, by the compiled unrolling that the loss uses."""
    sequence = (batch.carry, batch.obs, batch.reset, batch.reset_carry)
    return UNROLL({"params": state.params}, *sequence, method=Policy.unroll)[1]


def located(state, line, batch, at=0) -> np.ndarray:
    """The time (N,) and column (N,) of a batch's step ``at``, found by comparing it with all there are."""
    everything = np.asarray(state.normalize(line["obs"]))
    same = np.isclose(everything[None], np.asarray(batch.obs[at])[:, None, None]).all(axis=-1)
    return np.argwhere(same)[:, 1:]


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["uniform", "recent"])
def test_stored_sequences_act_as_in_the_rollout(make, sampler):
    alg, state = make(use_dagger=True, max_buffer_size=ROLLOUTS * STEPS * ENVS, sampler=sampler)
    history, line = recorded(alg, state, begin_at_once=False)
    batch = batch_of(alg, state, data_of(state, history), 2)
    action = actions_in(alg, state, batch)
    starts = set()
    for n, (time, env) in enumerate(located(state, line, batch)):
        starts.add(int(time))
        np.testing.assert_allclose(action[:, n], line["action"][time : time + 4, env], atol=1e-5)
        np.testing.assert_allclose(batch.teacher_action[:, n], line["teacher_action"][time : time + 4, env])
    np.testing.assert_allclose(batch.weight, 1.0)
    assert len(starts) > 1 and all(time % 4 == 0 for time in starts)


@pytest.mark.full
@pytest.mark.parametrize("begin_at_once", [True, False])
def test_burn_in_counts_exactly_the_steps_it_should(make, begin_at_once):
    """Loss and gradients against a plain loop; beginnings of episodes are never masked."""
    settings = {"use_dagger": True, "max_buffer_size": ROLLOUTS * STEPS * ENVS, "carry_start": "burn_in"}
    alg, state = make(**settings, burn_in_steps=5)
    history, line = recorded(alg, state, begin_at_once)
    seen_early, compute = (
        False,
        jax.jit(
            lambda data, number, params: jax.value_and_grad(loss_of(alg, state, data, number), has_aux=True)(params)
        ),
    )
    for number in range(3):
        data = data_of(state, history)
        batch = batch_of(alg, state, data, number)
        places = located(state, line, batch, at=5)

        def plain(params, places=places):
            total, counted = 0.0, 0
            learner = state.replace(params=params)
            for time, env in places:
                carry = networks.initial_carry(STUDENT, learner, 1)
                exact = False
                for at in range(max(time - 5, 0), min(time + 4, ROLLOUTS * STEPS)):
                    if line["is_first"][at, env]:
                        carry, exact = networks.initial_carry(STUDENT, learner, 1), True
                    elif at == time:
                        carry = jax.lax.stop_gradient(carry)
                    carry, action = ACT(STUDENT, learner, carry, line["obs"][at, env][None])
                    if at >= time and (exact or at >= 5):
                        total += jnp.square(action[0] - line["teacher_action"][at, env]).mean()
                        counted += 1
            return 4 * total / counted

        seen_early |= any(time < 5 for time, _ in places)
        (ours, _), our_gradient = compute(data, number, state.params)
        if number == 0 and begin_at_once:
            gradient = jax.grad(plain)(state.params)
            for a, b in zip(jax.tree.leaves(our_gradient), jax.tree.leaves(gradient), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)
        assert float(ours) == pytest.approx(float(plain(state.params)), rel=1e-5)
        for n, (time, env) in enumerate(places):
            if line["is_first"][time, env]:
                assert (batch.weight[5:][: ROLLOUTS * STEPS - time, n] > 0).all()
                np.testing.assert_allclose(actions_in(alg, state, batch)[5, n], line["action"][time, env], atol=1e-5)
    assert seen_early, "the test met sequences at the oldest end"


@pytest.mark.full
def test_zero_starts_begin_with_the_initial_state_everywhere(make):
    alg, state = make(use_dagger=True, max_buffer_size=ROLLOUTS * STEPS * ENVS, carry_start="zero")
    history, _ = recorded(alg, state, begin_at_once=False)
    batch = batch_of(alg, state, data_of(state, history), 0)
    np.testing.assert_allclose(batch.carry[0][0], networks.initial_carry(STUDENT, state, ENVS)[0][0])
    assert alg.sampler.burn_in == 0 and len(batch.obs) == 4 and history.carry == ()


@pytest.mark.full
def test_packed_rows_begin_with_episodes_and_follow_them_exactly(make):
    settings = {"use_dagger": True, "max_buffer_size": ROLLOUTS * STEPS * ENVS, "sampler": "packed", "row_length": 10}
    alg, state = make(**settings)
    history, line = recorded(alg, state, begin_at_once=False, ends=0.15)
    ends_inside = 0
    for number in range(4):
        batch = batch_of(alg, state, data_of(state, history), number)
        action = actions_in(alg, state, batch)
        for n, (time, env) in enumerate(located(state, line, batch)):
            known = min(10, ROLLOUTS * STEPS - time)
            counts = np.asarray(batch.weight[:, n] > 0)
            begins = np.asarray(line["is_first"][time : time + known, env])
            assert counts[:known].tolist() == (np.cumsum(begins) > 0).tolist() and not counts[known:].any()
            inside = np.flatnonzero(counts)
            np.testing.assert_allclose(action[inside, n], line["action"][time + inside, env], atol=1e-5)
            ends_inside += begins[1:].sum()
    assert ends_inside > 0


def test_recent_draws_by_age_and_uniform_does_not(make):
    rollouts = {}
    for name in ("uniform", "recent"):
        alg, _ = make(use_dagger=True, max_buffer_size=4 * STEPS * ENVS, sampler=name, recency_half_life=1.0)
        draw = jax.vmap(lambda key, s=alg.sampler: s.draw_rollout(key, jnp.array(3), 4))
        drawn = draw(jax.random.split(jax.random.key(0), 8000))
        rollouts[name] = np.bincount(np.asarray(drawn).ravel(), minlength=4) / drawn.size
    np.testing.assert_allclose(rollouts["uniform"], [1 / 3, 1 / 3, 1 / 3, 0], atol=0.02)
    np.testing.assert_allclose(rollouts["recent"], [1 / 7, 2 / 7, 4 / 7, 0], atol=0.02)


def experience_of(ends: float = 0.15) -> Experience:
    keys = jax.random.split(jax.random.key(5), 4)
    done = jax.random.bernoulli(keys[3], ends, (STEPS, ENVS))
    return Experience(
        obs=jax.random.normal(keys[1], (STEPS, ENVS, 22)),
        teacher_action=jax.random.normal(keys[2], (STEPS, ENVS, 4)),
        is_first=jnp.concatenate([(jnp.arange(ENVS) == 2)[None], done[:-1]]),
        start_carry=((jax.random.normal(keys[0], (ENVS, 6)),),),
        carry=(),
    )


def rollout_data(alg, state) -> RolloutData:
    return alg.sampler.data(state, experience_of(), None, jax.random.key(1))


def test_one_minibatch_of_all_environments_is_rsl_rls_pass(make, teacher_actor):
    """The order of the environments apart, which no mean depends on."""
    results = []
    for sampler in ("streaming", "minibatch"):
        alg, state = make(sampler=sampler)
        train = alg.init(jax.random.key(0), teacher_actor)
        train = train.replace(student=state, opt_state=alg.optimizer.init(state.params))
        results.append(jax.jit(alg.regress)(train, rollout_data(alg, state)))
    (streamed, _, loss), (batched, _, again) = results
    assert float(loss) == pytest.approx(float(again), rel=1e-5)
    for a, b in zip(jax.tree.leaves(streamed.student.params), jax.tree.leaves(batched.student.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_minibatches_visit_every_environment_once_an_epoch(make):
    alg, state = make(sampler="minibatch", num_mini_batches=4)
    data, sampler = rollout_data(alg, state), alg.sampler
    assert (sampler.steps, sampler.sequences) == (12, 2)
    carry = jax.tree.map(lambda x: x[:2] * 0 + 7.0, data.carry)
    seen = []
    for number in range(sampler.steps):
        batch = batch_of(alg, state, data, number, carry)
        place = number % 3
        same = np.isclose(data.obs[4 * place][None], np.asarray(batch.obs[0])[:, None]).all(axis=-1)
        envs = np.argwhere(same)[:, 1]
        if place == 0:
            seen += envs.tolist()
            np.testing.assert_allclose(batch.carry[0][0], data.carry[0][0][envs])
        else:
            np.testing.assert_allclose(batch.carry[0][0], 7.0)
    assert sorted(seen) == list(range(ENVS))


def test_minibatch_burn_in_never_masks_beginnings(make):
    alg, state = make(sampler="minibatch", num_mini_batches=2, carry_start="burn_in", burn_in_steps=6)
    data, sampler = rollout_data(alg, state), alg.sampler
    expected = (np.cumsum(data.is_first, axis=0) > 0) | (np.arange(STEPS) >= 6)[:, None]
    counted = np.zeros((STEPS, ENVS), bool)
    for number in range(sampler.steps):
        batch = batch_of(alg, state, data, number)
        at = 4 * (number % 3)
        same = np.isclose(data.obs[at][None], np.asarray(batch.obs[0])[:, None]).all(axis=-1)
        counted[at : at + 4, np.argwhere(same)[:, 1]] = np.asarray(batch.weight) > 0
    assert (counted == expected).all() and not expected.all()


def test_gradient_steps_by_default_pass_over_as_much_as_the_epochs_do():
    from jdistill.core.config import AlgorithmCfg

    cfg = AlgorithmCfg(use_dagger=True, num_learning_epochs=4, gradient_length=15, num_mini_batches=10)
    assert make_sampler(cfg, 100, 400, 1000).steps == 1066
    assert make_sampler(dataclasses.replace(cfg, sampler="packed"), 100, 400, 1000).steps == 16
    assert make_sampler(dataclasses.replace(cfg, gradient_steps=7), 100, 400, 1000).steps == 7


def test_a_recurrent_teacher_acts_again_across_resets(make):
    """Actions along a recording are those of the rollout."""
    alg, state = make(use_dagger=True, max_buffer_size=ROLLOUTS * STEPS * ENVS)
    _, line = recorded(alg, state, begin_at_once=True)
    again = jax.jit(networks.replay, static_argnums=0)(STUDENT, state, line["obs"], line["is_first"])
    np.testing.assert_allclose(again, line["action"], atol=1e-5)
    forgetful = networks.replay(STUDENT, state, line["obs"], jnp.zeros_like(line["is_first"]))
    assert float(jnp.abs(forgetful - line["action"]).max()) > 1e-2
