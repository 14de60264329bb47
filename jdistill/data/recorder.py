"""Records rollouts: passes them to a process that writes their episodes, :mod:`jdistill.data.episode_writer`."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdistill.data import episode_writer
from jdistill.data.shared_buffer import HALVES, SharedBuffer, shared_memory
from jdistill.errors import DatasetError

WAITING = 2
"""Rollouts that may wait to be written; training waits for the disk when there are more."""


class Recorder:
    """Writes the episodes of rollouts to a file, in the background."""

    def __init__(self, path: Path, env_args: dict[str, Any], is_first: np.ndarray, clip_actions: float | None):
        """Begin the file ``path``, which must not exist; the arguments are those of
        :class:`jdistill.data.episode_writer.EpisodeFile`.

        Raises:
            DatasetError: it cannot be written.
        """
        self.path = path
        memory = shared_memory()
        self._buffer = SharedBuffer(memory)
        # The other process finds the same packages, wherever this one has them from.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", episode_writer.__name__, str(memory)],
            pass_fds=[memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._written: dict[str, Any] = {"episodes": 0}
        try:
            self._tell((path.absolute(), env_args, is_first, clip_actions))
            self._written = self._listen()
        except DatasetError:
            self._release()
            raise
        self._queue: queue.Queue[Any] = queue.Queue(WAITING)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._feed, name="recorder", daemon=True)
        self._thread.start()
        atexit.register(self._finish)

    def put(self, rollout: Any) -> None:
        """Add a rollout, a :class:`jdistill.core.rollout.Transition` of arrays (T, B, ...).

        Raises:
            DatasetError: an earlier one could not be written.
        """
        self._check()
        rollout = rollout._replace(metrics={}, student_carry=())
        for x in jax.tree.leaves(rollout):
            x.copy_to_host_async()
        self._queue.put(rollout)

    def close(self) -> str:
        """Write what still waits; returns a line about the file.

        Raises:
            DatasetError: not all could be written.
        """
        atexit.unregister(self._finish)
        self._finish()
        self._check()
        counts = ((self._written[name], name) for name in ("episodes", "steps"))
        told = ", ".join(f"{n} {name if n != 1 else name[:-1]}" for n, name in counts)
        return f"Recorded {told} in {self.path}"

    def _finish(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self._release()

    def _release(self) -> None:
        with contextlib.suppress(BrokenPipeError), self.process:  # Closes the pipes and waits.
            pass
        self._buffer.close()

    def _check(self) -> None:
        if self._error is not None:
            raise DatasetError(" ".join(str(self._error).split())) from self._error

    def _feed(self) -> None:
        """Pass on what comes through the queue, in a thread."""
        waiting = iter(self._queue.get, None)
        try:
            for number, rollout in enumerate(waiting):
                if number >= HALVES:  # The half is free when what lay there is written.
                    self._written = self._listen()
                self._tell(self._buffer.put(_on_host(rollout), number % HALVES))
            self._tell(None)
            while "steps" not in self._written:
                self._written = self._listen()
        except Exception as e:  # ``put`` and ``close`` raise it.
            self._error = e
            # Whoever waits for room in the queue must not wait for ever.
            for _ in waiting:
                pass

    def _tell(self, message: Any) -> None:
        assert self.process.stdin is not None
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:  # It has ended, and its last words say why.
            while True:
                self._listen()

    def _listen(self) -> dict[str, Any]:
        """The other process's next answer.

        Raises:
            DatasetError: it could not write.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        said = json.loads(line) if line else {"error": f"the writing process ended with status {self.process.wait()}"}
        if "error" in said:
            held = said.get("episodes", self._written["episodes"])
            raise DatasetError(f"{self.path}: cannot be written ({said['error']}); it holds {held} episodes")
        return said


def _on_host(rollout: Any) -> dict[str, Any]:
    """The argument of :meth:`jdistill.data.episode_writer.EpisodeFile.add`."""
    host = jax.tree.map(np.asarray, rollout)
    states = jax.tree_util.tree_leaves_with_path(host.pipeline_state)
    return {
        "student_actions": host.student_action,
        "teacher_actions": host.teacher_action,
        "teacher_acts": host.teacher_acts,
        "rewards": host.reward,
        "dones": host.done,
        "nonfinite": np.zeros_like(host.done) if isinstance(host.nonfinite, tuple) else host.nonfinite,
        "states": {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in states},
        "obs": dict(host.obs),
    }


def check_new(path: Path, dataset: Sequence[str] = ()) -> None:
    """Raise :class:`DatasetError` unless a recording can begin at ``path``, of rollouts and not of a ``dataset``."""
    if dataset:
        raise DatasetError("--record writes rollouts, and a dataset has none: leave one of the two out")
    if path.exists():
        raise DatasetError(f"--record {path}: exists already, and a recording never overwrites; choose another file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DatasetError(f"--record {path}: {path.parent} is no folder that can be written to")
