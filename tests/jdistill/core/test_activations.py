"""Activations: their values, their slopes, and that naming torch's and ONNX's costs neither."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdistill.core.activations import ACTIVATIONS, beta_mean, elu
from tests.test_imports import modules_after


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_a_few_points(name):
    x = np.array([-2.0, -0.5, 0.0, 0.7, 3.0])
    erf = np.array([-0.9544997, -0.3829249, 0.0, 0.5160727, 0.9973002])  # erf(x / sqrt 2)
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    expected = {
        "elu": np.where(x > 0, x, np.expm1(x)),
        "selu": scale * np.where(x > 0, x, alpha * np.expm1(x)),
        "relu": np.maximum(x, 0),
        "crelu": np.where(x > 0, x, np.expm1(x)),
        "lrelu": np.where(x > 0, x, 0.01 * x),
        "tanh": np.tanh(x),
        "sigmoid": sigmoid(x),
        "softplus": np.log1p(np.exp(x)),
        "gelu": 0.5 * x * (1 + erf),
        "swish": x * sigmoid(x),
        "mish": x * np.tanh(np.log1p(np.exp(x))),
        "identity": x,
    }[name]
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.array(x)), expected, atol=1e-5)


def test_slope_of_elu():
    x = jnp.array([-20.0, -2.0, -0.1, 0.1, 5.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(elu))(x), jnp.where(x > 0, 1.0, jnp.exp(x)), atol=1e-6)
    assert float(jax.grad(elu)(jnp.float32(1e30))) == 1.0, "exp of a large number spoils nothing"


def test_beta_mean_is_the_mean_of_the_distribution():
    raw = np.array([[0.5, -1.0, 2.0, -3.0]])
    alpha, beta = np.split(1 + np.log1p(np.exp(raw)), 2, axis=1)
    np.testing.assert_allclose(beta_mean(jnp.array(raw)), 2 * alpha / (alpha + beta) - 1, atol=1e-6)


@pytest.mark.full
def test_the_table_needs_neither_torch_nor_onnx():
    assert not modules_after("import jdistill.core.activations, jdistill.core.networks") & {"torch", "onnx"}
