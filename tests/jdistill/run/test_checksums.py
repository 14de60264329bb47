"""Checksums of whole arrays, and of those that lie on several devices in parts."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from jdistill.core.sharding import AXIS
from jdistill.run import checksums
from jdistill.run.mesh import BY_ENV, BY_TIME_AND_ENV, SAME

ARRAYS = {
    "by_env": np.arange(24, dtype=np.float32).reshape(4, 6),
    "by_time": np.arange(24, dtype=np.int8).reshape(3, 4, 2),
    "flags": np.array([True, False] * 4),
    "same": np.arange(5, dtype=np.uint32),
    "scalar": np.array(7, np.int32),
}
SPECS = {"by_env": BY_ENV, "by_time": BY_TIME_AND_ENV, "flags": BY_ENV, "same": SAME, "scalar": SAME}


def in_parts() -> dict:
    mesh = Mesh(np.array(jax.devices()[:2]), (AXIS,))
    divided = {name: jax.device_put(x, NamedSharding(mesh, SPECS[name])) for name, x in ARRAYS.items()}
    return checksums.of_parts(divided)


@pytest.mark.parametrize("of", [lambda: checksums.of_arrays(ARRAYS), in_parts], ids=["whole", "in parts"])
def test_another_number_anywhere_is_found_by_its_name(of):
    said = json.loads(json.dumps(of()))
    assert said.keys() == ARRAYS.keys() and checksums.first_wrong(ARRAYS, said) is None
    for name, x in ARRAYS.items():
        for place in np.ndindex(x.shape):
            other = x.copy()
            other[place] = not other[place] if x.dtype == bool else other[place] + 1
            assert checksums.first_wrong({**ARRAYS, name: other}, said) == name
    assert checksums.first_wrong({k: x for k, x in ARRAYS.items() if k != "flags"}, said) == "flags"


def test_each_part_has_its_own():
    said = in_parts()
    assert [bounds for bounds, _ in said["by_time"]] == [[[0, 3], [0, 2], [0, 2]], [[0, 3], [2, 4], [0, 2]]]
    assert [len(said[name]) for name in ARRAYS] == [2, 2, 2, 1, 1]
    assert said["scalar"] == [[[], checksums.of_arrays(ARRAYS)["scalar"]]]
