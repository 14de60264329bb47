"""Every activation, by rsl_rl's names: what it computes, and what torch and ONNX call it.

One line here makes an activation known to configs, networks and exporters alike, as long as torch and ONNX have it too.
Where one of them does not (None below), its exporter composes the activation of several operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


@jax.custom_jvp
def elu(x: Array) -> Array:
    """x where positive, exp(x) - 1 elsewhere.

    XLA's exp is much faster than its expm1; the absolute error is float32's at 1. The slope comes from the result.
    """
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0.0)) - 1.0)


@elu.defjvp
def _elu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = elu(*primals)
    return y, tangents[0] * (jnp.minimum(y, 0.0) + 1.0)


def identity(x: Array) -> Array:
    """x."""
    return x


def mish(x: Array) -> Array:
    """x tanh(softplus(x))."""
    return x * jnp.tanh(nn.softplus(x))


def beta_mean(x: Array) -> Array:
    """Mean of rsl_rl's ``BetaDistribution`` on [-1, 1]: raw alphas, then raw betas (..., 2A) to actions (..., A).

    alpha = 1 + softplus(raw alpha), beta likewise; the mean of Beta(alpha, beta) is alpha / (alpha + beta).
    """
    alpha, beta = jnp.split(1.0 + nn.softplus(x), 2, axis=-1)
    return 2.0 * alpha / (alpha + beta) - 1.0


@dataclass(frozen=True)
class Activation:
    """An activation, in JAX and by its names elsewhere; calling it applies it to JAX arrays."""

    function: Callable[[Array], Array]
    torch: str | None
    """Its class in ``torch.nn``, built without arguments; None where there is none."""
    onnx: str | None
    """Its operator in ONNX (opset 20); None where there is none."""
    onnx_attributes: Mapping[str, Any] = field(default_factory=dict)
    """Of that operator, where they are not its defaults."""

    def __call__(self, x: Array) -> Array:
        """The activation of ``x``."""
        return self.function(x)


ACTIVATIONS: dict[str, Activation] = {
    "elu": Activation(elu, "ELU", "Elu"),
    "selu": Activation(nn.selu, "SELU", "Selu"),
    "relu": Activation(nn.relu, "ReLU", "Relu"),
    "crelu": Activation(nn.celu, "CELU", "Celu"),
    "lrelu": Activation(nn.leaky_relu, "LeakyReLU", "LeakyRelu", {"alpha": 0.01}),
    "tanh": Activation(nn.tanh, "Tanh", "Tanh"),
    "sigmoid": Activation(nn.sigmoid, "Sigmoid", "Sigmoid"),
    "softplus": Activation(nn.softplus, "Softplus", "Softplus"),
    "gelu": Activation(partial(nn.gelu, approximate=False), "GELU", "Gelu"),
    "swish": Activation(nn.swish, "SiLU", None),
    "mish": Activation(mish, "Mish", "Mish"),
    "identity": Activation(identity, "Identity", None),
}
"""What can follow a hidden layer (rsl_rl's ``crelu`` is torch's CELU)."""

OUTPUT_ACTIVATIONS: dict[str, Activation] = {**ACTIVATIONS, "beta": Activation(beta_mean, None, None)}
"""What can follow the last layer: any activation, or the mean of a Beta distribution (two outputs an action)."""
