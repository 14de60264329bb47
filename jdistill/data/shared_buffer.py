"""Passes messages with large arrays to another process through memory that both have mapped: a double buffer."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from typing import Any

import numpy as np

HALVES = 2
"""Halves of the memory, filled in turns: the other process reads one while this one fills the other."""
_ALIGNMENT = 64


def shared_memory() -> int:
    """A descriptor of new memory that lives as long as a process has it open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("shared_buffer")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedBuffer:
    """One process's view of the memory; the other process has its own, on the inherited descriptor."""

    def __init__(self, descriptor: int):
        """On a descriptor of :func:`shared_memory`."""
        self._descriptor = descriptor
        self._halves: list[memoryview] = []

    def put(self, message: Any, half: int) -> bytes:
        """Copy the arrays of a message into a half; returns the bytes from which :meth:`get` restores the message.

        The first message sets the size of the buffer; no later one may be larger.
        """
        buffers: list[pickle.PickleBuffer] = []
        skeleton = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        views = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        ends = np.cumsum([-(-view.size // _ALIGNMENT) * _ALIGNMENT for view in views], dtype=int).tolist()
        starts = [0, *ends[:-1]]
        if not self._halves:
            os.ftruncate(self._descriptor, HALVES * -(-max([*ends[-1:], 1]) // mmap.PAGESIZE) * mmap.PAGESIZE)
        for view, start in zip(views, starts, strict=True):
            # NumPy lets other threads go on meanwhile; assigning to a slice of a memoryview does not.
            np.copyto(np.frombuffer(self._part(half, start, view.size), np.uint8), view)
        return pickle.dumps((skeleton, half, [(start, view.size) for start, view in zip(starts, views, strict=True)]))

    def get(self, ticket: bytes) -> Any:
        """The message that :meth:`put` returned ``ticket`` for.

        Its arrays are views of the buffer, so they change when the half is filled again.
        """
        skeleton, half, parts = pickle.loads(ticket)
        return pickle.loads(skeleton, buffers=[self._part(half, start, size) for start, size in parts])

    def close(self) -> None:
        """Release the memory."""
        os.close(self._descriptor)
        self._halves = []

    def _part(self, half: int, start: int, size: int) -> memoryview:
        if not self._halves:
            whole = memoryview(mmap.mmap(self._descriptor, 0))
            middle = whole.nbytes // HALVES
            self._halves = [whole[middle * n : middle * (n + 1)] for n in range(HALVES)]
        return self._halves[half][start : start + size]
