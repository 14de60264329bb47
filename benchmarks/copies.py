"""Bytes that are written in a step so that a simulator's observations reach the learner: images and vectors.

    python -m benchmarks.copies --out docs/copies.json

The cartpole with a camera of the real Isaac Lab on the CPU, inside a compiled rollout that keeps what it sees. Three
numbers for each environment and step: what passes between simulator and learner (observations, reward and ends,
action); what torch writes between the simulator's own steps, each operation that makes or fills memory counted; and
what XLA copies in the loop beside writing the rollout, by the compiled program. Where every number that passes is
written once, the second is the first.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cartpole import cartpole_usd
from bridge.isaaclab.env import IsaacLabEnv
from jdistill.run.provenance import versions

TASK = "Isaac-Cartpole-Camera-Direct"
STEPS = 8
BYTES = {"f32": 4, "u8": 1, "s32": 4, "u32": 4, "pred": 1}


class Writes(TorchDispatchMode):
    """Counts the bytes that torch's operations write on this thread, while it is not paused."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.paused = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation; of a view nothing is written."""
        out = func(*args, **(kwargs or {}))
        if not self.paused and not func.is_view and isinstance(out, torch.Tensor):
            self.total += out.nbytes
        return out


def watched(env: IsaacLabEnv, writes: Writes) -> None:
    """Let ``writes`` pause while the simulator is in its own step."""
    step = env.env.step

    def paused(action: torch.Tensor) -> Any:
        writes.paused = True
        try:
            return step(action)
        finally:
            writes.paused = False

    env.env.step = paused


def copied_by_xla(text: str) -> int:
    """Bytes of the copies in the loop of a compiled program ``text``, in which it stands before the entry."""
    loop, _, _ = text.partition("\nENTRY ")
    total = 0
    for kind, sizes in re.findall(r"= (\w+)\[([\d,]+)\]\S* copy\(", loop):
        total += BYTES[kind] * math.prod(map(int, sizes.split(",")))
    return total


def measure(simulator: Any, groups: Sequence[str]) -> dict[str, float]:
    """Bytes for each environment and step, of the observation ``groups`` of a running environment."""
    env = IsaacLabEnv(simulator, groups, mode="host")  # On this thread, where torch's operations are counted.
    writes, number = Writes(), env.num_envs * STEPS
    watched(env, writes)

    def step(state: Any, _: None) -> Any:
        seen = sum(value.reshape(env.num_envs, -1).mean(axis=1) for value in state.obs.values())
        return env.step(state, jnp.tile(0.1 * seen[:, None], (1, env.num_actions))), state.obs

    state = env.drive(jax.jit(env.reset), jax.random.key(0))
    program = jax.jit(lambda state: jax.lax.scan(step, state, None, length=STEPS)).lower(state).compile()
    try:
        with writes:
            env.drive(program, state)
    finally:
        del env.env.step
    passes = sum(value.nbytes for value in (*state.obs.values(), state.info["outcome"])) / env.num_envs
    return {
        "passes": passes + 4 * env.num_actions,
        "torch_writes": writes.total / number,
        "xla_copies": copied_by_xla(program.as_text() or "") / env.num_envs,
    }


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """In Markdown."""
    lines = ["| observed | passes | torch writes | XLA copies |", "|---|---|---|---|"]
    for name, row in results.items():
        lines.append(f"| {name} | {row['passes']:.0f} | {row['torch_writes']:.0f} | {row['xla_copies']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    from bridge.isaaclab.cfg import IsaacLabCfg
    from bridge.isaaclab.launch import open_env, parse_flags

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num_envs", type=int, default=16, help="(16)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    launch, _ = parse_flags([], "cpu")
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["presets=depth", f"env.scene.cartpole.spawn.usd_path={cartpole_usd(Path(folder))}"]
        with open_env(TASK, IsaacLabCfg(args.num_envs, overrides), launch, 1, [], "host", ".") as opened:
            found = {
                "4 numbers": measure(opened.env, ["critic"]),
                "depth image of 2x96x96 floats": measure(opened.env, ["policy"]),
            }
    print(table(found))
    if args.out:
        results = {"versions": versions("isaaclab", "torch", "jax"), "num_envs": args.num_envs, "results": found}
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
