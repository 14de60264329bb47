"""Students to where they fly: ``python -m jdistill.export RUN --format rsl_rl,jit,onnx,safetensors``.

Every file is read back and flown beside the JAX policy for 100 steps of the run's own task before it counts as
written. A JSON beside the files says what goes in and what comes out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bridge.env import AutoReset
from bridge.tasks import TASKS, make_env
from jdistill import networks
from jdistill.config import ConfigError, RunCfg, compose, load_file
from jdistill.networks import Policy, PolicyState
from jdistill.policy_file import PolicyFileError, load_policy, save_policy

FORMATS = ("rsl_rl", "jit", "onnx", "safetensors")
STEPS = 100
TOLERANCE = 1e-5

Actor = Callable[[np.ndarray], np.ndarray]
"""An exported policy at the start of an episode: observation (1, D) to actions (1, A)."""


class ExportError(RuntimeError):
    """An export that cannot be made or does not fly like the original; the message is one line."""


def export_safetensors(policy: Policy, state: PolicyState, header: dict[str, Any], out: Path) -> tuple[Path, Actor]:
    """jdistill's own format."""
    file = out / "policy.safetensors"
    save_policy(file, policy, state, header)
    again, learnt, _ = load_policy(file)
    return file, jax_actor(again, learnt)


def export_jit(policy: Policy, state: PolicyState, header: dict[str, Any], out: Path) -> tuple[Path, Actor]:
    """TorchScript, as rsl_rl's ``export_policy_to_jit`` names it."""
    import torch

    from jdistill.interop.torchscript import to_torchscript

    file = out / "policy.pt"
    to_torchscript(policy, state).save(str(file))
    module = torch.jit.load(str(file))
    module.reset()

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(obs)).numpy()

    return file, act


def export_onnx(policy: Policy, state: PolicyState, header: dict[str, Any], out: Path) -> tuple[Path, Actor]:
    """ONNX, run by onnxruntime."""
    import onnx
    import onnxruntime

    from jdistill.interop.onnx import to_onnx

    file = out / "policy.onnx"
    onnx.save(to_onnx(policy, state, header["obs_size"]), str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    carry = initial_states(policy, state)

    def act(obs: np.ndarray) -> np.ndarray:
        action, *states = session.run(None, {"obs": obs, **{f"{k}_in": v for k, v in carry.items()}})
        carry.update(zip(carry, states, strict=True))
        return action

    return file, act


def export_rsl_rl(policy: Policy, state: PolicyState, header: dict[str, Any], out: Path) -> tuple[Path, Actor]:
    """A checkpoint with the student as ``student_state_dict``, the tensors of rsl_rl's MLPModel or RNNModel."""
    import torch

    from jdistill.interop.rsl_rl import MODEL, from_tensors, read_torch, to_tensors

    if policy.output_activation != "identity":
        raise ExportError(
            f"rsl_rl: its models have no output activation, this student ends in {policy.output_activation}; "
            "choose another --format, or train with agent.student.output_activation=identity"
        )
    try:
        tensors = {k: torch.from_numpy(v) for k, v in to_tensors(policy, state).items()}
    except ValueError as e:
        raise ExportError(f"rsl_rl: {e}; choose another --format, or train with agent.student.pre_dims=[]") from e
    iteration = header.get("iteration", 0)
    file = out / f"model_{iteration}.pt"
    torch.save({"student_state_dict": tensors, "iter": iteration, "infos": None}, file)
    again = {k: v.numpy() for k, v in read_torch(file)["student_state_dict"].items()}
    return file, jax_actor(*from_tensors(again, MODEL, policy.activation, policy.output_activation, policy.num_actions))


EXPORTERS = {"rsl_rl": export_rsl_rl, "jit": export_jit, "onnx": export_onnx, "safetensors": export_safetensors}


def jax_actor(policy: Policy, state: PolicyState) -> Actor:
    """The JAX policy itself."""
    carry = networks.initial_carry(policy, state, 1)
    step = jax.jit(lambda carry, obs: networks.act(policy, state, carry, obs))

    def act(obs: np.ndarray) -> np.ndarray:
        nonlocal carry
        carry, action = step(carry, obs)
        return np.asarray(action)

    return act


def initial_states(policy: Policy, state: PolicyState) -> dict[str, np.ndarray]:
    """The recurrent state at an episode's start: ``h`` and, for an LSTM, ``c``, each (layers, 1, H)."""
    carry = networks.initial_carry(policy, state, 1)
    return {
        name: np.stack([np.asarray(layer[i]) for layer in carry])
        for i, name in enumerate("hc")
        if carry and i < len(carry[0])
    }


def largest_difference(env: AutoReset, groups: list[str], original: Actor, exported: Actor) -> float:
    """Fly ``STEPS`` steps with the original's actions; the largest difference of the two policies' actions."""
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state, worst = reset(jax.random.key(0)), 0.0
    for _ in range(STEPS):
        obs = np.concatenate([np.asarray(state.obs[g]) for g in groups], axis=-1)
        action = original(obs)
        worst = max(worst, float(np.abs(action - exported(obs)).max()))
        state = step(state, action)
        if bool(state.done.any()):  # The policies' states belong to one episode.
            break
    return worst


def describe(cfg: RunCfg, env: AutoReset, policy: Policy, state: PolicyState, header: dict[str, Any]) -> dict[str, Any]:
    """The sidecar: what goes in, what comes out, what made it."""
    groups = cfg.agent.obs_groups["student"]
    packages = {}
    for name in ("jdistill", "jax", "flax", "torch", "onnx"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "task": cfg.task,
        "iteration": header.get("iteration"),
        "observation": {"groups": [{"name": g, "size": env.obs_sizes[g]} for g in groups], "size": header["obs_size"]},
        "action": {"size": policy.num_actions, **(header.get("action") or {})},
        "control_rate_hz": 1.0 / env.step_dt,
        "initial_state": {name: value.tolist() for name, value in initial_states(policy, state).items()},
        "network": header["network"],
        "versions": packages,
    }


def load_run(run: Path, best: bool) -> tuple[RunCfg, Policy, PolicyState, dict[str, Any]]:
    """A run folder's config and its newest, or best, student."""
    if not (run / "config.yaml").is_file():
        raise ExportError(f"{run}: no run folder (it has no config.yaml)")
    settings = load_file(run / "config.yaml")
    if settings.get("task") not in TASKS:
        raise ExportError(f"{run}: its task {settings.get('task')} is unknown here")
    task = TASKS[settings["task"]]()
    cfg = compose(task.name, task.cfg_cls, [settings], ["env.num_envs=1"])
    return cfg, *load_policy(run / ("best_student.safetensors" if best else "student.safetensors"))


def export(run: Path, formats: list[str], out: Path, best: bool = False) -> None:
    """Write and check every format; prints one line each.

    Raises:
        ExportError: a package is missing, the network has no such format, or a file does not fly like the original.
    """
    cfg, policy, state, header = load_run(run, best)
    env = make_env(TASKS[cfg.task](), cfg.env)
    out.mkdir(parents=True, exist_ok=True)
    description = describe(cfg, env, policy, state, header)
    files = {}
    for name in formats:
        try:
            file, actor = EXPORTERS[name](policy, state, header, out)
        except ImportError as e:
            raise ExportError(f"{name}: {e.name} is not installed; use 'uv run --extra torch --extra onnx ...'") from e
        difference = largest_difference(env, cfg.agent.obs_groups["student"], jax_actor(policy, state), actor)
        if not difference <= TOLERANCE:
            file.unlink()
            raise ExportError(f"{file.name}: its actions differ by {difference:.1e} from the original's; not written")
        files[name] = {"file": file.name, "largest_difference": difference}
        print(f"{file}: {STEPS} steps beside the original, largest difference {difference:.1e}")
    (out / "policy.json").write_text(json.dumps({**description, "files": files}, indent=1) + "\n")


def main(argv: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m jdistill.export", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--format", default="safetensors", help=f"any of {', '.join(FORMATS)}, separated by commas")
    parser.add_argument("--out", type=Path, help="folder for the files (default: RUN/exported)")
    parser.add_argument("--best", action="store_true", help="the best student instead of the newest")
    args = parser.parse_args(argv)
    formats = args.format.split(",")
    try:
        if unknown := [f for f in formats if f not in FORMATS]:
            raise ExportError(f"--format {unknown[0]}: expected some of {', '.join(FORMATS)}")
        export(args.run, formats, args.out or args.run / "exported", args.best)
    except (ExportError, ConfigError, PolicyFileError, OSError) as e:
        print(f"jdistill.export: error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
