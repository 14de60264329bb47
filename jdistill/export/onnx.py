"""Policies as ONNX graphs, built node by node: no torch, no tracing.

Inputs and outputs have rsl_rl's names: ``obs`` (B, D) and ``actions`` (B, A); with a GRU ``h_in`` and ``h_out``
(layers, B, H), with an LSTM ``c_in`` and ``c_out`` as well; each image by the name of its group, (B, channels, height,
width), see :mod:`jdistill.export.images`. The normalizer and the output activation are in the graph.
What is known of the task stands in the model's metadata (:mod:`jdistill.export.metadata`).

:class:`jdistill.export.formats.OnnxCfg` says how many environments B are, and more. With the state ``inside``, ``obs``
is (B, D + S) and ``actions`` (B, A + S): the S numbers of the state, h of every layer and then c of every layer, stand
behind the others, so that a graph with one input and one output is all there is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from jdistill.core.activations import OUTPUT_ACTIVATIONS
from jdistill.core.cnn import NORM_EPS, PADDINGS
from jdistill.errors import ExportError
from jdistill.export import images
from jdistill.export.formats import Exported, OnnxCfg, Student
from jdistill.export.layers import GATES, STATES, DenseLayer, ImageEncoder, PolicyLayers, RecurrentLayer
from jdistill.export.metadata import metadata
from jdistill.export.verify import Step
from jdistill.files import replace_file

MIN_OPSET = 17
"""The oldest opset that is written; the newest is that of the installed package."""
FIRST_OPSETS = {"Gelu": 20, "Mish": 18}
"""The opsets that brought operators of activations which come later than ``MIN_OPSET``."""
ONNX_GATES = {"gru": "zrn", "lstm": "iofg"}
"""ONNX's order of the gates; ours is :data:`jdistill.export.layers.GATES`."""
FLOAT16_TOLERANCE = 1e-2
"""How far actions in float16 may be from the student's: it has 11 bits, and a recurrent state carries its errors on."""
TRIED = 3
"""Environments with which a graph for any number is tried."""

States = Mapping[str, tuple[int, Any, int]]
"""Shapes (layers, B, H) of the recurrent state's arrays; B is a number or a name."""


def export(student: Student, out: Path) -> Exported:
    """``policy.onnx``, the format ``onnx`` of :mod:`jdistill.export.formats`; onnxruntime runs it.

    Raises:
        ExportError: the opset is unknown here, or a number does not fit into float16.
    """
    file, cfg = out / "policy.onnx", student.onnx
    model = to_onnx(student.layers, cfg)
    helper.set_model_props(model, metadata(student.header))
    content = model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's own have no common class.
        raise ExportError(f"policy.onnx: onnxruntime does not take it: {' '.join(str(e).split())[:200]}") from e
    replace_file(file, content)
    notes = {} if cfg == OnnxCfg() else asdict(cfg)
    return Exported(
        file,
        lambda: _start(session, student.layers, cfg),
        notes=notes,
        tolerance=FLOAT16_TOLERANCE if cfg.dtype == "float16" else None,
    )


def _start(session: Any, layers: PolicyLayers, cfg: OnnxCfg) -> Step:
    """The policy for one environment; the others of a batch see the same, and each step's action is another's."""
    batch, steps = cfg.batch or TRIED, 0
    carry = {name: np.repeat(state, batch, axis=1) for name, state in layers.initial_states.items()}
    behind = np.concatenate([*map(_columns, carry.values()), np.zeros((batch, 0), np.float32)], axis=1)
    cnns = [cnn.cfg for cnn in layers.cnns]

    def act(obs: Any) -> np.ndarray:
        nonlocal steps, behind
        vector, pictures = images.inputs(cnns, obs)
        seen = {"obs": vector, **dict(zip((cfg.group for cfg in cnns), pictures, strict=True))}
        seen, steps = {name: np.repeat(x, batch, axis=0) for name, x in seen.items()}, steps + 1
        if cfg.state == "inside":
            seen["obs"] = np.concatenate([seen["obs"], behind], axis=1)
            (both,) = session.run(None, _present(seen))
            action, behind = both[:, : layers.num_actions], both[:, layers.num_actions :]
        else:
            action, *states = session.run(None, {**_present(seen), **{f"{k}_in": v for k, v in carry.items()}})
            carry.update(zip(carry, states, strict=True))
        return action[steps % batch][None]

    return act


def _present(seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what has no numbers: a graph has no such input."""
    return {name: x for name, x in seen.items() if x.size}


def _columns(state: np.ndarray) -> np.ndarray:
    """(layers, B, H) to (B, layers * H)."""
    return np.moveaxis(state, 0, 1).reshape(state.shape[1], -1)


def to_onnx(layers: PolicyLayers, cfg: OnnxCfg | None = None) -> onnx.ModelProto:
    """A policy, one step, as a checked ONNX model.

    Raises:
        ExportError: the opset is unknown here, or a number does not fit into float16.
    """
    cfg = cfg or OnnxCfg()
    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= cfg.opset <= newest:
        raise ExportError(f"--opset {cfg.opset}: expected {MIN_OPSET} to {newest}")
    graph = _Graph(cfg)
    rows: Any = cfg.batch or "batch"
    shape = (len(layers.recurrent), rows, layers.recurrent[0].outputs if layers.recurrent else 0)
    states = dict.fromkeys(layers.state_names, shape)
    x, before = graph.inputs(layers, states)
    x = graph.encoded(layers, x)
    for dense in layers.pre:
        x = graph.dense(dense, x)
    after: list[list[str]] = []
    for i, recurrent in enumerate(layers.recurrent):
        step = graph.recurrent if cfg.rnn == "operator" else graph.unrolled
        after.append(step(recurrent, x, [state[i] for state in before]))
        x = after[-1][0]
    for dense in layers.mlp:
        x = graph.dense(dense, x)
    graph.outputs(x, after, states)
    carry = {} if cfg.state == "inside" else states
    behind = 0 if carry else sum(shape[0] * shape[2] for _ in states)
    seen: dict[str, tuple[Any, ...]] = {"obs": (rows, layers.obs_size + behind)} if layers.obs_size + behind else {}
    seen |= {cnn.cfg.group: (rows, *cnn.cfg.image) for cnn in layers.cnns}
    inputs = [*(_value(*item) for item in seen.items()), *(_value(f"{s}_in", shape) for s in carry)]
    outputs = [_value("actions", (rows, layers.num_actions + behind)), *(_value(f"{s}_out", shape) for s in carry)]
    built = helper.make_graph(graph.nodes, "jdistill_policy", inputs, outputs, graph.constants)
    opset = [helper.make_opsetid("", cfg.opset)]
    model = helper.make_model(built, opset_imports=opset, producer_name="jdistill")
    # What goes with the opset; onnx writes its own newest, which runtimes may not know.
    model.ir_version = helper.find_min_ir_version_for(opset)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants under construction; every method returns the names of its outputs.

    Between them go rows: (B, numbers), for states too.
    """

    def __init__(self, cfg: OnnxCfg) -> None:
        self.cfg = cfg
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant, of the graph's type if of none other."""
        name = f"constant_{len(self.constants)}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # Overflow, which is told below.
            array = np.array(value, dtype or self.cfg.dtype, order="C")
        if dtype is None and not np.isfinite(array).all():
            worst = float(np.max(np.abs(value)))
            raise ExportError(f"--dtype {self.cfg.dtype}: cannot hold a weight of {worst:.3g}; use float32")
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """An operator with one output."""
        name = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def parts(self, x: str, count: int) -> list[str]:
        """The columns of ``x``, cut into equal parts."""
        names = [f"part_{len(self.nodes)}_{i}" for i in range(count)]
        number = {"num_outputs": count} if self.cfg.opset >= 18 else {}
        self.nodes.append(helper.make_node("Split", [x], names, axis=-1, **number))
        return names

    def inputs(self, layers: PolicyLayers, states: States) -> tuple[str, list[list[str]]]:
        """The normalized observation, and the states (B, H) of each layer by their kinds."""
        x = "obs"
        if self.cfg.state == "inside" and states:
            sizes = [layers.obs_size, *(shape[2] for shape in states.values() for _ in range(shape[0]))]
            names = [f"input_{i}" for i in range(len(sizes))]
            self.nodes.append(helper.make_node("Split", [x, self.constant(sizes, np.int64)], names, axis=-1))
            (x, *rest), count = names, len(layers.recurrent)
            before = [rest[i * count : (i + 1) * count] for i in range(len(states))]
        else:
            at = [self.constant(i, np.int64) for i in range(len(layers.recurrent))]
            before = [[self.node("Gather", f"{s}_in", i, axis=0) for i in at] for s in states]
        if not layers.obs_size:
            return "", [[self.cast(state) for state in kind] for kind in before]
        if layers.normalizer is not None:
            centred = self.node("Sub", x, self.constant(layers.normalizer.mean, np.float32))
            x = self.node("Div", centred, self.constant(layers.normalizer.scale, np.float32))
        return self.cast(x), [[self.cast(state) for state in kind] for kind in before]

    def outputs(self, actions: str, after: list[list[str]], states: States) -> None:
        """The graph's outputs, of the actions and each layer's next states."""
        by_kind = [[of_layer[j] for of_layer in after] for j in range(len(states))]
        if self.cfg.state == "inside" and states:
            actions = self.node("Concat", actions, *(state for kind in by_kind for state in kind), axis=-1)
        else:
            zero = self.constant([0], np.int64)
            for s, kind in zip(states, by_kind, strict=True):
                layered = self.node("Concat", *(self.node("Unsqueeze", state, zero) for state in kind), axis=0)
                self.cast(layered, np.float32, output=f"{s}_out")
        self.cast(actions, np.float32, output="actions")

    def cast(self, x: str, dtype: Any = None, output: str | None = None) -> str:
        """``x`` in the graph's type or another; nothing where all is float32 and it need not be an output."""
        if self.cfg.dtype == "float32":
            return self.node("Identity", x, output=output) if output else x
        return self.node(
            "Cast", x, output=output, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.cfg.dtype))
        )

    def dense(self, layer: DenseLayer, x: str) -> str:
        """activation(weight @ x + bias)."""
        x = self.node("Gemm", x, self.constant(layer.weight.T), self.constant(layer.bias))
        return self.activation(layer.activation, x)

    def activation(self, name: str, x: str) -> str:
        """An activation by its name, of operators that the opset has."""
        activation = OUTPUT_ACTIVATIONS[name]
        if activation.onnx is None or self.cfg.opset < FIRST_OPSETS.get(activation.onnx, 0):
            return COMPOSED[name](self, x)
        return self.node(activation.onnx, x, **activation.onnx_attributes)

    def encoded(self, layers: PolicyLayers, x: str) -> str:
        """What the first layer takes: parts of the numbers ``x`` (B, D) encoded, and the images' features."""
        parts, end = [], 0
        for encoder in layers.encoders:
            start = encoder.start
            latent = self.part(x, start, start + encoder.layers[0].inputs)
            for layer in encoder.layers:
                latent = self.dense(layer, latent)
            parts += [self.part(x, end, start)] * (start > end) + [latent]
            end = start + encoder.layers[0].inputs
        if end < layers.obs_size:
            parts.append(self.part(x, end, layers.obs_size) if end else x)
        parts += [self.features(cnn) for cnn in layers.cnns]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=1)

    def part(self, x: str, start: int, end: int) -> str:
        """The columns from ``start`` to ``end``."""
        return self.node("Gather", x, self.constant(np.arange(start, end), np.int64), axis=1)

    def features(self, cnn: ImageEncoder) -> str:
        """The features (B, F) of an image."""
        x, params = self.cast(cnn.cfg.group), cnn.params
        for i, layer in enumerate(cnn.cfg.layers):
            around = [*layer.around, *layer.around]
            if any(around) and cnn.cfg.padding != "zeros":
                sides = self.constant([0, 0, *layer.around] * 2, np.int64)
                x, around = self.node("Pad", x, sides, mode=PADDINGS[cnn.cfg.padding]), [0] * 4
            weights = self.constant(params[f"weight_{i}"]), self.constant(params[f"bias_{i}"])
            strides, dilations = [layer.stride] * 2, [layer.dilation] * 2
            x = self.node("Conv", x, *weights, strides=strides, dilations=dilations, pads=around)
            if layer.norm == "layer":
                norm = (self.constant(params[f"norm_{kind}_{i}"]) for kind in ("weight", "bias"))
                x = self.node("LayerNormalization", x, *norm, axis=1, epsilon=NORM_EPS)
            x = self.activation(cnn.cfg.activation, x)
            if layer.max_pool:
                x = self.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        if (kind := cnn.cfg.global_pool) != "none":
            x = self.node({"max": "GlobalMaxPool", "avg": "GlobalAveragePool"}[kind], x)
        return self.node("Flatten", x, axis=1)

    def recurrent(self, layer: RecurrentLayer, x: str, states: list[str]) -> list[str]:
        """ONNX's operator: the next states."""
        order = [GATES[layer.kind].index(gate) for gate in ONNX_GATES[layer.kind]]

        def rows(value: np.ndarray) -> np.ndarray:
            gates = np.split(value, len(order))
            return np.concatenate([gates[i] for i in order])[None]

        zero = self.constant([0], np.int64)
        weights = [self.constant(rows(layer.weight_ih)), self.constant(rows(layer.weight_hh))]
        weights.append(self.constant(np.concatenate([rows(layer.bias_ih), rows(layer.bias_hh)], axis=1)))
        sequences = [self.node("Unsqueeze", value, zero) for value in (x, *states)]
        outputs = [f"{layer.kind}_{len(self.nodes)}_{s}" for s in STATES[layer.kind]]
        attributes: dict[str, Any] = {"hidden_size": layer.outputs}
        if layer.kind == "gru":
            attributes["linear_before_reset"] = 1  # torch's GRU; ONNX's default is another one.
        inputs = [sequences[0], *weights, "", *sequences[1:]]
        self.nodes.append(helper.make_node(layer.kind.upper(), inputs, ["", *outputs], **attributes))
        return [self.node("Squeeze", name, zero) for name in outputs]

    def unrolled(self, layer: RecurrentLayer, x: str, states: list[str]) -> list[str]:
        """The equations of :class:`jdistill.export.layers.RecurrentLayer`: the next states."""
        gates, h = len(GATES[layer.kind]), states[0]
        a = self.parts(self.node("Gemm", x, self.constant(layer.weight_ih.T), self.constant(layer.bias_ih)), gates)
        b = self.parts(self.node("Gemm", h, self.constant(layer.weight_hh.T), self.constant(layer.bias_hh)), gates)
        if layer.kind == "gru":
            r, z = (self.node("Sigmoid", self.node("Add", a[i], b[i])) for i in (0, 1))
            n = self.node("Tanh", self.node("Add", a[2], self.node("Mul", r, b[2])))
            # (1 - z) n + z h = n + z (h - n)
            return [self.node("Add", n, self.node("Mul", z, self.node("Sub", h, n)))]
        i, f, g, o = (self.node("Add", *pair) for pair in zip(a, b, strict=True))
        kept = self.node("Mul", self.node("Sigmoid", f), states[1])
        c = self.node("Add", kept, self.node("Mul", self.node("Sigmoid", i), self.node("Tanh", g)))
        return [self.node("Mul", self.node("Sigmoid", o), self.node("Tanh", c)), c]


def _swish(graph: _Graph, x: str) -> str:
    return graph.node("Mul", x, graph.node("Sigmoid", x))


def _mish(graph: _Graph, x: str) -> str:
    return graph.node("Mul", x, graph.node("Tanh", graph.node("Softplus", x)))


def _gelu(graph: _Graph, x: str) -> str:
    """x (1 + erf(x / sqrt(2))) / 2."""
    error = graph.node("Erf", graph.node("Mul", x, graph.constant(0.5**0.5)))
    share = graph.node("Mul", graph.node("Add", error, graph.constant(1.0)), graph.constant(0.5))
    return graph.node("Mul", x, share)


def _beta_mean(graph: _Graph, x: str) -> str:
    """:func:`jdistill.core.activations.beta_mean`."""
    alpha, beta = graph.parts(graph.node("Add", graph.node("Softplus", x), graph.constant(1.0)), 2)
    share = graph.node("Div", alpha, graph.node("Add", alpha, beta))
    return graph.node("Sub", graph.node("Mul", share, graph.constant(2.0)), graph.constant(1.0))


COMPOSED: dict[str, Callable[[_Graph, str], str]] = {
    "swish": _swish,
    "mish": _mish,
    "gelu": _gelu,
    "identity": lambda graph, x: x,
    "beta": _beta_mean,
}
"""The activations that ONNX, or an old opset of it, has no operator for."""


def _value(name: str, shape: tuple[Any, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
