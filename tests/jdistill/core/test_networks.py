"""Policies and the normalizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.env import where_done
from jdistill.core import networks
from jdistill.core.networks import Normalizer, Policy

POLICIES = {
    "mlp": Policy(4, (8, 8)),
    "gru": Policy(4, (16,), pre_dims=(16,), rnn_type="gru", output_activation="tanh"),
    "gru of two layers": Policy(4, (), rnn_type="gru", rnn_hidden_dim=5, rnn_num_layers=2),
    "lstm": Policy(4, (8,), rnn_type="lstm", rnn_hidden_dim=6),
    "lstm of two layers, learnt start": Policy(
        4, (8,), rnn_type="lstm", rnn_hidden_dim=6, rnn_num_layers=2, learn_initial_carry=True
    ),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(params=POLICIES.values(), ids=POLICIES.keys())
def policy(request):
    return request.param


@pytest.fixture
def state(policy):
    state = networks.init(policy, jax.random.key(0), 22, normalize=True)
    # Learnt starts begin at zero; anything else shows whether they are used.
    params = jax.tree.map_with_path(lambda p, x: x + 0.3 if "initial" in str(p) else x, state.params)
    return state.replace(params=params)


def test_parameter_counts_of_the_presets():
    fork = Policy(4, (16,), pre_dims=(16,), rnn_type="gru", output_activation="tanh")
    raptor = Policy(4, (), pre_dims=(16,), rnn_type="gru", activation="relu", learn_initial_carry=True)
    # Dense 22->16 and 16->16 and 16->4, and a GRU with two biases per gate.
    assert networks.num_parameters(networks.init(fork, jax.random.key(0), 22, True)) == 368 + 1632 + 272 + 68
    assert networks.num_parameters(networks.init(raptor, jax.random.key(0), 22, False)) == 2084


def test_unroll_is_step_after_step_with_resets(policy, state):
    steps, batch = 9, 3
    obs = jax.random.normal(jax.random.key(1), (steps, batch, 22))
    reset = jax.random.bernoulli(jax.random.key(2), 0.3, (steps, batch)).at[0, 1].set(True)
    initial = networks.initial_carry(policy, state, batch)
    carry = start = jax.tree.map(lambda x: x + 0.5, initial)
    # Another state at every step.
    reset_carry = jax.tree.map(lambda x: x + 0.1 * jnp.arange(steps)[:, None, None], initial)
    actions = []
    for t in range(steps):
        carry = jax.tree.map(lambda r, c, t=t: jnp.where(reset[t][:, None], r[t], c), reset_carry, carry)
        carry, action = networks.act(policy, state, carry, obs[t])
        actions.append(action)
    end, unrolled = policy.apply(
        {"params": state.params}, start, state.normalize(obs), reset, reset_carry, method=Policy.unroll
    )
    np.testing.assert_allclose(unrolled, jnp.stack(actions), atol=1e-6)
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(carry), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
def test_gradients_of_an_unrolled_window_are_those_of_its_steps(rnn_type):
    """Written by hand they must be automatic differentiation's, into states and reset states too."""
    policy = Policy(4, (), rnn_type=rnn_type, rnn_hidden_dim=5, rnn_num_layers=2)
    state = networks.init(policy, jax.random.key(0), 7, normalize=False)
    obs = jax.random.normal(jax.random.key(1), (6, 3, 7))
    reset = jax.random.bernoulli(jax.random.key(2), 0.3, (6, 3))
    noise = lambda x: jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    start = jax.tree.map(noise, networks.initial_carry(policy, state, 3))
    given = jax.tree.map(lambda x: noise(jnp.zeros((6, *x.shape))), start)

    def unrolled(params, obs, start, given):
        end, actions = policy.apply({"params": params}, start, obs, reset, given, method=Policy.unroll)
        return jnp.sin(actions).sum() + sum(jnp.cos(x).sum() for x in jax.tree.leaves(end))

    def stepped(params, carry_obs, carry, given):
        total = 0.0
        for t in range(6):
            carry = jax.tree.map(lambda r, c, t=t: jnp.where(reset[t][:, None], r[t], c), given, carry)
            carry, action = policy.apply({"params": params}, carry, carry_obs[t], method=Policy.step)
            total += jnp.sin(action).sum()
        return total + sum(jnp.cos(x).sum() for x in jax.tree.leaves(carry))

    ours, theirs = (jax.grad(f, argnums=(0, 1, 2, 3))(state.params, obs, start, given) for f in (unrolled, stepped))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_no_gradient_crosses_a_reset():
    policy = POLICIES["gru"]
    state = networks.init(policy, jax.random.key(0), 22, normalize=False)
    carry = networks.initial_carry(policy, state, 1)

    def last_action(obs, reset_at_3):
        reset = jnp.zeros((5, 1), bool).at[3].set(reset_at_3)
        args = (carry, obs, reset, carry)
        return policy.apply({"params": state.params}, *args, method=Policy.unroll)[1][-1].sum()

    obs = jax.random.normal(jax.random.key(1), (5, 1, 22))
    through = jnp.abs(jax.grad(last_action)(obs, False)).sum(axis=(1, 2))
    cut = jnp.abs(jax.grad(last_action)(obs, True)).sum(axis=(1, 2))
    assert (through > 0).all()
    assert (cut[:3] == 0).all() and (cut[3:] > 0).all()


def test_gru_follows_torch_equations():
    policy = Policy(4, (), rnn_type="gru", rnn_hidden_dim=5)
    state = networks.init(policy, jax.random.key(0), 7, normalize=False)
    p = {k: np.array(v, np.float64) for k, v in state.params["rnn_0"].items()}
    x, h = np.random.default_rng(0).normal(size=(2, 7)), np.random.default_rng(1).normal(size=(2, 5))
    (gi, gh) = (x @ p["weight_ih"] + p["bias_ih"], h @ p["weight_hh"] + p["bias_hh"])
    r, z = sigmoid(gi[:, :5] + gh[:, :5]), sigmoid(gi[:, 5:10] + gh[:, 5:10])
    n = np.tanh(gi[:, 10:] + r * gh[:, 10:])
    ((ours,),), _ = networks.act(policy, state, ((jnp.array(h),),), jnp.array(x))
    np.testing.assert_allclose(ours, (1 - z) * n + z * h, atol=1e-5)


def test_lstm_follows_torch_equations():
    policy = Policy(4, (), rnn_type="lstm", rnn_hidden_dim=5)
    state = networks.init(policy, jax.random.key(0), 7, normalize=False)
    p = {k: np.array(v, np.float64) for k, v in state.params["rnn_0"].items()}
    rng = np.random.default_rng(0)
    x, h, c = rng.normal(size=(2, 7)), rng.normal(size=(2, 5)), rng.normal(size=(2, 5))
    i, f, g, o = np.split(x @ p["weight_ih"] + p["bias_ih"] + h @ p["weight_hh"] + p["bias_hh"], 4, axis=1)
    expected_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    (((our_h, our_c),), _) = networks.act(policy, state, ((jnp.array(h), jnp.array(c)),), jnp.array(x))
    np.testing.assert_allclose(our_c, expected_c, atol=1e-5)
    np.testing.assert_allclose(our_h, sigmoid(o) * np.tanh(expected_c), atol=1e-5)


def test_initialisation_is_torchs_uniform():
    state = networks.init(Policy(4, (64, 64)), jax.random.key(0), 25, normalize=False)
    layer = state.params["mlp_0"]["dense"]
    for x in (layer["kernel"], layer["bias"]):
        assert 0.15 < float(jnp.abs(x).max()) <= 0.2
    assert float(layer["kernel"].std()) == pytest.approx(0.2 / 3**0.5, rel=0.05)
    hidden = state.params["mlp_1"]["dense"]["kernel"]
    assert float(hidden.std()) == pytest.approx(0.125 / 3**0.5, rel=0.05)
    both = np.concatenate([np.ravel(layer["kernel"])[:1600] / 0.2, np.ravel(hidden)[:1600] / 0.125])
    assert len(np.unique(both)) == len(both)  # No number is drawn for two of them.


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
def test_recurrent_initialisation_is_torchs_uniform(rnn_type):
    policy = Policy(4, (8,), rnn_type=rnn_type, rnn_hidden_dim=64, learn_initial_carry=True)
    state = networks.init(policy, jax.random.key(3), 9, normalize=True)
    weights = dict(state.params["rnn_0"])
    assert set(weights) == {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    for x in weights.values():
        assert 0.12 < float(jnp.abs(x).max()) <= 0.125
        assert float(x.std()) == pytest.approx(0.125 / 3**0.5, rel=0.15)
    assert not jnp.any(state.params["initial_0_0"])


def test_normalizer_holds_the_moments_of_everything_seen():
    rng = np.random.default_rng(0)
    batches = [rng.normal(loc=3, scale=5, size=(4, n, 2)) for n in (5, 11, 50)]
    normalizer = Normalizer.create(2)
    for batch in batches:
        normalizer = normalizer.update(jnp.array(batch, jnp.float32))
    seen = np.concatenate([b.reshape(-1, 2) for b in batches])
    np.testing.assert_allclose(normalizer.mean, seen.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(normalizer.var, seen.var(axis=0), rtol=1e-4)
    assert float(normalizer.count) == len(seen)
    expected = (seen - seen.mean(axis=0)) / (seen.std(axis=0) + 1e-2)
    np.testing.assert_allclose(normalizer(jnp.array(seen, jnp.float32)), expected, atol=1e-4)


def test_a_fresh_normalizer_barely_touches():
    np.testing.assert_allclose(Normalizer.create(3)(jnp.ones((2, 3))), 1 / 1.01, rtol=1e-6)


def test_the_formula_in_policy_files_is_what_is_computed():
    rng = np.random.default_rng(0)
    normalizer = Normalizer.create(3).update(jnp.array(rng.normal(loc=2, scale=4, size=(50, 3)), jnp.float32))
    obs = rng.normal(size=(5, 3)).astype(np.float32)
    told = eval(Normalizer.FORMULA, {"obs": obs, "mean": normalizer.mean, "var": normalizer.var, "sqrt": np.sqrt})
    np.testing.assert_allclose(normalizer(obs), told, rtol=1e-6)


@pytest.mark.parametrize("rows", [7, 40, 10_000])
@pytest.mark.parametrize("rnn", [None, "gru", "lstm"])
def test_following_observations_is_acting_on_each_of_them(monkeypatch, rnn, rows):
    """In windows of any length, from any carry on, with episodes that begin in between."""
    monkeypatch.setattr(networks, "WINDOW_ROWS", rows)
    policy = Policy(
        3, (8,), rnn_type=rnn, rnn_hidden_dim=5, rnn_num_layers=2 if rnn else 1, learn_initial_carry=bool(rnn)
    )
    state = networks.init(policy, jax.random.key(0), 6, normalize=True)
    state = state.replace(params=jax.tree.map(lambda x: x + 0.1, state.params))
    obs = jax.random.normal(jax.random.key(1), (23, 4, 6))
    is_first = jax.random.uniform(jax.random.key(2), (23, 4)) < 0.2
    initial = networks.initial_carry(policy, state, 4)
    carry = start = jax.tree.map(lambda x: x + 0.3, initial)
    expected = []
    for now, new in zip(obs, is_first, strict=True):
        carry, action = networks.act(policy, state, where_done(new, initial, carry), now)
        expected.append(action)
    after, actions = jax.jit(networks.follow, static_argnums=0)(policy, state, start, obs, is_first)
    np.testing.assert_allclose(actions, jnp.stack(expected), atol=1e-5)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(carry), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
