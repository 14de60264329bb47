"""The C functions that exported policies are made of: C99, float32, no heap, no globals.

Only those that a policy uses are written, so that compilers find nothing unused. ``expf``, ``tanhf``, ``log1pf``,
``sqrtf`` and ``erff`` are the C library's, or with ``-DPOLICY_NO_LIBM`` the ones here, which need neither library nor
tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Function(NamedTuple):
    """A C function."""

    source: str
    needs: tuple[str, ...] = ()
    """Other functions here that it calls."""


LIBM = {
    "expf": Function("""
/* exp(x) = 2^k exp(r) with |r| <= ln(2)/2 (ln 2 in two parts, after Cody and Waite), exp(r) by its Taylor series. */
static float expf_(float x)
{
    float r, sum = 1.0f;
    int k, i;
    uint32_t bits;
    if (!(x > -87.0f)) {
        return x == x ? 0.0f : x;
    }
    x = x < 88.0f ? x : 88.0f;
    k = (int)(x * 1.44269504f + (x < 0.0f ? -0.5f : 0.5f));
    r = (x - (float)k * 0.693359375f) + (float)k * 2.12194440e-4f;
    for (i = 7; i > 0; i--) {
        sum = 1.0f + sum * r / (float)i;
    }
    bits = (uint32_t)(k + 127) << 23;
    memcpy(&r, &bits, sizeof r);
    return sum * r;
}"""),
    "tanhf": Function(
        """
/* tanh(x) = 1 - 2 / (exp(2x) + 1); near zero its Taylor series. */
static float tanhf_(float x)
{
    const float size = x < 0.0f ? -x : x, square = x * x;
    float y;
    if (size < 0.1f) {
        return x * (1.0f + square * (-1.0f / 3.0f + square * (2.0f / 15.0f - square * (17.0f / 315.0f))));
    }
    y = 1.0f - 2.0f / (expf_(2.0f * size) + 1.0f);
    return x < 0.0f ? -y : y;
}""",
        ("expf",),
    ),
    "log1pf": Function("""
/* log(1 + x) for 0 <= x <= 1: 2 artanh(s) with s = x / (2 + x), by its Taylor series. */
static float log1pf_(float x)
{
    const float s = x / (2.0f + x), square = s * s;
    float sum = 0.0f;
    int i;
    for (i = 13; i > 0; i -= 2) {
        sum = 1.0f / (float)i + square * sum;
    }
    return 2.0f * s * sum;
}"""),
    "sqrtf": Function("""
/* sqrt(x): half of the exponent, then Newton's steps. */
static float sqrtf_(float x)
{
    float y;
    uint32_t bits;
    int i;
    if (!(x > 0.0f)) {
        return x;
    }
    memcpy(&bits, &x, sizeof bits);
    bits = (bits >> 1) + 0x1fbd1df5u;
    memcpy(&y, &bits, sizeof y);
    for (i = 0; i < 3; i++) {
        y = 0.5f * (y + x / y);
    }
    return y;
}"""),
    "erff": Function(
        """
/* Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; the error is below 2e-7. */
static float erff_(float x)
{
    const float size = x < 0.0f ? -x : x, t = 1.0f / (1.0f + 0.3275911f * size);
    const float sum = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f
                      + t * (-1.453152027f + t * 1.061405429f))));
    const float y = 1.0f - sum * expf_(-size * size);
    return x < 0.0f ? -y : y;
}""",
        ("expf",),
    ),
}
"""Of the C library, and what takes their place; callers add an underscore to the name."""

SIGMOID = """
static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf_(-x));
}"""
SOFTPLUS = """
static float softplus(float x)
{
    return (x > 0.0f ? x : 0.0f) + log1pf_(expf_(x < 0.0f ? x : -x));
}"""
HELPERS = {
    "sigmoid": Function(SIGMOID, ("expf",)),
    "softplus": Function(SOFTPLUS, ("expf", "log1pf")),
    "dense": Function("""
/* y = weight x + bias; weight has a row for each output. */
static void dense(const float *weight, const float *bias, int inputs, int outputs, const float *x, float *y)
{
    int i, j;
    for (i = 0; i < outputs; i++) {
        float sum = 0.0f;
        for (j = 0; j < inputs; j++) {
            sum += weight[i * inputs + j] * x[j];
        }
        y[i] = sum + bias[i];
    }
}"""),
    "gru": Function(
        """
/* torch's GRU: r = sigmoid(a_r + b_r), z = sigmoid(a_z + b_z), n = tanh(a_n + r b_n), h' = (1 - z) n + z h,
   where a = weight_ih x + bias_ih and b = weight_hh h + bias_hh. */
static void gru(const float *weight_ih, const float *weight_hh, const float *bias_ih, const float *bias_hh,
                int inputs, const float *x, float *h)
{
    POLICY_SCRATCH float a[3 * HIDDEN], b[3 * HIDDEN];
    int i;
    dense(weight_ih, bias_ih, inputs, 3 * HIDDEN, x, a);
    dense(weight_hh, bias_hh, HIDDEN, 3 * HIDDEN, h, b);
    for (i = 0; i < HIDDEN; i++) {
        const float r = sigmoid(a[i] + b[i]), z = sigmoid(a[HIDDEN + i] + b[HIDDEN + i]);
        const float n = tanhf_(a[2 * HIDDEN + i] + r * b[2 * HIDDEN + i]);
        h[i] = (1.0f - z) * n + z * h[i];
    }
}""",
        ("dense", "sigmoid", "tanhf"),
    ),
    "lstm": Function(
        """
/* torch's LSTM: with s = weight_ih x + bias_ih + weight_hh h + bias_hh,
   c' = sigmoid(s_f) c + sigmoid(s_i) tanh(s_g), h' = sigmoid(s_o) tanh(c'). */
static void lstm(const float *weight_ih, const float *weight_hh, const float *bias_ih, const float *bias_hh,
                 int inputs, const float *x, float *h, float *c)
{
    POLICY_SCRATCH float a[4 * HIDDEN], b[4 * HIDDEN];
    int i;
    dense(weight_ih, bias_ih, inputs, 4 * HIDDEN, x, a);
    dense(weight_hh, bias_hh, HIDDEN, 4 * HIDDEN, h, b);
    for (i = 0; i < HIDDEN; i++) {
        const float gate = sigmoid(a[i] + b[i]), forget = sigmoid(a[HIDDEN + i] + b[HIDDEN + i]);
        c[i] = forget * c[i] + gate * tanhf_(a[2 * HIDDEN + i] + b[2 * HIDDEN + i]);
        h[i] = sigmoid(a[3 * HIDDEN + i] + b[3 * HIDDEN + i]) * tanhf_(c[i]);
    }
}""",
        ("dense", "sigmoid", "tanhf"),
    ),
}


def _elementwise(name: str, value: str, *needs: str) -> Function:
    source = f"""
static void {name}(float *x, int size)
{{
    int i;
    for (i = 0; i < size; i++) {{
        x[i] = {value};
    }}
}}"""
    return Function(source, needs)


ELU = "x[i] > 0.0f ? x[i] : expf_(x[i]) - 1.0f"
ACTIVATIONS = {
    "elu": _elementwise("elu", ELU, "expf"),
    "crelu": _elementwise("crelu", ELU, "expf"),
    "selu": _elementwise("selu", "1.05070098f * (x[i] > 0.0f ? x[i] : 1.67326324f * (expf_(x[i]) - 1.0f))", "expf"),
    "relu": _elementwise("relu", "x[i] > 0.0f ? x[i] : 0.0f"),
    "lrelu": _elementwise("lrelu", "x[i] > 0.0f ? x[i] : 0.01f * x[i]"),
    "tanh": _elementwise("tanh_all", "tanhf_(x[i])", "tanhf"),
    "sigmoid": _elementwise("sigmoid_all", "sigmoid(x[i])", "sigmoid"),
    "softplus": _elementwise("softplus_all", "softplus(x[i])", "softplus"),
    "gelu": _elementwise("gelu", "0.5f * x[i] * (1.0f + erff_(x[i] * 0.70710678f))", "erff"),
    "swish": _elementwise("swish", "x[i] * sigmoid(x[i])", "sigmoid"),
    "mish": _elementwise("mish", "x[i] * tanhf_(softplus(x[i]))", "tanhf", "softplus"),
    "beta": Function(
        """
/* Raw alphas, then raw betas: alpha = 1 + softplus(raw), the mean of Beta(alpha, beta) from [0, 1] to [-1, 1]. */
static void beta_mean(float *x, int size)
{
    int i;
    for (i = 0; i < size / 2; i++) {
        const float alpha = 1.0f + softplus(x[i]), beta = 1.0f + softplus(x[size / 2 + i]);
        x[i] = 2.0f * alpha / (alpha + beta) - 1.0f;
    }
}""",
        ("softplus",),
    ),
}
"""By rsl_rl's names; each changes ``size`` numbers in place. ``identity`` needs none."""


def function_name(activation: str) -> str:
    """What the C function of an activation is called."""
    return re.findall(r"static void (\w+)\(", ACTIVATIONS[activation].source)[0]


def sources(used: Iterable[str], others: Mapping[str, Function]) -> tuple[str, str]:
    """C text of the functions ``used`` (layers' kinds, names of :data:`ACTIVATIONS` and of ``others``) and of all they
    need.

    Returns:
        What comes from the C library or takes its place, and the others.
    """
    needed: list[str] = []
    helpers = {**HELPERS, **others}

    def visit(name: str, among: Mapping[str, Function]) -> None:
        for other in among[name].needs:
            visit(other, LIBM if other in LIBM else helpers)
        key = name if among is not ACTIVATIONS else f"activation {name}"
        if key not in needed:
            needed.append(key)

    for name in used:
        visit(name, helpers if name in ("dense", "gru", "lstm", *others) else ACTIVATIONS)
    library = [name for name in needed if name in LIBM]
    own = [helpers.get(n) or ACTIVATIONS[n.removeprefix("activation ")] for n in needed if n not in LIBM]
    return _library(library), "\n".join(function.source for function in own)


def _library(names: list[str]) -> str:
    if not names:
        return ""
    aliases = "\n".join(f"#define {name}_ {name}" for name in names)
    own = "\n".join(LIBM[name].source for name in names)
    includes = "#include <stdint.h>\n#include <string.h>\n" if {"expf", "sqrtf"} & {*names} else ""
    return f"#ifdef POLICY_NO_LIBM\n{includes}{own}\n#else\n#include <math.h>\n{aliases}\n#endif"
