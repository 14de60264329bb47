"""Observation groups, whole and in part."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jdistill.core import observations
from jdistill.errors import ObservationError

OBS = {"policy": jnp.arange(10.0).reshape(2, 5), "critic": 100 + jnp.arange(4.0).reshape(2, 2)}
SIZES = {"policy": 5, "critic": 2}


@pytest.mark.parametrize(
    ("entries", "columns"),
    [
        (["policy"], [0, 1, 2, 3, 4]),
        (["policy[:3]"], [0, 1, 2]),
        (["policy[0,2]"], [0, 2]),
        (["policy[3:, 0]"], [3, 4, 0]),
        (["policy[-1]"], [4]),
        (["policy[-2:]"], [3, 4]),
        (["critic", "policy[1]"], [100, 101, 1]),
        (["policy[1:2]", "policy[1]"], [1, 1]),
    ],
)
def test_parts_are_numpys(entries, columns):
    chosen = observations.select(OBS, entries)
    host = observations.select({name: np.asarray(x) for name, x in OBS.items()}, entries)
    assert isinstance(host, np.ndarray) and (host == chosen).all()
    np.testing.assert_array_equal(chosen[0], columns)
    assert observations.size(entries, SIZES) == len(columns) == chosen.shape[1]
    assert chosen.shape[0] == 2


def test_groups_are_named_once():
    assert observations.group_names(["policy[0]", "critic", "policy[1]"]) == ["policy", "critic"]


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("polcy", r"no observation group 'polcy'; there are policy \(5\), critic \(2\)"),
        ("policy[7]", r"'policy\[7\]': reaches beyond the group, which has 5 numbers"),
        ("policy[5]", r"'policy\[5\]': reaches beyond"),
        ("policy[:6]", r"'policy\[:6\]': reaches beyond"),
        ("policy[a]", r"'policy\[a\]': 'a' is neither a number nor a range"),
        ("policy[]", r"'' is neither"),
        ("policy[0", "expected a group, or a part of one"),
    ],
)
def test_complaints(entry, complaint):
    with pytest.raises(ObservationError, match=complaint):
        observations.size([entry], SIZES)
