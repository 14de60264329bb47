"""Recurrent layers over a whole window of steps, with their gradients written by hand.

Only what is recurrent runs step by step: the product with the hidden state and the gates, and on the way back the
product with the gates' gradients. The gates are kept from the way there, their derivatives are taken for all steps at
once, and so are the gradients of the weights, in one product over ``T * B`` rows. Automatic differentiation of the same
scan takes half as long again. Tests compare with that of :meth:`jdistill.core.networks.Policy.step`.

Shapes: T steps, B sequences, H hidden units, G gates of H units side by side (3H in a GRU, 4H in an LSTM). What both
functions take:

- ``projected`` (T, B, G), the inputs times ``weight_ih``, plus ``bias_ih``;
- ``weight_hh`` (H, G), ``bias_hh`` (G,);
- ``carry``, the state before the first step, arrays of (B, H);
- ``reset`` (T, B) bool, whether the state before a step gives way to that of ``reset_carry``, arrays of (T, B, H).

They return the state after the window, and the outputs (T, B, H).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by way of tanh, for which XLA has the faster code."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


GPU_UNROLL = 32
"""Steps of a recurrence that a GPU's program does without a loop."""
State = tuple[Array, ...]
"""Recurrent state of one layer: (h,) for a GRU, (h, c) for an LSTM, each (B, H)."""


@jax.custom_vjp
def gru(
    projected: Array, weight_hh: Array, bias_hh: Array, carry: State, reset: Array, reset_carry: State
) -> tuple[State, Array]:
    """torch.nn.GRU along a window; gates in torch's order r, z, n.

    h' = (1 - z) n + z h with n = tanh(x_n + r (W_hn h + b_hn)); r and z are sigmoids of sums.
    """
    return _gru_forward(projected, weight_hh, bias_hh, carry, reset, reset_carry)[0]


def _gru_forward(
    projected: Array, weight_hh: Array, bias_hh: Array, carry: State, reset: Array, reset_carry: State
) -> tuple[tuple[State, Array], Any]:
    hidden = weight_hh.shape[0]

    def step(state: State, inputs: tuple[Array, Array, State]) -> Any:
        x, is_reset, reset_state = inputs
        (h,) = where_reset(is_reset, reset_state, state)
        from_hidden = h @ weight_hh + bias_hh
        rz = sigmoid(x[:, : 2 * hidden] + from_hidden[:, : 2 * hidden])
        from_hidden = from_hidden[:, 2 * hidden :]
        n = jnp.tanh(x[:, 2 * hidden :] + rz[:, :hidden] * from_hidden)
        return (n + rz[:, hidden:] * (h - n),), (h, rz, n, from_hidden)

    end, kept = _scan(step, carry, (projected, reset, reset_carry))
    before, rz, n, _ = kept
    # Once more for all steps: cheaper than to store it step by step.
    out = n + rz[..., hidden:] * (before - n)
    return (end, out), (kept, weight_hh, reset)


def _gru_backward(residuals: Any, cotangents: tuple[State, Array]) -> Any:
    (before, rz, n, from_hidden), weight_hh, reset = residuals
    (d_end, d_out), hidden = cotangents, weight_hh.shape[0]
    r, z = rz[..., :hidden], rz[..., hidden:]
    # What a gradient of the output times this is a gradient of: the gates before their activations.
    by_n = (1 - z) * (1 - n * n)
    by_hidden = jnp.concatenate([by_n * from_hidden * r * (1 - r), (before - n) * z * (1 - z), by_n * r], axis=-1)
    back = weight_hh.T

    def step(d_after: State, inputs: tuple[Array, Array, Array, Array]) -> Any:
        d_here, is_reset, factor, keep = inputs
        d = d_here + d_after[0]
        d_before = d * keep + (jnp.concatenate([d, d, d], axis=-1) * factor) @ back
        return (jnp.where(is_reset[:, None], 0.0, d_before),), (d, d_before)

    d_carry, (d, d_before) = _scan(step, d_end, (d_out, reset, by_hidden, z), reverse=True)
    d_hidden = jnp.concatenate([d, d, d], axis=-1) * by_hidden
    d_projected = jnp.concatenate([d_hidden[..., : 2 * hidden], d * by_n], axis=-1)
    return d_projected, *_weights(before, d_hidden), d_carry, None, _of_reset_carry(reset, (d_before,))


gru.defvjp(_gru_forward, _gru_backward)


@jax.custom_vjp
def lstm(
    projected: Array, weight_hh: Array, bias_hh: Array, carry: State, reset: Array, reset_carry: State
) -> tuple[State, Array]:
    """torch.nn.LSTM along a window; gates in torch's order i, f, g, o, states (h, c).

    c' = f c + i g, h' = o tanh(c'); i, f and o are sigmoids of sums, g is their tanh.
    """
    return _lstm_forward(projected, weight_hh, bias_hh, carry, reset, reset_carry)[0]


def _lstm_forward(
    projected: Array, weight_hh: Array, bias_hh: Array, carry: State, reset: Array, reset_carry: State
) -> tuple[tuple[State, Array], Any]:
    def step(state: State, inputs: tuple[Array, Array, State]) -> Any:
        x, is_reset, reset_state = inputs
        h, c = where_reset(is_reset, reset_state, state)
        i, f, g, o = jnp.split(x + h @ weight_hh + bias_hh, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        cell = f * c + i * g
        tanh = jnp.tanh(cell)
        return (o * tanh, cell), (h, c, i, f, g, o, tanh)

    end, kept = _scan(step, carry, (projected, reset, reset_carry))
    return (end, kept[5] * kept[6]), (kept, weight_hh, reset)


def _lstm_backward(residuals: Any, cotangents: tuple[State, Array]) -> Any:
    (before, c, i, f, g, o, tanh), weight_hh, reset = residuals
    d_end, d_out = cotangents
    # The gates i, f, g hang on the cell, o on the output.
    by_cell = jnp.concatenate([g * i * (1 - i), c * f * (1 - f), i * (1 - g * g)], axis=-1)
    by_out, out_to_cell = tanh * o * (1 - o), o * (1 - tanh * tanh)
    back = weight_hh.T

    def step(d_after: State, inputs: Any) -> Any:
        d_here, is_reset, of_cell, of_out, to_cell, keep = inputs
        d_h = d_here + d_after[0]
        d_c = d_after[1] + d_h * to_cell
        d_gates = jnp.concatenate([jnp.concatenate([d_c, d_c, d_c], axis=-1) * of_cell, d_h * of_out], axis=-1)
        d_before = d_gates @ back, d_c * keep
        return tuple(jnp.where(is_reset[:, None], 0.0, d) for d in d_before), (d_gates, d_before)

    inputs = (d_out, reset, by_cell, by_out, out_to_cell, f)
    d_carry, (d_gates, d_before) = _scan(step, d_end, inputs, reverse=True)
    return d_gates, *_weights(before, d_gates), d_carry, None, _of_reset_carry(reset, d_before)


lstm.defvjp(_lstm_forward, _lstm_backward)


def _scan(step: Callable[..., Any], carry: State, inputs: Any, reverse: bool = False) -> Any:
    """``lax.scan``; on a GPU without a loop, for there each step is a few kernels and the loop around them costs more.

    Long sequences stay loops, of so many steps at once.
    """
    platform, length = jax.default_backend(), len(jax.tree.leaves(inputs)[0])
    return lax.scan(step, carry, inputs, reverse=reverse, unroll=min(length, GPU_UNROLL) if platform == "gpu" else 1)


def where_reset(reset: Array, reset_state: State, state: State) -> State:
    """``reset_state`` where ``reset`` (B,), else ``state``."""
    return tuple(jnp.where(reset[:, None], r, s) for r, s in zip(reset_state, state, strict=True))


def _weights(before: Array, d_hidden: Array) -> tuple[Array, Array]:
    """Gradients of ``weight_hh`` and ``bias_hh`` from those of ``before @ weight_hh + bias_hh``, all steps at once."""
    rows = d_hidden.reshape(-1, d_hidden.shape[-1])
    return before.reshape(-1, before.shape[-1]).T @ rows, rows.sum(axis=0)


def _of_reset_carry(reset: Array, d_before: State) -> State:
    """Gradients of ``reset_carry``: those of the states before the steps, where these were resets (T, B)."""
    return tuple(jnp.where(reset[..., None], d, 0.0) for d in d_before)
