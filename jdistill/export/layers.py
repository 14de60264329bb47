"""A policy's layers as plain data, which every format reads or builds; nothing else knows how parameters are named.

    layers = describe(policy, state)  # NumPy arrays and names
    policy, state = build(layers)  # the inverse

From an observation x (D,) to an action::

    x = (x - mean) / scale                         # the normalizer, if there is one
    for each encoder: its part of x becomes what its layers make of it
    for each image: its features, which its CNN gives (see :mod:`jdistill.core.cnn`), stand behind x
    for each layer of pre: x = activation(weight @ x + bias)
    for each layer of recurrent: x, state = its equations of x and state
    for each layer of mlp: x = activation(weight @ x + bias)

Weights have a row for each output, as in torch and in C; Flax's kernels are their transposes. All arrays are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jdistill.core import networks
from jdistill.core.cnn import CNNCfg, parameter_shapes
from jdistill.core.networks import EncoderCfg, Normalizer, Policy, PolicyState

GATES = {"gru": "rzn", "lstm": "ifgo"}
"""The gates of a recurrent layer in the order of their rows, torch's: GRU reset, update, new; LSTM input, forget, cell
(g), output."""
STATES = {"gru": "h", "lstm": "hc"}
"""The arrays that make a layer's recurrent state."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """Observations x become (x - mean) / scale; arrays of (D,)."""

    mean: np.ndarray
    var: np.ndarray
    """Biased variance."""
    count: int = 0
    """Observations seen."""

    @property
    def std(self) -> np.ndarray:
        """Standard deviation."""
        return np.asarray(self.normalizer.std)

    @property
    def scale(self) -> np.ndarray:
        """What centred observations are divided by."""
        return np.asarray(self.normalizer.scale)

    @property
    def normalizer(self) -> Normalizer:
        """The same for a policy; the formula is its own."""
        return Normalizer(mean=_parameter(self.mean), var=_parameter(self.var), count=_parameter(self.count))


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """activation(weight @ x + bias)."""

    weight: np.ndarray
    """(outputs, inputs)"""
    bias: np.ndarray
    """(outputs,)"""
    activation: str
    """A name in :mod:`jdistill.core.activations`; ``beta`` halves the outputs."""

    @property
    def inputs(self) -> int:
        """Numbers that go in."""
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class RecurrentLayer:
    """torch's GRU or LSTM, one layer of H units; its output is the state h (H,).

    With a = weight_ih @ x + bias_ih and b = weight_hh @ h + bias_hh, each cut into gates:

    - GRU: r = sigmoid(a_r + b_r), z = sigmoid(a_z + b_z), n = tanh(a_n + r * b_n); h' = (1 - z) * n + z * h.
    - LSTM: s = a + b; c' = sigmoid(s_f) * c + sigmoid(s_i) * tanh(s_g); h' = sigmoid(s_o) * tanh(c').
    """

    kind: str
    """``gru`` or ``lstm``."""
    weight_ih: np.ndarray
    """(gates * H, inputs), the gates in the order of :data:`GATES`."""
    weight_hh: np.ndarray
    """(gates * H, H)"""
    bias_ih: np.ndarray
    """(gates * H,)"""
    bias_hh: np.ndarray
    """(gates * H,)"""
    initial_state: tuple[np.ndarray, ...]
    """At an episode's start, the arrays of :data:`STATES`, each (H,)."""

    @property
    def inputs(self) -> int:
        """Numbers that go in."""
        return self.weight_ih.shape[1]

    @property
    def outputs(self) -> int:
        """Hidden units H."""
        return self.weight_hh.shape[1]


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""The parameters of a recurrent layer, by their names in torch and here."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """Dense layers for a part of the observation, whose outputs take its place; see
    :class:`jdistill.core.networks.EncoderCfg`."""

    start: int
    """Of the part."""
    layers: tuple[DenseLayer, ...]

    @property
    def cfg(self) -> EncoderCfg:
        """Its sizes."""
        return EncoderCfg(self.start, self.layers[0].inputs, _widths(self.layers))


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """The CNN of an image."""

    cfg: CNNCfg
    params: Mapping[str, np.ndarray]
    """By the names and in the shapes of :func:`jdistill.core.cnn.parameter_shapes`, which are torch's."""


@dataclass(frozen=True, eq=False)
class PolicyLayers:
    """A policy's layers in the order in which an observation passes them."""

    normalizer: Normalization | None
    """None where observations go in as they are."""
    pre: tuple[DenseLayer, ...]
    """Before the recurrent layers."""
    recurrent: tuple[RecurrentLayer, ...]
    mlp: tuple[DenseLayer, ...]
    """After them; the last one's outputs are the actions."""
    learned_initial_state: bool = False
    """Whether the initial states are parameters; otherwise they are zero."""
    encoders: tuple[Encoder, ...] = ()
    cnns: tuple[ImageEncoder, ...] = ()

    @property
    def all(self) -> tuple[DenseLayer | RecurrentLayer, ...]:
        """Every layer but the encoders'."""
        return *self.pre, *self.recurrent, *self.mlp

    @property
    def dense(self) -> tuple[DenseLayer, ...]:
        """Every dense layer."""
        return *self.pre, *self.mlp

    @property
    def obs_size(self) -> int:
        """Numbers D of an observation, images aside."""
        encoded = sum(encoder.layers[0].inputs - encoder.layers[-1].outputs for encoder in self.encoders)
        return self.all[0].inputs + encoded - sum(cnn.cfg.num_features for cnn in self.cnns)

    @property
    def num_actions(self) -> int:
        """Size A of an action."""
        return self.mlp[-1].outputs // (2 if self.output_activation == "beta" else 1)

    @property
    def activation(self) -> str:
        """Of the hidden layers; the default where there are none."""
        return self.dense[0].activation if len(self.dense) > 1 else Policy.activation

    @property
    def output_activation(self) -> str:
        """Of the last layer."""
        return self.mlp[-1].activation

    @property
    def kind(self) -> str | None:
        """Of the recurrent layers; None without any."""
        return self.recurrent[0].kind if self.recurrent else None

    @property
    def state_names(self) -> str:
        """The arrays of the recurrent state, a letter each; empty without recurrent layers."""
        return STATES[self.kind] if self.kind else ""

    @property
    def initial_states(self) -> dict[str, np.ndarray]:
        """The recurrent state at an episode's start by :attr:`state_names`, each (layers, 1, H)."""
        states = zip(*(layer.initial_state for layer in self.recurrent), strict=True)
        return {name: np.stack(state)[:, None] for name, state in zip(self.state_names, states, strict=True)}


def describe(policy: Policy, state: PolicyState) -> PolicyLayers:
    """The layers of ``policy``."""
    activations = [*[policy.activation] * len(policy.hidden_dims), policy.output_activation]
    carry = networks.initial_carry(policy, state, 1)
    seen = state.normalizer
    return PolicyLayers(
        normalizer=None if seen is None else Normalization(_array(seen.mean), _array(seen.var), int(seen.count)),
        pre=tuple(_dense(state.params[f"pre_{i}"], policy.activation) for i in range(len(policy.pre_dims))),
        recurrent=tuple(
            RecurrentLayer(
                str(policy.rnn_type),
                **{name: _array(state.params[f"rnn_{i}"][name]).T for name in WEIGHTS},
                initial_state=tuple(_array(x)[0] for x in initial),
            )
            for i, initial in enumerate(carry)
        ),
        mlp=tuple(_dense(state.params[f"mlp_{i}"], activation) for i, activation in enumerate(activations)),
        learned_initial_state=bool(carry) and policy.learn_initial_carry,
        encoders=tuple(_encoder(i, cfg, policy, state) for i, cfg in enumerate(policy.encoders)),
        cnns=tuple(
            ImageEncoder(cfg, {name: _array(state.params[f"cnn_{i}"][name]) for name in parameter_shapes(cfg)})
            for i, cfg in enumerate(policy.cnns)
        ),
    )


def _encoder(i: int, cfg: EncoderCfg, policy: Policy, state: PolicyState) -> Encoder:
    activations = [*[policy.activation] * (len(cfg.dims) - 1), "identity"]
    params = [state.params[f"encoder_{i}_{j}"] for j in range(len(cfg.dims))]
    return Encoder(cfg.start, tuple(map(_dense, params, activations)))


def build(layers: PolicyLayers) -> tuple[Policy, PolicyState]:
    """The policy that ``layers`` are of.

    Raises:
        ValueError: the layers do not fit each other, or no :class:`jdistill.core.networks.Policy` is made like that.
    """
    _check(layers)
    params: dict[str, Any] = {}
    encoders = ((f"encoder_{i}", encoder.layers) for i, encoder in enumerate(layers.encoders))
    for name, dense in (("pre", layers.pre), ("mlp", layers.mlp), *encoders):
        for i, layer in enumerate(dense):
            params[f"{name}_{i}"] = {"dense": {"kernel": _parameter(layer.weight.T), "bias": _parameter(layer.bias)}}
    for i, cell in enumerate(layers.recurrent):
        params[f"rnn_{i}"] = {name: _parameter(getattr(cell, name).T) for name in WEIGHTS}
        if layers.learned_initial_state:
            params |= {f"initial_{i}_{j}": _parameter(x) for j, x in enumerate(cell.initial_state)}
    for i, cnn in enumerate(layers.cnns):
        params[f"cnn_{i}"] = {name: _parameter(value) for name, value in cnn.params.items()}
    policy = Policy(
        num_actions=layers.num_actions,
        hidden_dims=_widths(layers.mlp[:-1]),
        activation=layers.activation,
        output_activation=layers.output_activation,
        pre_dims=_widths(layers.pre),
        rnn_type=layers.kind,
        rnn_hidden_dim=layers.recurrent[0].outputs if layers.recurrent else Policy.rnn_hidden_dim,
        rnn_num_layers=len(layers.recurrent) or Policy.rnn_num_layers,
        learn_initial_carry=layers.learned_initial_state,
        encoders=tuple(encoder.cfg for encoder in layers.encoders),
        cnns=tuple(cnn.cfg for cnn in layers.cnns),
    )
    normalizer = None if layers.normalizer is None else layers.normalizer.normalizer
    return policy, PolicyState(params=params, normalizer=normalizer)


def _check(layers: PolicyLayers) -> None:
    width = layers.obs_size
    if layers.normalizer is not None and layers.normalizer.mean.shape != (width,):
        raise ValueError(f"the normalizer takes {layers.normalizer.mean.shape} observations, the first layer {width}")
    width = layers.all[0].inputs
    for i, layer in enumerate(layers.all):
        if layer.inputs != width:
            raise ValueError(f"layer {i} takes {layer.inputs} numbers, the one before gives {width}")
        width = layer.outputs
    inner = [layer for encoder in layers.encoders for layer in encoder.layers[:-1]]
    hidden = {layer.activation for layer in (*layers.dense[:-1], *inner)}
    if len(hidden) > 1:
        raise ValueError(f"hidden layers have one activation, not {', '.join(sorted(hidden))}")
    if len({(layer.kind, layer.outputs) for layer in layers.recurrent}) > 1:
        raise ValueError("recurrent layers are of one kind and width")
    starts = [state for layer in layers.recurrent for state in layer.initial_state]
    if not layers.learned_initial_state and any(state.any() for state in starts):
        raise ValueError("an initial state other than zero is a learned one")


def _dense(params: Any, activation: str) -> DenseLayer:
    return DenseLayer(_array(params["dense"]["kernel"]).T, _array(params["dense"]["bias"]), activation)


def _widths(layers: Sequence[DenseLayer]) -> tuple[int, ...]:
    return tuple(layer.outputs for layer in layers)


# Both copy. ``asarray`` would share the memory of whoever holds the original: of torch's parameters, which an optimizer
# changes in place, or of JAX's, which a compiled program may be given to reuse.
def _array(x: Any) -> np.ndarray:
    return np.array(x, np.float32)


def _parameter(x: Any) -> Any:
    return jax.device_put(_array(x))
