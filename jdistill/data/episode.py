"""One episode of a recorded file, read and checked: what a policy observed of it, and what it is to learn."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import h5py
import jax
import numpy as np

from jdistill.core import observations
from jdistill.core.actor import PolicyActor
from jdistill.core.teachers import TeacherBank
from jdistill.data.integrity import is_numeric, stored
from jdistill.errors import DatasetError, ObservationError


class Seen(NamedTuple):
    """What a policy observes."""

    entries: Sequence[str]
    """See :mod:`jdistill.core.observations`."""
    shapes: Any
    """Of one step, :func:`jdistill.core.observations.shapes`."""


class Relabeler(NamedTuple):
    """A teacher whose actions on a dataset's observations replace the recorded ones (DAgger's relabelling)."""

    actor: PolicyActor | TeacherBank
    seen: Seen

    @property
    def arrays(self) -> dict[str, Any]:
        """The shapes of what is read for it: its observation, and of several teachers which one it is."""
        number = jax.ShapeDtypeStruct((1,), np.dtype(np.int32))
        numbers = {"teacher_number": number} if isinstance(self.actor, TeacherBank) else {}
        return {"teacher_obs": self.seen.shapes, **numbers}


def measure(where: str, group: h5py.Group, seen: Seen, teacher: Relabeler | None) -> tuple[int, str | None]:
    """The steps of an episode, and what it is learned from; raises if it lacks something that training needs."""
    if not teacher and label(group) is None:
        raise DatasetError(
            f"{where}: has no teacher_actions to learn from; agent.algorithm.relabel=true lets the teacher make them"
        )
    first = observations.group_names(seen.entries)[0]
    return len(_observation_group(where, group, first)), label(group)


def task_of(group: h5py.Group) -> str | None:
    """The task that an episode was recorded on, as far as its file says."""
    try:
        return str(json.loads(group.parent.attrs["env_args"])["env_name"])
    except (KeyError, ValueError, TypeError):
        return None


def _observation_group(where: str, group: h5py.Group, name: str) -> h5py.Dataset:
    obs = group.get("obs")
    if not isinstance(obs, h5py.Group):
        raise DatasetError(f"{where}: has no obs; a recording of --record has what a student can learn from")
    # Isaac Lab's own recordings hold the members of the group ``policy`` alone, and do not name it.
    known = [key for key in (name, name.replace("/", "."), name.removeprefix("policy/")) if key in obs]
    if not known:
        task = task_of(group)
        told = f", recorded on {task}: --task names the task" if task else ""
        raise DatasetError(f"{where}: has no observation group '{name}'; there are {', '.join(obs)}{told}")
    return _array(where, group, f"obs/{known[0]}", (2, observations.IMAGE_AXES))


def _array(where: str, group: h5py.Group, name: str, axes: tuple[int, ...] = (2,)) -> h5py.Dataset:
    """The array ``name`` (T, n) of an episode, or one of so many ``axes``."""
    item = group.get(name)
    if not is_numeric(item) or item.ndim not in axes or not item.size:
        what = list(item.shape) if is_numeric(item) else "no array of numbers"
        raise DatasetError(f"{where}: {name} is {what}, expected [steps, size]")
    return stored(where, item)


def label(group: h5py.Group) -> str | None:
    """What a student learns from: the teacher's actions, or the actions of demonstrations, which have no other."""
    if "teacher_actions" in group:
        return "teacher_actions"
    return "actions" if "actions" in group and "student_actions" not in group else None


def read(where: str, group: h5py.Group, seen: Seen, num_actions: int, teacher: Relabeler | None) -> dict[str, Any]:
    """One episode's ``obs`` and ``teacher_action``, or ``teacher_obs`` if a teacher relabels it; each (T, size)."""
    found: dict[str, Any] = {"obs": _observation(where, group, seen)}
    steps = len(observations.vector_of(found["obs"]))
    if teacher:
        found["teacher_obs"] = _observation(where, group, teacher.seen)
        if isinstance(teacher.actor, TeacherBank):
            found["teacher_number"] = _teacher_numbers(where, group, teacher.actor)
    else:
        name = label(group) or "teacher_actions"
        actions = _array(where, group, name)
        if actions.shape[1] != num_actions:
            raise DatasetError(f"{where}: {name} is {list(actions.shape)}, the environment takes {num_actions} actions")
        found["teacher_action"] = _float32(actions)
    for array, value in found.items():
        what = "teacher_actions" if array == "teacher_action" else "obs"
        if (number := len(observations.vector_of(value))) != steps:
            raise DatasetError(f"{where}: {what} has {number} steps, the student's obs {steps}")
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(value)):
            raise DatasetError(f"{where}: NaN or infinity in {what}")
    return found


def _observation(where: str, group: h5py.Group, seen: Seen) -> Any:
    """The observation (T, ...) that a policy has ``seen``."""
    names = observations.group_names(seen.entries)
    groups = {name: _numbers(_observation_group(where, group, name)) for name in names}
    if len({len(x) for x in groups.values()}) > 1:
        raise DatasetError(f"{where}: the groups {', '.join(names)} in obs are not equally long")
    try:
        value = observations.select(groups, seen.entries)
    except ObservationError as e:
        raise DatasetError(f"{where}: {e}") from e
    for found, expected in itertools.zip_longest(*map(jax.tree.leaves, (value, seen.shapes))):
        wanted = expected
        if expected is not None:  # A vector of no numbers is false.
            wanted = jax.ShapeDtypeStruct((len(groups[names[0]]), *expected.shape), expected.dtype)
        if _text(found) != _text(wanted):
            what = f"obs {'+'.join(names)} is {_text(found)}, expected {_text(wanted)} as in this task"
            raise DatasetError(f"{where}: {what}")
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


def _text(array: Any) -> str:
    if array is None:
        return "no further image"
    return f"{'bytes ' if array.dtype == np.uint8 else ''}{list(array.shape)}"


def _numbers(array: h5py.Dataset) -> np.ndarray:
    """Floats, but the bytes of images as they are."""
    return np.asarray(array) if array.dtype == np.uint8 and array.ndim >= observations.IMAGE_AXES else _float32(array)


def _float32(array: h5py.Dataset) -> np.ndarray:
    with np.errstate(over="ignore"):  # Numbers too large become infinity, which is reported as such.
        return np.asarray(array, np.float32)
