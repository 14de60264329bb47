"""Which files a run's teachers are: one, a list of experts, or a folder with one for every quadrotor.

The folder, ``--teacher_dir``, is laid out as scripts that train a teacher for each of many quadrotors leave it::

    teachers/
      teacher_dynamics.csv    # id,mass,arm_length,Ixx,Iyy,Izz,twr,motor_tau and further columns, a row for each teacher
      teacher_0000/           # of id 0: best_model.pt, else model.pt, else the model_N.pt of the highest N;
      teacher_0001/           #   or a policy file of ours, policy.safetensors, student.safetensors or the only one

Rows may come in any order: a teacher and its quadrotor are brought together by ``id`` and by nothing else.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bridge.env import State, TrainingEnv
from bridge.quadrotors import QuadrotorSpec, read_csv, to_csv
from jdistill.core import observations
from jdistill.core.actor import PolicyActor
from jdistill.core.config import AgentCfg
from jdistill.core.networks import summary
from jdistill.core.teachers import TeacherBank
from jdistill.errors import ConfigError, ObservationError
from jdistill.files import replace_file
from jdistill.run import processes
from jdistill.run.compose import RunCfg
from jdistill.run.folders import QUADROTORS
from jdistill.run.inputs import Teacher, load_teacher

TABLE = "teacher_dynamics.csv"
POLICIES = ("policy.safetensors", "student.safetensors")
"""Our own policy files that a teacher's folder may hold, beside any other that is alone there."""
DYNAMICS = ("mass", "arm_length", "Ixx", "Iyy", "Izz", "twr", "motor_tau")
"""Columns in which two tables of the same quadrotors agree."""
NOBODY = np.iinfo(np.int32).min
NAMED = 5
"""Ids that a message names, at most."""


# -- the table -----------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A CSV file of quadrotors."""

    path: Path
    rows: Mapping[int, QuadrotorSpec]
    """By ``id``, in the file's order."""

    @staticmethod
    def read(path: Path) -> Table:
        """Read the file.

        Raises:
            SettingError: it cannot be read, or something in it makes no sense; one line.
        """
        return Table(path, {quadrotor.id: quadrotor for quadrotor in read_csv(path)})

    def only(self, key: int) -> Table:
        """The row of one teacher."""
        if key not in self.rows:
            raise ConfigError(f"{self.path}: no row of id {key}; there are {spans(self.rows)}")
        return self._replace(rows={key: self.rows[key]})

    def text(self) -> str:
        """The CSV file."""
        return to_csv(self.rows.values())

    def check_same(self, other: Table) -> None:
        """Raise :class:`ConfigError` unless the ``other`` table has the same quadrotor of every id of this one."""
        for key, quadrotor in self.rows.items():
            if key not in other.rows:
                raise ConfigError(f"{self.path}: the quadrotor of id {key} has no teacher: no such row in {other.path}")
            for name in DYNAMICS:
                here, there = getattr(quadrotor, name), getattr(other.rows[key], name)
                if not math.isclose(here, there, rel_tol=1e-5):
                    raise ConfigError(
                        f"{self.path}: {name} of id {key} is {here:g}, that of its teacher's quadrotor is {there:g} "
                        f"({other.path})"
                    )


def spans(ids: Sequence[int] | Mapping[int, Any]) -> str:
    """Ids as text: ``0 to 99``, or the first ones."""
    known = sorted(ids)
    if len(known) > 2 and known[-1] - known[0] == len(known) - 1:
        return f"{known[0]} to {known[-1]}"
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(map(str, known[:NAMED])) + more


# -- the folder ----------------------------------------------------------------------------------------------------


class Teachers(NamedTuple):
    """The teachers that a run is asked to learn from."""

    files: Mapping[int, Path]
    """Each one's policy by its id."""
    table: Table | None = None
    """Their quadrotors, where they have some."""
    alone: bool = False
    """Whether there is a single teacher, whatever the environments say."""


def teachers_in(folder: Path, key: int | None = None) -> Teachers:
    """All teachers of a folder, or that of one id.

    Raises:
        ConfigError: one of them is missing, or is there and in no row; one line.
    """
    if not folder.is_dir():
        raise ConfigError(f"--teacher_dir {folder}: no such folder")
    if not (folder / TABLE).is_file():
        raise ConfigError(f"--teacher_dir {folder}: has no {TABLE}; teachers of no quadrotors: --teacher A.pt B.pt ...")
    table = Table.read(folder / TABLE)
    if key is not None:
        table = table.only(key)
        return Teachers({key: policy_in(folder_of(folder, key))}, table, alone=True)
    folders = {int(m[1]) for path in folder.iterdir() if (m := re.fullmatch(r"teacher_(\d{4,})", path.name))}
    if extra := sorted(folders - table.rows.keys()):
        raise ConfigError(
            f"{folder_of(folder, extra[0])}: {table.path} has no row of id {extra[0]}; add it, or move the folder away"
        )
    return Teachers({key: policy_in(folder_of(folder, key)) for key in sorted(table.rows)}, table)


def folder_of(folder: Path, key: int) -> Path:
    """Where the teacher of an id is."""
    return folder / f"teacher_{key:04d}"


def policy_in(folder: Path) -> Path:
    """The policy's file in a teacher's folder.

    Raises:
        ConfigError: there is none.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder, but a row in {folder.parent / TABLE}: train it, or delete the row"
        )
    numbered = {int(m[1]): p for p in folder.glob("*.pt") if (m := re.fullmatch(r"\D*(\d+)\.pt", p.name))}
    ours = list(folder.glob("*.safetensors"))
    named = [folder / name for name in ("best_model.pt", "model.pt")]
    candidates = [*named, *([numbered[max(numbered)]] if numbered else []), *(folder / name for name in POLICIES)]
    found = next((path for path in [*candidates, *(ours if len(ours) == 1 else [])] if path.is_file()), None)
    if found is None:
        raise ConfigError(f"{folder}: holds no best_model.pt, model.pt, model_N.pt or {POLICIES[0]}")
    return found


# -- the quadrotors that the environments fly ----------------------------------------------------------------------


def quadrotors(cfg: RunCfg, teachers: Teachers | None) -> Table | None:
    """What the task's setting ``quadrotors``, a CSV file, is to hold: what it names, else the teachers' quadrotors.

    The ones are held against the others. None where the task has no such setting, or there are neither.

    Raises:
        ConfigError: a quadrotor without a teacher, or another one than its teacher's.
    """
    if getattr(cfg.env, "quadrotors", None) is None:
        return None
    flown = Table.read(Path(cfg.env.quadrotors)) if cfg.env.quadrotors else None
    if flown is None or teachers is None or teachers.table is None:
        return flown or (teachers and teachers.table)
    flown = flown.only(next(iter(teachers.files))) if teachers.alone else flown
    flown.check_same(teachers.table)
    return flown


@contextmanager
def flying(cfg: RunCfg, table: Table | None) -> Iterator[None]:
    """Meanwhile the setting ``quadrotors`` names a file that holds ``table``."""
    if table is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        cfg.env = dataclasses.replace(cfg.env, quadrotors=str(Path(folder) / table.path.name))
        Path(cfg.env.quadrotors).write_text(table.text())
        yield


def keep_quadrotors(cfg: RunCfg, table: Table | None, run: Path) -> None:
    """Keep ``table`` in the run's folder, where the setting finds it when the run is gone on with or evaluated."""
    if table is not None:
        file = (run / QUADROTORS).absolute()
        replace_file(file, table.text())
        cfg.env = dataclasses.replace(cfg.env, quadrotors=str(file))


# -- the teachers themselves ---------------------------------------------------------------------------------------


def load_named(
    named: Path | Teachers, env: TrainingEnv, cfg: RunCfg, old_output_activation: str = "identity"
) -> Teacher:
    """Read the teacher, or all teachers, which become one with stacked parameters.

    Raises:
        PolicyFileError: a file that cannot be read.
        ConfigError: one that does not fit the environment or the other teachers.
    """
    files = [(0, named)] if isinstance(named, Path) else sorted(named.files.items())
    read = [load_teacher(file, env, cfg, old_output_activation) for _, file in files]
    if isinstance(named, Path) or named.alone:
        return read[0]
    first = read[0]
    for (_, file), teacher in zip(files, read, strict=True):
        if "teacher_ids" in teacher.description:
            raise ConfigError(f"{file}: holds several teachers itself, name it alone")
        ours, theirs = (summary(t.policy, t.state, t.description["obs_size"]) for t in (first, teacher))
        if teacher.policy != first.policy or ours != theirs:
            raise ConfigError(f"{file}: is {theirs}; {files[0][1]} is {ours}, and all teachers have one network")
    if first.policy.learn_initial_carry:
        raise ConfigError(f"{files[0][1]}: has a learned initial state, which only a teacher alone can have")
    state = jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *[t.state for t in read])
    description = {
        "obs_size": first.description["obs_size"],
        "teacher_ids": [key for key, _ in files],
        "teacher_files": [str(file) for _, file in files],
    }
    return Teacher(first.policy, state, description)


def describe(teacher: Teacher, named: Path | Teachers, num_envs: int) -> str:
    """What a run of ``num_envs`` environments begins by saying about it."""
    text = summary(teacher.policy, teacher.state, teacher.description["obs_size"])
    files = [named] if isinstance(named, Path) else list(named.files.values())
    if (ids := teacher.description.get("teacher_ids")) is None:
        return f"Teacher: {files[0]}: {text}"
    where = files[0] if len(files) == 1 else f"{files[0]} to {files[-1]}"
    lines = [f"Teachers: {where}: {len(ids)} (ids {spans(ids)}), each {text}"]
    table = None if isinstance(named, Path) else named.table
    if table and list(table.rows) != sorted(table.rows):
        lines.append(f"{table.path}: its rows are not in the order of their ids, by which they are taken")
    if len(ids) > num_envs:
        lines.append(f"{len(ids)} teachers share {num_envs} environments, not all are heard: --num_envs {len(ids)}")
    return "\n".join(lines)


def check_ids(env: TrainingEnv, teacher: Teacher, agent: AgentCfg) -> None:
    """See that the environments say which of several teachers they have.

    Raises:
        ConfigError: they do not; one line.
    """
    if "teacher_ids" not in teacher.description:
        return
    entry = agent.teacher.id_group
    state = jax.eval_shape(env.reset, jax.random.key(0))
    try:
        jax.eval_shape(lambda state: observations.teacher_ids(observations.visible(state), entry, 1), state)
    except ObservationError as e:
        there = ", ".join(observations.visible(state))
        raise ConfigError(f"agent.teacher.id_group={entry}: {e}; there are {there}") from e


def check_assigned(state: State, actor: PolicyActor | TeacherBank, agent: AgentCfg) -> None:
    """See that the ids that the environments of ``state`` name are those of teachers. All processes must call this.

    Raises:
        ConfigError: one is not.
    """
    if not isinstance(actor, TeacherBank):
        return
    known = np.asarray(actor.ids)
    ids = np.asarray(observations.teacher_ids(observations.visible(state), actor.id_group, 1))
    unknown = np.setdiff1d(ids, known)
    if (found := processes.largest(int(unknown[-1]) if unknown.size else NOBODY)) != NOBODY:
        where = f"an environment has the {agent.teacher.id_group} {found}"
        raise ConfigError(f"{where}; the teachers' ids are {spans(known.tolist())}")
