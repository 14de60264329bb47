"""rsl_rl's checkpoint files: teachers out of those of every version, students into those of 5.x.

In rsl_rl 2.x the normaliser stands in an entry of its own, ``obs_norm_state_dict`` (the actor's) or
``privileged_obs_norm_state_dict`` (the teacher's). Activations are in no checkpoint; Isaac Lab keeps them in
``params/agent.yaml`` beside it, otherwise the caller says them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jdistill.interop.rsl_rl import ACTOR, MODEL, TEACHER, Names, Tensors, from_tensors, input_size, to_tensors
from jdistill.networks import ACTIVATIONS, Policy, PolicyState
from jdistill.policy_file import PolicyFileError

# -- in ------------------------------------------------------------------------------------------------------------


def load_teacher_checkpoint(
    file: Path,
    num_actions: int | None,
    activation: str | None = None,
    output_activation: str | None = None,
    old_output_activation: str = "identity",
) -> tuple[Policy, PolicyState, dict[str, Any]]:
    """Read the teacher out of an rsl_rl checkpoint, or the actor of a PPO run, which becomes one.

    Args:
        file: the checkpoint.
        num_actions: of the environment; a last layer twice as wide holds means and state-dependent deviations. None
            takes the whole layer for actions.
        activation: of the hidden layers, by rsl_rl's names; None takes what Isaac Lab recorded, else ``elu``.
        output_activation: what ends the network; None takes what Isaac Lab recorded, else rsl_rl's own ``identity``.
        old_output_activation: the same for checkpoints of rsl_rl 2.x and 3.x, where nothing was recorded.

    Raises:
        PolicyFileError: the file cannot be read, is no such checkpoint, or its tensors do not fit together.
    """
    checkpoint = read_torch(file)
    entry, names, tensors = _find_network(file, checkpoint)
    recorded = _recorded_settings(file, entry)
    activation = activation or recorded.get("activation") or "elu"
    default = "identity" if names is MODEL else old_output_activation
    output_activation = output_activation or recorded.get("output_activation") or default
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


def _find_network(file: Path, checkpoint: dict[str, Any]) -> tuple[str, Names, Tensors]:
    """The entry with the teacher or the actor, its names, its tensors."""
    for entry in ("teacher_state_dict", "actor_state_dict"):
        if entry in checkpoint:
            return entry, MODEL, _numpy(checkpoint[entry])
    if "model_state_dict" in checkpoint:
        tensors = _numpy(checkpoint["model_state_dict"])
        names = next((n for n in (TEACHER, ACTOR) if f"{n.mlp}.0.weight" in tensors), None)
        if names:
            normalizer = "privileged_obs_norm_state_dict" if names is TEACHER else "obs_norm_state_dict"
            separate = _numpy(checkpoint.get(normalizer) or {})
            return "model_state_dict", names, {**tensors, **{f"{names.normalizer}.{k}": v for k, v in separate.items()}}
    entries = ", ".join(sorted(map(str, checkpoint))[:6]) or "nothing"
    raise PolicyFileError(f"{file}: no teacher and no actor in it; its entries are {entries}")


def _numpy(state_dict: Any) -> dict[str, np.ndarray]:
    if not isinstance(state_dict, Mapping):
        return {}
    tensors = {str(name): tensor for name, tensor in state_dict.items() if hasattr(tensor, "detach")}
    # Half precisions have no counterpart in NumPy, or make no network of ours.
    return {k: (v.float() if v.is_floating_point() else v).detach().numpy() for k, v in tensors.items()}


SECTIONS = {"teacher_state_dict": "teacher", "actor_state_dict": "actor", "model_state_dict": "policy"}
"""Where ``agent.yaml`` describes the network of a checkpoint's entry."""


def _recorded_settings(file: Path, entry: str) -> dict[str, str]:
    """What Isaac Lab's ``params/agent.yaml`` beside the checkpoint says of activations; nothing if there is none."""
    record = file.absolute().parent / "params" / "agent.yaml"
    try:
        agent = yaml.load(record.read_text(), _Plain) if record.is_file() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise PolicyFileError(f"{record}: cannot be read ({_first_line(e)}); move it away to go without it") from e
    section = agent.get(SECTIONS[entry]) if isinstance(agent, dict) else None
    section = section if isinstance(section, dict) else {}
    found: dict[str, str] = {}
    if section.get("activation") in ACTIVATIONS:
        found["activation"] = section["activation"]
    distribution = section.get("distribution_cfg") or {}
    if str(distribution.get("class_name")).endswith("BetaDistribution"):
        if tuple(distribution.get("action_range", (-1, 1))) != (-1, 1):
            raise PolicyFileError(
                f"{file}: its Beta distribution spans {distribution['action_range']}, expected -1 to 1"
            )
        found["output_activation"] = "beta"
    return found


class _Plain(yaml.SafeLoader):
    """Reads what Isaac Lab dumps: Python's tuples and slices become plain lists and mappings, and nothing is run."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return node.value


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


# -- out -----------------------------------------------------------------------------------------------------------


def distillation_checkpoint(
    student: tuple[Policy, PolicyState],
    teacher: tuple[Policy, PolicyState],
    init_std: float,
    optimizer: str,
    learning_rate: float,
    iteration: int,
) -> dict[str, Any]:
    """What rsl_rl 5.x's ``DistillationRunner.load`` reads; the optimizer begins anew.

    ``init_std`` is the deviation of the actions' distribution; rsl_rl needs one of either model.
    """
    import torch

    optimizers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizers |= {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
    tensors = model_tensors(*student, init_std)
    buffers = [name for name in tensors if name.startswith(f"{MODEL.normalizer}.")]
    parameters = [torch.nn.Parameter(v) for name, v in tensors.items() if name not in buffers]
    return {
        "student_state_dict": tensors,
        "teacher_state_dict": model_tensors(*teacher, init_std),
        "optimizer_state_dict": optimizers[optimizer](parameters, lr=learning_rate).state_dict(),
        "iter": iteration,
        "infos": None,
    }


def actor_checkpoint(student: tuple[Policy, PolicyState], init_std: float, iteration: int) -> dict[str, Any]:
    """What rsl_rl 5.x's ``OnPolicyRunner.load(..., load_cfg={"actor": True})`` reads, to fine-tune by PPO."""
    return {"actor_state_dict": model_tensors(*student, init_std), "iter": iteration, "infos": None}


def model_tensors(policy: Policy, state: PolicyState, init_std: float) -> dict[str, Any]:
    """The torch tensors of a model built from :func:`jdistill.interop.rsl_rl.model_cfg`."""
    import torch

    tensors = {k: torch.from_numpy(v) for k, v in to_tensors(policy, state).items()}
    if policy.output_activation != "beta":
        tensors["distribution.std_param"] = torch.full((policy.num_actions,), init_std)
    return tensors
