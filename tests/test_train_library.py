"""The commands on tasks of Brax, MuJoCo Playground and gymnax: a run goes on to the bit, and is evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from jdistill import Policy, save_policy
from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.run.checkpoint import Checkpoints
from jdistill.run.folders import starts

pytestmark = pytest.mark.full

SMALL = ["--num_envs", "4", "--devices", "1", "--logger", "none", "agent.num_steps_per_env=8"]
SMALL += ["agent.student.rnn_type=null", "agent.student.pre_dims=[]", "agent.algorithm.gradient_length=8"]
SMALL += ["agent.algorithm.num_learning_epochs=1", "agent.save_interval=1"]
TASKS = {
    "brax/inverted_pendulum": (4, ["env.backend=spring", "env.episode_length=6"]),
    # Its state has arrays of no size.
    "playground/CartpoleBalance": (5, ["env.episode_length=6", "agent.obs_groups.student=policy[:3]"]),
    "gymnax/Pendulum-v1": (3, ["env.max_steps_in_episode=6", "env.max_torque=3.0"]),
}


def teacher(file: Path, size: int) -> Path:
    policy = Policy(num_actions=1, hidden_dims=(8,), output_activation="tanh")
    save_policy(file, policy, networks.init(policy, jax.random.key(0), size, normalize=True), {})
    return file


def train(folder: Path, *arguments: str) -> Path:
    assert run_command("train", ["--logdir", str(folder), *arguments]) == 0
    (run,) = folder.glob("*/*")
    return run


def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    checkpoints = Checkpoints(run, 5)
    found, _ = checkpoints.read(step)
    checkpoints.close()
    return found


@pytest.mark.parametrize("name", TASKS)
def test_a_run_goes_on_to_the_bit(name, tmp_path):
    size, settings = TASKS[name]
    file = teacher(tmp_path / "teacher.safetensors", size)
    run = train(tmp_path / "logs", "--task", name, "--teacher", str(file), *SMALL, *settings, "--max_iterations", "2")
    whole, student = arrays(run, 2), (run / "student.safetensors").read_bytes()
    assert any(x.startswith("env_state.info.starts") for x in whole), "what the next episodes begin with"
    assert whole["env_state.info.episode_length_buf"].max() < 6 and np.isfinite(whole["env_state.reward"]).all()
    shutil.rmtree(run / "checkpoints" / "2")
    train(tmp_path / "logs", "--resume", "--max_iterations", "2", "--devices", "1")
    again = arrays(run, 2)
    assert again.keys() == whole.keys()
    assert not [name for name, x in whole.items() if x.tobytes() != again[name].tobytes()]
    assert (run / "student.safetensors").read_bytes() == student

    config, (first, second) = yaml.safe_load((run / "config.yaml").read_text()), starts(run)
    assert (config["task"], config["sim"]) == (name, name.partition("/")[0])
    assert second["iteration"] == 1 and name.partition("/")[0] in first["versions"]
    if name.startswith("gymnax"):
        assert config["env"]["max_torque"] == 3.0
        evaluated_and_exported(run)


def evaluated_and_exported(run: Path) -> None:
    assert run_command("evaluate", [str(run), "--episodes", "4"]) == 0
    numbers = json.loads((run / "evaluation" / "evaluation.json").read_text())["scenarios"]["default"]["policies"]
    assert numbers["teacher"]["length"] == 6 and numbers["teacher"]["survival"] == 1
    assert run_command("export", [str(run)]) == 0
    sidecar = json.loads((run / "exported" / "policy.json").read_text())
    assert sidecar["action"] == {"size": 1, "range": [-1, 1], "rate_hz": 20.0, "low": [-3.0], "high": [3.0]}


def test_a_teacher_of_another_group_is_told(tmp_path, capsys):
    file = tmp_path / "teacher.safetensors"
    policy = Policy(num_actions=1, output_activation="tanh")
    state = networks.init(policy, jax.random.key(0), 2, normalize=False)
    save_policy(file, policy, state, {"observation": {"groups": [{"name": "state", "size": 2}]}})
    arguments = ["--task", "gymnax/Pendulum-v1", "--teacher", str(file), "--logdir", str(tmp_path), *SMALL]
    assert run_command("train", arguments) == 1
    error = capsys.readouterr().err
    assert "'policy' has 3; it was trained on state: set agent.obs_groups.teacher=state" in error
    assert run_command("train", ["--task", "gymnax/Pendulum-v1", "env.max_torqe=1", *arguments[2:]]) == 1
    assert "env.max_torqe: unknown setting (did you mean env.max_torque?)" in capsys.readouterr().err
