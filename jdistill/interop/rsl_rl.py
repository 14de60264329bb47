"""rsl_rl's checkpoints: its networks' tensors by name, to and from ours.

A network is named by the prefixes of its three parts. What every version of rsl_rl calls them:

| checkpoint entry | recurrent | dense | normaliser |
|---|---|---|---|
| 2.x, 3.x ``model_state_dict``, actor | ``memory_a.rnn`` | ``actor`` | ``actor_obs_normalizer`` |
| 2.x, 3.x ``model_state_dict``, teacher | ``memory_t.rnn`` | ``teacher`` | ``teacher_obs_normalizer`` |
| 4.x, 5.x ``{teacher,actor}_state_dict`` | ``rnn.rnn`` | ``mlp`` | ``obs_normalizer`` |

In 2.x the normaliser stands in an entry of its own, ``obs_norm_state_dict`` (the actor's) or
``privileged_obs_norm_state_dict`` (the teacher's). Shapes come from the weights. Activations
are in no checkpoint, the caller says them. Heads of distributions (``std``, ``log_std``, ``distribution.*``) are left
out: a teacher labels with its deterministic output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jdistill.networks import Normalizer, Policy, PolicyState
from jdistill.policy_file import PolicyFileError

Tensors = Mapping[str, np.ndarray]


class Names(NamedTuple):
    """Prefixes of a network's parts."""

    rnn: str
    mlp: str
    normalizer: str


MODEL = Names("rnn.rnn", "mlp", "obs_normalizer")
"""In an entry that holds one network (4.x, 5.x)."""
ACTOR = Names("memory_a.rnn", "actor", "actor_obs_normalizer")
TEACHER = Names("memory_t.rnn", "teacher", "teacher_obs_normalizer")
"""In ``model_state_dict`` (2.x, 3.x)."""

GATES = {3: "gru", 4: "lstm"}


def load_teacher_checkpoint(
    file: Path, activation: str, output_activation: str, num_actions: int | None
) -> tuple[Policy, PolicyState, dict[str, Any]]:
    """Read the teacher out of an rsl_rl checkpoint, or the actor of a PPO run, which becomes one.

    Args:
        activation: of the hidden layers, by rsl_rl's names.
        output_activation: what the environment or the fork applies to the output; rsl_rl itself has none.
        num_actions: of the environment; a last layer twice as wide holds means and state-dependent deviations. None
            takes the whole layer for actions.

    Raises:
        PolicyFileError: the file cannot be read, is no such checkpoint, or its tensors do not fit together.
    """
    checkpoint = read_torch(file)
    names, tensors = _find_network(file, checkpoint)
    try:
        policy, state = from_tensors(tensors, names, activation, output_activation, num_actions)
    except ValueError as e:
        raise PolicyFileError(f"{file}: {e}") from e
    return policy, state, {"obs_size": input_size(tensors, names), "converted_from": file.name}


def read_torch(file: Path) -> dict[str, Any]:
    """A torch file's content, read without running anything that is in it."""
    if not file.is_file():
        raise PolicyFileError(f"{file}: no such file")
    try:
        import torch
    except ImportError as e:
        raise PolicyFileError(f"{file}: reading it takes torch; use 'uv run --extra torch ...'") from e
    import pickle

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        if file.read_bytes()[:2] not in (b"PK", b"\x80\x02"):  # Neither of torch's two formats.
            raise PolicyFileError(f"{file}: no torch file") from e
        raise PolicyFileError(
            f"{file}: refused, because it holds more than tensors and reading it could run code"
        ) from e
    except Exception as e:  # torch raises a dozen kinds for a damaged file.
        raise PolicyFileError(f"{file}: truncated or no torch file ({_first_line(e)})") from e
    if not isinstance(content, dict):
        raise PolicyFileError(f"{file}: no rsl_rl checkpoint (it holds a {type(content).__name__})")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _find_network(file: Path, checkpoint: dict[str, Any]) -> tuple[Names, Tensors]:
    for entry in ("teacher_state_dict", "actor_state_dict"):
        if entry in checkpoint:
            return MODEL, _numpy(checkpoint[entry])
    if "model_state_dict" in checkpoint:
        tensors = _numpy(checkpoint["model_state_dict"])
        names = next((n for n in (TEACHER, ACTOR) if f"{n.mlp}.0.weight" in tensors), None)
        if names:
            entry = "privileged_obs_norm_state_dict" if names is TEACHER else "obs_norm_state_dict"
            separate = _numpy(checkpoint.get(entry) or {})
            return names, {**tensors, **{f"{names.normalizer}.{k}": v for k, v in separate.items()}}
    entries = ", ".join(sorted(map(str, checkpoint))[:6]) or "nothing"
    raise PolicyFileError(f"{file}: no teacher and no actor in it; its entries are {entries}")


def _numpy(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if not isinstance(state_dict, Mapping):
        return {}
    return {name: tensor.detach().cpu().numpy() for name, tensor in state_dict.items() if hasattr(tensor, "detach")}


def input_size(tensors: Tensors, names: Names) -> int:
    """Size of the observation."""
    first = f"{names.rnn}.weight_ih_l0"
    weight = tensors[first if first in tensors else f"{names.mlp}.0.weight"]
    if weight.ndim != 2:
        raise ValueError(f"the first layer's weight is {list(weight.shape)}, expected two dimensions")
    return int(weight.shape[1])


def from_tensors(
    tensors: Tensors, names: Names, activation: str, output_activation: str, num_actions: int | None
) -> tuple[Policy, PolicyState]:
    """The network that ``tensors`` make.

    Raises:
        ValueError: a tensor is missing or does not fit its neighbour; one line with found and expected sizes.
    """
    dense = sorted(int(i) for i in _matches(tensors, rf"{re.escape(names.mlp)}\.(\d+)\.weight"))
    if not dense:
        raise ValueError(f"no tensor '{names.mlp}.0.weight'")
    params: dict[str, Any] = {}
    width = input_size(tensors, names)
    layers = len(_matches(tensors, rf"{re.escape(names.rnn)}\.weight_ih_l(\d+)"))
    hidden = 0
    for i in range(layers):
        params[f"rnn_{i}"], width = _recurrent(tensors, f"{names.rnn}.%s_l{i}", width)
        hidden = width
    gates = tensors[f"{names.rnn}.weight_ih_l0"].shape[0] // hidden if layers else 0
    dims = []
    for i, index in enumerate(dense):
        params[f"mlp_{i}"], width = _dense(tensors, f"{names.mlp}.{index}", width)
        dims.append(width)
    if num_actions and dims[-1] == 2 * num_actions:
        # A state-dependent deviation: the last layer is (2, actions), the means first.
        last = params[f"mlp_{len(dense) - 1}"]["dense"]
        last |= {"kernel": last["kernel"][:, :num_actions], "bias": last["bias"][:num_actions]}
        dims[-1] = num_actions
    policy = Policy(
        num_actions=dims[-1],
        hidden_dims=tuple(dims[:-1]),
        activation=activation,
        output_activation=output_activation,
        rnn_type=GATES[gates] if layers else None,
        rnn_hidden_dim=hidden or Policy.rnn_hidden_dim,
        rnn_num_layers=layers or 1,
    )
    return policy, PolicyState(params=params, normalizer=_normalizer(tensors, names, input_size(tensors, names)))


def _matches(tensors: Tensors, pattern: str) -> list[str]:
    return [m.group(1) for name in tensors if (m := re.fullmatch(pattern, name))]


def _take(tensors: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"no tensor '{name}', expected one of {list(shape)}")
    found = tensors[name]
    if found.shape != shape:
        raise ValueError(f"tensor '{name}' is {list(found.shape)}, expected {list(shape)}")
    return found


def _dense(tensors: Tensors, name: str, width: int) -> tuple[dict[str, Any], int]:
    out = tensors[f"{name}.weight"].shape[0]
    weight, bias = _take(tensors, f"{name}.weight", (out, width)), _take(tensors, f"{name}.bias", (out,))
    return {"dense": {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}}, out


def _recurrent(tensors: Tensors, name: str, width: int) -> tuple[dict[str, Any], int]:
    rows, hidden = tensors[name % "weight_ih"].shape[0], tensors[name % "weight_hh"].shape[1]
    if rows not in (3 * hidden, 4 * hidden):
        raise ValueError(f"tensor '{name % 'weight_ih'}' has {rows} rows, expected {3 * hidden} or {4 * hidden}")
    shapes = {
        "weight_ih": (rows, width),
        "weight_hh": (rows, hidden),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }
    return {k: jnp.asarray(_take(tensors, name % k, shape).T) for k, shape in shapes.items()}, hidden


def _normalizer(tensors: Tensors, names: Names, size: int) -> Normalizer | None:
    if f"{names.normalizer}._mean" not in tensors:
        return None
    mean, var = (_take(tensors, f"{names.normalizer}.{k}", (1, size))[0] for k in ("_mean", "_var"))
    count = np.asarray(tensors.get(f"{names.normalizer}.count", 0), np.float32).reshape(())
    return Normalizer(mean=jnp.asarray(mean), var=jnp.asarray(var), count=jnp.asarray(count))


def to_tensors(policy: Policy, state: PolicyState, names: Names = MODEL) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_tensors`: rsl_rl's tensors by name.

    Raises:
        ValueError: rsl_rl has no such network (dense layers before the recurrent ones, a learnt initial state).
    """
    if policy.pre_dims or policy.learn_initial_carry:
        raise ValueError("rsl_rl has no dense layers before the recurrent ones and no learnt initial state")
    tensors: dict[str, Any] = {}
    for i in range(policy.rnn_num_layers if policy.rnn_type else 0):
        tensors |= {f"{names.rnn}.{k}_l{i}": v.T for k, v in state.params[f"rnn_{i}"].items()}
    for i in range(len(policy.hidden_dims) + 1):
        layer = state.params[f"mlp_{i}"]["dense"]
        # rsl_rl counts the activations between the layers too.
        tensors |= {f"{names.mlp}.{2 * i}.weight": layer["kernel"].T, f"{names.mlp}.{2 * i}.bias": layer["bias"]}
    if state.normalizer is not None:
        normalizer = state.normalizer
        moments = {"_mean": normalizer.mean, "_var": normalizer.var, "_std": jnp.sqrt(normalizer.var)}
        tensors |= {f"{names.normalizer}.{k}": v[None] for k, v in moments.items()}
        tensors[f"{names.normalizer}.count"] = np.asarray(normalizer.count).astype(np.int64)
    return {k: np.array(v, order="C") for k, v in tensors.items()}
