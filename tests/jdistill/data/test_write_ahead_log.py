"""The file under a recording: whatever moment the program dies at, the last commit is there."""

from __future__ import annotations

import errno
import shutil
import struct
import zlib

import h5py
import numpy as np
import pytest

from jdistill.data import write_ahead_log
from jdistill.data.write_ahead_log import CrashSafeFile, recover


class Killed(Exception):
    """Stands for SIGKILL."""


def test_it_is_a_file_like_any_other(tmp_path):
    """Random reads and writes with commits in between, beside a plain array of bytes."""
    rng, file, plain = np.random.default_rng(0), CrashSafeFile(tmp_path / "f"), bytearray()
    for _ in range(300):
        at = int(rng.integers(0, len(plain) + 1))
        data = rng.bytes(int(rng.integers(1, 9000)))
        file.seek(at)
        assert file.write(data) == len(data)
        plain[at : at + len(data)] = data
        if rng.random() < 0.2:
            file.commit()
        at = int(rng.integers(0, len(plain)))
        file.seek(at)
        assert file.read(6000) == plain[at : at + 6000]
    file.commit()
    file.close()
    assert (tmp_path / "f").read_bytes() == plain


def test_every_moment_of_a_commit_leaves_a_readable_file(tmp_path, monkeypatch):
    """Die before each of the writes that the second commit makes."""
    writes: list[int] = []
    write_at = write_ahead_log._write_at
    outcomes = []
    for deadline in range(1000):
        path = tmp_path / f"{deadline}.hdf5"
        file = CrashSafeFile(path)
        with h5py.File(file, "w") as h5:
            h5["data/demo_0"] = np.arange(1000)
            h5.flush()
            file.commit()
            for number in range(1, 200):
                h5[f"data/demo_{number}"] = np.arange(1000)
            h5.flush()
            writes.clear()
            shutil.copy(path, tmp_path / "before")
            with h5py.File(tmp_path / "before") as untouched:
                assert list(untouched["data"]) == ["demo_0"], "HDF5 has written all, and no commit made it count"

            def dying(*arguments, deadline=deadline):
                if len(writes) == deadline:
                    raise Killed
                writes.append(1)
                write_at(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(write_ahead_log, "_write_at", dying)
                try:
                    file.commit()
                    dead = False
                except Killed:
                    dead = True
            # What the disk holds at this moment; the writer's own later writes no longer matter.
            for name in (path.name, f"{path.name}.journal"):
                if (tmp_path / name).exists():
                    shutil.copy(tmp_path / name, tmp_path / f"dead-{name}")
        recover(tmp_path / f"dead-{path.name}")
        with h5py.File(tmp_path / f"dead-{path.name}") as h5:
            outcomes.append(len(h5["data"]))
            assert all((h5["data"][name][()] == np.arange(1000)).all() for name in h5["data"])
        assert not (tmp_path / f"dead-{path.name}.journal").exists()
        if not dead:
            break
    assert outcomes[0] == 1 and len(outcomes) >= 4, "nothing of the second commit is on the disk yet"
    assert set(outcomes[1:]) == {200}, "the log is complete before anything is overwritten"


def test_filesystems_that_cannot_be_written_past_their_cache(tmp_path, monkeypatch):
    """Some refuse to open a file so, some open it and refuse to write. (No such one is at hand.)"""
    write_at = write_ahead_log._write_at

    def refusing(fd, *arguments):
        if fd != file._fd:
            raise OSError(errno.EINVAL, "Invalid argument")
        write_at(fd, *arguments)

    for refusal in ("opening", "writing"):
        with monkeypatch.context() as patch:
            if refusal == "opening":
                patch.delattr("os.O_DIRECT", raising=False)
            else:
                patch.setattr(write_ahead_log, "_write_at", refusing)
            file = CrashSafeFile(tmp_path / refusal)
            for number in range(3):
                file.write(bytes([number]) * 5000)
                file.commit()
            file.close()
        assert (tmp_path / refusal).read_bytes() == b"".join(bytes([n]) * 5000 for n in range(3))


def test_the_log_of_an_earlier_version_is_applied(tmp_path):
    """Byte for byte what version 0.1 left beside a recording that was killed."""
    page = bytes(range(256)) * (4096 // 256)
    (tmp_path / "f").write_bytes(b"\0" * 5000)
    body = b"JDJOURN1" + struct.pack("<QQ", 1, 4500) + struct.pack("<Q", 0) + page
    (tmp_path / "f.journal").write_bytes(body + struct.pack("<I", zlib.crc32(body)))
    recover(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == page + b"\0" * (4500 - 4096)
    assert not (tmp_path / "f.journal").exists()


def test_a_torn_log_is_dropped(tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    (tmp_path / "f.journal").write_bytes(write_ahead_log._HEADER.pack(write_ahead_log.MAGIC, 1, 3) + b"torn")
    recover(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"content" and not (tmp_path / "f.journal").exists()


def test_what_an_earlier_file_of_the_name_left_is_dropped(tmp_path):
    """Else the log of a removed file would be applied to its successor."""
    left = [tmp_path / "f.journal", tmp_path / "f.journal.part"]
    for path in left:
        path.write_bytes(b"of another file")
    CrashSafeFile(tmp_path / "f").close()
    assert not any(path.exists() for path in left)
    left[1].write_bytes(b"half a log, by a killed program")
    recover(tmp_path / "f")
    assert not left[1].exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        CrashSafeFile(tmp_path / "f")
