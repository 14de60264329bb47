"""A file that HDF5 can write to and that survives being killed at any moment.

HDF5 overwrites its indices in place, so a program that dies while it writes leaves a file that nobody can read. Here
everything waits in memory for a commit. A commit first writes what lies beyond the last commit, in one piece: no
index points there yet. Changes to what was committed earlier go to a log beside the file, then into the file, and then
the log is removed. If the program dies in between, whoever opens the file next applies the log (:func:`recover`), as
databases do with their write-ahead logs.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = 4096
CAPACITY = 1 << 20
"""Bytes of memory for what is written between two commits, at first; it grows."""
MAGIC = b"JDJOURN1"
"""A log begins with this. Its text and the suffix ``.journal`` are older than the name of this module."""
_HEADER = struct.Struct("<8sQQ")
_OFFSET = struct.Struct("<Q")


class CrashSafeFile(io.RawIOBase):
    """A new file for h5py; each :meth:`commit` is kept whatever happens later.

    ::

        raw = CrashSafeFile(path)
        file = h5py.File(raw, "w")
        file["x"] = np.arange(3)
        file.flush()
        raw.commit()
    """

    def __init__(self, path: Path):
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # Tells readers that the writer is alive and the log its own.
        log = _log_of(path)
        for stale in (log, _part_of(log)):  # Of a file of this name that was removed since.
            stale.unlink(missing_ok=True)
        self._position = self._size = 0
        self._pages: dict[int, bytearray] = {}
        # Whole pages are kept back, so one that is committed in part is among the pages.
        self._border = 0
        self._beyond = mmap.mmap(-1, CAPACITY)
        self._filled = 0
        self._direct = _open_direct(path, self._fd)

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
        """Move to a position; returns it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        self._size = self._position if size is None else size
        self._filled = min(self._filled, max(self._size - self._border, 0))
        return self._size

    def readinto(self, buffer: Any) -> int:
        """Read what was written, committed or not; returns the number of bytes."""
        view = memoryview(buffer).cast("B")[: max(self._size - self._position, 0)]
        for at, part in self._by_page(view):
            page, inside = divmod(at, PAGE)
            data: bytes | bytearray
            if at >= self._border:
                data = self._beyond[at - self._border : min(at - self._border + len(part), self._filled)]
            elif page in self._pages:
                data = self._pages[page][inside : inside + len(part)]
            else:
                data = os.pread(self._fd, len(part), at)
            # What was never written, between what was, is zero.
            part[:] = data.ljust(len(part), b"\0")
        self._position += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        """Write into memory, for the next commit; returns the number of bytes."""
        view = memoryview(data).cast("B")
        end = self._position + len(view)
        if (inside := self._position - self._border) >= 0:
            self._write_beyond(view, inside)
        else:
            for at, part in self._by_page(view):
                if at >= self._border:
                    self._write_beyond(part, at - self._border)
                else:
                    self._page(at // PAGE)[at % PAGE : at % PAGE + len(part)] = part
        self._position = end
        self._size = max(self._size, end)
        return len(view)

    def _by_page(self, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        """The parts of a view, from the position on, none of which crosses a page, and where they are in the file."""
        at = 0
        while at < len(view):
            number = PAGE - (self._position + at) % PAGE
            yield self._position + at, view[at : at + number]
            at += number

    def _write_beyond(self, data: memoryview, inside: int) -> None:
        end = inside + len(data)
        if end > len(self._beyond):
            larger = mmap.mmap(-1, max(2 * len(self._beyond), -(-end // PAGE) * PAGE))
            larger[: self._filled] = self._beyond[: self._filled]
            self._beyond = larger
        self._beyond[inside:end] = data
        if inside > self._filled:
            self._beyond[self._filled : inside] = bytes(inside - self._filled)
        self._filled = max(self._filled, end)

    def _page(self, page: int) -> bytearray:
        if page not in self._pages:
            self._pages[page] = bytearray(os.pread(self._fd, PAGE, page * PAGE).ljust(PAGE, b"\0"))
        return self._pages[page]

    def commit(self) -> None:
        """Make what was written so far permanent: from here on the file holds it, whatever happens."""
        log = _log_of(self._path)
        self._flush_beyond()
        if self._pages:
            body = b"".join(_OFFSET.pack(page * PAGE) + bytes(data) for page, data in sorted(self._pages.items()))
            body = _HEADER.pack(MAGIC, len(self._pages), self._size) + body
            part = _part_of(log)
            part.write_bytes(body + struct.pack("<I", zlib.crc32(body)))
            os.replace(part, log)
            _apply(self._fd, body)
            log.unlink()
        os.ftruncate(self._fd, self._size)
        self._pages, self._filled = {}, 0
        self._border = -(-self._size // PAGE) * PAGE

    def _flush_beyond(self) -> None:
        whole = -(-self._filled // PAGE) * PAGE
        self._beyond[self._filled : whole] = bytes(whole - self._filled)
        with memoryview(self._beyond) as beyond:
            try:
                _write_at(self._direct, beyond[:whole], self._border)
            except OSError as e:
                if e.errno != errno.EINVAL or self._direct == self._fd:
                    raise
                # Some filesystems open files for this and do not write to them.
                os.close(self._direct)
                self._direct = self._fd
                _write_at(self._fd, beyond[:whole], self._border)

    def close(self) -> None:
        """Close, without a commit."""
        if not self.closed:
            for descriptor in {self._fd, self._direct}:
                os.close(descriptor)
        super().close()


def recover(path: Path) -> None:
    """Finish the commit in which a program was killed; does nothing where there is none."""
    log = _log_of(path)
    if not (log.is_file() or _part_of(log).is_file()):
        return
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = log.read_bytes() if log.is_file() else b""
        body, checksum = content[:-4], content[-4:]
        if body.startswith(MAGIC) and struct.pack("<I", zlib.crc32(body)) == checksum:
            _apply(fd, body)
        for done in (log, _part_of(log)):
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


def _open_direct(path: Path, otherwise: int) -> int:
    """Open for writing past the system's cache of files, if it can: that costs less than a tenth of the time."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except (AttributeError, OSError):
        return otherwise


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _part_of(log: Path) -> Path:
    """A log that is still being written; recovery ignores it."""
    return log.with_name(log.name + ".part")
