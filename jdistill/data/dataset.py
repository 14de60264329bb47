"""Recorded episodes: what a file holds, and how it becomes a history to train on.

    jdistill dataset info rollouts.hdf5

The layout is described in :mod:`jdistill.data.episode_writer`. Training needs only ``obs`` and ``teacher_actions``.
"""

from __future__ import annotations

import itertools
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
from jdistill.core.observations import Observation
from jdistill.core.teachers import TeacherBank
from jdistill.data import episode
from jdistill.data.episode import Relabeler, Seen, task_of
from jdistill.data.integrity import check_sums, check_total, damage, is_numeric, refuse_links, whole
from jdistill.data.write_ahead_log import recover
from jdistill.errors import ConfigError, DatasetError
from jdistill.files import refuse_pointer


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
    seen: Seen,
    num_actions: int,
    num_columns: int,
    horizon: int,
    teacher: Relabeler | None = None,
    parts: int = 1,
) -> Recording:
    """Read the files ``cfg.dataset`` into a history of ``num_columns`` columns, or one per episode if those are fewer.

    Args:
        cfg: names the files, and the dtype of the history.
        seen: by the student.
        num_actions: numbers of an action.
        num_columns: the episodes are distributed over so many columns (a rollout's environments) of each part.
        horizon: the history's length becomes a multiple of this many steps.
        teacher: its actions replace the recorded ones.
        parts: into which the columns are going to be divided.

    Raises:
        DatasetError: a file that cannot be read, or whose episodes have other dimensions.
        ConfigError: more than the memory holds.
    """
    found = _of_all(cfg.dataset, lambda where, group: episode.measure(where, group, seen, teacher))
    lengths, labels = zip(*found, strict=True)
    # Nothing can be drawn from an empty column; there are some only where a part would have none at all.
    num_columns = parts * max(1, min(num_columns, len(lengths) // parts))
    places, filled = _places(lengths, num_columns)
    rows = -(-int(filled.max()) // horizon) * horizon
    arrays = _arrays(cfg, seen, num_actions, teacher)
    _check_memory(cfg.dataset, arrays, rows * num_columns, sum(lengths))
    packed = jax.tree.map(lambda x: np.zeros((rows, num_columns, *x.shape), x.dtype), arrays)
    is_first = np.zeros((rows, num_columns), bool)

    def read(where: str, group: h5py.Group) -> dict[str, Any]:
        arrived = episode.read(where, group, seen, num_actions, teacher)
        if cfg.check_dataset:
            check_sums(where, group)
        return arrived

    episodes = _of_all(cfg.dataset, read, cfg.check_dataset)
    for (column, start), arrived in zip(places, episodes, strict=True):
        is_first[start, column] = True
        for name, value in arrived.items():
            _place(packed[name], value, start, column)
    teacher_action = _relabel(teacher, packed, is_first) if teacher else packed["teacher_action"]
    history = History(
        obs=jax.device_put(packed["obs"]),
        teacher_action=jnp.asarray(teacher_action, arrays["teacher_action"].dtype),
        is_first=jax.device_put(is_first),
        carry=(),
        origin=jnp.zeros((), jnp.int32),
        length=jnp.asarray(filled, jnp.int32),
    )
    moments = _moments(observations.vector_of(packed["obs"]), filled)
    return Recording(history, moments, _summary(lengths, history, () if teacher else labels))


def _arrays(cfg: AlgorithmCfg, seen: Seen, num_actions: int, teacher: Relabeler | None) -> dict[str, Any]:
    """What a step is, by name; the teacher's own numbers are needed until it has relabelled."""
    dtype = np.dtype(jnp.dtype(cfg.history_dtype))
    return {
        "obs": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, _held(x.dtype, dtype)), seen.shapes),
        "teacher_action": jax.ShapeDtypeStruct((num_actions,), dtype),
        **(teacher.arrays if teacher else {}),
    }


def _check_memory(files: Sequence[str], arrays: dict[str, Any], room: int, steps: int) -> None:
    """Refuse what does not fit: ``room`` steps of ``arrays``, of which ``steps`` are taken."""
    nbytes = room * (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays)) + 1)
    what = f"--dataset {', '.join(files)}: with {steps} steps the dataset"
    check_memory(nbytes, what, "train on fewer files", copies=1)  # In the host's memory, from where it is copied.


def _place(packed: Any, value: Any, start: int, column: int) -> None:
    """Put the steps of an episode into ``column`` of the arrays, from ``start`` on."""
    for room, x in zip(*map(jax.tree.leaves, (packed, value)), strict=True):
        room[start : start + len(x), column] = x


def _held(kind: Any, floats: np.dtype[Any]) -> Any:
    """The type in which a history holds numbers of this ``kind``."""
    return floats if np.issubdtype(kind, np.floating) else kind


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


def _relabel(teacher: Relabeler, packed: Mapping[str, Any], is_first: np.ndarray) -> Array:
    """The teacher's actions (P, B, A) on its observations (P, B, D), recurrent along each column."""
    seen = packed["teacher_obs"]
    images = seen.images if isinstance(seen, Observation) else ()
    names = ("teacher_obs", *(f"teacher_image_{i}" for i in range(len(images))))
    actor = teacher.actor.replace(obs_groups=names)
    if isinstance(actor, TeacherBank):
        actor = actor.replace(id_group="teacher_number", ids=jnp.arange(len(actor.ids)))
    obs = dict(zip(names, (observations.vector_of(seen), *images), strict=True))
    obs |= {name: packed[name] for name in ("teacher_number",) if name in packed}

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


def info(path: Path) -> str:
    """Describe what a file holds: episodes, steps, returns, ranges of all arrays; several lines.

    Raises:
        DatasetError: it cannot be read.
    """
    ranges: dict[str, tuple[float, float, tuple[int, ...]]] = {}
    lengths, returns, by_teacher, phases = [], [], 0, 0
    with open_dataset(path) as episodes:
        task, damaged = task_of(episodes[0][1]) or "unknown", damage(path, episodes)

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
    by_whom = f" ({by_teacher / phases:.1%} by the teacher)" if phases else ""
    earned = f"{min(returns):.2f} to {max(returns):.2f}, mean {np.mean(returns):.2f}" if returns else "not recorded"
    lines = [
        f"{path}: task {task}",
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
