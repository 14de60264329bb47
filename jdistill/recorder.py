"""Writes what is flown to an HDF5 file, episode by episode, beside the training.

The layout is robomimic's, which Isaac Lab writes and reads: ``data/demo_0``, ``data/demo_1``, ... each hold one episode
from its first step to its last, with the attribute ``num_samples``; ``data`` has the attributes ``total`` (steps of
all episodes) and ``env_args`` (JSON). Arrays have the time as their first axis:

- ``obs/<group>``: the observation groups that teacher and student see, before the step;
- ``actions``: what stepped the environment; ``student_actions``, ``teacher_actions``: what the two said;
- ``rewards``, ``dones`` (1 at the last step), ``phase`` (1 where the teacher's action stepped, 2 where the student's);
- ``states``: the simulator's state before the step, flat; ``env_args["states"]`` names its parts.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from jdistill.journal import JournaledFile

WAITING = 2
"""Rollouts that may wait to be written; training waits for the disk when there are more."""
SWITCH_INTERVAL = 2e-4
"""Seconds after which a thread gives up the interpreter's lock if another one waits for it."""
TYPES = {np.dtype(kind): h5py.h5t.py_create(np.dtype(kind)) for kind in (np.float32, np.uint8)}
"""All that is written is one of these two."""


class DatasetError(ValueError):
    """A dataset that cannot be written or read; the message is one line."""


class Recorder:
    """Takes rollouts and writes their episodes in the background; an episode is safe from the next rollout on."""

    def __init__(self, path: Path, env_args: dict[str, Any], begins: np.ndarray, clip_actions: float | None):
        """Begin the file ``path``, which must not exist.

        Args:
            env_args: what the episodes were flown in, for the file's head.
            begins: (B,) bool, where an episode begins with the first step that comes.
            clip_actions: what actions are clipped to before they step the environments.
        """
        self.path = path
        self._env_args = env_args
        self._clip = clip_actions
        # Episodes under way have lost their beginnings; they are not recorded.
        self._open: list[list[dict[str, np.ndarray]] | None] = [[] if new else None for new in begins]
        self._episodes = self._total = 0
        self._error: Exception | None = None
        self._queue: queue.Queue[Any] = queue.Queue(WAITING)
        try:
            self._file = JournaledFile(path)
        except OSError as e:
            raise DatasetError(f"{path}: cannot be written ({e.strerror})") from e
        # HDF5 works with the interpreter's lock held, and the training thread must not wait 5 ms for each turn.
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()
        # HDF5 closes open files when the process ends, through Python code that can run no more by then.
        atexit.register(self._finish)

    def put(self, rollout: Any) -> None:
        """Take a :class:`jdistill.distillation.Transition` (T, B, ...).

        Raises:
            DatasetError: an earlier one could not be written.
        """
        self._check()
        rollout = rollout._replace(metrics={}, student_carry=None)
        for x in jax.tree.leaves(rollout):
            x.copy_to_host_async()
        self._queue.put(rollout)

    def close(self) -> str:
        """Write what waits; returns a line about the file."""
        atexit.unregister(self._finish)
        self._finish()
        self._check()
        return f"Recorded {self._episodes} episodes, {self._total} steps in {self.path}"

    def _finish(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
            sys.setswitchinterval(self._switch_interval)

    def _check(self) -> None:
        if self._error is not None:
            reason = " ".join(str(self._error).split())
            raise DatasetError(f"{self.path}: cannot be written ({reason}); it holds {self._episodes} episodes")

    def _work(self) -> None:
        # Training comes first: this thread takes what it leaves of the cores. (Linux knows priorities of threads.)
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            with h5py.File(self._file, "w") as file:
                data = file.create_group("data")
                data.attrs["total"] = 0
                data.attrs["env_args"] = json.dumps(self._env_args)
                file.flush()
                self._file.commit()
                while (rollout := self._queue.get()) is not None:
                    self._write(data, rollout)
                    data.attrs["total"] = self._total
                    file.flush()
                    self._file.commit()
            self._file.commit()
            self._file.close()
        except Exception as e:  # It is told where somebody listens; h5py raises many kinds.
            self._error = e
            # Whoever waits for room in the queue must not wait for ever.
            while self._queue.get() is not None:
                pass

    def _write(self, data: h5py.Group, rollout: Any) -> None:
        if "states" not in self._env_args:
            self._env_args["states"] = state_parts(rollout.pipeline_state)
            data.attrs["env_args"] = json.dumps(self._env_args)
        arrays = self._arrays(rollout)
        for env, ends in enumerate(arrays["dones"].T):
            start = 0
            for end in (np.flatnonzero(ends) + 1).tolist():
                if (pieces := self._open[env]) is not None:
                    self._write_episode(data, [*pieces, {k: x[start:end, env] for k, x in arrays.items()}])
                self._open[env], start = [], end
            if (pieces := self._open[env]) is not None and start < ends.size:
                pieces.append({k: x[start:, env] for k, x in arrays.items()})

    def _arrays(self, rollout: Any) -> dict[str, np.ndarray]:
        """All that is written of a rollout, (T, B, ...)."""
        host = jax.tree.map(np.asarray, rollout)
        steps = host.teacher_steps.reshape(*host.teacher_steps.shape, *[1] * (2 - host.teacher_steps.ndim))
        teacher = np.broadcast_to(steps, host.done.shape)
        action = np.where(teacher[..., None], host.teacher_action, host.student_action)
        leaves = [
            x.reshape(*host.done.shape, -1).astype(np.float32, copy=False) for x in jax.tree.leaves(host.pipeline_state)
        ]
        return {
            "actions": action if self._clip is None else np.clip(action, -self._clip, self._clip),
            "student_actions": host.student_action,
            "teacher_actions": host.teacher_action,
            "rewards": host.reward,
            "dones": host.done.astype(np.uint8),
            "phase": np.where(teacher, 1, 2).astype(np.uint8),
            **({"states": np.concatenate(leaves, axis=-1)} if leaves else {}),
            **{f"obs/{name}": x for name, x in host.obs.items()},
        }

    def _write_episode(self, data: h5py.Group, pieces: list[dict[str, np.ndarray]]) -> None:
        group = data.create_group(f"demo_{self._episodes}")
        group.create_group("obs")
        for name in pieces[0]:
            _write_array(group, name, np.concatenate([piece[name] for piece in pieces]))
        steps = sum(piece["dones"].size for piece in pieces)
        group.attrs["num_samples"] = steps
        self._episodes += 1
        self._total += steps


def _write_array(group: h5py.Group, name: str, value: np.ndarray) -> None:
    # h5py's create_dataset takes three times as long, and short episodes are little else.
    space = h5py.h5s.create_simple(value.shape)
    kind = TYPES[value.dtype]
    h5py.h5d.create(group.id, name.encode(), kind, space).write(h5py.h5s.ALL, h5py.h5s.ALL, value, kind)


def state_parts(pipeline_state: Any) -> list[list[Any]]:
    """Name and size of each part of the flat states, in order."""
    leaves = jax.tree_util.tree_leaves_with_path(pipeline_state)
    return [[jax.tree_util.keystr(path, simple=True, separator="."), int(np.prod(x.shape[2:]))] for path, x in leaves]


def check_new(path: Path) -> None:
    """Raise :class:`DatasetError` unless a recording can begin at ``path``."""
    if path.exists():
        raise DatasetError(f"--record {path}: exists already, and a recording never overwrites; choose another file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DatasetError(f"--record {path}: {path.parent} is no folder that can be written to")
