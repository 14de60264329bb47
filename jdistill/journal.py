"""A file that HDF5 can write to and that survives being killed at any moment.

HDF5 overwrites its indices in place, so a program that dies while it writes leaves a file that nobody can read. Here
what lies beyond the last commit is written at once, as no index points there yet, while changes to what was committed
wait in memory. A commit writes them to a journal beside the file, then into the file, then drops the journal; whoever
opens the file next finishes what a killed program began (the redo log of databases).
"""

from __future__ import annotations

import fcntl
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

PAGE = 4096
MAGIC = b"JDJOURN1"
_HEADER = struct.Struct("<8sQQ")
_OFFSET = struct.Struct("<Q")


class JournaledFile(io.RawIOBase):
    """A new file for h5py (``h5py.File(JournaledFile(path), "w")``); :meth:`commit` after each ``flush``."""

    def __init__(self, path: Path):
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # Tells readers that the journal is in living hands.
        journal = _journal_of(path)
        for stale in (journal, _part_of(journal)):  # Of a file of this name that was removed since.
            stale.unlink(missing_ok=True)
        self._position = self._size = self._committed = 0
        self._pages: dict[int, bytearray] = {}

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; returns the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size; the file itself never shrinks below what was committed."""
        self._size = self._position if size is None else size
        os.ftruncate(self._fd, max(self._size, self._committed))
        return self._size

    def readinto(self, buffer: Any) -> int:
        """Read what was written, committed or not."""
        view = memoryview(buffer).cast("B")[: max(self._size - self._position, 0)]
        # What waits in memory may reach beyond the end of what the disk has.
        data = os.pread(self._fd, len(view), self._position).ljust(len(view), b"\0")
        view[:] = data
        for page in range(self._position // PAGE, (self._position + len(data) - 1) // PAGE + 1 if data else 0):
            if page in self._pages:
                low, high = max(self._position, page * PAGE), min(self._position + len(data), (page + 1) * PAGE)
                changed = self._pages[page][low - page * PAGE : high - page * PAGE]
                view[low - self._position : high - self._position] = changed
        self._position += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        """Write: at once beyond the last commit, else into memory until the next."""
        view = memoryview(data).cast("B")
        start, end = self._position, self._position + len(view)
        # Whole pages are kept back, so a page that is committed in part belongs to the committed ones.
        border = min(max(start, -(-self._committed // PAGE) * PAGE), end)
        if border < end:
            _write_at(self._fd, view[border - start :], border)
        at = start
        while at < border:
            page, inside = divmod(at, PAGE)
            number = min(PAGE - inside, border - at)
            self._page(page)[inside : inside + number] = view[at - start : at - start + number]
            at += number
        self._position = end
        self._size = max(self._size, end)
        return len(view)

    def _page(self, page: int) -> bytearray:
        if page not in self._pages:
            self._pages[page] = bytearray(os.pread(self._fd, PAGE, page * PAGE).ljust(PAGE, b"\0"))
        return self._pages[page]

    def commit(self) -> None:
        """From here on, the file holds what was written so far, whatever happens."""
        journal = _journal_of(self._path)
        if self._pages:
            body = b"".join(_OFFSET.pack(page * PAGE) + bytes(data) for page, data in sorted(self._pages.items()))
            body = _HEADER.pack(MAGIC, len(self._pages), self._size) + body
            part = _part_of(journal)
            part.write_bytes(body + struct.pack("<I", zlib.crc32(body)))
            os.replace(part, journal)
            _apply(self._fd, body)
        self._pages = {}
        self._committed = self._size
        journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Close, without a commit."""
        if not self.closed:
            os.close(self._fd)
        super().close()


def recover(path: Path) -> None:
    """Finish the commit that a killed program left half done, if it did."""
    journal = _journal_of(path)
    if not (journal.is_file() or _part_of(journal).is_file()):
        return
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = journal.read_bytes() if journal.is_file() else b""
        body, checksum = content[:-4], content[-4:]
        if body.startswith(MAGIC) and struct.pack("<I", zlib.crc32(body)) == checksum:
            _apply(fd, body)
        for done in (journal, _part_of(journal)):
            done.unlink(missing_ok=True)
    except BlockingIOError:  # A recording is under way and will finish this itself.
        return
    finally:
        os.close(fd)


def _apply(fd: int, body: bytes) -> None:
    _, count, size = _HEADER.unpack_from(body)
    at = _HEADER.size
    for _ in range(count):
        (offset,) = _OFFSET.unpack_from(body, at)
        at += _OFFSET.size
        _write_at(fd, memoryview(body)[at : at + PAGE], offset)
        at += PAGE
    os.ftruncate(fd, size)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _part_of(journal: Path) -> Path:
    """A journal under way; it counts for nothing."""
    return journal.with_name(journal.name + ".part")
