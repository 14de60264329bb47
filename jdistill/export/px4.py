"""Policies for PX4's module ``mc_raptor``: the archive that it loads from the SD card, ``raptor/policy.tar``.

The module runs one network, RAPTOR's (arXiv 2509.11481): 22 -> 16 ReLU -> GRU 16 -> 4, with an initial state. The
archive is RLtools' (``rl_tools/persist/backends/tar``): a tar in which every tensor has a folder with ``meta``, lines
of ``key: value``, and ``data``, its numbers row by row in float32::

    actor/meta                                        checkpoint_name, type
    actor/layers/0/{weights,biases}/parameters/...    and actor/layers/0/meta: activation_function, type
    actor/layers/1/{weights_input,biases_input,weights_hidden,biases_hidden,initial_hidden_state}/parameters/...
    actor/layers/2/{weights,biases}/parameters/...
    example/input/..., example/output/...             with which the module tests what it has loaded

What the module observes is :data:`PARTS`, in the world frame turned by the setpoint's heading, a hundred times a
second; it limits position errors to 0.5 m and velocity errors to 1 m/s along each axis. A student's normalizer, the
order of its observation and commands from 0 to 1 become part of the first layer.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jdistill.errors import ExportError
from jdistill.export import verify
from jdistill.export.formats import Exported, Student
from jdistill.export.layers import DenseLayer, PolicyLayers, RecurrentLayer, build
from jdistill.export.raptor import MOTORS, RATE_HZ
from jdistill.export.verify import Step
from jdistill.files import replace_file

PARTS = {
    "position_error": 3,
    "rotation_matrix": 9,
    "velocity_error": 3,
    "body_rates": 3,
    "previous_motor_commands": 4,
}
"""What the module observes, in its order; motor commands are from -1 to 1."""
COMMANDS = "previous_motor_commands"
SIZES = (22, 16, 16, 4)
"""Numbers between the module's layers."""
EXAMPLE_STEPS, EXAMPLE_BATCH = 500, 2
"""Of the example; the module is compiled for these."""
GRU = {
    "weights_input": "weight_ih",
    "biases_input": "bias_ih",
    "weights_hidden": "weight_hh",
    "biases_hidden": "bias_hh",
}
"""RLtools' names of a GRU's parameters, which are torch's."""
LONGEST_META = 255
"""Bytes that the module has room for."""


def export(student: Student, out: Path) -> Exported:
    """``policy.tar``, the format ``px4`` of :mod:`jdistill.export.formats`.

    Raises:
        ExportError: the module cannot run the student.
    """
    order, scale, offset = adapter(student.header)
    layers, inverse = adapted(student.layers, order, scale, offset), np.argsort(order)

    def to_module(obs: np.ndarray) -> np.ndarray:
        """The student's observations as the module has them."""
        return np.ascontiguousarray(((obs - offset) / scale)[..., inverse], np.float32)

    file = out / "policy.tar"
    name = f"jdistill/{student.name}/{student.header.get('iteration', 0)}"
    seen = np.random.default_rng(0).normal(size=(EXAMPLE_STEPS, EXAMPLE_BATCH, SIZES[0]))
    if (moments := student.layers.normalizer) is not None:
        seen = seen * moments.std + moments.mean
    replace_file(file, archive(layers, name, to_module(seen)))
    written, _ = read(file)
    policy = verify.jax_policy(*build(written))

    def start() -> Step:
        act = policy()
        return lambda obs: act(to_module(obs))

    return Exported(file, start, notes={"checkpoint_name": name})


# -- what the module gives, and what the student takes -------------------------------------------------------------


def adapter(header: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each number of a student's observation stands in the module's, and what it is times that plus what.

    ``header`` is that of the student's policy file. Each array is (22,).

    Raises:
        ExportError: the module does not observe it, or its actions are not the module's.
    """
    seen = header.get("observation", {})
    parts = {part["name"]: part for group in seen.get("groups", []) for part in group.get("layout") or []}
    if {name: part["size"] for name, part in parts.items()} != PARTS or seen.get("size") != SIZES[0]:
        found = ", ".join(f"{name} ({part['size']})" for name, part in parts.items()) or "numbers that nobody named"
        raise ExportError(f"px4: mc_raptor observes {', '.join(PARTS)}; the student {found}")
    frames = {group.get("frame") for group in seen["groups"]}
    if not frames <= {"world", "start"}:
        raise ExportError(
            "px4: mc_raptor has position and velocity errors in the setpoint's frame, the student in the body's; "
            "train with env.frame=start"
        )
    action = header.get("action", {})
    if action.get("layout") != MOTORS or action.get("range") != [-1, 1] or header.get("control_rate_hz") != RATE_HZ:
        raise ExportError(f"px4: mc_raptor takes {', '.join(MOTORS)} in [-1, 1], {RATE_HZ} times a second")
    places = dict(zip(PARTS, np.cumsum([0, *PARTS.values()]), strict=False))
    order = np.concatenate([places[name] + np.arange(PARTS[name]) for name in parts])
    is_share = np.concatenate([np.full(PARTS[name], part["unit"] == "0..1") for name, part in parts.items()])
    return order, np.where(is_share, 0.5, 1.0), np.where(is_share, 0.5, 0.0)


def adapted(layers: PolicyLayers, order: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> PolicyLayers:
    """The same policy for the module's observation: its normalizer and :func:`adapter` are in the first layer.

    With z the module's observation and x = scale * z[order] + offset the student's::

        weight @ ((x - mean) / std) + bias = (weight / std * scale) @ z[order] + bias + weight / std @ (offset - mean)

    Raises:
        ExportError: the module does not run such a network.
    """
    widths = (layers.obs_size, *(layer.outputs for layer in layers.all))
    activations = [layer.activation for layer in layers.dense]
    is_raptors = layers.kind == "gru" and len(layers.pre) == len(layers.recurrent) == len(layers.mlp) == 1
    if not is_raptors or widths != SIZES or layers.encoders or layers.cnns:
        wanted = " -> ".join(map(str, SIZES))
        raise ExportError(f"px4: mc_raptor runs RAPTOR's network alone, {wanted} with a GRU in the middle")
    if activations != ["relu", "identity"]:
        raise ExportError(
            f"px4: mc_raptor's dense layers end in relu and identity, the student's in {' and '.join(activations)}"
        )
    first = layers.pre[0]
    weight, bias = first.weight.astype(np.float64), first.bias.astype(np.float64)
    if layers.normalizer is not None:
        weight = weight / layers.normalizer.scale
        offset = offset - layers.normalizer.mean
    bias = bias + weight @ offset
    columns = np.empty_like(weight)
    columns[:, order] = weight * scale
    return PolicyLayers(
        normalizer=None,
        pre=(DenseLayer(columns.astype(np.float32), bias.astype(np.float32), "relu"),),
        recurrent=layers.recurrent,
        mlp=layers.mlp,
        learned_initial_state=True,
    )


# -- the archive ---------------------------------------------------------------------------------------------------


def archive(layers: PolicyLayers, name: str, observations: np.ndarray) -> bytes:
    """The archive of a policy for the module's observation; ``name`` is what the module calls it.

    ``observations`` (500, 2, 22) and the actions along them are the example, with which the module tests what it loads.

    Raises:
        ExportError: the name is too long, or its example gives no numbers.
    """
    meta = f"checkpoint_name: {name}\ntype: sequential\n"
    if len(meta.encode()) > LONGEST_META or "\n" in name:
        raise ExportError("px4: --name: is too long for mc_raptor, or has a line break")
    entries: dict[str, bytes] = {"actor/meta": meta.encode()}
    for i, (kind, tensors) in enumerate(_tensors(layers)):
        for key, value in tensors.items():
            entries |= _tensor(f"actor/layers/{i}/{key}/parameters", value)
        entries[f"actor/layers/{i}/meta"] = kind.encode()
    entries |= _tensor("example/input", observations)
    entries |= _tensor("example/output", _actions(layers, observations))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, content in entries.items():
            about = tarfile.TarInfo(path)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return buffer.getvalue()


def _tensors(layers: PolicyLayers) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """What stands in a layer's ``meta``, and its tensors by RLtools' names."""
    (first,), (gru,), (last,) = layers.pre, layers.recurrent, layers.mlp
    yield "activation_function: RELU\ntype: dense\n", {"weights": first.weight, "biases": first.bias}
    tensors = {name: getattr(gru, ours) for name, ours in GRU.items()}
    yield "type: gru\n", {**tensors, "initial_hidden_state": gru.initial_state[0]}
    yield "activation_function: IDENTITY\ntype: dense\n", {"weights": last.weight, "biases": last.bias}


def _tensor(path: str, value: np.ndarray) -> dict[str, bytes]:
    shape = "".join(f"dim_{i}: {size}\n" for i, size in enumerate(value.shape))
    meta = f"type: tensor\ndtype: float32\nnum_dims: {value.ndim}\n{shape}"
    return {f"{path}/meta": meta.encode(), f"{path}/data": np.ascontiguousarray(value, "<f4").tobytes()}


def _actions(layers: PolicyLayers, observations: np.ndarray) -> np.ndarray:
    """Along each column of (T, B, 22): (T, B, 4)."""
    policy = verify.jax_policy(*build(layers))
    columns = []
    for column in np.moveaxis(observations, 1, 0):
        act = policy()
        columns.append(np.concatenate([act(obs[None]) for obs in column]))
    actions = np.stack(columns, axis=1)
    if not np.isfinite(actions).all():
        raise ExportError("px4: the student's actions are not finite on observations like those that it has seen")
    return actions


def read(file: Path) -> tuple[PolicyLayers, dict[str, np.ndarray]]:
    """The policy of an archive, and its example by ``input`` and ``output``.

    Raises:
        ExportError: it is none, or one of another network.
    """
    try:
        with tarfile.open(file) as tar:
            content = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
            entries = {name: opened.read() for name, opened in content.items() if opened is not None}
        stored = {name.removesuffix("/meta"): _meta(text) for name, text in entries.items() if name.endswith("/meta")}
        tensors = {
            name.removesuffix("/parameters"): _numbers(meta, entries[f"{name}/data"])
            for name, meta in stored.items()
            if meta["type"] == "tensor"
        }
        first, gru, last = (
            {k.rsplit("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"actor/layers/{i}/")} for i in range(3)
        )
        kinds = [stored[f"actor/layers/{i}"].get("activation_function", "GRU").lower() for i in range(3)]
        layers = PolicyLayers(
            normalizer=None,
            pre=(DenseLayer(first["weights"], first["biases"], kinds[0]),),
            recurrent=(
                RecurrentLayer(
                    kind=kinds[1],
                    **{ours: gru[name] for name, ours in GRU.items()},
                    initial_state=(gru["initial_hidden_state"],),
                ),
            ),
            mlp=(DenseLayer(last["weights"], last["biases"], kinds[2]),),
            learned_initial_state=True,
        )
    except (OSError, tarfile.TarError, KeyError, ValueError) as e:
        raise ExportError(f"{file}: no archive of a policy for mc_raptor ({e})") from e
    return layers, {name: tensors[f"example/{name}"] for name in ("input", "output") if f"example/{name}" in tensors}


def _meta(text: bytes) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.decode().splitlines())  # type: ignore[misc]


def _numbers(meta: Mapping[str, str], data: bytes) -> np.ndarray:
    shape = [int(meta[f"dim_{i}"]) for i in range(int(meta["num_dims"]))]
    return np.frombuffer(data, "<f4").reshape(shape)
