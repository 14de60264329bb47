"""Recorded episodes: what a file holds, and how it becomes a history to train on.

    jdistill dataset info rollouts.hdf5

The layout is described in :mod:`jdistill.data.episode_writer`. Training needs only ``obs`` and ``teacher_actions``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdistill.core import observations
from jdistill.core.actor import PolicyActor, follow
from jdistill.core.config import AlgorithmCfg
from jdistill.core.history import History
from jdistill.core.memory import GIB, check_memory
from jdistill.core.networks import Normalizer
from jdistill.core.teachers import TeacherBank
from jdistill.data.integrity import check_sums, check_total, damage, is_numeric, refuse_links, stored, whole
from jdistill.data.write_ahead_log import recover
from jdistill.errors import ConfigError, DatasetError, ObservationError
from jdistill.files import refuse_pointer


class Relabeler(NamedTuple):
    """A teacher whose actions on a dataset's observations replace the recorded ones (DAgger's relabelling)."""

    actor: PolicyActor | TeacherBank
    obs_size: int
    """Numbers in its observation."""

    @property
    def entries(self) -> Sequence[str]:
        """The entries of its observation, see :mod:`jdistill.core.observations`."""
        return self.actor.obs_groups

    @property
    def arrays(self) -> dict[str, tuple[int, np.dtype[Any]]]:
        """Width and type of what is read for it: its observation, and of several teachers which one it is."""
        numbers = {"teacher_number": (1, np.dtype(np.int32))} if isinstance(self.actor, TeacherBank) else {}
        return {"teacher_obs": (self.obs_size, np.dtype(np.float32)), **numbers}


class Recording(NamedTuple):
    """A dataset in memory, ready to be trained on."""

    history: History
    """All episodes. Each of its columns holds several, one after the other."""
    normalizer: Normalizer
    """Mean and variance of all observations of the student."""
    summary: str
    """What was read, in one line."""

    def describe(self) -> str:
        """The line about it that a run begins with."""
        return self.summary


@contextmanager
def open_dataset(path: Path) -> Iterator[list[tuple[str, h5py.Group]]]:
    """Open a file: its episodes in order, each as a name for messages and its group.

    Raises:
        DatasetError: there is no such file, it is broken, or it holds no episodes.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    refuse_pointer(path, DatasetError)
    try:
        recover(path)
        with h5py.File(path, "r") as file:
            data = file.get("data")
            if not isinstance(data, h5py.Group):
                raise DatasetError(f"{path}: no dataset of episodes (an HDF5 file without the group 'data')")
            names = [n for n in data if n.startswith("demo_") and n[5:].isdecimal() and isinstance(data[n], h5py.Group)]
            if not names:
                raise DatasetError(f"{path}: holds no complete episode")
            refuse_links(path, data)
            yield [(f"{path}: data/{n}", data[n]) for n in sorted(names, key=lambda n: int(n[5:]))]
    except (DatasetError, ConfigError):
        raise
    except BlockingIOError as e:
        raise DatasetError(f"{path}: is being recorded; try again when that run has ended") from e
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as e:  # h5py's answers to damaged bytes.
        raise DatasetError(f"{path}: truncated, damaged or no HDF5 file ({' '.join(str(e).split())[:150]})") from e


def load(
    cfg: AlgorithmCfg,
    entries: Sequence[str],
    sizes: tuple[int, int],
    num_columns: int,
    horizon: int,
    teacher: Relabeler | None = None,
    parts: int = 1,
) -> Recording:
    """Read the files ``cfg.dataset`` into a history of ``num_columns`` columns, or one per episode if those are fewer.

    Args:
        cfg: names the files, and the dtype of the history.
        entries: what makes up the student's observation (see :mod:`jdistill.core.observations`).
        sizes: of the student's observation and of an action.
        num_columns: the episodes are distributed over so many columns (a rollout's environments) of each part.
        horizon: the history's length becomes a multiple of this many steps.
        teacher: its actions replace the recorded ones.
        parts: into which the columns are going to be divided.

    Raises:
        DatasetError: a file that cannot be read, or whose episodes have other dimensions.
        ConfigError: more than the memory holds.
    """
    found = _of_all(cfg.dataset, lambda where, group: (_length(where, group, entries, teacher), _label(group)))
    lengths, labels = zip(*found, strict=True)
    # Nothing can be drawn from an empty column; there are some only where a part would have none at all.
    num_columns = parts * max(1, min(num_columns, len(lengths) // parts))
    places, filled = _places(lengths, num_columns)
    rows = -(-int(filled.max()) // horizon) * horizon
    dtype = np.dtype(jnp.dtype(cfg.history_dtype))
    arrays: dict[str, tuple[int, Any]] = {"obs": (sizes[0], dtype), "teacher_action": (sizes[1], dtype)}
    arrays |= teacher.arrays if teacher else {}
    nbytes = rows * num_columns * (sum(width * kind.itemsize for width, kind in arrays.values()) + 1)
    what = f"--dataset {', '.join(cfg.dataset)}: with {sum(lengths)} steps the dataset"
    check_memory(nbytes, what, "train on fewer files", copies=1)  # In the host's memory, from where it is copied.
    packed = {name: np.zeros((rows, num_columns, width), kind) for name, (width, kind) in arrays.items()}
    is_first = np.zeros((rows, num_columns), bool)

    def read(where: str, group: h5py.Group) -> dict[str, np.ndarray]:
        episode = _episode(where, group, entries, sizes, teacher)
        if cfg.check_dataset:
            check_sums(where, group)
        return episode

    episodes = _of_all(cfg.dataset, read, cfg.check_dataset)
    for (column, start), episode in zip(places, episodes, strict=True):
        is_first[start, column] = True
        for name, value in episode.items():
            packed[name][start : start + len(value), column] = value
    teacher_action = _relabel(teacher, packed, is_first) if teacher else packed["teacher_action"]
    history = History(
        obs=jax.device_put(packed["obs"]),
        teacher_action=jnp.asarray(teacher_action, dtype),
        is_first=jax.device_put(is_first),
        carry=(),
        origin=jnp.zeros((), jnp.int32),
        length=jnp.asarray(filled, jnp.int32),
    )
    return Recording(history, _moments(packed["obs"], filled), _summary(lengths, history, () if teacher else labels))


def _summary(lengths: Sequence[int], history: History, labels: Sequence[str | None]) -> str:
    """A line; ``labels`` are the arrays that the student learns from, one for each episode."""
    demonstrations = labels.count("actions")
    size = sum(x.nbytes for x in jax.tree.leaves(history)) / GIB
    on = jax.local_devices()[0].platform
    of_what = "" if demonstrations == len(lengths) else f" of {demonstrations} episodes, which have no teacher_actions"
    labels = f"; the labels are the actions{of_what or ' of the demonstrations'}" if demonstrations else ""
    return f"Dataset: {len(lengths)} episodes, {sum(lengths)} steps, {size:.3f} GiB on {on}{labels}"


def with_siblings(files: Iterable[str | Path]) -> list[Path]:
    """``files``, each followed by what the other processes of its run recorded: ``flown.1.hdf5`` after ``flown.hdf5``.

    A file named more than once counts as often; one that is named itself does not come with another.
    """
    named = [Path(file) for file in files]
    return [path for file in named for path in (file, *(x for x in _siblings(file) if x not in named))]


def _siblings(path: Path) -> Iterator[Path]:
    others = (path.with_name(f"{path.stem}.{i}{path.suffix}") for i in itertools.count(1))
    return itertools.takewhile(Path.is_file, others)


def _of_all[T](files: Sequence[str], read: Callable[[str, h5py.Group], T], check: bool = False) -> Iterator[T]:
    """Yield ``read(name, episode)`` for the episodes of all files and their siblings.

    ``check`` that none of them is missing.
    """
    for path in with_siblings(files):
        with open_dataset(path) as episodes:
            if check:
                check_total(path, episodes)
            for where, group in episodes:
                yield read(where, group)


def _relabel(teacher: Relabeler, packed: Mapping[str, np.ndarray], is_first: np.ndarray) -> Array:
    """The teacher's actions (P, B, A) on its observations (P, B, D), recurrent along each column."""
    actor = teacher.actor.replace(obs_groups=("teacher_obs",))
    if isinstance(actor, TeacherBank):
        actor = actor.replace(id_group="teacher_number", ids=jnp.arange(len(actor.ids)))
    obs = {name: packed[name] for name in ("teacher_obs", "teacher_number") if name in packed}

    def replay(actor: PolicyActor | TeacherBank, obs: dict[str, Array], is_first: Array) -> Array:
        return follow(actor, actor.initial_carry(is_first.shape[1]), obs, is_first)[1]

    return jax.jit(replay)(actor, obs, is_first)


def _places(lengths: Sequence[int], num_columns: int) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Column and first row of every episode, and the rows filled of each column (B,).

    Each episode goes to the end of the column that is shortest so far.
    """
    filled, places = np.zeros(num_columns, np.int64), []
    for length in lengths:
        column = int(filled.argmin())
        places.append((column, int(filled[column])))
        filled[column] += length
    return places, filled


def _moments(obs: np.ndarray, filled: np.ndarray) -> Normalizer:
    """The normalizer of all observations: of ``obs`` (P, B, D) the first ``filled`` (B,) rows of each column."""
    total = filled.sum()

    def mean(value: Any) -> np.ndarray:
        sums = (value(obs[:rows, column].astype(np.float64)).sum(axis=0) for column, rows in enumerate(filled))
        return sum(sums) / total

    mu = mean(lambda x: x)
    var = mean(lambda x: np.square(x - mu))
    return Normalizer(*(jnp.asarray(x, jnp.float32) for x in (mu, var, total)))


def _length(where: str, group: h5py.Group, entries: Sequence[str], teacher: Relabeler | None) -> int:
    """The number of steps of an episode; raises if it lacks something that training needs."""
    if not teacher and _label(group) is None:
        raise DatasetError(
            f"{where}: has no teacher_actions to learn from; agent.algorithm.relabel=true lets the teacher make them"
        )
    return len(_observation_group(where, group, observations.group_names(entries)[0]))


def _observation_group(where: str, group: h5py.Group, name: str) -> h5py.Dataset:
    obs = group.get("obs")
    if not isinstance(obs, h5py.Group):
        raise DatasetError(f"{where}: has no obs; a recording of --record has what a student can learn from")
    # Isaac Lab's own recordings hold the members of the group ``policy`` alone, and do not name it.
    known = [key for key in (name, name.replace("/", "."), name.removeprefix("policy/")) if key in obs]
    if not known:
        raise DatasetError(f"{where}: has no observation group '{name}'; there are {', '.join(obs)}")
    return _array(where, group, f"obs/{known[0]}")


def _array(where: str, group: h5py.Group, name: str) -> h5py.Dataset:
    """The array ``name`` (T, n) of an episode."""
    item = group.get(name)
    if not is_numeric(item) or item.ndim != 2 or not item.size:
        what = list(item.shape) if is_numeric(item) else "no array of numbers"
        raise DatasetError(f"{where}: {name} is {what}, expected [steps, size]")
    return stored(where, item)


def _label(group: h5py.Group) -> str | None:
    """What a student learns from: the teacher's actions, or the actions of demonstrations, which have no other."""
    if "teacher_actions" in group:
        return "teacher_actions"
    return "actions" if "actions" in group and "student_actions" not in group else None


def _episode(
    where: str, group: h5py.Group, entries: Sequence[str], sizes: tuple[int, int], teacher: Relabeler | None
) -> dict[str, np.ndarray]:
    """One episode's ``obs`` and ``teacher_action``, or ``teacher_obs`` if a teacher relabels it; each (T, size)."""
    episode = {"obs": _observation(where, group, entries, sizes[0])}
    steps = len(episode["obs"])
    if teacher:
        episode["teacher_obs"] = _observation(where, group, teacher.entries, teacher.obs_size)
        if isinstance(teacher.actor, TeacherBank):
            episode["teacher_number"] = _teacher_numbers(where, group, teacher.actor)
    else:
        label = _label(group) or "teacher_actions"
        actions = _array(where, group, label)
        if actions.shape[1] != sizes[1]:
            raise DatasetError(f"{where}: {label} is {list(actions.shape)}, the environment takes {sizes[1]} actions")
        episode["teacher_action"] = _float32(actions)
    for name, value in episode.items():
        what = "teacher_actions" if name == "teacher_action" else "obs"
        if len(value) != steps:
            raise DatasetError(f"{where}: {what} has {len(value)} steps, the student's obs {steps}")
        if not np.isfinite(value).all():
            raise DatasetError(f"{where}: NaN or infinity in {what}")
    return episode


def _observation(where: str, group: h5py.Group, entries: Sequence[str], size: int) -> np.ndarray:
    """The observation (T, size) that ``entries`` make up."""
    names = observations.group_names(entries)
    groups = {name: _float32(_observation_group(where, group, name)) for name in names}
    if len({len(x) for x in groups.values()}) > 1:
        raise DatasetError(f"{where}: the groups {', '.join(names)} in obs are not equally long")
    try:
        value = observations.select(groups, entries)
    except ObservationError as e:
        raise DatasetError(f"{where}: {e}") from e
    if value.shape[1] != size:
        raise DatasetError(
            f"{where}: obs {'+'.join(names)} is {list(value.shape)}, expected {[len(value), size]} as in this task"
        )
    return value


def _teacher_numbers(where: str, group: h5py.Group, bank: TeacherBank) -> np.ndarray:
    """(T, 1) int32: the places among the teachers of those that an episode was recorded with."""
    (name,) = bank.groups
    item = group.get(f"obs/{name}")
    if not is_numeric(item) or item.ndim not in (1, 2) or not item.size:
        raise DatasetError(f"{where}: has no obs/{name}, which says which teacher's it is (agent.teacher.id_group)")
    try:
        ids = observations.teacher_ids({name: stored(where, item)[()]}, bank.id_group, 1)
    except ObservationError as e:
        raise DatasetError(f"{where}: {e}") from e
    if (unknown := np.setdiff1d(ids, np.asarray(bank.ids))).size:
        raise DatasetError(f"{where}: obs/{name} is {unknown[0]}, and no teacher has this id")
    return np.searchsorted(np.asarray(bank.ids), ids)[:, None]


def _float32(array: h5py.Dataset) -> np.ndarray:
    with np.errstate(over="ignore"):  # Numbers too large become infinity, which is reported as such.
        return np.asarray(array, np.float32)


def info(path: Path) -> str:
    """Describe what a file holds: episodes, steps, returns, ranges of all arrays; several lines.

    Raises:
        DatasetError: it cannot be read.
    """
    ranges: dict[str, tuple[float, float, tuple[int, ...]]] = {}
    lengths, returns, by_teacher, phases = [], [], 0, 0
    with open_dataset(path) as episodes:
        args, damaged = episodes[0][1].parent.attrs.get("env_args", "{}"), damage(path, episodes)

        def visit(name: str, item: Any) -> None:
            if is_numeric(item) and item.size:
                value = whole(str(path), item.parent, item.name)
                low, high, shape = ranges.get(name, (np.nan, np.nan, item.shape[1:]))
                # Unlike min and max, these two pass over NaN.
                low = np.fmin(low, float(np.fmin.reduce(value, axis=None)))
                high = np.fmax(high, float(np.fmax.reduce(value, axis=None)))
                ranges[name] = low, high, shape

        for where, group in episodes:
            group.visititems(visit)
            actions = next((group[n] for n in ("actions", "teacher_actions") if n in group), None)
            if actions is None or not is_numeric(actions) or not actions.ndim:
                raise DatasetError(f"{where}: has no actions")
            lengths.append(len(actions))
            if is_numeric(group.get("rewards")):
                returns.append(float(np.sum(group["rewards"])))
            if is_numeric(phase := group.get("phase")):
                by_teacher, phases = by_teacher + int(np.sum(phase[()] == 1)), phases + phase.size
    try:
        env = json.loads(args).get("env_name", "unknown")
    except (ValueError, TypeError, AttributeError):
        env = "unknown"
    by_whom = f" ({by_teacher / phases:.1%} by the teacher)" if phases else ""
    earned = f"{min(returns):.2f} to {max(returns):.2f}, mean {np.mean(returns):.2f}" if returns else "not recorded"
    lines = [
        f"{path}: task {env}",
        f"episodes  {len(lengths)}",
        f"steps     {sum(lengths)}{by_whom}",
        f"lengths   {min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}",
        f"returns   {earned}",
        *(f"damaged   {what}" for what in damaged),
        f"{'array':<24} {'shape':<10} {'from':>12} {'to':>12}",
    ]
    for name, (low, high, shape) in ranges.items():
        dimensions = "T" + "".join(f" x {d}" for d in shape)
        lines.append(f"{name!s:<24} {dimensions:<10} {low:>12.5g} {high:>12.5g}")
    return "\n".join(lines)
