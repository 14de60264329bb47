"""A stock task of Isaac Lab, start to finish: rsl_rl's PPO trains a teacher, we distill a student that sees less.

    python -m benchmarks.cartpole --out docs/cartpole.json

``Isaac-Cartpole-Direct`` on Newton with the USD file that the ``newton`` package ships (``--usd`` takes another), the
ground plane off. The teacher sees positions and velocities; the student sees positions alone and has to remember. Each
is evaluated on the same held-out episodes at the end. About 6 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.crazyflie import ROOT
from jdistill.run.provenance import machine

TASK = "Isaac-Cartpole-Direct"
PARTS = {"teacher": ["policy"], "student": ["policy[:2]"]}
"""The task's order is cart position, pole angle, then their velocities."""


@dataclass
class Size:
    """How much is trained; a test takes less."""

    num_envs: int = 256
    ppo_iterations: int = 150
    iterations: int = 40
    num_steps: int = 64


def cartpole_usd(folder: Path) -> Path:
    """A copy of the cartpole that ``newton`` ships, in which the default prim is called as the prim is."""
    import newton.examples

    text = Path(newton.examples.get_asset("cartpole_single_pendulum.usda")).read_text()
    file = folder / "cartpole.usda"
    file.write_text(text.replace('defaultPrim = "cartPole"', 'defaultPrim = "cartpole"'))
    return file


def overrides(usd: Path) -> list[str]:
    """Settings without which the task wants files from NVIDIA's servers."""
    return [f"env.scene.cartpole.spawn.usd_path={usd}", "env.scene.ground=None"]


def train_teacher(usd: Path, out: Path, size: Size) -> Path:
    """rsl_rl's PPO with the task's own settings; returns its last checkpoint."""
    from isaaclab_rl.rsl_rl import RslRlVecEnvWrapper, handle_deprecated_rsl_rl_cfg
    from isaaclab_tasks.utils import load_cfg_from_registry
    from rsl_rl.runners import OnPolicyRunner

    from bridge.isaaclab.agent import RSL_RL

    cfg = handle_deprecated_rsl_rl_cfg(load_cfg_from_registry(TASK, "rsl_rl_cfg_entry_point"), RSL_RL)
    with opened(usd, size.num_envs) as env:
        wrapped = RslRlVecEnvWrapper(env.env, clip_actions=cfg.clip_actions)
        runner = OnPolicyRunner(wrapped, cfg.to_dict(), str(out), "cpu")
        with contextlib.redirect_stdout(io.StringIO()):
            runner.learn(size.ppo_iterations, init_at_random_ep_len=True)
    return out / f"model_{size.ppo_iterations - 1}.pt"


def opened(usd: Path, num_envs: int) -> Any:
    """The task on the CPU, for a ``with`` statement."""
    from bridge.isaaclab.cfg import IsaacLabCfg
    from bridge.isaaclab.launch import open_env, parse_flags

    launch, _ = parse_flags([], "cpu")
    return open_env(TASK, IsaacLabCfg(num_envs, overrides(usd)), launch, 1, None, "callback", ".")


def distill(usd: Path, teacher: Path, logdir: Path, size: Size) -> Path:
    """The command that a user types; returns the run folder."""
    arguments = [
        *("--task", TASK, "--num_envs", str(size.num_envs), "--checkpoint", str(teacher), "--device", "cpu"),
        *("--phase1", str(size.iterations // 3), "--max_iterations", str(size.iterations), "--logger", "none"),
        *("--logdir", str(logdir), f"agent.num_steps_per_env={size.num_steps}", "agent.student.pre_dims=[]"),
        *("agent.student.rnn_hidden_dim=32", "agent.student.hidden_dims=[32]", "agent.algorithm.learning_rate=3e-3"),
        *("agent.algorithm.learning_rate_half_life=12", "agent.algorithm.num_learning_epochs=8"),
        f"agent.obs_groups.student={PARTS['student'][0]}",
        *overrides(usd),
    ]
    command = [sys.executable, str(ROOT / "train_jax.py"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"training failed with status {done.returncode}")
    (run,) = logdir.glob("*/*")
    return run


def measure(usd: Path, run: Path, num_envs: int) -> dict[str, Any]:
    """Return and length of both policies over one held-out episode in every environment."""
    from jdistill.evaluation.evaluate import evaluate
    from jdistill.export.policy_file import load_policy

    numbers: dict[str, Any] = {}
    with opened(usd, num_envs) as env:
        for name, entries in PARTS.items():
            policy, policy_state, _ = load_policy(run / f"{name}.safetensors")
            numbers[name] = evaluate(env, policy, policy_state, entries, seed=20_000)
    numbers["recovered"] = numbers["student"]["return"] / numbers["teacher"]["return"]
    return numbers


def main() -> None:
    """Train, distill, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--usd", type=Path, help="USD file of the cartpole (default: newton's)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    size, began = Size(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        usd = args.usd or cartpole_usd(folder)
        teacher = train_teacher(usd, folder, size)
        trained = time.perf_counter()
        run = distill(usd, teacher, folder / "logs", size)
        distilled = time.perf_counter()
        numbers = measure(usd, run, 512)
    minutes = {"teacher": (trained - began) / 60, "student": (distilled - trained) / 60}
    print("| policy | sees | return | survival | minutes |\n|---|---|---|---|---|")
    for policy in ("teacher", "student"):
        row = numbers[policy]
        sees = ", ".join(PARTS[policy])
        print(f"| {policy} | {sees} | {row['return']:.2f} | {row['survival']:.1%} | {minutes[policy]:.1f} |")
    print(f"recovered: {numbers['recovered']:.1%} of the teacher's return")
    if args.out:
        results = {"machine": machine(), "size": vars(size), "minutes": minutes, **numbers}
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
