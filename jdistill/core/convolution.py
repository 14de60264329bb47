"""Convolution and max pooling of images that lie as (channels, height, width, rows): rows side by side.

On a CPU a convolution is one product of matrices, of the weights and of the pixels below each of them. With the rows
last, whatever is moved for that is moved in long pieces, and all arithmetic is on vectors. XLA's own convolution is as
fast forward there, but several times slower backward: its gradient of the input is a convolution with holes. Here it is
another product of matrices, whose parts are added up where they came from (:func:`_fold`). On a GPU it is cuDNN's.

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


def takes_products() -> bool:
    """Whether convolutions are products of matrices here."""
    return jax.default_backend() == "cpu"


def convolve(x: Array, weight: Array, stride: int, dilation: int) -> Array:
    """torch's ``conv2d`` without padding and bias: (I, H, W, N) and (O, I, K, K) to (O, H', W', N)."""
    if takes_products():
        return _by_products(x, weight, stride, dilation)
    strides, dilations = (stride, stride), (dilation, dilation)
    axes = ("CHWN", "OIHW", "CHWN")
    return lax.conv_general_dilated(x, weight, strides, "VALID", rhs_dilation=dilations, dimension_numbers=axes)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_products(x: Array, weight: Array, stride: int, dilation: int) -> Array:
    kernel = weight.shape[2]
    below = jnp.stack(_unfold(x, kernel, stride, dilation))
    out = _rows(weight) @ below.reshape(-1, below[0, 0].size)
    return out.reshape(-1, *below.shape[2:])


def _by_products_forward(x: Array, weight: Array, stride: int, dilation: int) -> tuple[Array, Any]:
    # What lies below each weight is many times as large as the image, and quickly found again.
    return _by_products(x, weight, stride, dilation), (x, weight)


def _by_products_backward(stride: int, dilation: int, kept: Any, d_out: Array) -> tuple[Array, Array]:
    x, weight = kept
    outputs, inputs, kernel, _ = weight.shape
    below = jnp.stack(_unfold(x, kernel, stride, dilation))
    rows = d_out.reshape(outputs, -1)
    d_weight = rows @ below.reshape(-1, rows.shape[1]).T
    d_below = (_rows(weight).T @ rows).reshape(kernel * kernel, inputs, *d_out.shape[1:])
    d_weight = d_weight.reshape(outputs, kernel, kernel, inputs).transpose(0, 3, 1, 2)
    return _fold(list(d_below), x.shape, kernel, stride, dilation), d_weight


_by_products.defvjp(_by_products_forward, _by_products_backward)


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """torch's ``MaxPool2d(3, stride=2, padding=1)``: (C, H, W, N) to (C, ceil(H / 2), ceil(W / 2), N)."""
    out, *others = _unfold(_bordered(x), POOL, POOL_STRIDE, 1)
    for other in others:
        out = jnp.maximum(out, other)
    return out


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    out = max_pool(x)
    return out, (x, out)


def _max_pool_backward(kept: tuple[Array, Array], d_out: Array) -> tuple[Array]:
    """As in torch, the first of several equal pixels has all of the gradient."""
    x, out = kept
    bordered = _bordered(x)
    taken, parts = jnp.zeros(out.shape, bool), []
    for pixel in _unfold(bordered, POOL, POOL_STRIDE, 1):
        is_it = (pixel == out) & ~taken
        parts.append(jnp.where(is_it, d_out, 0.0))
        taken |= is_it
    return (_fold(parts, bordered.shape, POOL, POOL_STRIDE, 1)[:, 1:-1, 1:-1],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _bordered(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)


def _rows(weight: Array) -> Array:
    """(O, K * K * I): the weights of an output in the order of :func:`_unfold`."""
    return weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _unfold(x: Array, kernel: int, stride: int, dilation: int) -> list[Array]:
    """What lies below each of the kernel's weights, row by row: K * K times (I, H', W', N)."""
    reach = dilation * (kernel - 1)
    height, width = ((size - reach - 1) // stride + 1 for size in x.shape[1:3])

    def along(place: int, number: int) -> slice:
        return slice(place * dilation, place * dilation + stride * (number - 1) + 1, stride)

    return [x[:, along(i, height), along(j, width)] for i in range(kernel) for j in range(kernel)]


def _fold(parts: list[Array], shape: tuple[int, ...], kernel: int, stride: int, dilation: int) -> Array:
    """The sum of what :func:`_unfold` took from an image of ``shape``, each part where it came from.

    Pixels whose places leave the same remainders by the stride are summed by themselves, which takes no holes, and then
    put side by side.
    """
    channels, height, width, rows = shape
    places = -(-height // stride), -(-width // stride)

    def one(down: int, right: int) -> Array:
        total = jnp.zeros((channels, *places, rows))
        for i in range(kernel):
            for j in range(kernel):
                if (i * dilation % stride, j * dilation % stride) == (down, right):
                    part = parts[i * kernel + j]
                    starts = i * dilation // stride, j * dilation // stride
                    ends = (n - at - size for n, at, size in zip(places, starts, part.shape[1:3], strict=True))
                    total += jnp.pad(part, ((0, 0), *zip(starts, ends, strict=True), (0, 0)))
        return total

    if stride == 1:
        return one(0, 0)
    lines = [jnp.stack([one(down, right) for right in range(stride)], axis=3) for down in range(stride)]
    whole = jnp.stack(lines, axis=2)  # (C, H / s, s, W / s, s, N)
    return whole.reshape(channels, places[0] * stride, places[1] * stride, rows)[:, :height, :width]
