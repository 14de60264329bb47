"""One description of a policy: it says all, and it is a policy again."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdistill.core import networks
from jdistill.core.networks import RNN_TYPES, Policy
from jdistill.export.layers import GATES, STATES, WEIGHTS, build, describe

POLICIES = {
    "mlp": Policy(4, (8, 6), activation="relu", output_activation="tanh"),
    "one layer": Policy(3, ()),
    "beta": Policy(4, (8,), pre_dims=(12,), output_activation="beta"),
    "gru": Policy(4, (8,), pre_dims=(5, 6), rnn_type="gru", rnn_hidden_dim=7),
    "gru of two layers": Policy(4, (), rnn_type="gru", rnn_hidden_dim=5, rnn_num_layers=2),
    "learned start": Policy(4, (), rnn_type="gru", rnn_num_layers=2, rnn_hidden_dim=5, learn_initial_carry=True),
    "lstm": Policy(4, (8,), activation="tanh", rnn_type="lstm", rnn_hidden_dim=6),
    "lstm of two layers, learned start": Policy(
        4, (8,), rnn_type="lstm", rnn_hidden_dim=6, rnn_num_layers=2, learn_initial_carry=True
    ),
}
NUMPY = {
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "tanh": np.tanh,
    "identity": lambda x: x,
    "beta": lambda x: (
        2 * (a := 1 + np.log1p(np.exp(x[: len(x) // 2]))) / (a + 1 + np.log1p(np.exp(x[len(x) // 2 :]))) - 1
    ),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def trained(policy: Policy, normalize: bool = True):
    """Parameters that differ everywhere from what a policy begins with."""
    state = networks.init(policy, jax.random.key(0), 22, normalize)
    if state.normalizer:
        draws = 2 + 3 * jax.random.normal(jax.random.key(1), (99, 22))
        state = state.replace(normalizer=state.normalizer.update(draws))
    noise = jax.random.normal(jax.random.key(2), (256,))
    return state.replace(params=jax.tree.map(lambda x: x + 0.1 * jnp.resize(noise, x.shape), state.params))


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param]


@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_described_is_built_again(policy, normalize):
    state = trained(policy, normalize)
    again, rebuilt = build(describe(policy, state))
    assert again == policy
    assert jax.tree.structure(rebuilt) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(rebuilt), jax.tree.leaves(state), strict=True):
        assert ours.dtype == theirs.dtype and (ours == theirs).all()


def test_a_policy_keeps_its_numbers_when_those_it_was_built_of_change(policy):
    """Such numbers may be torch's parameters, which an optimizer changes in place."""
    layers = describe(policy, trained(policy))
    _, state = build(layers)
    before = [np.array(x) for x in jax.tree.leaves(state)]
    layers.normalizer.mean[:] = 7.0
    for dense in layers.dense:
        dense.weight[:], dense.bias[:] = 7.0, 7.0
    for layer in layers.recurrent:
        for array in (*(getattr(layer, name) for name in WEIGHTS), *layer.initial_state):
            array[:] = 7.0
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(state), before, strict=True))


def recurrent_step(layer, x, state):
    """A step as :class:`jdistill.export.layers.RecurrentLayer` tells it."""
    h = state[0]
    a, b = layer.weight_ih @ x + layer.bias_ih, layer.weight_hh @ h + layer.bias_hh
    a, b = (dict(zip(GATES[layer.kind], np.split(v, len(GATES[layer.kind])), strict=True)) for v in (a, b))
    if layer.kind == "gru":
        r, z = sigmoid(a["r"] + b["r"]), sigmoid(a["z"] + b["z"])
        return ((1 - z) * np.tanh(a["n"] + r * b["n"]) + z * h,)
    s = {gate: a[gate] + b[gate] for gate in a}
    c = sigmoid(s["f"]) * state[1] + sigmoid(s["i"]) * np.tanh(s["g"])
    return sigmoid(s["o"]) * np.tanh(c), c


def test_a_description_says_all_that_a_policy_does(policy):
    """NumPy alone acts from the description, by the equations in its documentation."""
    state = trained(policy)
    layers, carry = describe(policy, state), networks.initial_carry(policy, state, 1)
    states = [layer.initial_state for layer in layers.recurrent]
    for _ in range(5):
        obs = np.random.default_rng(0).normal(size=22).astype(np.float32)
        x = (obs - layers.normalizer.mean) / layers.normalizer.scale
        for layer in layers.pre:
            x = NUMPY[layer.activation](layer.weight @ x + layer.bias)
        for i, layer in enumerate(layers.recurrent):
            states[i] = recurrent_step(layer, x, states[i])
            x = states[i][0]
        for layer in layers.mlp:
            x = NUMPY[layer.activation](layer.weight @ x + layer.bias)
        carry, action = networks.act(policy, state, carry, jnp.asarray(obs[None]))
        np.testing.assert_allclose(x, action[0], atol=2e-6)
    assert layers.obs_size == 22 and layers.num_actions == policy.num_actions


def test_gates_and_states_are_those_of_the_networks():
    assert GATES.keys() == STATES.keys() == RNN_TYPES.keys()
    for kind, layer in RNN_TYPES.items():
        assert len(GATES[kind]) == layer(1).gates and len(STATES[kind]) == len(layer(1).initial())


def test_layers_that_make_no_policy_are_told():
    layers = describe(POLICIES["gru"], trained(POLICIES["gru"]))
    (gru,), (first, last) = layers.recurrent, layers.mlp
    wrong = {
        "layer 3 takes 8 numbers, the one before gives 7": replace(layers, mlp=(last,)),
        "one activation, not elu, relu": replace(layers, mlp=(replace(first, activation="relu"), last)),
        "of one kind and width": replace(layers, recurrent=(gru, replace(gru, weight_ih=gru.weight_hh, kind="lstm"))),
        "other than zero is a learned one": replace(
            layers, recurrent=(replace(gru, initial_state=(np.ones(7, np.float32),)),)
        ),
        "the normalizer takes": replace(layers, normalizer=replace(layers.normalizer, mean=np.zeros(3, np.float32))),
    }
    for complaint, changed in wrong.items():
        with pytest.raises(ValueError, match=complaint):
            build(changed)
