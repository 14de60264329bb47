"""Policies on disk: one safetensors file whose header carries a JSON description, readable without torch or JAX.

The header's ``jdistill`` entry is a JSON object: ``format`` (this page's version), ``network`` (the fields of
:class:`jdistill.core.networks.Policy`), ``obs_size``, ``normalizer`` (its formula, or null), ``checksum`` (CRC-32 of
the bytes of all tensors in alphabetical order; absent in files of version 0.1), and whatever the writer adds:
``observation`` (group and layout), ``action``, ``trained_by``, ``numbers``. Tensors are ``params/<path>`` and
``normalizer/{mean,var,count}``.

The teachers of a run with many of them are one such file too: its header has their ``teacher_ids``, ascending, and
every tensor has one more axis, the first, along which they lie in that order.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jdistill.core import networks
from jdistill.core.cnn import CNNCfg
from jdistill.core.networks import EncoderCfg, Normalizer, Policy, PolicyState
from jdistill.errors import ConfigError, PolicyFileError
from jdistill.export.formats import Exported, Student
from jdistill.export.layers import describe
from jdistill.export.verify import jax_policy
from jdistill.files import refuse_pointer, replace_file

FORMAT = 1


def export(student: Student, out: Path) -> Exported:
    """``policy.safetensors``, the format ``safetensors`` of :mod:`jdistill.export.formats`."""
    file = out / "policy.safetensors"
    save_policy(file, student.policy, student.state, student.header)
    policy, state, _ = load_policy(file)
    return Exported(file, jax_policy(policy, state))


def save_policy(path: Path, policy: Policy, state: PolicyState, description: Mapping[str, Any]) -> None:
    """Write ``policy`` with its parameters; ``description`` joins the JSON header. Replaces ``path`` whole.

    With ``teacher_ids`` in the description, ``state`` is that of as many teachers, each leaf (N, ...).

    Raises:
        OSError: it cannot be written; what ``path`` held before is still there.
    """
    one = jax.tree.map(lambda x: x[0], state) if "teacher_ids" in description else state
    arrays = {k: np.array(v, order="C") for k, v in _tensors(state).items()}
    header = {
        **description,
        "format": FORMAT,
        "checksum": _checksum(arrays),
        "network": {
            # What encodes is newer than the format, and other policies are to be read by older versions.
            name: value
            for name, value in network_fields(policy).items()
            if value or name not in ("encoders", "cnns")
        },
        "obs_size": describe(policy, one).obs_size,
        "normalizer": None if state.normalizer is None else Normalizer.FORMULA,
    }
    replace_file(path, save(arrays, metadata={"jdistill": json.dumps(header, indent=1)}))


def load_policy(path: Path, many: bool = False) -> tuple[Policy, PolicyState, dict[str, Any]]:
    """Read what :func:`save_policy` wrote: the network, its state, the JSON header.

    With ``many`` the file may hold several teachers, whose ``teacher_ids`` are in the header.

    Raises:
        PolicyFileError: the file is missing, damaged, of another kind, or its tensors do not fit its header; or it
            holds several teachers where one policy is wanted.
    """
    if not path.is_file():
        raise PolicyFileError(f"{path}: no such file")
    refuse_pointer(path, PolicyFileError)
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("jdistill", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as e:
        raise PolicyFileError(f"{path}: truncated or no safetensors file ({e})") from e
    if not isinstance(header, dict) or "network" not in header:
        raise PolicyFileError(f"{path}: not written by jdistill (its header has no policy description)")
    if header.get("format") != FORMAT:
        raise PolicyFileError(f"{path}: policy format {header.get('format')}, this version reads {FORMAT}")
    tensors = {name: jax.device_put(x) for name, x in arrays.items()}
    try:
        policy, tensors = _network(header["network"], header["obs_size"], tensors)
        axes = np.array(header["teacher_ids"], np.int32).shape if "teacher_ids" in header else ()
        expected = _expected_tensors(policy, header["obs_size"], header["normalizer"] is not None, axes)
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as e:
        raise PolicyFileError(f"{path}: its header describes no policy ({e})") from e
    if axes and not many:
        raise PolicyFileError(f"{path}: holds {axes[0]} teachers, expected one policy")
    for name in sorted(expected.keys() | tensors.keys()):
        shapes = [list(group[name].shape) if name in group else "missing" for group in (tensors, expected)]
        if shapes[0] != shapes[1]:
            raise PolicyFileError(f"{path}: tensor '{name}' is {shapes[0]}, its header asks for {shapes[1]}")
    if header.get("checksum") not in (None, _checksum(arrays)):
        raise PolicyFileError(f"{path}: damaged, its tensors are not what was written")
    if broken := [name for name, x in arrays.items() if not np.isfinite(x).all()]:
        raise PolicyFileError(f"{path}: NaN or infinity in tensor '{broken[0]}'")
    tree = traverse_util.unflatten_dict(tensors, sep="/")
    normalizer = Normalizer(**tree["normalizer"]) if "normalizer" in tree else None
    return policy, PolicyState(params=tree["params"], normalizer=normalizer), header


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    total = 0
    for _, array in sorted(arrays.items()):
        total = zlib.crc32(np.ascontiguousarray(array).tobytes(), total)
    return total


def _expected_tensors(policy: Policy, obs_size: int, normalize: bool, axes: tuple[int, ...]) -> dict[str, Any]:
    """Shapes of all tensors by their names in the file; ``axes`` come before those of one policy."""
    state = jax.eval_shape(lambda: networks.init(policy, jax.random.key(0), obs_size, normalize))
    return _tensors(jax.tree.map(lambda x: jax.ShapeDtypeStruct((*axes, *x.shape), x.dtype), state))


def _tensors(state: PolicyState) -> dict[str, Any]:
    tensors = traverse_util.flatten_dict({"params": state.params}, sep="/")
    if state.normalizer is not None:
        tensors |= {f"normalizer/{k}": v for k, v in vars(state.normalizer).items()}
    return tensors


def network_fields(policy: Policy) -> dict[str, Any]:
    """What makes the network, as JSON takes it, without Linen's own ``parent`` and ``name``."""
    fields = {f.name: getattr(policy, f.name) for f in dataclasses.fields(Policy) if f.name not in ("parent", "name")}
    return {**fields, "cnns": [dataclasses.asdict(cnn) for cnn in policy.cnns]}


def _network(fields: Mapping[str, Any], obs_size: int, tensors: dict[str, Any]) -> tuple[Policy, dict[str, Any]]:
    """The network that a header's ``fields`` describe, and the tensors by their names in it.

    Some files have one encoder, of the last numbers, as ``encoder_dims`` and ``encoder_inputs``.
    """
    network = {name: _tuples(value) for name, value in fields.items()}
    if dims := network.pop("encoder_dims", ()):
        inputs = network.pop("encoder_inputs")
        network["encoders"] = ((obs_size - inputs, inputs, dims),)
        tensors = {re.sub(r"^params/encoder_(?=\d+/)", "params/encoder_0_", name): x for name, x in tensors.items()}
    network.pop("encoder_inputs", None)
    network["encoders"] = tuple(EncoderCfg(*encoder) for encoder in network.get("encoders", ()))
    network["cnns"] = tuple(CNNCfg(**cnn) for cnn in network.get("cnns", ()))
    return Policy(**network), tensors


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(x) for name, x in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
