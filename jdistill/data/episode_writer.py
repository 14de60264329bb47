"""Cuts rollouts into episodes and writes those to an HDF5 file, in a process of its own beside the training.

The layout is robomimic's, which Isaac Lab writes and reads: ``data/demo_0``, ``data/demo_1``, ... each hold one episode
from its first step to its last, with the attributes ``num_samples`` and ``checksums`` (CRC-32 of the bytes of each
array, by its name, as JSON; before it that of this text, in hexadecimal digits); ``data`` has the attributes ``total``
(steps of all episodes) and ``env_args`` (JSON: ``env_name``, ``env_kwargs``, ``step_dt``, ``obs_groups``, ``names`` of
their numbers). Arrays have the time as their first axis:

- ``obs/<group>``: the observation groups that teacher and student see, before the step; for the sake of robomimic's
  loader, which allows no more slashes, ``policy/joint_pos`` is ``obs/policy.joint_pos``; of a run with many teachers
  also which of them was asked, ``obs/teacher_id`` (int32) unless ``agent.teacher.id_group`` is another;
- ``actions``: what stepped the environment; ``student_actions``, ``teacher_actions``: what each policy chose;
- ``rewards``, ``dones`` (1 at the last step), ``phase`` (1 where the teacher's action stepped, 2 where the student's);
- ``states``: the simulator's state before the step, flat; ``env_args["states"]`` names its parts.

HDF5 works with the interpreter's lock held, so a thread would make the training wait. :mod:`jdistill.data.recorder`
starts this module as a program, gives it the descriptor of the shared buffer that rollouts come in, and announces each
rollout on its standard input. The program answers with a line of JSON when it has begun the file, when it has written a
rollout and when it has closed the file: how much the file holds, or what went wrong. It ends when its input ends, so a
recording whose training is killed is still completed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jdistill.data.shared_buffer import SharedBuffer
from jdistill.data.write_ahead_log import CrashSafeFile

TYPES = {np.dtype(kind): h5py.h5t.py_create(np.dtype(kind)) for kind in (np.float32, np.uint8, np.int32)}
"""All that is written is one of these."""
COUNT, SCALAR = h5py.h5t.NATIVE_INT64, h5py.h5s.create(h5py.h5s.SCALAR)
PARENTS = h5py.h5p.create(h5py.h5p.LINK_CREATE)
"""Creates the groups on the way to a path."""
PARENTS.set_create_intermediate_group(True)


class EpisodeFile:
    """A new file of episodes. An episode is safe when the :meth:`add` of the rollout in which it ends has returned."""

    def __init__(self, path: Path, env_args: dict[str, Any], is_first: np.ndarray, clip_actions: float | None):
        """Begin the file ``path``, which must not exist.

        Args:
            env_args: the task and its settings, for the file's header.
            is_first: (B,) bool, whether the first step to come is the first of an episode.
            clip_actions: actions were clipped to [-clip_actions, clip_actions] before they stepped the environments;
                None if not.
        """
        self._env_args = env_args
        self._clip = clip_actions
        # The beginnings of episodes that are under way are lost, so those are not recorded.
        self._open: list[list[dict[str, np.ndarray]] | None] = [[] if new else None for new in is_first]
        self.episodes = self.steps = self.committed = 0
        self._raw = CrashSafeFile(path)
        self._file = h5py.File(self._raw, "w")
        self._data = self._file.create_group("data")
        self._data.attrs["env_args"] = json.dumps(env_args)
        self._commit()

    def add(self, rollout: dict[str, Any]) -> None:
        """Add the next steps of all environments.

        Args:
            rollout: arrays (T, B, ...) ``student_actions``, ``teacher_actions``, ``teacher_acts`` (or (T,)),
                ``rewards``, ``dones``; ``nonfinite``, where an episode ended because something broke, so that it is not
                written; ``states`` and ``obs``, dicts of such arrays.
        """
        if "states" not in self._env_args:
            parts = [[name, int(np.prod(x.shape[2:]))] for name, x in rollout["states"].items()]
            self._data.attrs["env_args"] = json.dumps({**self._env_args, "states": parts})
            self._env_args["states"] = parts
        arrays = self._arrays(rollout)
        for env, ends in enumerate(arrays["dones"]):
            start = 0
            for end in (np.flatnonzero(ends) + 1).tolist():
                if (pieces := self._open[env]) is not None and not rollout["nonfinite"][end - 1, env]:
                    self._write([*pieces, {name: x[env, start:end] for name, x in arrays.items()}])
                self._open[env], start = [], end
            if (pieces := self._open[env]) is not None and start < ends.size:
                pieces.append({name: x[env, start:] for name, x in arrays.items()})
        self._commit()

    def close(self) -> None:
        """Complete the file."""
        self._file.close()
        self._raw.commit()
        self._raw.close()

    def _arrays(self, rollout: dict[str, Any]) -> dict[str, np.ndarray]:
        """All that is written of a rollout, (B, T, ...), in memory of its own."""
        dones, acts = rollout["dones"], rollout["teacher_acts"]
        teacher = np.broadcast_to(acts.reshape(*acts.shape, *[1] * (2 - acts.ndim)), dones.shape)
        action = np.where(teacher[..., None], rollout["teacher_actions"], rollout["student_actions"])
        values = {
            "actions": action if self._clip is None else np.clip(action, -self._clip, self._clip),
            "student_actions": rollout["student_actions"],
            "teacher_actions": rollout["teacher_actions"],
            "rewards": rollout["rewards"],
            "dones": dones.astype(np.uint8),
            "phase": np.where(teacher, 1, 2).astype(np.uint8),
            **{f"obs/{name.replace('/', '.')}": x for name, x in rollout["obs"].items()},
        }
        arrays = {name: x.swapaxes(0, 1).copy() for name, x in values.items()}
        if states := [x.reshape(*dones.shape, -1).swapaxes(0, 1) for x in rollout["states"].values()]:
            arrays["states"] = np.empty((*dones.T.shape, sum(x.shape[-1] for x in states)), np.float32)
            np.concatenate(states, axis=-1, out=arrays["states"], casting="unsafe")
        return arrays

    def _write(self, pieces: list[dict[str, np.ndarray]]) -> None:
        # h5py's own groups, datasets and attributes take three times as long, and short episodes are little else.
        name = f"demo_{self.episodes}/".encode()
        sums = {}
        for array in pieces[0]:
            parts = [piece[array] for piece in pieces]
            value = np.concatenate(parts) if len(parts) > 1 else parts[0]
            space, kind = h5py.h5s.create_simple(value.shape), TYPES[value.dtype]
            made = h5py.h5d.create(self._data.id, name + array.encode(), kind, space, lcpl=PARENTS)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, value, kind)
            sums[array] = checksum(value)
        steps = np.array(sum(piece["dones"].size for piece in pieces))
        h5py.h5a.create(self._data.id, b"num_samples", COUNT, SCALAR, obj_name=name).write(steps)
        text = np.array(sealed(json.dumps(sums)))
        kind = h5py.h5t.py_create(text.dtype, logical=True)
        h5py.h5a.create(self._data.id, b"checksums", kind, SCALAR, obj_name=name).write(text)
        self.episodes += 1
        self.steps += int(steps)

    def _commit(self) -> None:
        self._data.attrs["total"] = self.steps
        self._file.flush()
        self._raw.commit()
        self.committed = self.episodes


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the bytes of an array, row by row."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def sealed(text: str) -> bytes:
    """``text`` behind its own CRC-32."""
    return f"{zlib.crc32(text.encode()):08x} {text}".encode()


def answer(**message: Any) -> None:
    """Tell the recorder something. If it is gone, the rollouts that it left are written all the same."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(message), flush=True)


def serve(file: EpisodeFile, buffer: SharedBuffer) -> None:
    """Write the rollouts that come until the recorder says that there are no more, or is gone."""
    try:
        while (ticket := pickle.load(sys.stdin.buffer)) is not None:
            file.add(buffer.get(ticket))
            answer(episodes=file.episodes)
    except (EOFError, pickle.UnpicklingError):
        pass  # The training was killed.
    file.close()
    answer(episodes=file.episodes, steps=file.steps)


def main(descriptor: str) -> int:
    """Write the file that the first message names; returns the exit status."""
    # Ctrl-C and what ends a batch job are sent to this process too. It ends when the training does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    file = None
    try:
        file = EpisodeFile(*pickle.load(sys.stdin.buffer))
        answer(episodes=0)
        serve(file, SharedBuffer(int(descriptor)))
    except Exception as e:  # h5py raises many kinds.
        reason = e.strerror if isinstance(e, OSError) and e.strerror else " ".join(str(e).split())
        answer(error=reason, episodes=file.committed if file else 0)
        return 1
    return 0


if __name__ == "__main__":
    # At an ordinary exit HDF5 would try once more to write what it could not, and the training would wait for all that.
    os._exit(main(*sys.argv[1:]))
