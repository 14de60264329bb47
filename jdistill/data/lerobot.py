"""A recording in the format of LeRobot's datasets, version 3.0.

    jdistill dataset export rollouts.hdf5 --to lerobot --out rollouts_lerobot

A dataset is a folder: ``data/`` has a row for each step, ``meta/`` says what the columns are, where each episode lies,
and what values occur. The columns are

- ``observation.state``: what the student sees; ``observation.environment_state``: what the teacher sees, where that is
  something else. A file that does not say who sees what has ``observation.<group>`` for each group of its ``obs``
  (``observation.state`` for the only one);
- ``action``: what stepped the environment; ``student_action``, ``teacher_action``, ``phase``: as recorded;
- ``next.reward``, ``next.done``; ``timestamp`` (s), ``frame_index``, ``episode_index``, ``index``, ``task_index``.

Vectors are float32, with the names of their numbers where the file has them.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jdistill.core import observations
from jdistill.data.dataset import open_dataset, with_siblings
from jdistill.data.integrity import check_sums, check_total, is_numeric, whole
from jdistill.errors import DatasetError, ObservationError

VERSION = "v3.0"
FILE_MB, FILES_PER_FOLDER = 100, 1000
"""LeRobot's own limits of a data file's size and of the files in a folder."""
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
COPIED = {"student_actions": "student_action", "teacher_actions": "teacher_action"}
SEEN = {"student": "observation.state", "teacher": "observation.environment_state"}

Columns = dict[str, np.ndarray]
"""An episode's columns by name, each (T,) or (T, n)."""


class Exported(NamedTuple):
    """What was written."""

    episodes: int
    steps: int
    fps: int
    left_out: list[str]
    """Groups that are no vectors."""


class Description(NamedTuple):
    """What a file says of itself."""

    env: str
    step_dt: float | None
    """Seconds of a step; None where it does not say."""
    entries: Mapping[str, Sequence[str]]
    """What ``student`` and ``teacher`` see, see :mod:`jdistill.core.observations`."""
    names: Mapping[str, Sequence[str]]
    """The names of the numbers of each group, and of ``actions``."""


def export(
    files: Sequence[Path], out: Path, action: str = "actions", fps: float | None = None, task: str | None = None
) -> Exported:
    """Write the episodes of ``files`` into the new folder ``out``.

    Args:
        files: recordings, or other files of robomimic's layout; their siblings come along.
        out: what stands there is never overwritten. It appears when it is complete.
        action: the array that becomes ``action``: ``actions``, or ``teacher_actions`` for the labels.
        fps: steps per second; None takes what the first file says.
        task: a sentence that says what is done; None takes the environment's name.

    Raises:
        DatasetError: a file that cannot be read, is damaged, or does not say how long a step is; ``out`` exists.
    """
    if out.exists() or not out.absolute().parent.is_dir():
        what = "exists already, and an export never overwrites" if out.exists() else "its parent is no folder"
        raise DatasetError(f"--out {out}: {what}; choose another folder")
    paths = with_siblings(files)
    about = describe(paths[0])
    rate = fps or (1.0 / about.step_dt if about.step_dt else None)
    if rate is None:
        raise DatasetError(f"{paths[0]}: does not say how long a step is; say it with --fps N (steps per second)")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # Left by a program that was killed.
    try:
        writer = _Writer(part, max(1, round(rate)), task or about.env, _column_names(about))
        for where, group in _episodes(paths):
            writer.add(where, *_columns(where, group, about, action))
        exported = writer.finish()
        os.rename(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return exported


def describe(path: Path) -> Description:
    """What ``path`` says of itself. A file of another program says less, and nothing that is no JSON.

    Raises:
        DatasetError: it cannot be read.
    """
    with open_dataset(path) as episodes:
        text = episodes[0][1].parent.attrs.get("env_args", "{}")
    try:
        args = json.loads(text)
    except (TypeError, ValueError):
        args = {}
    args = args if isinstance(args, dict) else {}
    groups, names = args.get("obs_groups"), args.get("names")
    return Description(
        str(args.get("env_name") or "unknown"),
        args.get("step_dt"),
        groups if isinstance(groups, dict) else {},
        names if isinstance(names, dict) else {},
    )


def _column_names(about: Description) -> dict[str, list[str]]:
    """What the numbers of the columns are called, where the file says."""
    groups = {name.replace("/", "."): list(names) for name, names in about.names.items()}
    known = {f"observation.{name}": names for name, names in groups.items()}
    known |= dict.fromkeys(("action", *COPIED.values()), groups.get("actions", []))
    arrays = {name: np.array([names]) for name, names in groups.items()}
    for who, column in SEEN.items():
        entries = [entry.replace("/", ".") for entry in about.entries.get(who, ())]
        if entries and all(name in groups for name in observations.group_names(entries)):
            known[column] = observations.select(arrays, entries)[0].tolist()
    return known


def _episodes(paths: Sequence[Path]) -> Iterator[tuple[str, h5py.Group]]:
    for path in paths:
        with open_dataset(path) as episodes:
            check_total(path, episodes)
            for where, group in episodes:
                check_sums(where, group)
                yield where, group


def _columns(where: str, group: h5py.Group, about: Description, action: str) -> tuple[Columns, list[str]]:
    """An episode's columns that are data, and the groups that are left out."""
    if not is_numeric(group.get(action)):
        raise DatasetError(f"{where}: has no {action}; there are {', '.join(group)}")
    columns, left_out = _observations(where, group, about)
    columns["action"] = _vectors(where, group, action)
    columns |= {name: _vectors(where, group, ours) for ours, name in COPIED.items() if ours in group and ours != action}
    steps = len(columns["action"])
    if "rewards" in group:
        columns["next.reward"] = whole(where, group, "rewards").astype(np.float32)
    # Files of other programs need not say that an episode ends with its last step.
    columns["next.done"] = (
        whole(where, group, "dones").astype(bool) if "dones" in group else np.arange(steps) == steps - 1
    )
    if "phase" in group:
        columns["phase"] = whole(where, group, "phase").astype(np.int64)
    for name, value in columns.items():
        if len(value) != steps:
            raise DatasetError(f"{where}: {name} has {len(value)} steps, {action} {steps}")
    return columns, left_out


def _observations(where: str, group: h5py.Group, about: Description) -> tuple[Columns, list[str]]:
    obs = group.get("obs")
    if not isinstance(obs, h5py.Group):
        raise DatasetError(f"{where}: has no obs")
    found: list[str] = []
    obs.visititems(lambda name, item: found.append(name) if is_numeric(item) else None)
    vectors = {name.replace("/", "."): f"obs/{name}" for name in found if group[f"obs/{name}"].ndim == 2}
    left_out = [name for name in found if group[f"obs/{name}"].ndim != 2]
    if not about.entries:
        only = len(vectors) == 1
        named = {"observation.state" if only else f"observation.{name}": path for name, path in vectors.items()}
        return {name: _vectors(where, group, path) for name, path in named.items()}, left_out
    arrays = {name: _vectors(where, group, path) for name, path in vectors.items()}
    columns: Columns = {}
    for who, name in SEEN.items():
        entries = [entry.replace("/", ".") for entry in about.entries.get(who, ())]
        if not entries or (who == "teacher" and about.entries.get("student") == about.entries[who]):
            continue
        try:
            columns[name] = observations.select(arrays, entries)
        except (KeyError, ObservationError) as e:
            raise DatasetError(f"{where}: obs lacks what the {who} sees ({e})") from e
    return columns, left_out


def _vectors(where: str, group: h5py.Group, path: str) -> np.ndarray:
    value = whole(where, group, path).astype(np.float32)
    if value.ndim != 2:
        raise DatasetError(f"{where}: {path} is {list(value.shape)}, expected [steps, size]")
    return value


# -- out -----------------------------------------------------------------------------------------------------------


class _Writer:
    """Writes a dataset, episode by episode."""

    def __init__(self, folder: Path, fps: int, task: str, names: Mapping[str, Sequence[str]]):
        self.folder, self.fps, self.task, self.names = folder, fps, task, names
        self.schema: pa.Schema | None = None
        self.features: dict[str, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.steps = 0
        self.left_out: list[str] = []
        self._file: pq.ParquetWriter | None = None
        self._bytes = self._number = 0

    def add(self, where: str, columns: Columns, left_out: list[str]) -> None:
        """Write an episode."""
        steps, index = len(columns["action"]), len(self.rows)
        frames = np.arange(steps)
        columns = {
            **columns,
            "timestamp": (frames / self.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(steps, index),
            "index": self.steps + frames,
            "task_index": np.zeros(steps, np.int64),
        }
        features = {name: _feature(value, self._names(name, value)) for name, value in columns.items()}
        if not self.features:
            self.features = features
            self.schema = pa.schema([(name, _arrow_type(value)) for name, value in columns.items()])
            self.left_out = left_out
        if features != self.features:
            theirs = {name: feature["shape"] for name, feature in features.items()}
            ours = {name: feature["shape"] for name, feature in self.features.items()}
            odd = next(n for n in itertools.chain(theirs, ours) if theirs.get(n) != ours.get(n))
            raise DatasetError(f"{where}: {odd} is {theirs.get(odd, 'missing')}, in the first episode {ours.get(odd)}")
        assert self.schema is not None
        arrays = [_arrow(x, t) for x, t in zip(columns.values(), self.schema.types, strict=True)]
        table = pa.table(arrays, self.schema)
        place = self._write(table)
        self.rows.append(
            {
                "episode_index": index,
                "tasks": [self.task],
                "length": steps,
                **{f"data/{key}": value for key, value in place.items()},
                "dataset_from_index": self.steps,
                "dataset_to_index": self.steps + steps,
                "stats": {name: _statistics(value) for name, value in columns.items()},
                **{f"meta/episodes/{key}": 0 for key in place},
            }
        )
        self.steps += steps

    def finish(self) -> Exported:
        """Complete the dataset."""
        if self._file:
            self._file.close()
        meta = self.folder / "meta"
        total = {name: _together([row["stats"][name] for row in self.rows]) for name in self.features}
        flat = [
            {k: v for k, v in row.items() if k != "stats"}
            | {f"stats/{name}/{k}": v for name, stats in row["stats"].items() for k, v in stats.items()}
            for row in self.rows
        ]
        _save(pa.Table.from_pylist(flat), self.folder / EPISODES.format(chunk_index=0, file_index=0))
        _save(_tasks(self.task), meta / "tasks.parquet")
        (meta / "stats.json").write_text(json.dumps(total, indent=1) + "\n")
        info = {
            "codebase_version": VERSION,
            "fps": self.fps,
            "features": self.features,
            "total_episodes": len(self.rows),
            "total_frames": self.steps,
            "total_tasks": 1,
            "chunks_size": FILES_PER_FOLDER,
            "data_files_size_in_mb": FILE_MB,
            "data_path": DATA,
            "video_path": None,
            "robot_type": None,
            "splits": {"train": f"0:{len(self.rows)}"},
        }
        (meta / "info.json").write_text(json.dumps(info, indent=1) + "\n")
        return Exported(len(self.rows), self.steps, self.fps, self.left_out)

    def _write(self, table: pa.Table) -> dict[str, int]:
        """Write an episode's rows as one row group; the place of their file."""
        if self._file and self._bytes + table.nbytes > FILE_MB * 2**20:
            self._file.close()
            self._file, self._bytes, self._number = None, 0, self._number + 1
        chunk, number = divmod(self._number, FILES_PER_FOLDER)
        place = {"chunk_index": chunk, "file_index": number}
        if self._file is None:
            path = self.folder / DATA.format(**place)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pq.ParquetWriter(path, self.schema, compression="snappy")
        self._file.write_table(table)
        self._bytes += table.nbytes
        return place

    def _names(self, column: str, value: np.ndarray) -> list[str] | None:
        if value.ndim == 1:
            return None
        known, size = self.names.get(column, []), value.shape[1]
        return list(known) if len(known) == size else [f"{column}[{i}]" for i in range(size)]


def _feature(value: np.ndarray, names: list[str] | None) -> dict[str, Any]:
    return {"dtype": str(value.dtype), "shape": [1] if value.ndim == 1 else [value.shape[1]], "names": names}


def _arrow_type(value: np.ndarray) -> pa.DataType:
    """A vector of one number is that number, as LeRobot has it."""
    kind = pa.from_numpy_dtype(value.dtype)
    return kind if value.ndim == 1 or value.shape[1] == 1 else pa.list_(kind, value.shape[1])


def _arrow(value: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(value).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind) if pa.types.is_fixed_size_list(kind) else flat


def _statistics(value: np.ndarray) -> dict[str, list[Any]]:
    """Least, greatest, mean, standard deviation, quantiles and number of an episode's values, by column."""
    numbers = value.reshape(len(value), -1).astype(np.float64)
    stats = {"min": numbers.min(0), "max": numbers.max(0), "mean": numbers.mean(0), "std": numbers.std(0)}
    quantiles = np.quantile(numbers, list(QUANTILES.values()), axis=0)
    return {k: v.tolist() for k, v in {**stats, **dict(zip(QUANTILES, quantiles, strict=True))}.items()} | {
        "count": [len(value)]
    }


def _together(episodes: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """The statistics of all episodes. Quantiles are the weighted means of theirs, as in LeRobot."""
    table = {name: np.array([stats[name] for stats in episodes], np.float64) for name in episodes[0]}
    weight = table["count"] / table["count"].sum()
    mean = (weight * table["mean"]).sum(0)
    var = (weight * (table["std"] ** 2 + (table["mean"] - mean) ** 2)).sum(0)
    stats = {"min": table["min"].min(0), "max": table["max"].max(0), "mean": mean, "std": np.sqrt(var)}
    stats |= {name: (weight * table[name]).sum(0) for name in QUANTILES}
    return {name: x.tolist() for name, x in stats.items()} | {"count": [int(table["count"].sum())]}


def _tasks(task: str) -> pa.Table:
    """The tasks, as pandas reads them back: the sentence is the index."""
    table = pa.table({"task_index": pa.array([0], pa.int64()), "task": pa.array([task], pa.string())})
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, (kind, numpy) in kinds.items()
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _save(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="snappy")
