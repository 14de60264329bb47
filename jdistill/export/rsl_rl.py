"""rsl_rl's networks: their tensors by name, to and from ours.

A network is named by the prefixes of its parts. What every version of rsl_rl calls them:

=======================================  ================  ===========  ==========================
checkpoint entry                         recurrent         dense        normalizer
=======================================  ================  ===========  ==========================
2.x, 3.x ``model_state_dict``, actor     ``memory_a.rnn``  ``actor``    ``actor_obs_normalizer``
2.x, 3.x ``model_state_dict``, teacher   ``memory_t.rnn``  ``teacher``  ``teacher_obs_normalizer``
4.x, 5.x ``{teacher,actor}_state_dict``  ``rnn.rnn``       ``mlp``      ``obs_normalizer``
=======================================  ================  ===========  ==========================

Shapes come from the weights. Heads of distributions (``std``, ``log_std``, ``distribution.*``, the second half of a
last layer that also puts out deviations) are left out: a teacher labels with its deterministic output. Two parts exist
in :mod:`jdistill.export.rsl_rl_models` alone, dense layers before the recurrent ones (``pre``) and a learnt initial
state (``rnn.initial_h``, ``rnn.initial_c``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jdistill.core.networks import RNN_TYPES, Normalizer, Policy, PolicyState

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
"""In ``model_state_dict`` (2.x, 3.x)."""
PRE, INITIAL = "pre", "rnn.initial"

GATES = {3: "gru", 4: "lstm"}


# -- in ------------------------------------------------------------------------------------------------------------


def from_tensors(
    tensors: Tensors, names: Names, activation: str, output_activation: str | None, num_actions: int | None
) -> tuple[Policy, PolicyState]:
    """The network that ``tensors`` make.

    Args:
        tensors: by name; all of them must belong to the network, or be matched by ``names.others``.
        names: of the network's parts.
        activation: of the hidden layers, by rsl_rl's names.
        output_activation: what follows the last layer; None means ``identity``, and that it is not known whether a last
            layer twice as wide as the actions belongs to a Beta distribution.
        num_actions: of the environment; a last layer twice as wide holds means and state-dependent deviations. None
            takes the whole layer for actions.

    Raises:
        ValueError: a tensor is missing, left over, not finite, or does not fit its neighbour; one line with the sizes.
    """
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"tensor '{name}' holds NaN or infinity")
    parts = {"pre": _places(tensors, PRE), "mlp": _places(tensors, names.mlp)}
    if not parts["mlp"]:
        raise ValueError(f"no tensor '{names.mlp}.0.weight'")
    size = width = input_size(tensors, names)
    params: dict[str, Any] = {}
    dims: dict[str, list[int]] = {"pre": [], "mlp": []}
    for i, place in enumerate(parts["pre"]):
        params[f"pre_{i}"], width = _dense(tensors, f"{PRE}.{place}", width)
        dims["pre"].append(width)
    layers = _num_layers(tensors, names.rnn)
    for i in range(layers):
        params[f"rnn_{i}"], width = _recurrent(tensors, f"{names.rnn}.%s_l{i}", width)
    hidden = width
    for i, place in enumerate(parts["mlp"]):
        params[f"mlp_{i}"], width = _dense(tensors, f"{names.mlp}.{place}", width)
        dims["mlp"].append(width)
    gates = params["rnn_0"]["bias_ih"].shape[0] // hidden if layers else 0
    learnt = _initial(tensors, gates, layers, hidden) if layers else {}
    last = params[f"mlp_{len(parts['mlp']) - 1}"]["dense"]
    policy = Policy(
        num_actions=_trim_head(tensors, last, names, output_activation, num_actions),
        hidden_dims=tuple(dims["mlp"][:-1]),
        activation=activation,
        output_activation=output_activation or "identity",
        pre_dims=tuple(dims["pre"]),
        rnn_type=GATES[gates] if layers else None,
        rnn_hidden_dim=hidden if layers else Policy.rnn_hidden_dim,
        rnn_num_layers=layers or 1,
        learn_initial_carry=bool(learnt),
    )
    state = PolicyState(params={**params, **learnt}, normalizer=_normalizer(tensors, names, size))
    known = to_tensors(policy, state, names)
    if extra := sorted(t for t in tensors if t not in known and not re.fullmatch(names.others, t)):
        raise ValueError(f"tensor '{extra[0]}' {list(tensors[extra[0]].shape)} belongs to no MLP, GRU or LSTM policy")
    return policy, state


def input_size(tensors: Tensors, names: Names) -> int:
    """Size of the observation."""
    first = f"{names.mlp}.0.weight"
    if _num_layers(tensors, names.rnn):
        first = f"{names.rnn}.weight_ih_l0"
    if _places(tensors, PRE):
        first = f"{PRE}.0.weight"
    return _shape(tensors, first)[1]


def _trim_head(
    tensors: Tensors, last: dict[str, Any], names: Names, output_activation: str | None, num_actions: int | None
) -> int:
    """The number of actions of the last layer ``last``, from which what makes state-dependent deviations is cut off."""
    width = last["bias"].shape[0]
    if deviation := next((name for name in DEVIATIONS if name in tensors), None):
        _take(tensors, deviation, (width,))
        return width
    if output_activation == "beta":
        if width % 2:
            raise ValueError(f"a Beta distribution takes two outputs an action, the last layer has {width}")
        return width // 2
    if num_actions and width == 2 * num_actions:
        if output_activation is None and names is MODEL:
            raise ValueError(
                f"its last layer has {width} outputs for {num_actions} actions, and the file does not say what they "
                "are: output_activation=beta for a Beta distribution, identity for means and state-dependent deviations"
            )
        # The last layer is (2, actions), the means first.
        last |= {"kernel": last["kernel"][:, :num_actions], "bias": last["bias"][:num_actions]}
        return num_actions
    return width


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
        raise ValueError(f"no tensor '{name}'")
    shape = tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"tensor '{name}' is {list(shape)}, expected two dimensions")
    return shape[0], shape[1]


def _take(tensors: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"no tensor '{name}', expected one of {list(shape)}")
    found = tensors[name]
    if found.shape != shape:
        raise ValueError(f"tensor '{name}' is {list(found.shape)}, expected {list(shape)}")
    return found


def _dense(tensors: Tensors, name: str, width: int) -> tuple[dict[str, Any], int]:
    out = _shape(tensors, f"{name}.weight")[0]
    weight, bias = _take(tensors, f"{name}.weight", (out, width)), _take(tensors, f"{name}.bias", (out,))
    return {"dense": {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}}, out


def _recurrent(tensors: Tensors, name: str, width: int) -> tuple[dict[str, Any], int]:
    rows, hidden = _shape(tensors, name % "weight_ih")[0], _shape(tensors, name % "weight_hh")[1]
    if rows not in (3 * hidden, 4 * hidden):
        raise ValueError(f"tensor '{name % 'weight_ih'}' has {rows} rows, expected {3 * hidden} or {4 * hidden}")
    shapes = {
        "weight_ih": (rows, width),
        "weight_hh": (rows, hidden),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }
    return {k: jnp.asarray(_take(tensors, name % k, shape).T) for k, shape in shapes.items()}, hidden


def _initial(tensors: Tensors, gates: int, layers: int, hidden: int) -> dict[str, Any]:
    """The learnt initial state, if there is one, under our parameters' names."""
    if f"{INITIAL}_h" not in tensors:
        return {}
    kinds = _carry_kinds(GATES[gates])
    states = [_take(tensors, f"{INITIAL}_{kind}", (layers, 1, hidden)) for kind in kinds]
    return {f"initial_{i}_{j}": jnp.asarray(states[j][i, 0]) for i in range(layers) for j in range(len(kinds))}


def _carry_kinds(rnn_type: str) -> str:
    """``h`` for a GRU, ``hc`` for an LSTM."""
    return "hc"[: len(RNN_TYPES[rnn_type](1).initial())]


def _normalizer(tensors: Tensors, names: Names, size: int) -> Normalizer | None:
    if not any(name.startswith(f"{names.normalizer}.") for name in tensors):
        return None
    mean, var, _ = (_take(tensors, f"{names.normalizer}.{k}", (1, size))[0] for k in ("_mean", "_var", "_std"))
    if (var < 0).any():
        raise ValueError(f"tensor '{names.normalizer}._var' is negative somewhere")
    count = _take(tensors, f"{names.normalizer}.count", ())
    return Normalizer(mean=jnp.asarray(mean), var=jnp.asarray(var), count=jnp.asarray(count, jnp.float32))


# -- out -----------------------------------------------------------------------------------------------------------


def to_tensors(policy: Policy, state: PolicyState, names: Names = MODEL) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_tensors`: rsl_rl's tensors by name.

    Without recurrent layers, the dense ones before and after them are one MLP.
    """
    params, tensors = state.params, {}
    pre = [params[f"pre_{i}"] for i in range(len(policy.pre_dims))]
    mlp = [params[f"mlp_{i}"] for i in range(len(policy.hidden_dims) + 1)]
    if policy.rnn_type is None:
        pre, mlp = [], [*pre, *mlp]
    for prefix, dense in ((PRE, pre), (names.mlp, mlp)):
        for i, layer in enumerate(dense):
            # torch counts the activations between the layers too.
            tensors[f"{prefix}.{2 * i}.weight"] = layer["dense"]["kernel"].T
            tensors[f"{prefix}.{2 * i}.bias"] = layer["dense"]["bias"]
    for i in range(policy.rnn_num_layers if policy.rnn_type else 0):
        tensors |= {f"{names.rnn}.{k}_l{i}": v.T for k, v in params[f"rnn_{i}"].items()}
    if policy.rnn_type and policy.learn_initial_carry:
        for j, kind in enumerate(_carry_kinds(policy.rnn_type)):
            states = [params[f"initial_{i}_{j}"][None] for i in range(policy.rnn_num_layers)]
            tensors[f"{INITIAL}_{kind}"] = np.stack(states)
    if state.normalizer is not None:
        normalizer = state.normalizer
        moments = {"_mean": normalizer.mean, "_var": normalizer.var, "_std": jnp.sqrt(normalizer.var)}
        tensors |= {f"{names.normalizer}.{k}": v[None] for k, v in moments.items()}
        tensors[f"{names.normalizer}.count"] = np.asarray(normalizer.count).astype(np.int64)
    return {k: np.array(v, order="C") for k, v in tensors.items()}


def model_cfg(policy: Policy, state: PolicyState, init_std: float) -> dict[str, Any]:
    """The entry of an rsl_rl 5.x config (``student``, ``teacher`` or ``actor``) that builds this network.

    The class is rsl_rl's own where it has one, else that of :mod:`jdistill.export.rsl_rl_models`.
    """
    dense = [*policy.pre_dims, *policy.hidden_dims] if policy.rnn_type is None else list(policy.hidden_dims)
    beta = policy.output_activation == "beta"
    cfg: dict[str, Any] = {
        "hidden_dims": dense,
        "activation": policy.activation,
        "obs_normalization": state.normalizer is not None,
        "distribution_cfg": {"class_name": "BetaDistribution"}
        if beta
        else {"class_name": "GaussianDistribution", "init_std": init_std},
    }
    extras: dict[str, Any] = {}
    if policy.rnn_type:
        cfg |= {"rnn_type": policy.rnn_type, "rnn_hidden_dim": policy.rnn_hidden_dim}
        cfg["rnn_num_layers"] = policy.rnn_num_layers
        extras |= {"pre_dims": list(policy.pre_dims)} if policy.pre_dims else {}
        extras |= {"learn_initial_state": True} if policy.learn_initial_carry else {}
    if policy.output_activation not in ("identity", "beta"):
        extras["output_activation"] = policy.output_activation
    module = "rsl_rl.models" if dense and not extras else "jdistill.export.rsl_rl_models"
    return {"class_name": f"{module}:{'RNNModel' if policy.rnn_type else 'MLPModel'}", **cfg, **extras}
