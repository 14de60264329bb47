"""rsl_rl's networks: their tensors by name, to and from our layers.

A network is named by the prefixes of its parts. What every version of rsl_rl calls them:

=======================================  ================  ===========  ==========================
checkpoint entry                         recurrent         dense        normalizer
=======================================  ================  ===========  ==========================
2.x, 3.x ``model_state_dict``, actor     ``memory_a.rnn``  ``actor``    ``actor_obs_normalizer``
2.x, 3.x ``model_state_dict``, teacher   ``memory_t.rnn``  ``teacher``  ``teacher_obs_normalizer``
4.x, 5.x ``{teacher,actor}_state_dict``  ``rnn.rnn``       ``mlp``      ``obs_normalizer``
=======================================  ================  ===========  ==========================

Shapes come from the weights. Heads of distributions (``std``, ``log_std``, ``distribution.*``, the second half of a
last layer that also puts out deviations) are left out: a teacher acts by its deterministic output. Two parts exist in
:mod:`jdistill.export.rsl_rl_models` alone, dense layers before the recurrent ones (``pre``) and a learned initial state
(``rnn.initial_h``, ``rnn.initial_c``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jdistill.core.cnn import CNNCfg
from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import ExportError, PolicyFileError
from jdistill.export import rsl_rl_cnn
from jdistill.export.layers import (
    GATES,
    STATES,
    WEIGHTS,
    DenseLayer,
    Encoder,
    Normalization,
    PolicyLayers,
    RecurrentLayer,
    build,
    describe,
)

Tensors = Mapping[str, np.ndarray]


class Names(NamedTuple):
    """Prefixes of a network's parts, and what else may stand beside them."""

    rnn: str
    mlp: str
    normalizer: str
    others: str
    """Regular expression of names that belong to other networks or to a distribution."""


DEVIATIONS = ("std", "log_std", "distribution.std_param", "distribution.log_std_param")
"""Deviations that do not depend on the state; where one of these stands, the last layer is all actions."""
DISTRIBUTION = "|".join(map(re.escape, DEVIATIONS))
MODEL = Names("rnn.rnn", "mlp", "obs_normalizer", DISTRIBUTION)
"""In an entry that holds one network (4.x, 5.x)."""
ACTOR = Names(
    "memory_a.rnn", "actor", "actor_obs_normalizer", rf"{DISTRIBUTION}|(critic|memory_c|critic_obs_normalizer)\..*"
)
TEACHER = Names(
    "memory_t.rnn",
    "teacher",
    "teacher_obs_normalizer",
    rf"{DISTRIBUTION}|(student|memory_s|student_obs_normalizer)\..*",
)
STUDENT = Names(
    "memory_s.rnn",
    "student",
    "student_obs_normalizer",
    rf"{DISTRIBUTION}|(teacher|memory_t|teacher_obs_normalizer)\..*",
)
"""In ``model_state_dict`` (2.x, 3.x)."""
PRE, INITIAL, ENCODER = "pre", "rnn.initial", "encoder"

# -- in ------------------------------------------------------------------------------------------------------------


def from_tensors(
    tensors: Tensors,
    names: Names,
    activation: str,
    output_activation: str | None,
    num_actions: int | None,
    cnns: Sequence[CNNCfg] = (),
) -> tuple[Policy, PolicyState]:
    """The policy that ``tensors`` make; see :func:`layers_from_tensors`."""
    return build(layers_from_tensors(tensors, names, activation, output_activation, num_actions, cnns))


def layers_from_tensors(
    tensors: Tensors,
    names: Names,
    activation: str,
    output_activation: str | None,
    num_actions: int | None,
    cnns: Sequence[CNNCfg] = (),
) -> PolicyLayers:
    """The layers that ``tensors`` make.

    Args:
        tensors: by name; all of them must belong to the network, or be matched by ``names.others``.
        names: of the network's parts.
        activation: of the hidden layers, by rsl_rl's names.
        output_activation: what follows the last layer; None means ``identity``, and that it is not known whether a last
            layer twice as wide as the actions belongs to a Beta distribution.
        num_actions: of the environment; a last layer twice as wide holds means and state-dependent deviations. None
            takes the whole layer for actions.
        cnns: of the images that the network sees, see :func:`jdistill.export.rsl_rl_cnn.recorded_cnns`.

    Raises:
        PolicyFileError: a tensor is missing, left over, not finite, or does not fit its neighbour; one line with the
            sizes, and without the file's name.
    """
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise PolicyFileError(f"tensor '{name}' holds NaN or infinity")
    if not _places(tensors, names.mlp):
        raise PolicyFileError(f"no tensor '{names.mlp}.0.weight'")
    images, of_images = rsl_rl_cnn.from_tensors(tensors, cnns)
    width = _input_size(tensors, names)
    size = width - sum(cfg.num_features for cfg in cnns)
    if size < 0:
        raise PolicyFileError(f"the CNNs give {width - size} features, and what follows them takes {width} numbers")
    encoders: tuple[Encoder, ...] = ()
    if _places(tensors, ENCODER):
        encoder, latent = _dense_layers(tensors, ENCODER, _shape(tensors, f"{ENCODER}.0.weight")[1], activation)
        encoders = (Encoder(size - latent, (*encoder[:-1], replace(encoder[-1], activation="identity"))),)
        size += encoder[0].inputs - latent
    pre, width = _dense_layers(tensors, PRE, width, activation)
    recurrent, width = _recurrent_layers(tensors, names.rnn, width)
    mlp, _ = _dense_layers(tensors, names.mlp, width, activation)
    layers = PolicyLayers(
        normalizer=_normalizer(tensors, names, size),
        pre=pre,
        recurrent=recurrent,
        mlp=(*mlp[:-1], _without_deviations(tensors, mlp[-1], names, output_activation, num_actions)),
        learned_initial_state=bool(recurrent) and f"{INITIAL}_h" in tensors,
        encoders=encoders,
        cnns=images,
    )
    known = {*_tensors(layers, names), *of_images}
    if extra := sorted(t for t in tensors if t not in known and not re.fullmatch(names.others, t)):
        shape = list(tensors[extra[0]].shape)
        raise PolicyFileError(f"tensor '{extra[0]}' {shape} belongs to no MLP, CNN, GRU or LSTM policy")
    return layers


def _input_size(tensors: Tensors, names: Names) -> int:
    """Size of the observation."""
    first = f"{names.mlp}.0.weight"
    if _num_layers(tensors, names.rnn):
        first = f"{names.rnn}.weight_ih_l0"
    if _places(tensors, PRE):
        first = f"{PRE}.0.weight"
    return _shape(tensors, first)[1]


def _without_deviations(
    tensors: Tensors, last: DenseLayer, names: Names, output_activation: str | None, num_actions: int | None
) -> DenseLayer:
    """The last layer with the activation that ends the network, and without the rows of state-dependent deviations."""
    width = last.outputs
    end = output_activation or "identity"
    if deviation := next((name for name in DEVIATIONS if name in tensors), None):
        _take(tensors, deviation, (width,))
    elif output_activation == "beta":
        if width % 2:
            raise PolicyFileError(f"a Beta distribution takes two outputs an action, the last layer has {width}")
    elif num_actions and width == 2 * num_actions:
        if output_activation is None and names is MODEL:
            raise PolicyFileError(
                f"its last layer has {width} outputs for {num_actions} actions, and the file does not say what they "
                "are: output_activation=beta for a Beta distribution, identity for means and state-dependent deviations"
            )
        # The last layer is (2, actions), the means first.
        return DenseLayer(last.weight[:num_actions], last.bias[:num_actions], end)
    return DenseLayer(last.weight, last.bias, end)


def _places(tensors: Tensors, prefix: str) -> list[int]:
    """Where the dense layers of a Sequential are: 0, 2, 4, ...; the places between are activations."""
    found = [int(i) for i in _matches(tensors, rf"{re.escape(prefix)}\.(\d+)\.(?:weight|bias)")]
    return list(range(0, max(found) + 1, 2)) if found else []


def _num_layers(tensors: Tensors, prefix: str) -> int:
    """Recurrent layers, counted by any of their tensors, so that a missing one can be named."""
    found = _matches(tensors, rf"{re.escape(prefix)}\.(?:weight|bias)_(?:ih|hh)_l(\d+)")
    return max(map(int, found)) + 1 if found else 0


def _matches(tensors: Tensors, pattern: str) -> list[str]:
    return [m.group(1) for name in tensors if (m := re.fullmatch(pattern, name))]


def _shape(tensors: Tensors, name: str) -> tuple[int, int]:
    """Shape of a weight."""
    if name not in tensors:
        raise PolicyFileError(f"no tensor '{name}'")
    shape = tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise PolicyFileError(f"tensor '{name}' is {list(shape)}, expected two dimensions")
    return shape[0], shape[1]


def _take(tensors: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
        raise PolicyFileError(f"no tensor '{name}', expected one of {list(shape)}")
    found = tensors[name]
    if found.shape != shape:
        raise PolicyFileError(f"tensor '{name}' is {list(found.shape)}, expected {list(shape)}")
    return found


def _dense_layers(tensors: Tensors, prefix: str, width: int, activation: str) -> tuple[tuple[DenseLayer, ...], int]:
    """The dense layers of a Sequential that takes ``width`` numbers, and how many it gives."""
    layers = []
    for place in _places(tensors, prefix):
        name = f"{prefix}.{place}"
        outputs = _shape(tensors, f"{name}.weight")[0]
        weight, bias = _take(tensors, f"{name}.weight", (outputs, width)), _take(tensors, f"{name}.bias", (outputs,))
        layers.append(DenseLayer(weight, bias, activation))
        width = outputs
    return tuple(layers), width


def _recurrent_layers(tensors: Tensors, prefix: str, width: int) -> tuple[tuple[RecurrentLayer, ...], int]:
    """torch's recurrent layers that take ``width`` numbers, and how many they give."""
    layers: list[RecurrentLayer] = []
    number = _num_layers(tensors, prefix)
    for i in range(number):
        kind, weights = _recurrent_weights(tensors, f"{prefix}.%s_l{i}", width)
        width = weights["weight_hh"].shape[1]
        initial = [np.zeros((number, 1, width), np.float32)] * len(STATES[kind])
        if f"{INITIAL}_h" in tensors:
            initial = [_take(tensors, f"{INITIAL}_{state}", (number, 1, width)) for state in STATES[kind]]
        layers.append(RecurrentLayer(kind, **weights, initial_state=tuple(state[i, 0] for state in initial)))
    if len({(layer.kind, layer.outputs) for layer in layers}) > 1:
        found = ", ".join(f"{layer.kind} {layer.outputs}" for layer in layers)
        raise PolicyFileError(f"its recurrent layers are {found}, expected one kind and width")
    return tuple(layers), width


def _recurrent_weights(tensors: Tensors, name: str, width: int) -> tuple[str, dict[str, np.ndarray]]:
    """The kind of one layer and its weights; ``name`` has a place for which of them."""
    rows, hidden = _shape(tensors, name % "weight_ih")[0], _shape(tensors, name % "weight_hh")[1]
    kinds = {len(gates) * hidden: kind for kind, gates in GATES.items()}
    if rows not in kinds:
        expected = " or ".join(map(str, kinds))
        raise PolicyFileError(f"tensor '{name % 'weight_ih'}' has {rows} rows, expected {expected}")
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (rows, hidden)}
    return kinds[rows], {k: _take(tensors, name % k, shapes.get(k, (rows,))) for k in WEIGHTS}


def _normalizer(tensors: Tensors, names: Names, size: int) -> Normalization | None:
    if not any(name.startswith(f"{names.normalizer}.") for name in tensors):
        return None
    mean, var, _ = (_take(tensors, f"{names.normalizer}.{k}", (1, size))[0] for k in ("_mean", "_var", "_std"))
    if (var < 0).any():
        raise PolicyFileError(f"tensor '{names.normalizer}._var' is negative somewhere")
    return Normalization(mean, var, int(_take(tensors, f"{names.normalizer}.count", ())))


# -- out -----------------------------------------------------------------------------------------------------------


def to_tensors(policy: Policy, state: PolicyState, names: Names = MODEL) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_tensors`: rsl_rl's tensors by name.

    Without recurrent layers, the dense ones before and after them are one MLP.

    Raises:
        ExportError: rsl_rl has no such model.
    """
    if policy.encoders:
        raise ExportError("rsl_rl has no model with an encoder of some numbers: export in another format")
    if policy.cnns and policy.is_recurrent:
        raise ExportError("rsl_rl has no model with a CNN and a recurrent layer: export in another format")
    return {k: np.array(v, order="C") for k, v in _tensors(describe(policy, state), names).items()}


def _tensors(layers: PolicyLayers, names: Names) -> dict[str, Any]:
    tensors: dict[str, Any] = dict(rsl_rl_cnn.to_tensors(layers.cnns))
    pre, mlp = (layers.pre, layers.mlp) if layers.recurrent else ((), layers.dense)
    encoder = layers.encoders[0].layers if layers.encoders else ()
    for prefix, dense in ((PRE, pre), (names.mlp, mlp), (ENCODER, encoder)):
        for i, layer in enumerate(dense):
            # torch counts the activations between the layers too.
            tensors |= {f"{prefix}.{2 * i}.weight": layer.weight, f"{prefix}.{2 * i}.bias": layer.bias}
    for i, cell in enumerate(layers.recurrent):
        tensors |= {f"{names.rnn}.{name}_l{i}": getattr(cell, name) for name in WEIGHTS}
    if layers.learned_initial_state:
        tensors |= {f"{INITIAL}_{name}": state for name, state in layers.initial_states.items()}
    if layers.normalizer is not None:
        normalizer = layers.normalizer
        moments = {"_mean": normalizer.mean, "_var": normalizer.var, "_std": normalizer.std}
        tensors |= {f"{names.normalizer}.{k}": v[None] for k, v in moments.items()}
        tensors[f"{names.normalizer}.count"] = np.int64(normalizer.count)
    return tensors


def model_cfg(policy: Policy, state: PolicyState, init_std: float) -> dict[str, Any]:
    """The entry of an rsl_rl 5.x config (``student``, ``teacher`` or ``actor``) that builds this network.

    The class is rsl_rl's own where it has one, else that of :mod:`jdistill.export.rsl_rl_models`. ``init_std`` is the
    standard deviation of the actions with which it begins.
    """
    layers = describe(policy, state)
    widths = [layer.outputs for layer in (layers.mlp if layers.recurrent else layers.dense)[:-1]]
    end = layers.output_activation
    gaussian = {"class_name": "GaussianDistribution", "init_std": init_std}
    cfg: dict[str, Any] = {
        "hidden_dims": widths,
        "activation": layers.activation,
        "obs_normalization": layers.normalizer is not None,
        "distribution_cfg": {"class_name": "BetaDistribution"} if end == "beta" else gaussian,
    }
    extras: dict[str, Any] = {}
    if layers.recurrent:
        cfg |= {"rnn_type": layers.kind, "rnn_hidden_dim": layers.recurrent[0].outputs}
        cfg["rnn_num_layers"] = len(layers.recurrent)
        extras |= {"pre_dims": [layer.outputs for layer in layers.pre]} if layers.pre else {}
        extras |= {"learn_initial_state": True} if layers.learned_initial_state else {}
    if end not in ("identity", "beta"):
        extras["output_activation"] = end
    name = f"{'CNN' if layers.cnns else ''}{'RNN' if layers.recurrent else ''}Model"
    name = "MLPModel" if name == "Model" else name
    if layers.cnns:
        cfg["cnn_cfg"] = {cnn.cfg.group: rsl_rl_cnn.settings_of(cnn.cfg) for cnn in layers.cnns}
    module = "rsl_rl.models" if widths and not extras else "jdistill.export.rsl_rl_models"
    return {"class_name": f"{module}:{name}", **cfg, **extras}
