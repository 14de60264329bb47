"""Convolution and max pooling of images that lie as (height, channels, width, images): images side by side.

On a CPU a convolution is a product of matrices for each row that it puts out, of the weights and of the pixels below
each of them. The rows of pixels that a row sees are one piece of memory, what is made of them stays in a cache, and all
arithmetic is on vectors, as the images come last. XLA's own convolution is as fast forward there, but several times
slower backward: its gradient of the input is a convolution with holes. Here it is another product of matrices, whose
parts are added up where they came from (:func:`_fold`). On a GPU it is cuDNN's.

Weights are torch's, (outputs, inputs, kernel, kernel). ``python -m benchmarks.images`` measures all this.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

POOL, POOL_STRIDE = 3, 2
"""rsl_rl's max pooling, with one row of padding on every side."""
HEIGHT, WIDTH = 0, 2
"""The axes."""


def takes_products() -> bool:
    """Whether convolutions are products of matrices here."""
    return jax.default_backend() == "cpu"


def convolve(x: Array, weight: Array, stride: int, dilation: int) -> Array:
    """torch's ``conv2d`` without padding and bias: (H, I, W, N) and (O, I, K, K) to (H', O, W', N)."""
    if takes_products():
        return _by_products(x, weight, stride, dilation)
    strides, dilations = (stride, stride), (dilation, dilation)
    axes = ("HCWN", "OIHW", "HCWN")
    return lax.conv_general_dilated(x, weight, strides, "VALID", rhs_dilation=dilations, dimension_numbers=axes)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_products(x: Array, weight: Array, stride: int, dilation: int) -> Array:
    kernel, weights = weight.shape[2], _matrix(weight)
    height, width = (_places(x.shape[axis], kernel, stride, dilation) for axis in (HEIGHT, WIDTH))
    rows: Array = lax.map(lambda row: weights @ _below(x, row, kernel, stride, dilation), jnp.arange(height))
    return rows.reshape(height, weight.shape[0], width, x.shape[-1])


def _by_products_forward(x: Array, weight: Array, stride: int, dilation: int) -> tuple[Array, Any]:
    # What lies below each weight is many times as large as the image, and quickly found again.
    return _by_products(x, weight, stride, dilation), (x, weight)


def _by_products_backward(stride: int, dilation: int, kept: Any, d_out: Array) -> tuple[Array, Array]:
    x, weight = kept
    outputs, inputs, kernel, _ = weight.shape
    transposed = _matrix(weight).T

    def add_row(sums: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], None]:
        d_x, d_weights = sums
        d_row = d_out[row].reshape(outputs, -1)
        # In this order the smaller factor is the one to be transposed.
        d_weights += _below(x, row, kernel, stride, dilation) @ d_row.T
        d_below = (transposed @ d_row).reshape(kernel, kernel, inputs, *d_out.shape[2:])
        d_seen = _fold([d_below[:, i] for i in range(kernel)], WIDTH, x.shape[WIDTH], stride, dilation)
        seen = _seen(d_x, row, kernel, stride, dilation)
        seen = seen.at[::dilation].add(d_seen) if dilation > 1 else seen + d_seen
        return (lax.dynamic_update_slice_in_dim(d_x, seen, row * stride, HEIGHT), d_weights), None

    # Of the first layer nobody asks the gradient of the image, and XLA leaves it out.
    none = jnp.zeros_like(x), jnp.zeros(transposed.shape)
    (d_x, d_weights), _ = lax.scan(add_row, none, jnp.arange(d_out.shape[HEIGHT]))
    return d_x, d_weights.T.reshape(outputs, kernel, kernel, inputs).transpose(0, 3, 1, 2)


_by_products.defvjp(_by_products_forward, _by_products_backward)


def max_pool(x: Array) -> Array:
    """torch's ``MaxPool2d(3, stride=2, padding=1)``: (H, C, W, N) to (ceil(H / 2), C, ceil(W / 2), N)."""
    return _pool(_pool(x, WIDTH), HEIGHT)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x: Array, axis: int) -> Array:
    """The largest of three neighbors along ``axis``."""
    out, *others = _taps(_bordered(x, axis), axis, POOL, POOL_STRIDE, 1)
    for other in others:
        out = jnp.maximum(out, other)
    return out


def _pool_forward(x: Array, axis: int) -> tuple[Array, tuple[Array, Array]]:
    out = _pool(x, axis)
    return out, (x, out)


def _pool_backward(axis: int, kept: tuple[Array, Array], d_out: Array) -> tuple[Array]:
    """As in torch, the first of several equal pixels has all of the gradient: the first row's, and its first."""
    x, out = kept
    bordered = _bordered(x, axis)
    taken, parts = jnp.zeros(out.shape, bool), []
    for pixel in _taps(bordered, axis, POOL, POOL_STRIDE, 1):
        is_it = (pixel == out) & ~taken
        parts.append(jnp.where(is_it, d_out, 0.0))
        taken |= is_it
    size = bordered.shape[axis]
    return (lax.slice_in_dim(_fold(parts, axis, size, POOL_STRIDE, 1), 1, size - 1, axis=axis),)


_pool.defvjp(_pool_forward, _pool_backward)


def _bordered(x: Array, axis: int) -> Array:
    return jnp.pad(x, _around(x, axis, 1, 1), constant_values=-jnp.inf)


def _around(x: Array, axis: int, before: int, behind: int) -> list[tuple[int, int]]:
    return [(before, behind) if i == axis else (0, 0) for i in range(x.ndim)]


def _matrix(weight: Array) -> Array:
    """(O, K * K * I): the weights of an output in the order of :func:`_below`."""
    return weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _places(size: int, kernel: int, stride: int, dilation: int) -> int:
    """How often a kernel fits."""
    return (size - dilation * (kernel - 1) - 1) // stride + 1


def _seen(x: Array, row: Array, kernel: int, stride: int, dilation: int) -> Array:
    """The rows of an image, those between included, that the row ``row`` of a convolution sees."""
    return lax.dynamic_slice_in_dim(x, row * stride, dilation * (kernel - 1) + 1, HEIGHT)


def _below(x: Array, row: Array, kernel: int, stride: int, dilation: int) -> Array:
    """What lies below each of the kernel's weights along a row of the output, (K * K * I, W' * N)."""
    seen = _seen(x, row, kernel, stride, dilation)[::dilation]
    below = jnp.stack(_taps(seen, WIDTH, kernel, stride, dilation), axis=1)
    return below.reshape(-1, below.shape[-2] * below.shape[-1])


def _taps(x: Array, axis: int, kernel: int, stride: int, dilation: int) -> list[Array]:
    """What lies along ``axis`` below each of a kernel's weights: K times all places of the kernel."""
    reach = stride * (_places(x.shape[axis], kernel, stride, dilation) - 1) + 1
    starts = [i * dilation for i in range(kernel)]
    return [lax.slice_in_dim(x, start, start + reach, stride, axis) for start in starts]


def _fold(parts: list[Array], axis: int, size: int, stride: int, dilation: int) -> Array:
    """The sum of what :func:`_taps` took from ``size`` pixels along ``axis``, each part where it came from.

    Pixels whose places leave the same remainder by the stride are summed by themselves, which takes no holes, and then
    put side by side.
    """
    places = -(-size // stride)

    def one(remainder: int) -> Array:
        total = jnp.zeros((*parts[0].shape[:axis], places, *parts[0].shape[axis + 1 :]))
        for i, part in enumerate(parts):
            if i * dilation % stride == remainder:
                start = i * dilation // stride
                total += jnp.pad(part, _around(part, axis, start, places - start - part.shape[axis]))
        return total

    if stride == 1:
        return one(0)
    together = jnp.stack([one(remainder) for remainder in range(stride)], axis=axis + 1)
    whole = together.reshape(*parts[0].shape[:axis], places * stride, *parts[0].shape[axis + 1 :])
    return lax.slice_in_dim(whole, 0, size, axis=axis)
