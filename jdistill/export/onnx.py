"""Policies as ONNX graphs, built node by node: no torch, no tracing.

Inputs and outputs have rsl_rl's names: ``obs`` (1, D) and ``actions`` (1, A); with a GRU ``h_in`` and ``h_out``
(layers, 1, H), with an LSTM ``c_in`` and ``c_out`` as well. The normaliser and the output activation are in the graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jdistill.core.networks import Normalizer, Policy, PolicyState

OPSET = 20
"""The first with an exact GELU."""
ONNX_GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
"""ONNX orders the gates z, r, n and i, o, f, g; ours are torch's, r, z, n and i, f, g, o."""
ACTIVATION_NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "elu": ("Elu", {}),
    "selu": ("Selu", {}),
    "relu": ("Relu", {}),
    "crelu": ("Celu", {}),
    "lrelu": ("LeakyRelu", {"alpha": 0.01}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "softplus": ("Softplus", {}),
    "gelu": ("Gelu", {}),
    "mish": ("Mish", {}),
}
"""ONNX's names of our activations; ``swish`` and ``beta`` take several nodes, ``identity`` none."""


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

    def activation(self, kind: str, x: str) -> str:
        if kind == "identity":
            return x
        if kind == "swish":
            return self.node("Mul", x, self.node("Sigmoid", x))
        if kind == "beta":
            return self.beta_mean(x)
        op, attributes = ACTIVATION_NODES[kind]
        return self.node(op, x, **attributes)

    def beta_mean(self, x: str) -> str:
        """:func:`jdistill.core.networks.beta_mean`."""
        both = self.node("Add", self.node("Softplus", x), self.constant(1.0))
        alpha, beta = (f"{kind}_{len(self.nodes)}" for kind in ("alpha", "beta"))
        self.nodes.append(helper.make_node("Split", [both], [alpha, beta], axis=-1, num_outputs=2))
        share = self.node("Div", alpha, self.node("Add", alpha, beta))
        return self.node("Sub", self.node("Mul", share, self.constant(2.0)), self.constant(1.0))

    def dense(self, layer: Any, x: str) -> str:
        dense = layer["dense"]
        return self.node("Gemm", x, self.constant(dense["kernel"]), self.constant(dense["bias"]))

    def recurrent(self, kind: str, layer: Any, hidden: int, x: str, states: list[str]) -> tuple[str, list[str]]:
        """One step of a layer: its output (1, H) and its next states, each (1, 1, H)."""
        order = ONNX_GATES[kind]

        def rows(name: str) -> np.ndarray:
            blocks = np.split(np.asarray(layer[name]).T, len(order))
            return np.concatenate([blocks[i] for i in order])[None]

        weights = [self.constant(rows("weight_ih")), self.constant(rows("weight_hh"))]
        weights.append(self.constant(np.concatenate([rows("bias_ih"), rows("bias_hh")], axis=1)))
        sequence = self.node("Unsqueeze", x, self.constant([0], np.int64))
        outputs = [f"{kind}_{len(self.nodes)}_{s}" for s in "hc"[: len(states)]]
        attributes: dict[str, Any] = {"hidden_size": hidden}
        if kind == "gru":
            attributes["linear_before_reset"] = 1  # torch's GRU; ONNX's default is another one.
        node = helper.make_node(kind.upper(), [sequence, *weights, "", *states], ["", *outputs], **attributes)
        self.nodes.append(node)
        return self.node("Squeeze", outputs[0], self.constant([0], np.int64)), outputs


def to_onnx(policy: Policy, state: PolicyState, obs_size: int) -> onnx.ModelProto:
    """The policy, one step of one environment, as a checked ONNX model."""
    graph = _Graph()
    x = "obs"
    if state.normalizer is not None:
        centred = graph.node("Sub", x, graph.constant(state.normalizer.mean))
        scale = np.sqrt(np.asarray(state.normalizer.var)) + Normalizer.EPS
        x = graph.node("Div", centred, graph.constant(scale))
    for i in range(len(policy.pre_dims)):
        x = graph.activation(policy.activation, graph.dense(state.params[f"pre_{i}"], x))
    names = {"gru": "h", "lstm": "hc"}[policy.rnn_type] if policy.rnn_type else ""
    layers = policy.rnn_num_layers if policy.rnn_type else 0
    after: list[list[str]] = []
    for i in range(layers):
        at = graph.constant([i], np.int64)
        states = [graph.node("Gather", f"{s}_in", at, axis=0) for s in names]
        assert policy.rnn_type
        x, states = graph.recurrent(policy.rnn_type, state.params[f"rnn_{i}"], policy.rnn_hidden_dim, x, states)
        after.append(states)
    for i in range(len(policy.hidden_dims)):
        x = graph.activation(policy.activation, graph.dense(state.params[f"mlp_{i}"], x))
    x = graph.activation(policy.output_activation, graph.dense(state.params[f"mlp_{len(policy.hidden_dims)}"], x))
    graph.node("Identity", x, output="actions")
    for j, s in enumerate(names):
        graph.node("Concat", *(states[j] for states in after), output=f"{s}_out", axis=0)

    carry = [layers, 1, policy.rnn_hidden_dim]
    inputs = [_value("obs", [1, obs_size]), *(_value(f"{s}_in", carry) for s in names)]
    outputs = [_value("actions", [1, policy.num_actions]), *(_value(f"{s}_out", carry) for s in names)]
    built = helper.make_graph(graph.nodes, "jdistill_policy", inputs, outputs, graph.constants)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="jdistill")
    model.ir_version = 9  # What goes with the opset; onnx writes its own newest, which runtimes may not know.
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
