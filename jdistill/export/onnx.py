"""Policies as ONNX graphs, built node by node: no torch, no tracing.

Inputs and outputs have rsl_rl's names: ``obs`` (1, D) and ``actions`` (1, A); with a GRU ``h_in`` and ``h_out``
(layers, 1, H), with an LSTM ``c_in`` and ``c_out`` as well; each image by the name of its group, (1, channels, height,
width), see :mod:`jdistill.export.images`. The normalizer and the output activation are in the graph.
What is known of the task stands in the model's metadata (:mod:`jdistill.export.metadata`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from jdistill.core.activations import OUTPUT_ACTIVATIONS
from jdistill.core.cnn import NORM_EPS, PADDINGS
from jdistill.export import images
from jdistill.export.formats import Exported, Student
from jdistill.export.layers import GATES, STATES, DenseLayer, ImageEncoder, PolicyLayers, RecurrentLayer
from jdistill.export.metadata import metadata
from jdistill.export.verify import Step

OPSET = 20
"""The first with an exact GELU."""
ONNX_GATES = {"gru": "zrn", "lstm": "iofg"}
"""ONNX's order of the gates; ours is :data:`jdistill.export.layers.GATES`."""


def export(student: Student, out: Path) -> Exported:
    """``policy.onnx``, the format ``onnx`` of :mod:`jdistill.export.formats`; onnxruntime runs it."""
    file = out / "policy.onnx"
    model = to_onnx(student.layers)
    helper.set_model_props(model, metadata(student.header))
    onnx.save(model, str(file))
    cnns = [cnn.cfg for cnn in student.layers.cnns]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def start() -> Step:
        carry = student.layers.initial_states

        def act(obs: Any) -> np.ndarray:
            vector, pictures = images.inputs(cnns, obs)
            seen = {"obs": vector, **dict(zip((cfg.group for cfg in cnns), pictures, strict=True))}
            seen = {name: x for name, x in seen.items() if x.size}
            action, *states = session.run(None, {**seen, **{f"{k}_in": v for k, v in carry.items()}})
            carry.update(zip(carry, states, strict=True))
            return action

        return act

    return Exported(file, start)


def to_onnx(layers: PolicyLayers) -> onnx.ModelProto:
    """A policy, one step of one environment, as a checked ONNX model."""
    graph = _Graph()
    x = "obs"
    if layers.normalizer is not None:
        centred = graph.node("Sub", x, graph.constant(layers.normalizer.mean))
        x = graph.node("Div", centred, graph.constant(layers.normalizer.scale))
    x = graph.encoded(layers, x)
    for dense in layers.pre:
        x = graph.dense(dense, x)
    after: list[list[str]] = []
    for i, recurrent in enumerate(layers.recurrent):
        at = graph.constant([i], np.int64)
        x, states = graph.recurrent(
            recurrent, x, [graph.node("Gather", f"{s}_in", at, axis=0) for s in layers.state_names]
        )
        after.append(states)
    for dense in layers.mlp:
        x = graph.dense(dense, x)
    graph.node("Identity", x, output="actions")
    for j, s in enumerate(layers.state_names):
        graph.node("Concat", *(states[j] for states in after), output=f"{s}_out", axis=0)

    carry = {name: list(state.shape) for name, state in layers.initial_states.items()}
    seen = {"obs": [1, layers.obs_size]} if layers.obs_size else {}
    seen |= {cnn.cfg.group: [1, *cnn.cfg.image] for cnn in layers.cnns}
    inputs = [_value(n, shape) for n, shape in (*seen.items(), *((f"{s}_in", shape) for s, shape in carry.items()))]
    outputs = [_value("actions", [1, layers.num_actions]), *(_value(f"{s}_out", shape) for s, shape in carry.items())]
    built = helper.make_graph(graph.nodes, "jdistill_policy", inputs, outputs, graph.constants)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="jdistill")
    model.ir_version = 9  # What goes with the opset; onnx writes its own newest, which runtimes may not know.
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants under construction; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def dense(self, layer: DenseLayer, x: str) -> str:
        x = self.node("Gemm", x, self.constant(layer.weight.T), self.constant(layer.bias))
        return self.activation(layer.activation, x)

    def activation(self, name: str, x: str) -> str:
        activation = OUTPUT_ACTIVATIONS[name]
        if activation.onnx is None:
            return COMPOSED[name](self, x)
        return self.node(activation.onnx, x, **activation.onnx_attributes)

    def encoded(self, layers: PolicyLayers, x: str) -> str:
        """What the first layer takes: parts of the numbers ``x`` (1, D) encoded, and the images' features."""
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
        return self.node("Gather", x, self.constant(np.arange(start, end), np.int64), axis=1)

    def features(self, cnn: ImageEncoder) -> str:
        """The features (1, F) of an image."""
        x, params = cnn.cfg.group, cnn.params
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

    def recurrent(self, layer: RecurrentLayer, x: str, states: list[str]) -> tuple[str, list[str]]:
        """One step of a layer: its output (1, H) and its next states, each (1, 1, H)."""
        order = [GATES[layer.kind].index(gate) for gate in ONNX_GATES[layer.kind]]

        def rows(value: np.ndarray) -> np.ndarray:
            gates = np.split(value, len(order))
            return np.concatenate([gates[i] for i in order])[None]

        weights = [self.constant(rows(layer.weight_ih)), self.constant(rows(layer.weight_hh))]
        weights.append(self.constant(np.concatenate([rows(layer.bias_ih), rows(layer.bias_hh)], axis=1)))
        sequence = self.node("Unsqueeze", x, self.constant([0], np.int64))
        outputs = [f"{layer.kind}_{len(self.nodes)}_{s}" for s in STATES[layer.kind]]
        attributes: dict[str, Any] = {"hidden_size": layer.outputs}
        if layer.kind == "gru":
            attributes["linear_before_reset"] = 1  # torch's GRU; ONNX's default is another one.
        node = helper.make_node(layer.kind.upper(), [sequence, *weights, "", *states], ["", *outputs], **attributes)
        self.nodes.append(node)
        return self.node("Squeeze", outputs[0], self.constant([0], np.int64)), outputs


def _swish(graph: _Graph, x: str) -> str:
    return graph.node("Mul", x, graph.node("Sigmoid", x))


def _beta_mean(graph: _Graph, x: str) -> str:
    """:func:`jdistill.core.activations.beta_mean`."""
    both = graph.node("Add", graph.node("Softplus", x), graph.constant(1.0))
    alpha, beta = (f"{kind}_{len(graph.nodes)}" for kind in ("alpha", "beta"))
    graph.nodes.append(helper.make_node("Split", [both], [alpha, beta], axis=-1, num_outputs=2))
    share = graph.node("Div", alpha, graph.node("Add", alpha, beta))
    return graph.node("Sub", graph.node("Mul", share, graph.constant(2.0)), graph.constant(1.0))


COMPOSED: dict[str, Callable[[_Graph, str], str]] = {
    "swish": _swish,
    "identity": lambda graph, x: x,
    "beta": _beta_mean,
}
"""The activations that ONNX has no operator for."""


def _value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
