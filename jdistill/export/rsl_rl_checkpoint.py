"""Teachers out of rsl_rl's checkpoint files, of every version.

In rsl_rl 2.x the normalizer stands in an entry of its own, ``obs_norm_state_dict`` (the actor's) or
``privileged_obs_norm_state_dict`` (the teacher's). Activations are in no checkpoint. Training scripts record them in
``params/agent.yaml`` beside it (see :class:`Recorded`), otherwise the caller says them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from bridge.env import ObservationSpec
from jdistill.core.activations import ACTIVATIONS
from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import PolicyFileError
from jdistill.export import point_control
from jdistill.export.layers import build
from jdistill.export.other_trainers import as_rsl_rl, encoder_policy, plain_names
from jdistill.export.rsl_rl import ACTOR, MODEL, STUDENT, TEACHER, Names, Tensors, layers_from_tensors
from jdistill.export.rsl_rl_cnn import recorded_cnns
from jdistill.files import refuse_pointer


def load_teacher_checkpoint(
    file: Path,
    num_actions: int | None,
    activation: str | None = None,
    output_activation: str | None = None,
    old_output_activation: str | None = None,
    role: str = "teacher",
    images: Mapping[str, ObservationSpec] | None = None,
) -> tuple[Policy, PolicyState, dict[str, Any]]:
    """Read the teacher out of an rsl_rl checkpoint, or the actor of a PPO run, which becomes one.

    Args:
        file: the checkpoint.
        num_actions: of the environment; a last layer twice as wide holds means and state-dependent deviations. None
            takes the whole layer for actions, unless such deviations are recorded.
        activation: of the hidden layers, by rsl_rl's names; None takes what is recorded, else ``elu``.
        output_activation: what ends the network; None takes what is recorded, else rsl_rl's own ``identity``.
        old_output_activation: the same for checkpoints of rsl_rl 2.x and 3.x, where nothing was recorded; None
            refuses those, because forks end their actors in this or that.
        role: ``teacher``, or ``student`` for that of a distillation.
        images: the environment's that the policy may see, by group; a network with CNNs cannot be read without.

    Raises:
        PolicyFileError: the file cannot be read, is no such checkpoint, or its tensors do not fit together.
    """
    checkpoint = read_torch(file)
    found = _find_student(file, checkpoint) if role == "student" else _find_network(file, checkpoint)
    entry, names, tensors = found[:3]
    recorded = _recorded_settings(file, entry)
    if found.is_certain:
        activation, output_activation = found.activation, found.output_activation
    output_activation = output_activation or recorded.output_activation or found.output_activation
    if names is not MODEL and output_activation is None:
        if old_output_activation is None:
            raise PolicyFileError(
                f"{file}: checkpoints of rsl_rl 2.x and 3.x do not say what ends the actor; say it with "
                "--output_activation identity (rsl_rl's own) or tanh (forks for point control)"
            )
        output_activation = old_output_activation
    if recorded.obs_normalization and not any(name.startswith(f"{names.normalizer}.") for name in tensors):
        missing = f"{names.normalizer}._mean"
        raise PolicyFileError(f"{file}: no tensor '{missing}', though params/agent.yaml tells of a normalizer")
    if num_actions is None and recorded.state_dependent_std:
        num_actions = _outputs(tensors, names) // 2
    activation = activation or recorded.activation or found.activation
    try:
        cnns = recorded_cnns(recorded.cnn_cfg, tensors, images or {})
        layers = layers_from_tensors(tensors, names, activation, output_activation, num_actions, cnns)
    except PolicyFileError as e:
        raise PolicyFileError(f"{file}: {e}") from e
    return *build(layers), {"obs_size": layers.obs_size, "converted_from": file.name}


def is_torch_file(file: Path) -> bool:
    """Whether ``file`` is for torch to read, by its name or its first bytes."""
    if file.suffix in (".pt", ".pth"):
        return True
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError:
        return False
    # A safetensors file begins with the length of its header, whose lowest bytes may be any, and "{".
    return start[:2] in TORCH_MAGIC and start[4:] != b"\0\0\0\0{"


TORCH_MAGIC = (b"PK", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))
"""How torch's files begin: a zip archive, or a pickle."""


def read_torch(file: Path) -> dict[str, Any]:
    """A torch file's content, read without running anything that is in it."""
    if not file.is_file():
        raise PolicyFileError(f"{file}: is a folder, expected a file" if file.is_dir() else f"{file}: no such file")
    refuse_pointer(file, PolicyFileError)
    try:
        import torch
    except ImportError as e:
        raise PolicyFileError(f"{file}: reading it takes torch; use 'uv run --extra torch ...'") from e
    import pickle

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What is odd about a file is said below, in one line.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as e:
        raise PolicyFileError(f"{file}: {e.strerror}") from e
    except pickle.UnpicklingError as e:
        if file.read_bytes()[:2] not in TORCH_MAGIC:
            raise PolicyFileError(f"{file}: no torch file") from e
        named = re.search(r"GLOBAL (\S+)", str(e))
        what = f"more than tensors ({named[1]})" if named else "more than tensors"
        raise PolicyFileError(f"{file}: refused, because it holds {what} and reading it could run code") from e
    except Exception as e:  # torch raises a dozen kinds for a damaged file.
        if "TorchScript" in str(e):
            raise PolicyFileError(f"{file}: an exported policy (TorchScript), expected a checkpoint") from e
        raise PolicyFileError(f"{file}: truncated or no torch file") from e
    if not isinstance(content, dict):
        raise PolicyFileError(f"{file}: no rsl_rl checkpoint (it holds a {type(content).__name__})")
    return plain_names(content)


class Found(NamedTuple):
    """A network in a checkpoint."""

    entry: str
    """Where it stands."""
    names: Names
    tensors: Tensors
    activation: str = "elu"
    """What its kind of checkpoint goes without saying."""
    output_activation: str | None = None
    is_certain: bool = False
    """Whether all such networks have these two, whatever anyone says."""


def _find_network(file: Path, checkpoint: dict[str, Any]) -> Found:
    """The teacher or the actor."""
    for entry in ("teacher_state_dict", "actor_state_dict"):
        if entry in checkpoint:
            return Found(entry, MODEL, _numpy(file, entry, checkpoint[entry]))
    if bare := point_control.bare_student(checkpoint):
        return _bare(file, bare)
    try:
        other = as_rsl_rl(checkpoint)
    except PolicyFileError as e:
        raise PolicyFileError(f"{file}: {e}") from e
    if other:
        return Found(other[0], MODEL, _numpy(file, *other))
    inside = checkpoint
    model = checkpoint.get("model_state_dict", checkpoint)
    try:
        encoded = encoder_policy(model) if isinstance(model, Mapping) else None
    except PolicyFileError as e:
        raise PolicyFileError(f"{file}: {e}") from e
    if encoded:
        return Found("RMA", MODEL, _numpy(file, "RMA", encoded))
    if "model_state_dict" in checkpoint:
        inside = point_control.unwrapped(_numpy(file, "model_state_dict", checkpoint["model_state_dict"]))
        names = next((n for n in (TEACHER, ACTOR) if any(name.startswith(f"{n.mlp}.") for name in inside)), None)
        if names:
            entry = "privileged_obs_norm_state_dict" if names is TEACHER else "obs_norm_state_dict"
            separate = _normalizer(file, checkpoint, entry, names)
            # A custom student's tensors may stand beside a teacher's, whose class ends it as it ends the student.
            custom = [k for k in inside if names is TEACHER and point_control.OWN.fullmatch(k)]
            own = {k: v for k, v in inside.items() if k not in custom}
            end = point_control.OUTPUT_ACTIVATION if custom else None
            return Found("model_state_dict", names, {**own, **separate}, output_activation=end)
    entries = ", ".join(sorted(map(str, inside))[:6]) or "nothing"
    raise PolicyFileError(f"{file}: no teacher and no actor in it; its entries are {entries}")


def _find_student(file: Path, checkpoint: dict[str, Any]) -> Found:
    """The student of a distillation."""
    if (entry := "student_state_dict") in checkpoint:
        return Found(entry, MODEL, _numpy(file, entry, checkpoint[entry]))
    if bare := point_control.bare_student(checkpoint):
        return _bare(file, bare)
    inside = _numpy(file, "model_state_dict", checkpoint.get("model_state_dict") or {})
    if not any(name.startswith(f"{STUDENT.mlp}.") for name in inside):
        raise PolicyFileError(f"{file}: no student in it, it is no checkpoint of a distillation")
    try:
        custom = point_control.custom_student(inside)
    except PolicyFileError as e:
        raise PolicyFileError(f"{file}: {e}") from e
    names = STUDENT if custom is None else MODEL
    separate = _normalizer(file, checkpoint, "obs_norm_state_dict", names)
    if custom is None:
        return Found("model_state_dict", names, {**inside, **separate})
    ends = point_control.ACTIVATION, point_control.OUTPUT_ACTIVATION
    return Found("model_state_dict", names, {**custom, **separate}, *ends)


def _bare(file: Path, tensors: dict[str, Any]) -> Found:
    """A student without a checkpoint around it."""
    return Found("state_dict", MODEL, _numpy(file, "state_dict", tensors), "tanh", "identity", True)


def _normalizer(file: Path, checkpoint: dict[str, Any], entry: str, names: Names) -> dict[str, np.ndarray]:
    """The tensors of a normalizer that stands in an entry of its own."""
    tensors = _numpy(file, entry, checkpoint.get(entry) or {})
    return {f"{names.normalizer}.{k}": v for k, v in tensors.items()}


def _numpy(file: Path, entry: str, state_dict: Any) -> dict[str, np.ndarray]:
    if not isinstance(state_dict, Mapping):
        raise PolicyFileError(f"{file}: entry '{entry}' is a {type(state_dict).__name__}, expected tensors by name")
    arrays = {}
    for name, tensor in state_dict.items():
        if not hasattr(tensor, "detach"):
            raise PolicyFileError(f"{file}: '{name}' is a {type(tensor).__name__}, expected a tensor")
        is_count = str(name).endswith(("count", "num_batches_tracked"))
        if tensor.is_meta or tensor.is_sparse or not (tensor.is_floating_point() or is_count):
            raise PolicyFileError(f"{file}: tensor '{name}' is {tensor.layout} {tensor.dtype}, expected dense floats")
        # Half precisions have no counterpart in NumPy.
        arrays[str(name)] = (tensor if is_count else tensor.float()).detach().numpy()
    return arrays


def _outputs(tensors: Tensors, names: Names) -> int:
    """Width of the last layer."""
    biases = [(int(m[1]), v) for k, v in tensors.items() if (m := re.fullmatch(rf"{names.mlp}\.(\d+)\.bias", k))]
    return max(biases, key=lambda pair: pair[0])[1].shape[0] if biases else 0


class Recorded(NamedTuple):
    """What ``params/agent.yaml`` beside a checkpoint says of its network."""

    activation: str | None = None
    output_activation: str | None = None
    """Known only where a distribution is recorded."""
    state_dependent_std: bool = False
    obs_normalization: bool = False
    cnn_cfg: Mapping[str, Any] | None = None


SECTIONS = {
    "teacher_state_dict": ("teacher", "policy"),
    "student_state_dict": ("student", "policy"),
    "actor_state_dict": ("actor", "policy"),
    "model_state_dict": ("policy",),
}
"""Where ``agent.yaml`` describes the network of a checkpoint's entry, the newest name first."""


def _recorded_settings(file: Path, entry: str) -> Recorded:
    """What is recorded of the network in ``entry``; nothing if there is no record."""
    record = file.absolute().parent / "params" / "agent.yaml"
    try:
        agent = yaml.load(record.read_text(), _Plain) if record.is_file() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise PolicyFileError(f"{record}: cannot be read; move it away to go without it") from e
    agent = agent if isinstance(agent, dict) else {}
    section: dict[str, Any] = next(
        (agent[name] for name in SECTIONS.get(entry, ()) if isinstance(agent.get(name), dict)), {}
    )
    activation = section.get("activation")
    if activation is not None and str(activation).lower() not in ACTIVATIONS:
        raise PolicyFileError(f"{record}: activation {activation}, expected one of {', '.join(ACTIVATIONS)}")
    distribution = section.get("distribution_cfg")
    distribution = distribution if isinstance(distribution, dict) else {}
    kind = str(distribution.get("class_name", ""))
    span = distribution.get("action_range") or (-1, 1)
    if kind.endswith("BetaDistribution") and list(span) != [-1, 1]:
        raise PolicyFileError(f"{file}: its Beta distribution spans {list(span)}, expected -1 to 1")
    ours = "beta" if kind.endswith("BetaDistribution") else "identity"
    return Recorded(
        activation=None if activation is None else str(activation).lower(),
        output_activation=ours if kind else None,
        state_dependent_std=kind.endswith("HeteroscedasticGaussianDistribution"),
        obs_normalization=section.get("obs_normalization") is True,
        cnn_cfg=section["cnn_cfg"] if isinstance(section.get("cnn_cfg"), dict) else None,
    )


class _Plain(yaml.SafeLoader):
    """Reads a dump of Python objects and runs nothing: Python's tuples and slices become plain lists and mappings."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return node.value


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", _plain)
