"""What turns an image into numbers: rsl_rl's ``CNN``, a chain of convolutions whose features end as one vector.

Each layer is a convolution, a norm, an activation and a max pooling; norm and pooling may be missing. Settings, sizes,
initial weights, the order of the features (channels, then rows, then columns) and the gradients are those of
rsl_rl 5.5's ``rsl_rl.modules.CNN``, and so are the parameters: torch's, in torch's shapes.

Bytes are divided by 255, as by Isaac Lab's image terms. Floats go in as they are: what an environment makes of its
pixels (a mean taken away, a depth cut off) is its own affair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jdistill.core import initializers
from jdistill.core.activations import ACTIVATIONS
from jdistill.core.convolution import convolve, max_pool
from jdistill.errors import ConfigError

PADDINGS = {"none": "constant", "zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""rsl_rl's names of what surrounds an image, and NumPy's."""
NORMS = ("none", "layer")
"""rsl_rl's ``batch`` is not among them: see :mod:`jdistill.core.cnn_cfg`."""
GLOBAL_POOLS = ("none", "max", "avg")
"""Over what is left of height and width, by rsl_rl's names."""
NORM_EPS = 1e-5
"""torch's."""
CHUNK_BYTES = 2**18
"""A CPU takes so many images at once that what lies below a layer's weights along one row of its output is about as
large: half of a core's second cache."""
VECTOR = 8
"""Images that a CPU's arithmetic takes as one."""
BYTE = 255.0
"""What the bytes of an image are divided by."""

Size = tuple[int, int, int]
"""Channels, height, width."""


class Layer(NamedTuple):
    """A layer of a CNN, with the sizes of what passes it."""

    inputs: Size
    kernel_size: int
    stride: int
    dilation: int
    around: tuple[int, int]
    """Rows above and below, columns on either side."""
    convolved: Size
    """What the convolution puts out."""
    norm: str
    max_pool: bool
    outputs: Size

    @property
    def reach(self) -> int:
        """Pixels that the kernel spans."""
        return self.dilation * (self.kernel_size - 1) + 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """torch's, (outputs, inputs, kernel, kernel)."""
        return self.convolved[0], self.inputs[0], self.kernel_size, self.kernel_size


@dataclass(frozen=True)
class CNNCfg:
    """The CNN of one image. Tuples have an entry for each layer; the names are rsl_rl's."""

    group: str
    """The observation group."""
    image: Size
    output_channels: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str
    """A name in :data:`PADDINGS`."""
    norm: tuple[str, ...]
    """Each of :data:`NORMS`."""
    activation: str
    max_pool: tuple[bool, ...]
    global_pool: str
    """One of :data:`GLOBAL_POOLS`."""
    channels_first: bool = False
    """Whether the image comes as (channels, height, width)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the image as it comes."""
        return self.image if self.channels_first else (*self.image[1:], self.image[0])

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order.

        Raises:
            ConfigError: one does not fit; the line begins with its number.
        """
        layers: list[Layer] = []
        for i, channels in enumerate(self.output_channels):
            inputs = layers[-1].outputs if layers else self.image
            layers.append(self._layer(i, inputs, channels))
        return tuple(layers)

    @property
    def num_features(self) -> int:
        """Numbers that come out."""
        channels, height, width = self.layers[-1].outputs
        return channels * height * width if self.global_pool == "none" else channels

    def _layer(self, i: int, inputs: Size, channels: int) -> Layer:
        kernel, stride, dilation = self.kernel_size[i], self.stride[i], self.dilation[i]
        reach = dilation * (kernel - 1) + 1

        def around(size: int) -> int:
            """rsl_rl's: as many output pixels as ``size / stride``."""
            return math.ceil((stride * (size // stride) - size - stride + reach) / 2)

        height, width = (0, 0) if self.padding == "none" else (around(inputs[1]), around(inputs[2]))
        of, pixels = f"layer {i}: a kernel of {kernel}", f"{inputs[1]}x{inputs[2]} pixels"
        of += f" with dilation {dilation}, {reach} across," if dilation > 1 else ""
        if min(height, width) < 0:
            raise ConfigError(f"{of} is too small for stride {stride} and padding={self.padding} on {pixels}")
        most = {"reflect": 1, "circular": 0}.get(self.padding)
        if most is not None and (height > inputs[1] - most or width > inputs[2] - most):
            raise ConfigError(f"{of} wants more padding={self.padding} than {pixels} give")
        if reach > min(inputs[1] + 2 * height, inputs[2] + 2 * width):
            raise ConfigError(f"{of} does not fit into {pixels}")
        out = ((inputs[1] + 2 * height - reach) // stride + 1, (inputs[2] + 2 * width - reach) // stride + 1)
        pooled = (-(-out[0] // 2), -(-out[1] // 2)) if self.max_pool[i] else out
        sizes = (height, width), (channels, *out), self.norm[i], self.max_pool[i], (channels, *pooled)
        return Layer(inputs, kernel, stride, dilation, *sizes)


class CNN(nn.Module):
    """The CNN of one image; torch's initial weights, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias."""

    cfg: CNNCfg

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Images (N, ...) as they come to features (N, F)."""
        params = []
        for i, layer in enumerate(self.cfg.layers):
            shape = layer.weight_shape
            init = initializers.uniform(math.prod(shape[1:]) ** -0.5)
            held = {
                "weight": self.param(f"weight_{i}", init, shape),
                "bias": self.param(f"bias_{i}", init, shape[:1]),
            }
            if layer.norm == "layer":
                held["norm_weight"] = self.param(f"norm_weight_{i}", nn.initializers.ones, layer.convolved)
                held["norm_bias"] = self.param(f"norm_bias_{i}", nn.initializers.zeros, layer.convolved)
            params.append(held)
        return encode(self.cfg, params, image)


def encode(cfg: CNNCfg, params: list[dict[str, Array]], image: Array) -> Array:
    """Images (N, ...) as they come to features (N, F); a few images at a time where that is faster.

    What a few images need on the way back is computed anew, so that the memory for it does not grow with N.
    """
    number = image.shape[0]
    rows = min(number, chunk_rows(cfg)) if jax.default_backend() == "cpu" else number
    if rows == number:
        return _features(cfg, params, image)
    chunks = -(-number // rows)
    rows = -(-number // chunks)
    missing = chunks * rows - number
    image = jnp.pad(image, ((0, missing), *[(0, 0)] * (image.ndim - 1))) if missing else image
    chunk = jax.checkpoint(lambda params, image: _features(cfg, params, image))
    features: Array = lax.map(lambda image: chunk(params, image), image.reshape(chunks, rows, *image.shape[1:]))
    return features.reshape(chunks * rows, -1)[:number]


def chunk_rows(cfg: CNNCfg) -> int:
    """How many images a CPU takes at once."""
    most = max(4 * math.prod(layer.weight_shape[1:]) * layer.convolved[2] for layer in cfg.layers)
    rows = max(1, CHUNK_BYTES // most)
    return rows if rows < VECTOR else rows - rows % VECTOR


def _features(cfg: CNNCfg, params: list[dict[str, Array]], image: Array) -> Array:
    """The layers, on (height, channels, width, N); see :mod:`jdistill.core.convolution`."""
    x = jnp.transpose(image, (2, 1, 3, 0) if cfg.channels_first else (1, 3, 2, 0))
    x = x.astype(jnp.float32) / BYTE if x.dtype == jnp.uint8 else x.astype(jnp.float32)
    for layer, held in zip(cfg.layers, params, strict=True):
        if any(layer.around):
            above, beside = ((n, n) for n in layer.around)
            x = jnp.pad(x, (above, (0, 0), beside, (0, 0)), mode=PADDINGS[cfg.padding])
        x = convolve(x, held["weight"], layer.stride, layer.dilation) + held["bias"][:, None, None]
        if layer.norm == "layer":
            weight, bias = (held[name].swapaxes(0, 1)[..., None] for name in ("norm_weight", "norm_bias"))
            x = _layer_norm(x) * weight + bias
        x = ACTIVATIONS[cfg.activation](x)
        x = max_pool(x) if layer.max_pool else x
    return _global_pool(cfg.global_pool, x.swapaxes(0, 1)).T


def _layer_norm(x: Array) -> Array:
    """torch's LayerNorm over height, channels and width, without its weights."""
    return (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + NORM_EPS)


def _global_pool(kind: str, x: Array) -> Array:
    """(C, H, W, N) to (F, N)."""
    if kind == "none":
        return x.reshape(-1, x.shape[-1])
    if kind == "avg":
        return x.mean((1, 2))
    pixels = x.reshape(x.shape[0], -1, x.shape[-1])
    # As in torch, the first of several equal pixels has all of the gradient.
    first = jnp.argmax(lax.stop_gradient(pixels), axis=1, keepdims=True)
    return jnp.take_along_axis(pixels, first, axis=1)[:, 0]


def parameter_shapes(cfg: CNNCfg) -> dict[str, tuple[int, ...]]:
    """Of the parameters by name, layer by layer, in torch's order."""
    names: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(cfg.layers):
        names |= {f"weight_{i}": layer.weight_shape, f"bias_{i}": layer.weight_shape[:1]}
        if layer.norm == "layer":
            names |= {f"norm_weight_{i}": layer.convolved, f"norm_bias_{i}": layer.convolved}
    return names
