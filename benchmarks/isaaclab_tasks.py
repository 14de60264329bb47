"""Which tasks of Isaac Lab start without Isaac Sim's Kit and without the files on NVIDIA's servers.

    python -m benchmarks.isaaclab_tasks --out docs/isaaclab_tasks.json

Each task gets a process of its own on the CPU: two environments, two steps with actions of zero. NVIDIA's folder is one
that does not exist, so that nothing is fetched. A task that wants Kit is tried on Newton next, and the cartpoles, which
the ``newton`` package ships, with its file. ``TASK ...`` tries others than :data:`FAMILIES`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.cartpole import cartpole_usd
from jdistill.run.provenance import versions

FAMILIES = (
    *("Isaac-Cartpole-Direct", "Isaac-Cartpole", "Isaac-Cartpole-Camera-Direct", "Isaac-Cartpole-Camera"),
    *("Isaac-Ant-Direct", "Isaac-Ant", "Isaac-Humanoid-Direct", "Isaac-Humanoid", "Isaac-Pendulum-MARL-Direct"),
    *("Isaac-Fourbar-Pole-Swingup", "Isaac-DrLegs-Walk-v0", "Isaac-Velocity-Flat-UnitreeGo2"),
    *("Isaac-Velocity-Rough-UnitreeGo2", "Isaac-Reach-Franka", "Isaac-Lift-Franka", "Isaac-Open-Drawer-Franka"),
    *("Isaac-Lift-Cloth-Franka", "Isaac-Lift-KukaAllegro", "Isaac-Lift-KukaAllegro-Camera"),
    *("Isaac-Reorient-Cube-Allegro", "Isaac-Reorient-Cube-Shadow-Camera-Direct", "Isaac-Shadow-Handover"),
    *("IsaacContrib-Cartpole-Camera-Showcase-Direct", "IsaacContrib-Velocity-Rough-AnymalC-Direct"),
    *("IsaacContrib-Navigation-Flat-AnymalC", "IsaacContrib-Navigation-3DObstacles-ARL-Robot-1"),
    *("IsaacContrib-Factory-PegInsert-Direct", "IsaacContrib-Stack-Cube-Franka-IK-Rel-Visuomotor"),
    "IsaacContrib-Humanoid-AMP-Walk-Direct",
)
"""One or two of each family."""
NEWTON = "physics=newton_mjwarp"
NOWHERE = "/nvidia"
"""Stands for the folder on NVIDIA's servers."""
SECONDS = 900
"""A task that has not made its steps by then is given up."""


def attempt(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Open the task and step it twice: what it observes, or what it is without."""
    import torch
    from isaaclab.app import validate_launch

    from bridge.isaaclab.cfg import IsaacLabCfg
    from bridge.isaaclab.launch import load_env_cfg, open_env, parse_flags

    launch, _ = parse_flags([], "cpu")
    if validate_launch(load_env_cfg(name, overrides), launch)[1]:
        return {"outcome": "wants Kit"}
    with open_env(name, IsaacLabCfg(2, list(overrides)), launch, 1, None, "callback", ".") as env:
        for _ in range(2):
            env.env.step(torch.zeros(2, env.num_actions))
        return {"outcome": "runs", "observes": {group: str(spec) for group, spec in env.obs_specs.items()}}


def outcome(error: BaseException, text: str) -> str:
    """What kind of failure this is."""
    if NOWHERE in text or isinstance(error, FileNotFoundError):
        return "wants files"
    return "does not offer it" if "did not match a selectable preset" in text else "fails"


def child(name: str, overrides: Sequence[str], results: Connection) -> None:
    """In the task's own process: :func:`attempt`, with all that simulators print out of the way."""
    with open(os.devnull, "w") as nothing:
        for stream in (1, 2):
            os.dup2(nothing.fileno(), stream)
    try:
        found = attempt(name, overrides)
    except BaseException as e:
        text = " ".join(str(e).split()).removeprefix(f"{name}: ")
        found = {"outcome": outcome(e, text), "error": f"{type(e).__name__}: {text[:300]}"}
    results.send(found)
    os._exit(0)


def alone(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """:func:`attempt` in a process of its own, which may crash or hang."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bridge.isaaclab.launch"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, list(overrides), theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(SECONDS) else {"outcome": "fails", "error": f"no step within {SECONDS} s"}
    except EOFError:
        process.join()
        found = {"outcome": "fails", "error": f"the process ended with status {process.exitcode}"}
    process.kill()
    return found


def row(name: str, folder: Path) -> dict[str, Any]:
    """What becomes of the task as it is, then with what may help it."""
    overrides: list[str] = []
    last = alone(name, overrides)
    found: dict[str, Any] = {"task": name, "as it is": last}
    if last["outcome"] == "wants Kit":
        overrides = [NEWTON]
        found["on Newton"] = last = alone(name, overrides)
    if last["outcome"] == "wants files" and "Cartpole" in name:
        robot = "cartpole" if "Direct" in name else "robot"
        overrides += [f"env.scene.{robot}.spawn.usd_path={cartpole_usd(folder)}"]
        overrides += [] if "Camera" in name else ["env.scene.ground=None"]
        found["with newton's files"] = alone(name, overrides)
    return found


def cell(found: dict[str, Any]) -> str:
    """What became of one try: of files the first one that was missed, else the error."""
    if found["outcome"] == "wants files":
        path = re.search(rf"{NOWHERE}/[^\s'\"]+", found["error"])
        return f"wants `{Path(path[0]).name}`" if path else "wants files"
    return found["outcome"] if found["outcome"] != "fails" else f"fails: {found['error'][:120]}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    columns = ("as it is", "on Newton", "with newton's files")
    lines = [f"| task | {' | '.join(columns)} | images |", "|---" * (len(columns) + 2) + "|"]
    for found in rows:
        cells = [cell(found[column]) if column in found else "" for column in columns]
        last = next(found[column] for column in reversed(columns) if column in found)
        images = [f"{group} {spec}" for group, spec in last.get("observes", {}).items() if spec.count(",") == 2]
        lines.append(f"| {found['task']} | {' | '.join(cells)} | {', '.join(images)} |")
    return "\n".join(lines)


def main() -> None:
    """Try, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="(one or two of each family)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="tasks at a time (1)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    os.environ["ISAACSIM_ASSET_ROOT"] = NOWHERE
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.workers) as pool:
        rows: list[dict[str, Any]] = []
        for found in pool.map(lambda task: row(task, Path(name)), args.tasks or FAMILIES):
            rows.append(found)
            print(json.dumps(found), file=sys.stderr, flush=True)
    print(table(rows))
    if args.out:
        results = {"versions": versions("isaaclab", "newton", "warp-lang"), "rows": rows}
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
