"""Tasks of mjlab, start to finish: mjlab's own PPO trains a teacher briefly, the command distills it.

    uv run --extra mjlab python -m benchmarks.mjlab_tasks --out docs/mjlab_tasks.json
    uv run --extra mjlab python -m benchmarks.mjlab_tasks Go1 G1 --teacher_iterations 1500 --teachers DIR

With ``--teachers`` they are kept, and one that is there is not trained again.

The student does not see the base's linear velocity, which no sensor of the robots measures, and has a memory instead.
Of the arm that lifts a cube it does not see how fast the joints move. mjlab is in a Python environment of its own, so
``benchmarks.tasks`` takes these rows from ``docs/mjlab_tasks.json``. A task that is measured again takes the place of
its row there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bridge import Stopwatch, compiled_loop, seconds
from benchmarks.crazyflie import ROOT
from benchmarks.kept import kept_teacher
from jdistill.run.progress import read_progress
from jdistill.run.provenance import machine, versions

TASKS = {
    "Go1": "Mjlab-Velocity-Flat-Unitree-Go1",
    "G1": "Mjlab-Velocity-Flat-Unitree-G1",
    "Yam": "Mjlab-Lift-Cube-Yam",
}
SEES = {"Go1": "actor[3:]", "G1": "actor[3:]", "Yam": "actor[:8,16:]"}
"""What students do not see is the base's linear velocity, of the arm its joints' velocities."""
STUDENT = ("agent.student.rnn_type=gru", "agent.student.rnn_hidden_dim=64")
ON_CPU = {"env.sim.mujoco.solver": "cg"}
"""There Newton's Hessian of elliptic cones takes most of a step of the legged robots."""


@dataclass
class Size:
    """How much is trained and measured; a trial takes less."""

    num_envs: int = 128
    teacher_iterations: int = 200
    student_iterations: int = 40
    num_steps: int = 32
    episodes: int = 64
    episode_s: int = 20
    timed_steps: int = 50


BRIEF = {"agent.actor.distribution-cfg.init-std": "0.2", "agent.algorithm.entropy-coef": "0.0"}
"""PPO on a CPU: half a million steps are too few to learn to stand, so it explores around a pose that does."""


def device() -> str:
    """Where all of it runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def settings() -> dict[str, str]:
    """Of the environment, the teacher's and the student's."""
    return {} if device() == "cuda" else ON_CPU


def ppo_settings() -> dict[str, str]:
    """Of the teacher's training, beside the task's own."""
    return {} if device() == "cuda" else BRIEF


def run(*command: str | Path) -> str:
    """Run a Python program of the user's; returns what it printed."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: failed with status {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout


def train_teacher(task: str, folder: Path, size: Size) -> Path:
    """mjlab's own training command with the task's own settings; returns its last checkpoint."""
    arguments = ["--env.scene.num-envs", str(size.num_envs), "--agent.max-iterations", str(size.teacher_iterations)]
    arguments += ["--agent.logger", "tensorboard", "--log-root", str(folder)]
    arguments += [] if device() == "cuda" else ["--gpu-ids", "None"]
    for key, value in {**settings(), **ppo_settings()}.items():
        arguments += [f"--{key}", value]
    run("-m", "mjlab.scripts.train", task, *arguments)
    return next(folder.rglob(f"model_{size.teacher_iterations - 1}.pt"))


def sees(task: str) -> str:
    """The observation of a task's student."""
    return next((SEES[short] for short, name in TASKS.items() if name == task), "actor")


def command(task: str, teacher: str | Path, size: Size) -> list[str]:
    """What a user types behind ``train_jax.py``."""
    arguments = ["--task", task, "--num_envs", str(size.num_envs), "--teacher", str(teacher)]
    arguments += ["--phase1", str(size.student_iterations // 3), "--max_iterations", str(size.student_iterations)]
    arguments += [f"{key}={value}" for key, value in settings().items()]
    arguments += [f"agent.num_steps_per_env={size.num_steps}", f"agent.obs_groups.student={sees(task)}"]
    return [*arguments, *STUDENT]


def bridge_share(task: str, size: Size) -> dict[str, float]:
    """The bridge's share of a step: all time outside of the simulator's own ``step``, in a compiled program."""
    from bridge.mjlab.cfg import MjlabCfg
    from bridge.mjlab.simulator import Mjlab
    from bridge.tasks import Session

    overrides = [f"{key}={value}" for key, value in settings().items()]
    loaded = Mjlab().load(task, Mjlab().parse_flags([], device()).options)
    opened: Any = loaded.open(MjlabCfg(size.num_envs, overrides=overrides), Session(0, ["actor"]))
    with opened as env:
        watch, loop = Stopwatch(env.env), compiled_loop(env, size.timed_steps)
        loop()
        whole = statistics.median(seconds(loop) for _ in range(3)) / size.timed_steps
        outside = statistics.median(watch.outside(loop) for _ in range(3)) / size.timed_steps
    return {"step_ms": 1e3 * whole, "bridge_us": 1e6 * outside, "bridge_share": outside / whole}


def measure_task(task: str, size: Size, teachers: Path | None) -> dict[str, Any]:
    """A row: the command, both returns, environment steps per second of the training, minutes, the bridge's share."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_by = {"sizes": [size.num_envs, size.teacher_iterations], "set": {**settings(), **ppo_settings()}}
        teacher, took = kept_teacher((teachers or folder) / task, made_by, lambda at: train_teacher(task, at, size))
        began = time.perf_counter()
        others = ("--logdir", folder / "logs", "--logger", "none", "--device", device())
        run(ROOT / "train_jax.py", *command(task, teacher, size), *others)
        distilled = time.perf_counter()
        (student,) = (folder / "logs").glob("*/*")
        asked = ["--episodes", str(size.episodes), "--scenario", "default", "--device", device()]
        asked += [f"env.episode_length_s={size.episode_s}"]
        run("-m", "jdistill", "evaluate", student, *asked)
        policies = json.loads((student / "evaluation" / "evaluation.json").read_text())["scenarios"]["default"][
            "policies"
        ]
        speeds = read_progress(student)["Perf/total_fps"][1]
    returns = {name: policies[name]["return"] for name in ("teacher", "student")}
    return {
        "task": task,
        "simulator": "mjlab",
        "student": "GRU",
        "sees": sees(task),
        "command": "train_jax.py " + shlex.join(command(task, "model.pt", size)),
        "teacher_return": returns["teacher"],
        "student_return": returns["student"],
        "recovered": returns["student"] / returns["teacher"],
        "steps_per_second": statistics.median(speeds),
        "minutes": {"teacher": took, "student": (distilled - began) / 60},
        **bridge_share(task, size),
    }


def write(out: Path, rows: list[dict[str, Any]], size: Size) -> None:
    """Put ``rows`` among those of other tasks, each with its sizes."""
    results = json.loads(out.read_text()) if out.is_file() else {"rows": []}
    measured = {row["task"] for row in rows}
    kept = [row for row in results["rows"] if row["task"] not in measured]
    rows = [*kept, *({**row, "size": asdict(size)} for row in rows)]
    results = {"machine": machine(), "versions": versions("mjlab", "mujoco-warp", "jax"), "rows": rows}
    out.write_text(json.dumps(results, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| task | teacher | student | recovered | steps/s | student's minutes | bridge |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bridge = f"{row['bridge_share']:.1%} of {row['step_ms']:.1f} ms"
        lines.append(
            f"| {row['task']} | {row['teacher_return']:.2f} | {row['student_return']:.2f} | {row['recovered']:.1%} "
            f"| {row['steps_per_second']:.0f} | {row['minutes']['student']:.1f} | {bridge} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train, distill, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "names", nargs="*", default=["Go1"], metavar="TASK", help=f"{', '.join(TASKS)}, or mjlab's names"
    )
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"({value})")
    parser.add_argument("--teachers", type=Path, metavar="DIR", help="where teachers are kept for the next time")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    size = Size(**{name: getattr(args, name) for name in asdict(Size())})
    rows = []
    for name in args.names:
        rows.append(measure_task(TASKS.get(name, name), size, args.teachers))
        if args.out:  # After each, since all of it takes hours.
            write(args.out, rows, size)
    print(table(rows))


if __name__ == "__main__":
    main()
