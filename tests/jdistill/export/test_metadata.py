"""What is known of a policy, as the text that mjlab's programs read."""

from __future__ import annotations

from jdistill.export.metadata import metadata

HEADER = {
    "observation": {
        "size": 9,
        "groups": [
            {"layout": [{"name": "velocity", "size": 6, "scale": [0.5, 1, 2], "history_length": 2}]},
            {"layout": [{"name": "command", "size": 3, "clip": [-1.0, 1.5]}]},
        ],
    },
    "action": {"layout": ["hip", "knee"], "terms": [{"scale": [0.25], "offset": [0.1]}, {"scale": [1.0]}]},
    "control_rate_hz": 50.0,
    "robot": {"joint_names": ["hip", "knee"], "default_joint_pos": [0.1, -1.8]},
    "command_names": ["twist"],
}


def test_texts():
    assert metadata(HEADER) == {
        "joint_names": "hip,knee",
        "default_joint_pos": "0.1,-1.8",
        "command_names": "twist",
        "control_rate_hz": "50",
        "observation_names": "velocity,command",
        "observation_sizes": "6,3",
        "observation_terms_scale": "0.5;1;2,1",
        "observation_terms_clip": "-inf;inf,-1;1.5",
        "observation_terms_history_length": "2,0",
        "observation_terms_flatten_history_dim": "1,1",
        "action_names": "hip,knee",
        "action_scale": "0.25,1",
    }


def test_what_is_not_known_is_left_out():
    assert metadata({}) == {}
    nameless = {"observation": {"size": 3, "groups": [{"layout": []}]}, "action": {"size": 2}, "control_rate_hz": 1 / 3}
    assert metadata(nameless) == {"control_rate_hz": "0.333333333"}
