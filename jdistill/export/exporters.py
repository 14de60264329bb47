"""Students to where they fly: ``jdistill export RUN --format rsl_rl,jit,onnx,safetensors``.

Every file is read back and flown beside the JAX policy for 100 steps of the run's own task before it counts as
written (where that task needs a simulator of its own, over 100 observations like those the student has seen). A JSON
beside the files says what goes in and what comes out.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bridge.env import TrainingEnv
from jdistill.core import networks, observations
from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import ExportError
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.export.rsl_rl import model_cfg
from jdistill.run.compose import RunCfg
from jdistill.run.provenance import versions
from jdistill.run.saved_run import load_student

FORMATS = ("rsl_rl", "jit", "onnx", "safetensors")
STEPS = 100
TOLERANCE = 1e-5

Actor = Callable[[np.ndarray], np.ndarray]
"""A policy under way in an episode: observation (1, D) to actions (1, A)."""
Start = Callable[[], Actor]
"""An exported policy, read back; a call begins an episode."""


class Student(NamedTuple):
    """What is exported, with what the formats need to know of its run."""

    policy: Policy
    state: PolicyState
    header: dict[str, Any]
    """Of its policy file."""
    cfg: RunCfg
    run: Path
    actor_std: float
    """Deviation with which rsl_rl's PPO begins to explore around the student."""


def export_safetensors(student: Student, out: Path) -> tuple[Path, Start]:
    """jdistill's own format."""
    file = out / "policy.safetensors"
    save_policy(file, student.policy, student.state, student.header)
    policy, state, _ = load_policy(file)
    return file, jax_policy(policy, state)


def export_jit(student: Student, out: Path) -> tuple[Path, Start]:
    """TorchScript, as rsl_rl's ``export_policy_to_jit`` names it."""
    import torch

    from jdistill.export.torchscript import to_torchscript

    file = out / "policy.pt"
    to_torchscript(student.policy, student.state).save(str(file))
    return file, torch_policy(torch.jit.load(str(file)))


def export_onnx(student: Student, out: Path) -> tuple[Path, Start]:
    """ONNX, run by onnxruntime."""
    import onnx
    import onnxruntime

    from jdistill.export.onnx import to_onnx

    file = out / "policy.onnx"
    onnx.save(to_onnx(student.policy, student.state, student.header["obs_size"]), str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def start() -> Actor:
        carry = initial_states(student.policy, student.state)

        def act(obs: np.ndarray) -> np.ndarray:
            action, *states = session.run(None, {"obs": obs, **{f"{k}_in": v for k, v in carry.items()}})
            carry.update(zip(carry, states, strict=True))
            return action

        return act

    return file, start


def export_rsl_rl(student: Student, out: Path) -> tuple[Path, Start]:
    """rsl_rl's checkpoint ``model_<iteration>.pt``, and ``model_<iteration>_actor.pt`` for its PPO.

    Where rsl_rl is installed, its own models read both files, teacher included, and its student is what flies.
    """
    import torch

    from jdistill.export.rsl_rl import MODEL, from_tensors
    from jdistill.export.rsl_rl_checkpoint import actor_checkpoint, distillation_checkpoint, read_torch

    policy, agent, iteration = student.policy, student.cfg.agent, student.header.get("iteration", 0)
    teacher = load_policy(student.run / "teacher.safetensors")[:2]
    settings = agent.student.init_noise_std, agent.algorithm.optimizer, agent.algorithm.learning_rate
    file = out / f"model_{iteration}.pt"
    torch.save(distillation_checkpoint((policy, student.state), teacher, *settings, iteration), file)
    torch.save(actor_checkpoint((policy, student.state), student.actor_std, iteration), actor_file(file))
    again, actor = read_torch(file), read_torch(actor_file(file))
    if importlib.util.find_spec("rsl_rl") is not None:
        from jdistill.export.rsl_rl_models import load_model

        cfg = rsl_rl_cfg(student)
        load_model(cfg["distillation"]["teacher"], again["teacher_state_dict"])
        load_model(cfg["ppo"]["actor"], actor["actor_state_dict"])
        return file, torch_policy(load_model(cfg["distillation"]["student"], again["student_state_dict"]))
    tensors = {k: v.numpy() for k, v in again["student_state_dict"].items()}
    return file, jax_policy(
        *from_tensors(tensors, MODEL, policy.activation, policy.output_activation, policy.num_actions)
    )


def actor_file(file: Path) -> Path:
    """Where the actor for rsl_rl's PPO stands, beside the checkpoint ``file``."""
    return file.with_name(f"{file.stem}_actor.pt")


EXPORTERS = {"rsl_rl": export_rsl_rl, "jit": export_jit, "onnx": export_onnx, "safetensors": export_safetensors}


def torch_policy(module: Any) -> Start:
    """A torch module with ``reset()``."""
    import torch

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.tensor(obs)).numpy()

    def start() -> Actor:
        module.reset()
        return act

    return start


def jax_policy(policy: Policy, state: PolicyState) -> Start:
    """The JAX policy itself."""
    step = jax.jit(lambda carry, obs: networks.act(policy, state, carry, obs))

    def start() -> Actor:
        carry = networks.initial_carry(policy, state, 1)

        def act(obs: np.ndarray) -> np.ndarray:
            nonlocal carry
            carry, action = step(carry, obs)
            return np.asarray(action)

        return act

    return start


def initial_states(policy: Policy, state: PolicyState) -> dict[str, np.ndarray]:
    """The recurrent state at an episode's start: ``h`` and, for an LSTM, ``c``, each (layers, 1, H)."""
    carry = networks.initial_carry(policy, state, 1)
    return {
        name: np.stack([np.asarray(layer[i]) for layer in carry])
        for i, name in enumerate("hc")
        if carry and i < len(carry[0])
    }


def flown_difference(env: TrainingEnv, groups: list[str], original: Start, exported: Start) -> float:
    """Fly ``STEPS`` steps with the original's actions; the largest difference of the two policies' actions.

    Where an episode ends, both begin anew with the next one.
    """
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state, worst = reset(jax.random.key(0)), 0.0
    ours, theirs = original(), exported()
    for _ in range(STEPS):
        obs = np.asarray(observations.select(state.obs, groups))
        action = ours(obs)
        worst = max(worst, float(np.abs(action - theirs(obs)).max()))
        state = step(state, action)
        if bool(state.done.any()):
            ours, theirs = original(), exported()
    return worst


def drawn_difference(student: Student, original: Start, exported: Start) -> float:
    """The same over ``STEPS`` observations drawn from the moments that the student's normaliser has seen."""
    draws = np.random.default_rng(0).normal(size=(STEPS, 1, student.header["obs_size"])).astype(np.float32)
    if (normalizer := student.state.normalizer) is not None:
        draws = draws * np.sqrt(np.asarray(normalizer.var)) + np.asarray(normalizer.mean)
    ours, theirs = original(), exported()
    return max(float(np.abs(ours(obs) - theirs(obs)).max()) for obs in draws.astype(np.float32))


def describe(student: Student) -> dict[str, Any]:
    """The sidecar: what goes in, what comes out, what made it."""
    policy, state, header = student.policy, student.state, student.header
    return {
        "task": student.cfg.task,
        "iteration": header.get("iteration"),
        **{name: header[name] for name in ("observation", "action", "control_rate_hz") if name in header},
        "initial_state": {name: value.tolist() for name, value in initial_states(policy, state).items()},
        "network": header["network"],
        "versions": versions("jdistill", "jax", "flax", "torch", "onnx"),
    }


def rsl_rl_cfg(student: Student) -> dict[str, Any]:
    """Parts of rsl_rl 5.x configs: under ``distillation`` its runner goes on, under ``ppo`` its PPO fine-tunes."""
    agent = student.cfg.agent
    teacher, teacher_state, _ = load_policy(student.run / "teacher.safetensors")
    noise = agent.student.init_noise_std
    groups = agent.obs_groups
    return {
        "distillation": {
            "obs_groups": groups,
            "student": model_cfg(student.policy, student.state, noise),
            "teacher": model_cfg(teacher, teacher_state, noise),
        },
        "ppo": {
            # PPO's critic may see what the teacher sees; it is the user's to design, and begins untrained.
            "obs_groups": {"actor": groups["student"], "critic": groups["teacher"]},
            "actor": model_cfg(student.policy, student.state, student.actor_std),
        },
    }


def export(
    run: Path,
    cfg: RunCfg,
    env: TrainingEnv | None,
    formats: list[str],
    out: Path,
    best: bool = False,
    actor_std: float = 0.1,
) -> None:
    """Write and check every format; prints one line each.

    Args:
        run: the run folder.
        cfg: its settings.
        env: one environment of its task; None where that would have to be started first.
        formats: some of ``FORMATS``.
        out: folder for the files.
        best: the best student instead of the newest.
        actor_std: deviation with which rsl_rl's PPO begins to explore around the student.

    Raises:
        ExportError: a package is missing, the network has no such format, or a file does not fly like the original.
    """
    policy, state, header = load_student(run, best)
    student = Student(policy, state, header, cfg, run, actor_std)
    out.mkdir(parents=True, exist_ok=True)
    what = f"{STEPS} steps" if env else f"{STEPS} drawn observations (its simulator is not the embedded one)"
    description = describe(student)
    files: dict[str, Any] = {}
    for name in formats:
        try:
            file, exported = EXPORTERS[name](student, out)
        except ImportError as e:
            raise ExportError(f"{name}: {e.name} is not installed; use 'uv run --extra torch --extra onnx ...'") from e
        except RuntimeError as e:  # What torch raises for a file that it cannot write.
            raise ExportError(f"{name}: cannot be written to {out} ({str(e).splitlines()[0][:120]})") from e
        original = jax_policy(policy, state)
        if env is not None:
            difference = flown_difference(env, cfg.agent.obs_groups["student"], original, exported)
        else:
            difference = drawn_difference(student, original, exported)
        if not difference <= TOLERANCE:
            for written in (file, actor_file(file)):
                written.unlink(missing_ok=True)
            raise ExportError(f"{file.name}: its actions differ by {difference:.1e} from the original's; not written")
        files[name] = {"file": file.name, "largest_difference": difference}
        if name == "rsl_rl":
            files[name] |= {"actor_file": actor_file(file).name, **rsl_rl_cfg(student)}
        print(f"{file}: {what} beside the original, largest difference {difference:.1e}")
    (out / "policy.json").write_text(json.dumps({**description, "files": files}, indent=1) + "\n")
