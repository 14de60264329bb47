"""Whether a recording is what was recorded, and keeps to itself.

Files come from anywhere: an HDF5 file can send its reader to other files, and promise arrays larger than any memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jdistill.core.memory import check_memory
from jdistill.data.episode_writer import checksum, sealed
from jdistill.errors import DatasetError


def refuse_links(path: Path, data: h5py.Group) -> None:
    """A file that sends its reader to other files, of whoever reads it, is not read."""

    def external(name: bytes, link: Any) -> str | None:
        inside = link.type in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT)
        return None if inside else name.decode(errors="replace")

    if found := data.id.links.visit(external, info=True):
        raise DatasetError(f"{path}: data/{found} is a link to another file")


def check_total(path: Path, episodes: Sequence[tuple[str, h5py.Group]]) -> None:
    """Raise :class:`DatasetError` where episodes are missing from a file of ours."""
    first = episodes[0][1]
    total = first.parent.attrs.get("total")
    if "checksums" in first.attrs and total is not None:
        steps = sum(int(group.attrs.get("num_samples", 0)) for _, group in episodes)
        if steps != int(total):
            raise DatasetError(f"{path}: {total} steps were recorded, {steps} are there: the file is damaged")


def check_sums(where: str, group: h5py.Group) -> None:
    """Raise :class:`DatasetError` where an episode's arrays are not what was recorded. Files of others cannot tell."""
    if (seal := group.attrs.get("checksums")) is None:
        return
    text = bytes(seal).decode(errors="replace").partition(" ")[2] if isinstance(seal, bytes) else ""
    if sealed(text) != seal:
        raise DatasetError(f"{where}: its checksums are damaged")
    for name, value in json.loads(text).items():
        if name in group and checksum(whole(where, group, name)) != value:
            raise DatasetError(f"{where}: {name} is not what was recorded: the file is damaged")


def damage(path: Path, episodes: Sequence[tuple[str, h5py.Group]]) -> list[str]:
    """What of a file is not what was recorded."""
    checks: list[Callable[[], None]] = [
        lambda: check_total(path, episodes),
        *(partial(check_sums, where, group) for where, group in episodes),
    ]
    found = []
    for check in checks:
        try:
            check()
        except DatasetError as e:
            found.append(str(e).removeprefix(f"{path}: "))
    return found


def whole(where: str, group: h5py.Group, name: str) -> np.ndarray:
    """All numbers of an array; none where it has no numbers."""
    item = group[name]
    if not is_numeric(item):
        return np.zeros(0, np.uint8)
    item = stored(where, item)
    check_memory(item.nbytes, f"{where}: {name}", "it is too large an episode", copies=1)
    return np.asarray(item[()])


def stored(where: str, item: h5py.Dataset) -> h5py.Dataset:
    """``item``, unless its numbers are in other files or more than the file can hold."""
    if item.is_virtual or item.external:
        raise DatasetError(f"{where}: {item.name} has its numbers in another file")
    if item.chunks is None and item.nbytes > os.path.getsize(item.file.filename):
        raise DatasetError(f"{where}: {item.name} is {list(item.shape)}, which its file is too small for")
    return item


def is_numeric(item: Any) -> bool:
    """Whether ``item`` is an array of numbers."""
    return isinstance(item, h5py.Dataset) and item.shape is not None and item.dtype.kind in "fiub"
