"""Students into rsl_rl 5.x: checkpoints that its runners load, and the configs of their models."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import ExportError
from jdistill.export import torchscript
from jdistill.export.formats import Exported, Student
from jdistill.export.layers import PolicyLayers, describe
from jdistill.export.policy_file import load_policy
from jdistill.export.rsl_rl import MODEL, from_tensors, model_cfg, to_tensors
from jdistill.export.rsl_rl_checkpoint import read_torch
from jdistill.export.verify import Start, jax_policy


def export(student: Student, out: Path) -> Exported:
    """``model_<iteration>.pt`` and, for rsl_rl's PPO, ``model_<iteration>_actor.pt``: the format ``rsl_rl``.

    Where rsl_rl is installed, its own models read both files, teacher included, and its student is what is compared.
    """
    ours, agent, iteration = (student.policy, student.state), student.agent, student.header.get("iteration", 0)
    policy, state, header = load_policy(student.teacher_file, many=True)
    if "teacher_ids" in header:
        many = f"its checkpoints hold one teacher, the run has {len(header['teacher_ids'])}"
        raise ExportError(f"rsl_rl: {many}; --format safetensors,onnx,jit take the student alone")
    teacher = policy, state
    settings = agent.student.init_noise_std, agent.algorithm.optimizer, agent.algorithm.learning_rate
    file = out / f"model_{iteration}.pt"
    actor_file = file.with_name(f"{file.stem}_actor.pt")
    checkpoint = distillation_checkpoint(ours, teacher, *settings, iteration)
    actor = actor_checkpoint(ours, student.actor_std, iteration)
    torchscript.write("rsl_rl", file, lambda path: torch.save(checkpoint, path))
    torchscript.write("rsl_rl", actor_file, lambda path: torch.save(actor, path))
    cfg = configs(student, teacher)
    start = _read_back(student, teacher, cfg, read_torch(file), read_torch(actor_file))
    return Exported(file, start, (actor_file,), {"actor_file": actor_file.name, **cfg})


def configs(student: Student, teacher: tuple[Policy, PolicyState]) -> dict[str, Any]:
    """Parts of rsl_rl 5.x configs: under ``distillation`` its runner goes on, under ``ppo`` its PPO fine-tunes."""
    noise, groups = student.agent.student.init_noise_std, student.agent.obs_groups
    return {
        "distillation": {
            "obs_groups": groups,
            "student": model_cfg(student.policy, student.state, noise),
            "teacher": model_cfg(*teacher, noise),
        },
        "ppo": {
            # PPO's critic may see what the teacher sees; it is the user's to design, and begins untrained.
            "obs_groups": {"actor": groups["student"], "critic": groups["teacher"]},
            "actor": model_cfg(student.policy, student.state, student.actor_std),
        },
    }


def _read_back(
    student: Student,
    teacher: tuple[Policy, PolicyState],
    cfg: dict[str, Any],
    checkpoint: dict[str, Any],
    actor: dict[str, Any],
) -> Start:
    """The student of the files just written, in rsl_rl's own model where it is installed."""
    tensors, policy = checkpoint["student_state_dict"], student.policy
    if importlib.util.find_spec("rsl_rl") is None:
        arrays = {k: v.numpy() for k, v in tensors.items()}
        ends = policy.activation, policy.output_activation
        return jax_policy(*from_tensors(arrays, MODEL, *ends, policy.num_actions, policy.cnns))
    from jdistill.export.rsl_rl_models import load_model

    def sizes(layers: PolicyLayers) -> tuple[int, dict[str, tuple[int, int, int]]]:
        return layers.obs_size, {cnn.cfg.group: cnn.cfg.image for cnn in layers.cnns}

    ours, cnns = sizes(student.layers), [cnn.cfg for cnn in student.layers.cnns]
    load_model(cfg["distillation"]["teacher"], checkpoint["teacher_state_dict"], *sizes(describe(*teacher)))
    load_model(cfg["ppo"]["actor"], actor["actor_state_dict"], *ours)
    return torchscript.torch_policy(load_model(cfg["distillation"]["student"], tensors, *ours), cnns)


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
    """The torch tensors of a model built from :func:`jdistill.export.rsl_rl.model_cfg`."""
    tensors = {k: torch.from_numpy(v) for k, v in to_tensors(policy, state).items()}
    if policy.output_activation != "beta":
        tensors["distribution.std_param"] = torch.full((policy.num_actions,), init_std)
    return tensors
