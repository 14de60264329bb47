"""A student with a camera from end to end, and what users may get wrong about images."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
import yaml

from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.export.policy_file import save_policy
from jdistill.run.progress import read_progress
from tests import cameras

pytestmark = pytest.mark.full

SEES = ["agent.obs_groups.student=[student,camera]"]
CNN = ["agent.student.cnn_cfg={output_channels: [3],kernel_size: 3, stride: 2, padding: zeros}"]
SMALL = [
    *("--num_envs", "4", "--logger", "none", "agent.num_steps_per_env=10", "agent.algorithm.gradient_length=2"),
    *("agent.algorithm.num_learning_epochs=1", "agent.student.rnn_hidden_dim=4", "agent.student.pre_dims=[]"),
    "agent.student.hidden_dims=[]",
]


@pytest.fixture
def task(tmp_path, monkeypatch):
    """The arguments that name the task and its teacher; runs are filed under the current folder."""
    monkeypatch.chdir(tmp_path)
    policy = Policy(2, (4,), output_activation="tanh")
    save_policy(Path("teacher.safetensors"), policy, networks.init(policy, jax.random.key(0), 4, False), {})
    place = f"{cameras.__file__}:make_env"
    return ["--task", place, "--teacher", "teacher.safetensors", "--logdir", "logs", *SMALL]


def test_a_camera_from_end_to_end(task, capsys):
    trained = ["--phase1", "1", "--max_iterations", "2", "--record", "flown.hdf5"]
    dagger = ["agent.algorithm.use_dagger=true", "agent.on_nonfinite=mask", "agent.algorithm.gradient_steps=2"]
    assert run_command("train", [*task, *SEES, *CNN, *trained, *dagger]) == 0
    (run,) = Path("logs/distillation").iterdir()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["agent"]["student"]["cnn_cfg"] == {
        **{"output_channels": [3], "kernel_size": 3, "stride": 2, "padding": "zeros"}
    }
    with h5py.File("flown.hdf5") as file:
        for episode in file["data"].values():
            image = episode["obs/camera"]
            assert image.dtype == np.uint8 and image.shape[1:] == (*cameras.SIZE, 1) and image[()].max() > 50
    assert run_command("train", ["--logdir", "logs", "--resume", "--max_iterations", "3"]) == 0
    assert read_progress(run)["Loss/behavior"][0] == [0, 1, 2]
    capsys.readouterr()
    assert run_command("export", [str(run), "--format", "onnx,safetensors"]) == 0
    assert capsys.readouterr().out.count("100 steps beside the original") == 2
    groups = json.loads((run / "exported" / "policy.json").read_text())["observation"]["groups"]
    assert groups[1] == {
        **{"name": "camera", "size": 0, "frame": None, "layout": [], "shape": [6, 5, 1]},
        **{"axes": "height, width, channels", "dtype": "uint8"},
    }
    assert run_command("evaluate", [str(run), "--episodes", "2"]) == 0
    relabelled = ["--dataset", "flown.hdf5", "agent.algorithm.relabel=true", "--max_iterations", "1"]
    relabelled += ["agent.obs_groups.student=[camera]", "agent.algorithm.gradient_steps=2"]
    assert run_command("train", [*task, *CNN, *relabelled]) == 0, "by a student that sees nothing else"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*SEES], "agent.student.cnn_cfg: 'camera' is an image, say which CNN encodes it, as in "),
        ([*CNN], "agent.student.cnn_cfg: there is no image to encode; name its group in agent.obs_groups.student"),
        (
            [*SEES, "agent.student.cnn_cfg={output_channels: [3,4],kernel_size: 5}"],
            "agent.student.cnn_cfg: 'camera' is uint8[6, 5, 1]; layer 1: a kernel of 5 does not fit into 2x1 pixels",
        ),
        ([*SEES, *CNN, "agent.student.cnn_cfg.kernel_sise=3"], "kernel_sise: unknown setting (did you mean kernel_si"),
        ([*SEES, *CNN, "agent.student.cnn_cfg.norm=batch"], "the rollout and the update would see other features"),
        (
            [*SEES, "agent.student.cnn_cfg={output_channels: [3,4],kernel_size: 3,stride: [2]}"],
            "stride=[2]: has 1 entries for 2 output_channels",
        ),
        ([*SEES, *CNN, "agent.student.cnn_cfg.padding=same"], "padding=same: expected one of none, zeros, reflect"),
        (
            [*SEES, "agent.student.cnn_cfg={depth: {output_channels: [3],kernel_size: 3}}"],
            "agent.student.cnn_cfg.depth: is no image that is observed; there is camera",
        ),
        (
            ["agent.obs_groups.student=['student','camera[:2]']"],
            "is an image, uint8[6, 5, 1], which a policy takes w",
        ),
        (
            ["agent.obs_groups.student=[student,depth]"],
            "no observation group 'depth'; there are camera (6x5x1)",
        ),
        (["agent.obs_groups.teacher=[teacher,camera]"], "the teacher takes 0 images (none), agent.obs_groups.teacher"),
        (
            ["agent.student.encoder_dims={camera: [4]}", *SEES, *CNN],
            "encoder_dims.camera: no vector that the student",
        ),
        (["agent.student.encoder_dims={student: []}"], "encoder_dims.student=[]: name the width of at least one layer"),
    ],
)
def test_complaints(task, capsys, arguments, expected):
    assert run_command("train", [*task, *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jdistill train: error: ") and expected in line
    assert not Path("logs").exists()
