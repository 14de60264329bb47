"""CRC-32 of the arrays of a checkpoint, also of those of which every process holds a part only.

An array that one process holds has one number. One that lies on the devices of several has a list of
``[[[start, stop], ...], number]``: the bounds of each part along every axis, and its number. Together the parts are all
of it, so whoever reads the array, on whatever devices, can check all of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array

from jdistill.run import processes


def of_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The checksums of every array by its name, as JSON can hold them. All processes must call this together."""
    if jax.process_count() == 1:
        return {name: _checksum(x) for name, x in arrays.items()}
    return of_parts(arrays)


def of_parts(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """The same, part by part: each process reads those that its own devices hold, and all learn of all."""
    column = {device: i for i, device in enumerate(sorted(jax.devices(), key=lambda device: device.id))}
    table = np.zeros((len(arrays), len(column)), np.uint32)
    for row, x in zip(table, arrays.values(), strict=True):
        for shard in x.addressable_shards:
            if shard.replica_id == 0:
                row[column[shard.device]] = _checksum(np.asarray(shard.data))
    # Zero wherever another process, or another copy, counts.
    table = processes.gathered(table).max(axis=0)
    return {name: _parts(x, row, column) for (name, x), row in zip(arrays.items(), table, strict=True)}


def _parts(x: Array, row: np.ndarray, column: Mapping[Any, int]) -> list[Any]:
    found: dict[tuple[tuple[int, int], ...], int] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, x.shape, strict=True))
        found[bounds] = max(found.get(bounds, 0), int(row[column[device]]))
    return [[list(map(list, bounds)), number] for bounds, number in found.items()]


def first_wrong(arrays: Mapping[str, np.ndarray], checksums: Mapping[str, Any]) -> str | None:
    """The name of an array that is missing, or is not what the checksums are of."""
    for name, said in checksums.items():
        if name not in arrays:
            return name
        parts: list[Any] = [[[], said]] if isinstance(said, int) else said
        for bounds, number in parts:
            index = tuple([slice(start, stop) for start, stop in bounds])
            if _checksum(arrays[name][index]) != number:
                return name
    return None


def _checksum(x: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
