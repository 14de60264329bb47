"""Run folders: where they are, what they are called, how far they got. ``jdistill runs`` lists them.

A run folder is ``<logdir>/<experiment_name>/<timestamp>[_<run_name>]``. Nothing here needs JAX, so a list costs no
more than reading a few small files per run.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jdistill
from bridge import registry
from bridge.errors import visible
from jdistill.errors import ConfigError, nearest
from jdistill.files import replace_file
from jdistill.run.compose import load_file
from jdistill.run.progress import last_row
from jdistill.run.provenance import versions

LOGDIR = "logs/jdistill"
QUADROTORS = "quadrotors.csv"
STUDENT_FILE = "student.safetensors"
"""What a run keeps of the quadrotors that it flies."""
FORMAT = 1
"""Of ``run.json``; a run of a later format is refused."""
PACKAGES = ("jdistill", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "onnx")
"""What a run's numbers may depend on, beside its simulator."""


# -- folders of new and resumed runs -------------------------------------------------------------------------------


def log_root(logdir: str | Path | None) -> Path:
    """The folder of all experiments."""
    return Path(logdir or LOGDIR)


def folder_name(text: str) -> str:
    """``text`` without blanks, so that a shell completes the folder's name with the Tab key and needs no quotes."""
    return re.sub(r"\s+", "_", text.strip())


def planned_folder(logdir: str | Path | None, experiment: str, run_name: str) -> Path:
    """Where a run that begins now belongs, ``<logdir>/<experiment>/<timestamp>[_<run_name>]``; nothing is created."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = f"{stamp}_{folder_name(run_name)}" if run_name else stamp
    return log_root(logdir) / folder_name(experiment) / name


def new_run(planned: Path) -> Path:
    """Create the folder ``planned``, or one beside it if another run was quicker; never one that exists."""
    for suffix in ["", *(f"-{i}" for i in range(2, 100))]:
        run = planned.with_name(planned.name + suffix)
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            if planned.parent.is_dir():
                continue
            raise ConfigError(f"{planned.parent}: is not a folder, choose another --logdir") from None
        except OSError as e:
            raise ConfigError(f"cannot write to {run}: {e.strerror}; choose another --logdir") from e
    raise ConfigError(f"{planned.parent}: 99 runs were begun in this second")


def find_run(logdir: str | Path | None, experiment: str, load_run: str | Path | None) -> Path:
    """The run folder that ``--resume`` means: ``load_run`` by name or path, else the experiment's newest.

    Raises:
        ConfigError: there is no such run, or none that could be gone on with.
    """
    folder = log_root(logdir) / folder_name(experiment)
    if load_run:
        candidates = [p for p in (folder / load_run, Path(load_run)) if p.is_dir()]
        if not candidates:
            names = [p.name for p in folder.glob("*")] if folder.is_dir() else []
            raise ConfigError(f"--load_run {load_run}: no such run in {folder}{nearest(str(load_run), names)}")
        if newest_checkpoint(candidates[0]) is None:
            raise ConfigError(f"--load_run {load_run}: {candidates[0]} holds no checkpoint to go on from")
        return candidates[0]
    runs = sorted(p for p in folder.glob("*") if newest_checkpoint(p) is not None) if folder.is_dir() else []
    if not runs:
        raise ConfigError(f"--resume: nothing to resume, no run with a checkpoint in {folder}")
    return runs[-1]


def newest_checkpoint(run: Path) -> int | None:
    """Iterations completed at the newest checkpoint of ``run``, or None."""
    return _newest_step(run / "checkpoints")


# -- what a run says of itself -------------------------------------------------------------------------------------


def note_start(run: Path, command: str, iteration: int, device: Mapping[str, Any]) -> None:
    """Write into ``run.json`` that ``command`` begins, or goes on with, the run at ``iteration`` on ``device``."""
    start = {
        "time": datetime.datetime.now().isoformat(timespec="seconds"),
        "iteration": iteration,
        "command": command,
        "device": dict(device),
        "versions": versions(*PACKAGES, *registry.packages()),
    }
    record = {"format": FORMAT, "starts": [*starts(run), start]}
    replace_file(run / "run.json", json.dumps(record, indent=1) + "\n")


def starts(run: Path) -> list[dict[str, Any]]:
    """The commands that made the run, oldest first: ``time``, ``iteration``, ``command``, ``device``,
    ``versions``.

    Raises:
        ConfigError: its ``run.json`` is damaged, or that of a later version.
    """
    file = run / "run.json"
    if not file.is_file():
        return []
    try:
        record = json.loads(file.read_text())
        begun = list(record["starts"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{file}: damaged ({e}); delete it to do without the run's history") from e
    if record.get("format") != FORMAT:
        by = f"jdistill {begun[-1]['versions']['jdistill']}" if begun else "another version of jdistill"
        raise ConfigError(
            f"{run}: a run of {by} (format {record.get('format')}), this is {jdistill.__version__} (format {FORMAT}): "
            "use that version"
        )
    return begun


def open_run(text: str, logdir: str | None = None) -> Path:
    """The run folder that a command's ``RUN`` means: a path, or a name as ``jdistill runs`` prints it.

    Raises:
        ConfigError: there is none, it is no run folder, or one of another version.
    """
    root = log_root(logdir)
    named = [p for p in (root / text, *(folder / text for folder in sorted(root.glob("*")))) if p.is_dir()]
    found = [Path(text)] if Path(text).is_dir() else named
    if not found:
        names = [str(p.relative_to(root)) for p in run_folders(logdir)]
        raise ConfigError(f"{text}: no such run{nearest(text, names)}; 'jdistill runs' lists those in {root}")
    if len(found) > 1:
        raise ConfigError(f"{text}: there are {' and '.join(str(p) for p in found)}; name one of them")
    settings_of(found[0])
    starts(found[0])
    return found[0]


def settings_of(run: Path) -> dict[str, Any]:
    """The run's ``config.yaml``. The quadrotors that it flies are those it keeps, wherever its folder is now.

    Raises:
        ConfigError: it is no run folder.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{run}: no run folder (it has no config.yaml)")
    settings = load_file(file)
    if "task" not in settings:
        raise ConfigError(f"{run}: no run folder (its config.yaml names no task)")
    kept = run / QUADROTORS
    if (settings.get("env") or {}).get("quadrotors") and kept.is_file():
        settings["env"]["quadrotors"] = str(kept.absolute())
    return settings


# -- the list ------------------------------------------------------------------------------------------------------


@dataclass
class RunInfo:
    """A line of the list."""

    name: str
    """``<experiment>/<folder>``."""
    updated: datetime.datetime
    """When something was last written to it."""
    task: str = "-"
    iterations: int = 0
    """Completed."""
    max_iterations: int | None = None
    """To be completed."""
    phase: str = "-"
    """``1`` or ``2`` in two-stage training."""
    best_return: float | None = None
    """Mean return of the best student so far."""
    problem: str = ""
    """What is wrong with it, in a few words."""


def run_folders(logdir: str | None = None) -> list[Path]:
    """All run folders below ``logdir``, by name."""
    return [folder for folder in sorted(log_root(logdir).glob("*/*")) if folder.is_dir()]


def describe(run: Path) -> RunInfo:
    """What is to be known of a run at a glance; whatever is wrong with it is in ``problem``."""
    info = RunInfo(f"{run.parent.name}/{run.name}", datetime.datetime.fromtimestamp(_last_written(run)))
    try:
        settings = settings_of(run)
        starts(run)
        agent = settings.get("agent") or {}
        info.task, info.max_iterations = settings["task"], agent.get("max_iterations")
        row, saved = last_row(run), newest_checkpoint(run)
        info.iterations = max(saved or 0, int(row["iteration"]) + 1 if row else 0)
        algorithm = agent.get("algorithm") or {}
        if algorithm.get("use_two_stage_training"):
            in_phase1 = info.iterations <= algorithm.get("phase1_iterations", 0)
            info.phase = f"{row.get('Distillation/training_phase', 2 - in_phase1):.0f}"
        info.best_return = best_return(run)
        info.problem = _incomplete(run, saved)
    except ConfigError as e:
        info.problem = str(e).removeprefix(f"{run}: ").removeprefix(f"{run}/")
    except (OSError, ValueError, TypeError, AttributeError) as e:  # Settings of another kind than ours.
        info.problem = f"cannot be read ({type(e).__name__}: {e})"
    return info


def best_return(run: Path) -> float | None:
    """The mean return of the run's best student, None where there is none yet.

    Raises:
        ConfigError: its checkpoint is damaged.
    """
    step = _newest_step(run / "best")
    return None if step is None else _checkpoint_info(run / "best" / str(step))["mean_return"]


def _incomplete(run: Path, saved: int | None) -> str:
    if saved is None:
        return "no checkpoint yet"
    if _checkpoint_info(run / "checkpoints" / str(saved))["iteration"] != saved:
        return f"checkpoints/{saved} is another iteration's"
    missing = [name for name in (STUDENT_FILE, "teacher.safetensors") if not (run / name).is_file()]
    return f"no {missing[0]}" if missing else ""


def _checkpoint_info(folder: Path) -> dict[str, Any]:
    """What :mod:`jdistill.run.checkpoint` noted beside a state. Orbax keeps JSON items in a file of this name."""
    file = folder / "info" / "metadata"
    try:
        info = json.loads(file.read_text())
        return {"iteration": int(info["iteration"]), "mean_return": info["mean_return"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{folder.parent.name}/{folder.name} is damaged ({type(e).__name__})") from e


def _newest_step(folder: Path) -> int | None:
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()] if folder.is_dir() else []
    return max(steps, default=None)


def _last_written(run: Path) -> float:
    with os.scandir(run) as entries:
        return max([run.stat().st_mtime, *(e.stat(follow_symlinks=False).st_mtime for e in entries)])


def table(infos: list[RunInfo]) -> str:
    """The list as aligned columns."""
    head = ["RUN", "TASK", "ITERATIONS", "PHASE", "BEST RETURN", "UPDATED", ""]
    rows = [head, *([*_cells(info)] for info in infos)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _cells(info: RunInfo) -> list[str]:
    return [
        shlex.quote(visible(info.name)),
        visible(info.task),
        f"{info.iterations}/{info.max_iterations or '?'}",
        info.phase,
        "-" if info.best_return is None else f"{info.best_return:.2f}",
        f"{info.updated:%Y-%m-%d %H:%M}",
        visible(info.problem),
    ]
