"""rsl_rl's runner configs as defaults for ours."""

from __future__ import annotations

from bridge.rsl_rl_cfg import of_distillation


def test_a_registered_student_keeps_its_cnn():
    """With lists, as settings out of files have them."""
    cnn = {"output_channels": (8, 16), "kernel_size": 3, "activation": "relu"}
    student = {"hidden_dims": (64,), "activation": "elu", "cnn_cfg": {"camera": cnn}}
    agent = of_distillation({"student": student, "obs_groups": {"student": ["policy", "camera"]}})
    assert agent["student"]["cnn_cfg"] == {"camera": {**cnn, "output_channels": [8, 16]}}
    assert agent["student"]["hidden_dims"] == [64] and agent["obs_groups"] == {"student": ["policy", "camera"]}
    assert "cnn_cfg" not in of_distillation({"student": {"hidden_dims": (64,)}})["student"]
