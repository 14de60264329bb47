"""What turns images into features, as C: the CNNs of :mod:`jdistill.core.cnn`, an image at a time.

An image is an argument of its own, (channels, height, width) floats, bytes divided by 255, as in every other format.
What its layers put out stands in two arrays of the largest one's size, in turns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jdistill.core.cnn import NORM_EPS, Layer
from jdistill.export import c_functions
from jdistill.export.layers import ImageEncoder

PADDINGS = {"none": 0, "zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}
"""What ``padded`` calls them."""
POOLS = {"max": "global_max", "avg": "global_mean"}


class Image(NamedTuple):
    """An image as the C code knows it."""

    name: str
    """Of the argument."""
    size: str
    """The macro of how many numbers it has."""
    cnn: ImageEncoder


def images(policy: str, cnns: Sequence[ImageEncoder]) -> list[Image]:
    """The images of a policy of this name, each with a name of its own."""
    found: list[Image] = []
    for i, cnn in enumerate(cnns):
        word = "image_" + re.sub(r"\W+", "_", cnn.cfg.group, flags=re.ASCII).strip("_").lower()
        word = word if word not in {image.name for image in found} else f"{word}_{i}"
        found.append(Image(word, f"{policy}_{word}_size".upper(), cnn))
    return found


def macros(found: Sequence[Image]) -> str:
    """The sizes, for the header."""
    lines = []
    for image in found:
        channels, height, width = image.cnn.cfg.image
        shape = f"{channels} x {height} x {width}: channels, rows, columns; bytes divided by 255"
        lines.append(f"#define {image.size} {channels * height * width} /* {shape} */\n")
    return "".join(lines)


def used(cnns: Sequence[ImageEncoder]) -> list[str]:
    """The names of the C functions that they need."""
    names = ["convolve"] if cnns else []
    for cnn in cnns:
        names += ["layer_norm"] if "layer" in cnn.cfg.norm else []
        names += ["max_pool"] if any(cnn.cfg.max_pool) else []
        names += [POOLS[cnn.cfg.global_pool]] if cnn.cfg.global_pool in POOLS else []
        names += [cnn.cfg.activation] if cnn.cfg.activation != "identity" else []
    return names


def constants(cnns: Sequence[ImageEncoder]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of their weights."""
    for i, cnn in enumerate(cnns):
        for name, value in cnn.params.items():
            yield f"cnn_{i}_{name}", value


def largest(cnns: Sequence[ImageEncoder]) -> int:
    """Numbers of the largest thing that a layer puts out; 0 without any image."""
    return max((math.prod(layer.convolved) for cnn in cnns for layer in cnn.cfg.layers), default=0)


def steps(found: Sequence[Image], place: int) -> Iterator[str]:
    """Statements that write the features of the images into ``x``, from ``place`` on."""
    for i, image in enumerate(found):
        cfg = image.cnn.cfg
        here, there = image.name, "a"
        for j, layer in enumerate(cfg.layers):
            yield _convolve(f"cnn_{i}", j, layer, PADDINGS[cfg.padding], here, there)
            size = math.prod(layer.convolved)
            if layer.norm == "layer":
                yield f"layer_norm(cnn_{i}_norm_weight_{j}, cnn_{i}_norm_bias_{j}, {size}, {there});"
            if cfg.activation != "identity":
                yield f"{c_functions.function_name(cfg.activation)}({there}, {size});"
            here, there = there, _other(there)
            if layer.max_pool:
                yield f"max_pool({', '.join(map(str, layer.convolved))}, {here}, {there});"
                here, there = there, here
        channels, height, width = cfg.layers[-1].outputs
        if cfg.global_pool in POOLS:
            yield f"{POOLS[cfg.global_pool]}({channels}, {height * width}, {here}, x + {place});"
        else:
            yield f"for (i = 0; i < {channels * height * width}; i++) {{"
            yield f"    x[{place} + i] = {here}[i];"
            yield "}"
        place += cfg.num_features


def _other(array: str) -> str:
    return "b" if array == "a" else "a"


def _convolve(cnn: str, i: int, layer: Layer, padding: int, x: str, y: str) -> str:
    sizes = (*layer.inputs, *layer.convolved, layer.kernel_size, layer.stride, layer.dilation, *layer.around, padding)
    return f"convolve({cnn}_weight_{i}, {cnn}_bias_{i}, {', '.join(map(str, sizes))}, {x}, {y});"


FUNCTIONS = {
    "padded": c_functions.Function("""
/* The row or column that stands for one beyond the edge, or -1. kind: 0 zeros, 1 reflect, 2 replicate, 3 circular. */
static int padded(int i, int size, int kind)
{
    if (i >= 0 && i < size) {
        return i;
    }
    if (kind == 1) {
        return i < 0 ? -i : 2 * (size - 1) - i;
    }
    if (kind == 2) {
        return i < 0 ? 0 : size - 1;
    }
    return kind == 3 ? (i + size) % size : -1;
}"""),
    "convolve": c_functions.Function(
        """
/* A convolution of x (channels, height, width) with weight (outputs, channels, kernel, kernel). */
static void convolve(const float *weight, const float *bias, int channels, int height, int width,
                     int outputs, int rows, int columns, int kernel, int stride, int dilation,
                     int above, int beside, int padding, const float *x, float *y)
{
    int out, row, column, in, i, j;
    for (out = 0; out < outputs; out++) {
        for (row = 0; row < rows; row++) {
            for (column = 0; column < columns; column++) {
                float sum = 0.0f;
                for (i = 0; i < kernel; i++) {
                    const int from = padded(row * stride + i * dilation - above, height, padding);
                    for (j = 0; from >= 0 && j < kernel; j++) {
                        const int at = padded(column * stride + j * dilation - beside, width, padding);
                        for (in = 0; at >= 0 && in < channels; in++) {
                            sum += weight[((out * channels + in) * kernel + i) * kernel + j]
                                   * x[(in * height + from) * width + at];
                        }
                    }
                }
                y[(out * rows + row) * columns + column] = sum + bias[out];
            }
        }
    }
}""",
        ("padded",),
    ),
    "layer_norm": c_functions.Function(
        f"""
/* (x - mean) / sqrt(variance + {NORM_EPS}) of all numbers, times a weight and plus a bias for each. */
static void layer_norm(const float *weight, const float *bias, int size, float *x)
{{
    float mean = 0.0f, variance = 0.0f, scale;
    int i;
    for (i = 0; i < size; i++) {{
        mean += x[i] / (float)size;
    }}
    for (i = 0; i < size; i++) {{
        variance += (x[i] - mean) * (x[i] - mean) / (float)size;
    }}
    scale = 1.0f / sqrtf_(variance + {NORM_EPS}f);
    for (i = 0; i < size; i++) {{
        x[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    }}
}}""",
        ("sqrtf",),
    ),
    "max_pool": c_functions.Function("""
/* The largest of 3 x 3 neighbors around every second pixel of every second row. */
static void max_pool(int channels, int height, int width, const float *x, float *y)
{
    int channel, row, column, i, j;
    for (channel = 0; channel < channels; channel++) {
        for (row = 0; row < height; row += 2) {
            for (column = 0; column < width; column += 2) {
                float most = x[(channel * height + row) * width + column];
                for (i = row > 0 ? row - 1 : 0; i < height && i <= row + 1; i++) {
                    for (j = column > 0 ? column - 1 : 0; j < width && j <= column + 1; j++) {
                        const float pixel = x[(channel * height + i) * width + j];
                        most = pixel <= most ? most : pixel;
                    }
                }
                *y++ = most;
            }
        }
    }
}"""),
    "global_max": c_functions.Function("""
static void global_max(int channels, int pixels, const float *x, float *y)
{
    int channel, i;
    for (channel = 0; channel < channels; channel++) {
        y[channel] = x[channel * pixels];
        for (i = 1; i < pixels; i++) {
            const float pixel = x[channel * pixels + i];
            y[channel] = pixel <= y[channel] ? y[channel] : pixel;
        }
    }
}"""),
    "global_mean": c_functions.Function("""
static void global_mean(int channels, int pixels, const float *x, float *y)
{
    int channel, i;
    for (channel = 0; channel < channels; channel++) {
        y[channel] = 0.0f;
        for (i = 0; i < pixels; i++) {
            y[channel] += x[channel * pixels + i] / (float)pixels;
        }
    }
}"""),
}
