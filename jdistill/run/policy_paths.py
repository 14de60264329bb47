"""Which file a policy is in: what ``--teacher``, ``--checkpoint`` and ``--student`` name, or what is taken else."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.tasks import Task
from jdistill.errors import ConfigError
from jdistill.export.brax_files import find_brax_checkpoint
from jdistill.run.compose import RunCfg

if TYPE_CHECKING:
    from jdistill.run.teachers import Teachers
    from jdistill.run.training import Beginning, Job


def named_file(flag: str, name: str | Path) -> Path:
    """The policy's file that ``flag`` names: a file, the newest ``model_N.pt`` of a folder, as rsl_rl leaves it, or
    ``latest``, that of the newest run in ``logs/rsl_rl``.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name)
    if str(name) == "latest" and not path.exists():
        path = latest_run(flag)
    if path.is_dir():
        models = {int(m[1]): x for x in path.iterdir() if (m := re.fullmatch(r"model_(\d+)\.pt", x.name))}
        own = path / "student.safetensors"
        if not models and not own.is_file():
            raise ConfigError(f"{flag} {path}: holds no model_N.pt and no student.safetensors; name the policy's file")
        return models[max(models)] if models else own
    if path.is_file():
        return path
    if match := _WANDB.match(str(name)):
        raise ConfigError(
            f"{flag} {name}: is a run of W&B; download it first with 'wandb pull --entity {match['entity']} --project "
            f"{match['project']} {match['run']}', and name the model_N.pt file"
        )
    if "://" in str(name):
        raise ConfigError(f"{flag} {name}: is an address; download the file first, and name it")
    hint = "" if path.suffix else "; name a file (model_1499.pt, *.safetensors) or the run folder that holds it"
    raise ConfigError(f"{path}: no such file{hint}")


_WANDB = re.compile(
    r"(wandb:(//)?|https?://[^/]*wandb\.ai/)(?P<entity>[^/]+)/(?P<project>[^/]+)/(runs/)?(?P<run>[^/?#]+)"
)
"""A run of W&B, as Isaac Lab's ``--checkpoint`` takes it."""


def latest_run(flag: str, logs: Path = Path("logs/rsl_rl")) -> Path:
    """The newest run folder with a checkpoint in ``logs/<experiment>/<timestamp>``, where rsl_rl's trainers leave them.

    Raises:
        ConfigError: there is none, or there are several experiments, of which one does not say what it learned.
    """
    runs = {file.parent for file in logs.glob("*/*/model_*.pt")}
    experiments = sorted({run.parent.name for run in runs})
    if len(experiments) != 1:
        found = f"runs of {', '.join(experiments)}" if experiments else "no run with a model_N.pt"
        raise ConfigError(f"{flag} latest: {logs} holds {found}; name the run folder")
    return max(runs, key=lambda run: run.name)


def teacher_path(cfg: RunCfg, task: Task, job: Job, beginning: Beginning) -> Path | Teachers:
    """The teacher's file: the one named, the one a resumed run kept, or the task's; bundled ones go by their names.

    Of several teachers, or one of a folder, all that is known of them. A run goes on under others where they are named.

    Raises:
        ConfigError: there is none.
    """
    from jdistill.run.teachers import Teachers, teachers_in

    asked = cfg.agent.teacher
    if (run := beginning.run) and not (job.teacher or job.teacher_dir):
        before = (beginning.layers[0].get("agent") or {}).get("teacher") or {}
        kept = (before.get("file"), before.get("dir"), list(before.get("files") or []))
        if kept == (asked.file, asked.dir, list(asked.files)):
            return run / "teacher.safetensors"
    if asked.dir is not None:
        return teachers_in(Path(asked.dir), asked.id)
    if asked.files:
        return Teachers({key: _named_teacher(name) for key, name in enumerate(asked.files)})
    if not (name := asked.file or task.teacher(cfg.env)):
        raise ConfigError(f"{task.name}: name its teacher with --teacher FILE (or --checkpoint FILE)")
    return _named_teacher(name)


def check_named(job: Job) -> None:
    """Raise :class:`ConfigError` for a teacher or a student that is named and not there, before a simulator starts."""
    for name in [job.teacher] if isinstance(job.teacher, str | Path) else job.teacher or ():
        _named_teacher(str(name))
    if job.student:
        named_file("--student", job.student)


def _named_teacher(name: str) -> Path:
    if found := find_brax_checkpoint(Path(name)):
        return found
    bundled = Path(str(files("jdistill"))) / "teachers" / f"{name}.safetensors"
    return bundled if bundled.is_file() and not Path(name).exists() else named_file("--teacher", name)
