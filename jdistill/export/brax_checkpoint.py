"""Teachers out of the PPO of Brax, which MuJoCo Playground uses too, in either of the forms that it saves:

- a folder that Orbax wrote, with ``ppo_network_config.json`` beside the arrays, or the folder above several of them;
- a pickle of ``brax.io.model.save_params``: (normalizer, policy, ...), which says nothing of activations.

The policy is an MLP. Of a ``tanh_normal`` distribution, the default, the mean is the tanh of the first half of its
outputs; of a ``normal`` one it is the outputs. Observations are normalized by (obs - mean) / std. Neither Brax nor
anything that a pickle names is imported.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jdistill.core.networks import Normalizer, Policy, PolicyState
from jdistill.errors import PolicyFileError
from jdistill.export.brax_files import CONFIG, STATISTICS
from jdistill.export.layers import DenseLayer, Normalization, PolicyLayers, build

ACTIVATIONS = {
    **{name: name for name in ("elu", "selu", "relu", "tanh", "sigmoid", "softplus", "swish", "mish")},
    **{"silu": "swish", "celu": "crelu", "leaky_relu": "lrelu", "linear": "identity"},
}
"""Brax's names, and ours; Brax's ``gelu`` is an approximation of ours."""
DEFAULT_ACTIVATION = "swish"


def load_brax_checkpoint(
    path: Path, activation: str | None = None, output_activation: str | None = None
) -> tuple[Policy, PolicyState, dict[str, Any]]:
    """The policy of a checkpoint (see :mod:`jdistill.export.brax_files`), and a description of it.

    Args:
        path: the folder or the file.
        activation: of the hidden layers, by rsl_rl's names; None takes what is recorded, else Brax's ``swish``.
        output_activation: what ends the network; None takes what its distribution asks for.

    Raises:
        PolicyFileError: it cannot be read, or is no MLP.
    """
    config = _config(path) if path.is_dir() else {}
    content = _read_orbax(path) if path.is_dir() else _read_pickle(path)
    try:
        statistics, policy = (_plain(part) for part in list(content)[:2])
        kwargs = config.get("network_factory_kwargs", {})
        for name in ("mean_clip_scale", "state_dependent_std"):
            if kwargs.get(name):
                raise PolicyFileError(f"{path}: a policy with {name}, which cannot be read")
        layers, ending = _layers(policy["params"], activation or _activation(path, kwargs))
        normalizer, group = None, None
        if isinstance(statistics["mean"], Mapping):
            group = kwargs.get("policy_obs_key") or "state"
            statistics = {**statistics, **{name: statistics[name][group] for name in ("mean", "std")}}
        if config.get("normalize_observations", True):
            normalizer, layers[0] = _normalized(statistics, layers[0])
        layers[-1] = DenseLayer(layers[-1].weight, layers[-1].bias, output_activation or ending)
        built = build(PolicyLayers(normalizer, pre=(), recurrent=(), mlp=tuple(layers)))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise PolicyFileError(f"{path}: holds no policy of Brax's PPO that is an MLP ({e})") from e
    size = layers[0].inputs
    seen = {"observation": {"groups": [{"name": group, "size": size}], "size": size}} if group else {}
    return *built, {"obs_size": size, "converted_from": path.name, **seen}


def _config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / CONFIG).read_text()))
    except (OSError, ValueError) as e:
        raise PolicyFileError(f"{path / CONFIG}: cannot be read ({e})") from e


def _activation(path: Path, kwargs: Mapping[str, Any]) -> str:
    name = str(kwargs.get("activation") or DEFAULT_ACTIVATION)
    if name not in ACTIVATIONS:
        raise PolicyFileError(f"{path}: activation {name}, of Brax's {', '.join(ACTIVATIONS)} can be read")
    return ACTIVATIONS[name]


def _layers(params: Mapping[str, Any], activation: str) -> tuple[list[DenseLayer], str]:
    """The dense layers and what follows the last one; ``normal`` policies have the last one beside the others."""
    if "MLP_0" in params:
        dense, ending = {**params["MLP_0"], "last": params["Dense_0"]}, "identity"
    else:
        dense, ending = dict(params), "tanh"
    if odd := [name for name in dense if not re.fullmatch(r"hidden_\d+|last", name)]:
        raise ValueError(f"it has '{odd[0]}'")
    last = ["last"] if "last" in dense else []
    names = [*(f"hidden_{i}" for i in range(len(dense) - len(last))), *last]
    layers = []
    for name in names:
        weight = np.asarray(dense[name]["kernel"], np.float32).T
        bias = np.asarray(dense[name].get("bias", np.zeros(len(weight))), np.float32)
        if name == names[-1] and ending == "tanh":
            weight, bias = weight[: len(weight) // 2], bias[: len(bias) // 2]
        layers.append(DenseLayer(weight, bias, activation))
    return layers, ending


def _normalized(statistics: Mapping[str, Any], first: DenseLayer) -> tuple[Normalization, DenseLayer]:
    """Our normalizer, which divides by no less than its epsilon, and a first layer that makes up for that."""
    mean, std = (np.asarray(statistics[name], np.float64) for name in ("mean", "std"))
    divisor = np.maximum(std, Normalizer.EPS)
    normalizer = Normalization(mean, (divisor - Normalizer.EPS) ** 2, _count(statistics.get("count", 0)))
    return normalizer, DenseLayer((first.weight * (divisor / std)).astype(np.float32), first.bias, first.activation)


def _count(count: Any) -> int:
    return int(count["hi"]) * 2**32 + int(count["lo"]) if isinstance(count, Mapping) else int(count)


def _plain(tree: Any) -> Any:
    """Records as dicts."""
    if isinstance(tree, Record):
        tree = vars(tree)
    return {name: _plain(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


# -- reading -------------------------------------------------------------------------------------------------------


def _read_orbax(path: Path) -> Any:
    import jax
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax remarks that the devices may be others.
    try:
        checkpointer = ocp.PyTreeCheckpointer()
        shapes: Any = checkpointer.metadata(path.absolute()).item_metadata
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes.tree)
        return checkpointer.restore(path.absolute(), ocp.args.PyTreeRestore(restore_args=kinds))
    except Exception as e:  # Orbax raises a dozen kinds for a damaged folder.
        raise PolicyFileError(f"{path}: damaged, or no checkpoint of Orbax's ({' '.join(str(e).split())[:200]})") from e


class Record:
    """What stands in for a class that a pickle names."""


def _array(function: Any, arguments: Any, state: Any, _: Any) -> Any:
    """A pickled array of JAX's as NumPy's."""
    array = function(*arguments)
    array.__setstate__(state)
    return array


class _Unpickler(pickle.Unpickler):
    """Reads arrays, and records of them, and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("brax.training.types", "UInt64"), (STATISTICS, "RunningStatisticsState")):
            return Record
        if (module, name) == (STATISTICS, "NormalizationMode"):
            return int
        if (module, name) == ("jax._src.array", "_reconstruct_array"):
            return _array
        if (module, name) == ("flax.core.frozen_dict", "FrozenDict"):
            return dict
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except pickle.UnpicklingError as e:
        raise PolicyFileError(f"{path}: refused, because it holds more than arrays ({e})") from e
    except Exception as e:  # pickle raises a dozen kinds for a damaged file.
        raise PolicyFileError(f"{path}: truncated or no pickle of Brax's ({e})") from e
