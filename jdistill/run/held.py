"""A run folder in the hands of one program: nobody else trains it meanwhile, and its removal is noticed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from jdistill.errors import TrainingError

LOCK = "lock"
"""The file that is locked. It stays; its lock ends with the program, however that ends."""


class HeldRun:
    """Holds the folder ``run`` until :meth:`release`.

    Raises:
        TrainingError: another program trains it; the message names that one's process and machine.
    """

    def __init__(self, run: Path):
        self.run = run
        self._folder = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
        self._lock = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = self._holder()
                self.release()
                raise TrainingError(f"{run} is being trained{holder}: wait for its end, or stop it first") from None
            return  # A file system without locks.
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def _holder(self) -> str:
        try:
            said = json.loads(os.pread(self._lock, 1000, 0))
            return f" by process {int(said['pid'])} on {str(said['host'])[:100]}"
        except (OSError, ValueError, KeyError, TypeError):
            return " by another program"

    def gone(self) -> str | None:
        """Where the folder went, as part of a sentence; None while it is where it was."""
        try:
            now, then = os.stat(self.run), os.fstat(self._folder)
            if (now.st_ino, now.st_dev) == (then.st_ino, then.st_dev):
                return None
        except OSError:
            pass
        moved = self.moved_to()
        return f"was moved to {moved}" if moved else "was removed"

    def moved_to(self) -> Path | None:
        """The folder's present place, where the system tells it."""
        try:
            place = Path(os.readlink(f"/proc/self/fd/{self._folder}"))
            return place if os.path.samestat(os.stat(place), os.fstat(self._folder)) else None
        except OSError:
            return None

    def release(self) -> None:
        """Let go of it."""
        for descriptor in (self._lock, self._folder):
            os.close(descriptor)
