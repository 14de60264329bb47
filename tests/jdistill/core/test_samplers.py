"""Samplers: what they draw, where sequences begin, which steps count. Every loss is checked by plain re-computation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.core.samplers import Source, make_sampler

STEPS, ENVS, ROLLOUTS = 12, 8, 3
STUDENT = Policy(4, (8,), rnn_type="gru", rnn_hidden_dim=6, learn_initial_carry=True)
UNROLL = jax.jit(STUDENT.apply, static_argnames="method")
ACT = jax.jit(networks.act, static_argnums=0)


@pytest.fixture
def make(make_distillation, teacher_state):
    """The algorithm with a student that has a memory and a learnt initial state, its parameters, and flown data."""

    def make(**settings):
        alg = make_distillation(STUDENT, STEPS, gradient_length=4, num_learning_epochs=1, **settings)
        state = networks.init(STUDENT, jax.random.key(0), 22, normalize=True)
        noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
        return alg, state.replace(params=jax.tree.map(noise, state.params))

    return make


def flown(alg, state, begin_at_once: bool, ends: float = 0.12):
    """A history of three rollouts as the student flew them, and the whole of it: obs, label, begins, action, state."""
    keys = jax.random.split(jax.random.key(3), 3)
    time = ROLLOUTS * STEPS
    obs = jax.random.normal(keys[0], (time, ENVS, 22))
    label = jax.random.normal(keys[1], (time, ENVS, 4))
    begins = jax.random.bernoulli(keys[2], ends, (time, ENVS)).at[0].set(begin_at_once)
    carry = first = networks.initial_carry(STUDENT, state, ENVS)
    if not begin_at_once:
        carry = jax.tree.map(lambda x: x + 0.5, carry)
    before, actions = [], []
    for t in range(time):
        carry = jax.tree.map(lambda f, c, t=t: jnp.where(begins[t][:, None], f, c), first, carry)
        before.append(carry)
        carry, action = ACT(STUDENT, state, carry, obs[t])
        actions.append(action)
    history = alg.empty_history(state)
    for start in range(0, time, STEPS):
        part = slice(start, start + STEPS)
        kept = jax.tree.map(lambda *x: jnp.stack(x), *before[start : start + STEPS : 4])
        history = history.append(obs[part], label[part], begins[part], kept if history.carry else ())
    return history, {"obs": obs, "label": label, "begins": begins, "action": jnp.stack(actions)}


def source_of(state, history) -> Source:
    carry = networks.initial_carry(STUDENT, state, ENVS)
    return Source(normalize=state.normalize, key=jax.random.key(9), carry=carry, history=history)


def actions_in(alg, state, window):
    """The student's actions in a window, by the compiled unrolling that the loss uses."""
    carry = alg._first_carry(state.params, window)
    nowhere = jnp.zeros(window.done.shape[0], bool)
    sequence = (carry, window.obs, window.done, nowhere, carry)
    return UNROLL({"params": state.params}, *sequence, method=Policy.unroll)[1]


def located(state, line, window) -> np.ndarray:
    """The time (N,) and flight (N,) of a window's first observation, found by comparing it with all there are."""
    everything = np.asarray(state.normalize(line["obs"]))
    same = np.isclose(everything[None], np.asarray(window.obs[0])[:, None, None]).all(axis=-1)
    return np.argwhere(same)[:, 1:]


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["uniform", "recent"])
def test_stored_sequences_act_as_they_flew(make, sampler):
    alg, state = make(use_dagger=True, max_buffer_size=ROLLOUTS * STEPS * ENVS, sampler=sampler)
    history, line = flown(alg, state, begin_at_once=False)
    window = alg.sampler.window(source_of(state, history), jnp.array(2), (), 4)
    action = actions_in(alg, state, window)
    starts = set()
    for n, (time, env) in enumerate(located(state, line, window)):
        starts.add(int(time))
        np.testing.assert_allclose(action[:, n], line["action"][time : time + 4, env], atol=1e-5)
        np.testing.assert_allclose(window.label[:, n], line["label"][time : time + 4, env])
    np.testing.assert_allclose(window.weight, 1.0)
    assert len(starts) > 1 and all(time % 4 == 0 for time in starts)


@pytest.mark.full
@pytest.mark.parametrize("begin_at_once", [True, False])
def test_burn_in_counts_exactly_the_steps_it_should(make, begin_at_once):
    """Loss and gradients against a plain loop; beginnings of episodes are never masked."""
    settings = {"use_dagger": True, "max_buffer_size": ROLLOUTS * STEPS * ENVS, "carry_start": "burn_in"}
    alg, state = make(**settings, burn_in_steps=5)
    history, line = flown(alg, state, begin_at_once)
    seen_early = False
    for number in range(3):
        window = alg.sampler.window(source_of(state, history), jnp.array(number), (), 4)
        places = located(state, line, window)

        def plain(params, places=places):
            total, counted = 0.0, 0
            learner = state.replace(params=params)
            for time, env in places:
                carry = networks.initial_carry(STUDENT, learner, 1)
                exact = False
                for at in range(max(time - 5, 0), min(time + 4, ROLLOUTS * STEPS)):
                    if line["begins"][at, env]:
                        carry, exact = networks.initial_carry(STUDENT, learner, 1), True
                    elif at == time:
                        carry = jax.lax.stop_gradient(carry)
                    carry, action = ACT(STUDENT, learner, carry, line["obs"][at, env][None])
                    if at >= time and (exact or at >= 5):
                        total += jnp.square(action[0] - line["label"][at, env]).mean()
                        counted += 1
            return 4 * total / counted

        seen_early |= any(time < 5 for time, _ in places)
        (ours, _), our_gradient = jax.value_and_grad(alg.window_loss, has_aux=True)(state.params, window)
        if number == 0 and begin_at_once:
            gradient = jax.grad(plain)(state.params)
            for a, b in zip(jax.tree.leaves(our_gradient), jax.tree.leaves(gradient), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)
        assert float(ours) == pytest.approx(float(plain(state.params)), rel=1e-5)
        for n, (time, env) in enumerate(places):
            if line["begins"][time, env]:
                assert (window.weight[: ROLLOUTS * STEPS - time, n] > 0).all()
                np.testing.assert_allclose(actions_in(alg, state, window)[0, n], line["action"][time, env], atol=1e-5)
    assert seen_early, "the test met sequences at the oldest end"


def test_zero_starts_begin_with_the_initial_state_everywhere(make):
    alg, state = make(use_dagger=True, max_buffer_size=ROLLOUTS * STEPS * ENVS, carry_start="zero")
    history, _ = flown(alg, state, begin_at_once=False)
    window = alg.sampler.window(source_of(state, history), jnp.array(0), (), 4)
    carry = alg._first_carry(state.params, window)
    np.testing.assert_allclose(carry[0][0], networks.initial_carry(STUDENT, state, ENVS)[0][0])
    assert window.burn_in is None and history.carry == ()


def test_packed_rows_begin_with_episodes_and_fly_them_exactly(make):
    settings = {"use_dagger": True, "max_buffer_size": ROLLOUTS * STEPS * ENVS, "sampler": "packed", "row_length": 10}
    alg, state = make(**settings)
    history, line = flown(alg, state, begin_at_once=False, ends=0.15)
    ends_inside = 0
    for number in range(4):
        window = alg.sampler.window(source_of(state, history), jnp.array(number), (), 10)
        action = actions_in(alg, state, window)
        for n, (time, env) in enumerate(located(state, line, window)):
            known = min(10, ROLLOUTS * STEPS - time)
            counts = np.asarray(window.weight[:, n] > 0)
            begins = np.asarray(line["begins"][time : time + known, env])
            assert counts[:known].tolist() == (np.cumsum(begins) > 0).tolist() and not counts[known:].any()
            inside = np.flatnonzero(counts)
            np.testing.assert_allclose(action[inside, n], line["action"][time + inside, env], atol=1e-5)
            ends_inside += begins[1:].sum()
        assert float(window.weight.sum()) == pytest.approx(4 * ENVS), "as heavy as one of rsl_rl's windows"
    assert ends_inside > 0


def test_recent_draws_by_age_and_uniform_does_not(make):
    rollouts = {}
    for name in ("uniform", "recent"):
        alg, _ = make(use_dagger=True, max_buffer_size=4 * STEPS * ENVS, sampler=name, recency_half_life=1.0)
        draw = jax.vmap(lambda key, s=alg.sampler: s.draw_rollouts(key, jnp.array(3), 4))
        drawn = draw(jax.random.split(jax.random.key(0), 1000))
        rollouts[name] = np.bincount(np.asarray(drawn).ravel(), minlength=4) / drawn.size
    np.testing.assert_allclose(rollouts["uniform"], [1 / 3, 1 / 3, 1 / 3, 0], atol=0.02)
    np.testing.assert_allclose(rollouts["recent"], [1 / 7, 2 / 7, 4 / 7, 0], atol=0.02)


def minibatch_source(state, alg, begins: float = 0.15) -> Source:
    keys = jax.random.split(jax.random.key(5), 4)
    return Source(
        normalize=state.normalize,
        key=jax.random.key(1),
        carry=((jax.random.normal(keys[0], (ENVS, 6)),),),
        obs=jax.random.normal(keys[1], (STEPS, ENVS, 22)),
        label=jax.random.normal(keys[2], (STEPS, ENVS, 4)),
        done=jax.random.bernoulli(keys[3], begins, (STEPS, ENVS)),
        begins=jnp.arange(ENVS) == 2,
    )


def test_one_minibatch_of_all_environments_is_rsl_rls_pass(make):
    """The order of the environments apart, which no mean depends on."""
    results = []
    for sampler in ("streaming", "minibatch"):
        alg, state = make(sampler=sampler)
        train = alg.init(jax.random.key(0), networks.init(alg.teacher, jax.random.key(7), 26, normalize=True))
        train = train.replace(student=state, opt_state=alg.optimizer.init(state.params))
        source = minibatch_source(state, alg)
        # rsl_rl's state goes on from the rollout before, where an episode begins too.
        first = networks.initial_carry(STUDENT, state, ENVS)
        begin = jax.tree.map(lambda f, c, s=source: jnp.where(s.begins[:, None], f, c), first, source.carry)
        source = source._replace(carry=begin)
        results.append(jax.jit(lambda t, s, a=alg: a.regress(t, a.sampler, s))(train, _traced(source)))
    (streamed, _, loss), (batched, _, again) = results
    assert float(loss) == pytest.approx(float(again), rel=1e-5)
    for a, b in zip(jax.tree.leaves(streamed.student.params), jax.tree.leaves(batched.student.params), strict=True):
        # A state given is a constant, an initial one is learnt: that parameter may differ.
        if a.shape != (6,):
            np.testing.assert_allclose(a, b, atol=1e-4)


def _traced(source: Source) -> Source:
    """A source that can go through jit: the normaliser as a pytree of functions cannot."""
    return source._replace(normalize=jax.tree_util.Partial(lambda x: x))


def test_minibatches_visit_every_environment_once_an_epoch(make):
    alg, state = make(sampler="minibatch", num_mini_batches=4)
    source = minibatch_source(state, alg)
    sampler = alg.sampler
    assert (sampler.steps, sampler.sequences) == (12, 2)
    carry = jax.tree.map(lambda x: x[:2] * 0 + 7.0, source.carry)
    seen = []
    for number in range(sampler.steps):
        window = sampler.window(source, jnp.array(number), carry, 4)
        place = number % 3
        same = np.isclose(source.obs[4 * place][None], np.asarray(window.obs[0])[:, None]).all(axis=-1)
        envs = np.argwhere(same)[:, 1]
        if place == 0:
            seen += envs.tolist()
            np.testing.assert_allclose(window.carry[0][0], source.carry[0][0][envs])
        else:
            np.testing.assert_allclose(window.carry[0][0], 7.0)
    assert sorted(seen) == list(range(ENVS))


def test_minibatch_burn_in_never_masks_beginnings(make):
    alg, state = make(sampler="minibatch", num_mini_batches=2, carry_start="burn_in", burn_in_steps=6)
    source = minibatch_source(state, alg)
    sampler = alg.sampler
    begins = np.concatenate([np.asarray(source.begins)[None], np.asarray(source.done)[:-1]])
    expected = (np.cumsum(begins, axis=0) > 0) | (np.arange(STEPS) >= 6)[:, None]
    counted = np.zeros((STEPS, ENVS), bool)
    for number in range(sampler.steps):
        window = sampler.window(source, jnp.array(number), jax.tree.map(lambda x: x[:4], source.carry), 4)
        at = 4 * (number % 3)
        same = np.isclose(source.obs[at][None], np.asarray(window.obs[0])[:, None]).all(axis=-1)
        counted[at : at + 4, np.argwhere(same)[:, 1]] = np.asarray(window.weight) > 0
    assert (counted == expected).all() and not expected.all()


def test_gradient_steps_by_default_pass_over_as_much_as_the_epochs_do():
    from jdistill.core.config import AlgorithmCfg

    cfg = AlgorithmCfg(use_dagger=True, num_learning_epochs=4, gradient_length=15, num_mini_batches=10)
    assert make_sampler(cfg, 100, 400, 1000).steps == 1066
    assert make_sampler(dataclasses.replace(cfg, sampler="packed"), 100, 400, 1000).steps == 16
    assert make_sampler(dataclasses.replace(cfg, gradient_steps=7), 100, 400, 1000).steps == 7


def test_a_recurrent_teacher_relabels_across_resets(make):
    """Labels along a recording are those that the teacher gave while it was flown."""
    alg, state = make(use_dagger=True, max_buffer_size=ROLLOUTS * STEPS * ENVS)
    _, line = flown(alg, state, begin_at_once=True)
    again = jax.jit(networks.replay, static_argnums=0)(STUDENT, state, line["obs"], line["begins"])
    np.testing.assert_allclose(again, line["action"], atol=1e-5)
    forgetful = networks.replay(STUDENT, state, line["obs"], jnp.zeros_like(line["begins"]))
    assert float(jnp.abs(forgetful - line["action"]).max()) > 1e-2
