"""Observation groups, whole and in part."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bridge.env import ObservationSpec
from jdistill.core import observations
from jdistill.core.networks import Normalizer
from jdistill.errors import ObservationError

OBS = {"policy": jnp.arange(10.0).reshape(2, 5), "critic": 100 + jnp.arange(4.0).reshape(2, 2)}
SPECS = {"policy": ObservationSpec((5,)), "critic": ObservationSpec((2,))}


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
    assert observations.size(entries, SPECS) == len(columns) == chosen.shape[1]
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
        observations.size([entry], SPECS)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            ObservationSpec((4, 64, 48, 3), np.dtype(np.uint8)),
            r"'camera' is uint8\[4, 64, 48, 3\] for each environment, ",
        ),
        (ObservationSpec((9, 5)), r"'camera' is float32\[9, 5\] for each environment, "),
        (ObservationSpec((5,), np.dtype(np.int32)), r"'camera' is int32\[5\] for each environment, "),
    ],
)
def test_what_no_policy_can_take_is_named(spec, complaint):
    specs = {**SPECS, "camera": spec}
    assert observations.size(["policy", "critic[0]"], specs) == 6, "it may be there"
    for entry in ("camera", "camera[:2]"):
        with pytest.raises(ObservationError, match=complaint + r"a policy takes vectors .* there are policy \(5\), "):
            observations.size(["policy", entry], specs)


def test_images_alone_come_with_a_vector_of_nothing():
    """Which has no numbers to find its rows by."""
    camera = jnp.zeros((3, 2, 4, 5, 1), jnp.uint8)
    seen = observations.select({"camera": camera}, ["camera"])
    rows = observations.flat(seen)
    assert seen.vector.shape == (3, 2, 0) and rows.vector.shape == (6, 0) and rows.images[0].shape == (6, 4, 5, 1)
    normalizer = Normalizer.create(0).update(seen.vector)
    assert normalizer.count == 6 and normalizer(rows.vector).shape == (6, 0)


def test_truth_values_are_numbers():
    contact = {"contact": jnp.array([[True, False]])}
    chosen = observations.select({**contact, "policy": OBS["policy"][:1]}, ["contact", "policy[0]"])
    np.testing.assert_array_equal(chosen, [[1.0, 0.0, 0.0]])
    assert observations.select(contact, ["contact"]).dtype == jnp.float32
    assert observations.size(["contact"], {"contact": ObservationSpec((2,), np.dtype(bool))}) == 2


class Described:
    """An environment, as far as its description goes."""

    num_actions, action_layout, step_dt = 1, {"layout": ["motor"]}, 0.5
    deployment = {"decimation": 4}  # noqa: RUF012
    layout = (("position", 2, "m"), ("contact", 1, ""), ("past", 4, ""))
    terms = {"position": {"scale": [2.0, 3.0], "clip": [-1.0, 1.0]}, "past": {"history_length": 2}}  # noqa: RUF012
    obs_specs = {"policy": ObservationSpec((7,), layout=layout, terms=terms), "critic": ObservationSpec((2,))}  # noqa: RUF012


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("policy", [("position", 2), ("contact", 1), ("past", 4)]),
        ("policy[:3]", [("position", 2), ("contact", 1)]),
        ("policy[1:5]", [("position[1:2]", 1), ("contact", 1), ("past[0:2]", 2)]),
        ("policy[2,0,1]", [("contact", 1), ("position", 2)]),
        ("policy[1,0]", [("position[1:2]", 1), ("position[0:1]", 1)]),
        ("critic", []),
    ],
)
def test_the_parts_of_an_entry_are_named(entry, parts):
    described = observations.describe(Described, [entry])
    (group,) = described["observation"]["groups"]
    assert [(part["name"], part["size"]) for part in group["layout"]] == parts
    assert (
        described["decimation"] == 4
        and described["control_rate_hz"] == 2
        and described["action"]["layout"] == ["motor"]
    )


def test_what_is_known_of_a_part_goes_with_its_numbers():
    (group,) = observations.describe(Described, ["policy[1:5]"])["observation"]["groups"]
    position, _, past = group["layout"]
    assert position == {"name": "position[1:2]", "size": 1, "unit": "m", "scale": [3.0], "clip": [-1.0, 1.0]}
    assert past == {"name": "past[0:2]", "size": 2, "unit": ""}, "half of a history is none"


def test_every_number_has_a_name():
    terms = {"joint": {"history_length": 2, "elements": ["hip", "knee"]}, "contact": {"elements": ["left", "right"]}}
    layout = (("joint", 4, ""), ("contact", 2, ""), ("height", 1, "m"), ("force", 2, "N"))
    specs = {"policy": ObservationSpec((9,), layout=layout, terms=terms), "critic": ObservationSpec((2,))}
    assert observations.names("policy", specs) == [
        *("joint.hip@-1", "joint.knee@-1", "joint.hip", "joint.knee"),
        *("contact.left", "contact.right", "height", "force[0]", "force[1]"),
    ]
    assert observations.names("policy[5:7]", specs) == ["contact[1:2].right", "height"]
    assert observations.names("critic", specs) == []
