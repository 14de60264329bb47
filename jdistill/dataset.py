"""Recorded episodes: what a file holds, and how it becomes a history to train on.

    python -m jdistill.dataset info flights.hdf5

The layout is described in :mod:`jdistill.recorder`. For training, ``obs`` and ``teacher_actions`` are enough.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from jdistill import networks, observations
from jdistill.cli import Parser
from jdistill.config import AlgorithmCfg, ConfigError
from jdistill.history import GIB, History, check_memory
from jdistill.journal import recover
from jdistill.networks import Normalizer, Policy, PolicyState
from jdistill.recorder import DatasetError


class Labeller(NamedTuple):
    """A teacher that labels a dataset's observations anew."""

    policy: Policy
    state: PolicyState
    entries: Sequence[str]
    """What makes up its observation."""
    obs_size: int
    """How many numbers that are."""


class Recording(NamedTuple):
    """A dataset that is ready to be trained on."""

    history: History
    """All episodes; several stand behind each other in each of its flights."""
    normalizer: Normalizer
    """Moments of all observations of the student."""
    summary: str

    def describe(self) -> str:
        """One line, for the start of a run."""
        return self.summary


@contextmanager
def open_dataset(path: Path) -> Iterator[list[tuple[str, h5py.Group]]]:
    """The episodes of a file in order, by name.

    Raises:
        DatasetError: there is no such file, it is broken, or it holds no episodes.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        recover(path)
        with h5py.File(path, "r") as file:
            data = file.get("data")
            if not isinstance(data, h5py.Group):
                raise DatasetError(f"{path}: no dataset of episodes (an HDF5 file without the group 'data')")
            names = [n for n in data if n.startswith("demo_") and n[5:].isdigit() and isinstance(data[n], h5py.Group)]
            if not names:
                raise DatasetError(f"{path}: holds no complete episode")
            yield [(f"{path}: data/{n}", data[n]) for n in sorted(names, key=lambda n: int(n[5:]))]
    except (OSError, RuntimeError, KeyError) as e:
        raise DatasetError(f"{path}: truncated, damaged or no HDF5 file ({' '.join(str(e).split())[:150]})") from e


def load(
    cfg: AlgorithmCfg,
    entries: Sequence[str],
    sizes: tuple[int, int],
    flights: int,
    horizon: int,
    teacher: Labeller | None = None,
) -> Recording:
    """Read the files ``cfg.dataset`` into a history of ``flights`` flights.

    Args:
        entries: what makes up the student's observation (see :mod:`jdistill.observations`).
        sizes: of the student's observation and of an action.
        horizon: the history's length becomes a multiple of this.
        teacher: labels the observations in place of the recorded labels.

    Raises:
        DatasetError: a file that cannot be read, or whose episodes have other dimensions.
        ConfigError: more than the memory holds.
    """
    columns: list[list[dict[str, np.ndarray]]] = [[] for _ in range(flights)]
    ages, episodes, total = [0] * flights, 0, 0
    width = sum(sizes) + (teacher.obs_size if teacher else 0)
    dtype = np.dtype(jnp.dtype(cfg.history_dtype))
    for path in map(Path, cfg.dataset):
        with open_dataset(path) as found:
            steps = sum(_length(where, group) for where, group in found)
            what = f"--dataset {path}: with {total + steps} steps the dataset"
            check_memory((total + steps) * (width * dtype.itemsize + 1), what, "train on fewer files", copies=1)
            for where, group in found:
                episode = _episode(where, group, entries, sizes, teacher)
                shortest = int(np.argmin(ages))
                columns[shortest].append(episode)
                ages[shortest] += len(episode["label"])
            episodes, total = episodes + len(found), total + steps
    rows = -(-max(ages) // horizon) * horizon
    packed = {name: _pack([[e[name] for e in column] for column in columns], rows) for name in columns[0][0]}
    label = packed["label"]
    if teacher:
        replay = jax.jit(networks.replay, static_argnums=0)
        label = np.asarray(replay(teacher.policy, teacher.state, packed["teacher"], packed["first"]))
    seen = np.concatenate([e["obs"] for column in columns for e in column])
    history = History(
        obs=jnp.asarray(packed["obs"], dtype),
        label=jnp.asarray(label, dtype),
        first=jnp.asarray(packed["first"]),
        carry=(),
        origin=jnp.zeros((), jnp.int32),
        length=jnp.asarray(ages, jnp.int32),
    )
    size = sum(x.nbytes for x in jax.tree.leaves(history))
    summary = f"Dataset: {episodes} episodes, {total} steps, {size / GIB:.3f} GiB on {jax.devices()[0].platform}"
    return Recording(history, Normalizer.create(sizes[0]).update(jnp.asarray(seen)), summary)


def _length(where: str, group: h5py.Group) -> int:
    for name in ("teacher_actions", "obs"):
        if name not in group:
            raise DatasetError(f"{where}: has no {name}; a recording of --record has what a student can learn from")
    return len(group["teacher_actions"])


def _episode(
    where: str, group: h5py.Group, entries: Sequence[str], sizes: tuple[int, int], teacher: Labeller | None
) -> dict[str, np.ndarray]:
    """One episode's ``obs``, ``label``, ``first`` and, for a teacher, ``teacher``, each (T, ...)."""
    label = np.asarray(group["teacher_actions"], np.float32)
    if label.ndim != 2 or label.shape[1] != sizes[1] or not len(label):
        raise DatasetError(f"{where}: teacher_actions is {list(label.shape)}, the environment takes {sizes[1]} actions")
    wanted = {"obs": (entries, sizes[0])}
    if teacher:
        wanted["teacher"] = (teacher.entries, teacher.obs_size)
    episode = {"label": label, "first": np.arange(len(label)) == 0}
    for name, (parts, size) in wanted.items():
        groups: dict[str, Any] = {}
        for needed in observations.group_names(parts):
            if needed not in group["obs"]:
                known = ", ".join(group["obs"])
                raise DatasetError(f"{where}: has no observation group '{needed}'; there are {known}")
            groups[needed] = np.asarray(group["obs"][needed], np.float32)
        try:
            value = np.asarray(observations.select(groups, parts))
        except observations.ObservationError as e:
            raise DatasetError(f"{where}: {e}") from e
        if value.shape[0] != len(label) or value.shape[1:] != (size,):
            raise DatasetError(
                f"{where}: obs {'+'.join(groups)} is {list(value.shape)}, expected {[len(label), size]} as in this task"
            )
        episode[name] = value
    for name, value in episode.items():
        if not np.isfinite(value).all():
            raise DatasetError(f"{where}: NaN or infinity in {'teacher_actions' if name == 'label' else 'obs'}")
    return episode


def _pack(columns: list[list[np.ndarray]], rows: int) -> np.ndarray:
    """Episodes one behind the other in each column: (rows, columns, ...), zeros where a column is shorter."""
    example = columns[0][0]
    packed = np.zeros((rows, len(columns), *example.shape[1:]), example.dtype)
    for number, column in enumerate(columns):
        at = 0
        for episode in column:
            packed[at : at + len(episode), number] = episode
            at += len(episode)
    return packed


def info(path: Path) -> str:
    """What a file holds: episodes, steps, returns, ranges of all arrays; several lines.

    Raises:
        DatasetError: it cannot be read.
    """
    ranges: dict[str, tuple[float, float, tuple[int, ...]]] = {}
    lengths, returns, by_teacher = [], [], 0
    with open_dataset(path) as episodes:
        args = episodes[0][1].parent.attrs.get("env_args", "{}")

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.size and np.issubdtype(item.dtype, np.number):
                value = item[()]
                low, high = float(np.nanmin(value)), float(np.nanmax(value))
                before = ranges.get(name, (low, high, ()))
                ranges[name] = min(low, before[0]), max(high, before[1]), item.shape[1:]

        for where, group in episodes:
            group.visititems(visit)
            actions = group.get("actions", group.get("teacher_actions"))
            if actions is None:
                raise DatasetError(f"{where}: has no actions")
            lengths.append(int(group.attrs.get("num_samples", len(actions))))
            returns.append(float(np.sum(group["rewards"])) if "rewards" in group else np.nan)
            by_teacher += int(np.sum(group["phase"][()] == 1)) if "phase" in group else 0
    try:
        env = json.loads(args).get("env_name", "unknown")
    except (json.JSONDecodeError, AttributeError):
        env = "unknown"
    lines = [
        f"{path}: task {env}",
        f"episodes  {len(lengths)}",
        f"steps     {sum(lengths)} ({by_teacher / sum(lengths):.1%} by the teacher)",
        f"lengths   {min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}",
        f"returns   {min(returns):.2f} to {max(returns):.2f}, mean {np.mean(returns):.2f}",
        f"{'array':<24} {'shape':<10} {'from':>12} {'to':>12}",
    ]
    for name, (low, high, shape) in ranges.items():
        dimensions = "T" + "".join(f" x {d}" for d in shape)
        lines.append(f"{name:<24} {dimensions:<10} {low:>12.5g} {high:>12.5g}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    parser = Parser(prog="python -m jdistill.dataset", description="Look into recorded episodes.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("info", help="print episodes, steps, returns and ranges")
    command.add_argument("files", nargs="+", type=Path, metavar="PATH")
    args = parser.parse_args(argv)
    try:
        print("\n\n".join(info(path) for path in args.files))
    except (DatasetError, ConfigError) as e:
        print(f"jdistill.dataset: error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
