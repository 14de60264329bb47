"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, content: str | bytes) -> None:
    """Put ``content`` (text as UTF-8) in the place of whatever ``path`` holds.

    A kill, a full disk or a power failure at any moment leaves the one or the other, and nothing is written through a
    symbolic link.

    Raises:
        OSError: it cannot be written; what ``path`` held before is still there.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # Left by a program that was killed.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def refuse_pointer(file: Path, kind: type[Exception]) -> None:
    """Raise an error of ``kind`` if ``file`` only stands for a large file that Git keeps elsewhere."""
    with file.open("rb") as opened:
        if opened.read(22) == b"version https://git-lf":
            raise kind(f"{file}: is a Git LFS pointer, not the file itself; fetch that with 'git lfs pull'")


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed and removed in ``folder`` survive a power failure, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # Some network file systems.
        return
    finally:
        os.close(descriptor)
