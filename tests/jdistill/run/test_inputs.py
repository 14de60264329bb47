"""Which files a run begins with, and what it takes from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.errors import ConfigError, PolicyFileError
from jdistill.export.policy_file import load_policy
from jdistill.export.rsl_rl_checkpoint import read_torch
from jdistill.export.rsl_rl_export import distillation_checkpoint
from jdistill.run.inputs import Teacher, load_student
from jdistill.run.policy_paths import named_file
from jdistill.run.runner import DistillationRunner
from tests.jdistill.run.test_faults import make_runner


@pytest.fixture
def learnt(tmp_path):
    """A runner whose student has learned something, and the student's file."""
    runner = make_runner(tmp_path / "run", "agent.max_iterations=2")
    runner.start()
    runner.learn()
    return runner, tmp_path / "run" / "student.safetensors"


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_run_begins_with_the_student_of_another(learnt, tmp_path):
    runner, file = learnt
    student = load_student(file, runner.env, runner.cfg.agent)
    again = make_runner(tmp_path / "again")
    again.start(student)
    assert_same(again.state.student, runner.state.student)
    assert int(again.state.iteration) == 0


def test_a_run_begins_with_the_student_of_rsl_rls_distillation(learnt, tmp_path):
    runner, _ = learnt
    ours = runner.alg.student, runner.state.student
    teacher = runner.teacher.policy, runner.teacher.state
    checkpoint = distillation_checkpoint(ours, teacher, 0.1, "adam", 1e-3, 0)
    torch.save(checkpoint, file := tmp_path / "model_9.pt")
    assert_same(load_student(file, runner.env, runner.cfg.agent), runner.state.student)
    end = ["--output_activation", ours[0].output_activation, "--activation", ours[0].activation]
    assert run_command("convert", [str(file), str(tmp_path / "student.safetensors"), "--student", *end]) == 0
    assert_same(load_policy(tmp_path / "student.safetensors")[1].params, runner.state.student.params)


def test_another_network_is_told(learnt, tmp_path):
    runner, file = learnt
    agent = dataclasses.replace(runner.cfg.agent, student=dataclasses.replace(runner.cfg.agent.student, pre_dims=[9]))
    with pytest.raises(
        ConfigError, match=r"--student .*: is 2 observations, .*; agent.student describes another network"
    ):
        load_student(file, runner.env, agent)
    torch.save({"actor_state_dict": {}}, wrong := tmp_path / "model_1.pt")
    with pytest.raises(PolicyFileError, match="no student in it, it is no checkpoint of a distillation"):
        load_student(wrong, runner.env, runner.cfg.agent)


def test_a_run_folder_stands_for_its_newest_policy(tmp_path):
    for number in (2, 10, 9):
        (tmp_path / f"model_{number}.pt").touch()
    assert named_file("--teacher", tmp_path).name == "model_10.pt"
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"--teacher .*: holds no model_N.pt and no student.safetensors"):
        named_file("--teacher", empty)
    (empty / "student.safetensors").touch()
    assert named_file("--teacher", empty).name == "student.safetensors"
    with pytest.raises(ConfigError, match=r"newest: no such file; name a file \(model_1499.pt"):
        named_file("--teacher", "newest")


def test_latest_is_the_newest_run_of_the_only_experiment(tmp_path, monkeypatch):
    """As Isaac Lab's own scripts take it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--checkpoint latest: logs/rsl_rl holds no run with a model_N.pt"):
        named_file("--checkpoint", "latest")
    for run, number in (("walk/2026-01-02", 9), ("walk/2026-01-02", 10), ("walk/2026-01-01", 99)):
        (folder := tmp_path / "logs" / "rsl_rl" / run).mkdir(parents=True, exist_ok=True)
        (folder / f"model_{number}.pt").touch()
    assert named_file("--checkpoint", "latest") == Path("logs/rsl_rl/walk/2026-01-02/model_10.pt")
    (other := tmp_path / "logs" / "rsl_rl" / "jump" / "2026-02-01").mkdir(parents=True)
    (other / "model_1.pt").touch()
    with pytest.raises(ConfigError, match="logs/rsl_rl holds runs of jump, walk; name the run folder"):
        named_file("--checkpoint", "latest")


@pytest.mark.parametrize("name", ["wandb:me/walk/ab12", "https://wandb.ai/me/walk/runs/ab12?checkpoint=100"])
def test_runs_of_wandb_are_downloaded_by_its_own_tool(name, capsys):
    with pytest.raises(ConfigError) as error:
        named_file("--teacher", name)
    told = "is a run of W&B; download it first with 'wandb pull --entity me --project walk ab12', and name"
    assert f"--teacher {name}: {told}" in str(error.value)
    assert run_command("convert", [name, "t.safetensors"]) == 1
    assert f"CHECKPOINT {name}: {told}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is an address; download the file first"):
        named_file("--teacher", "https://example.org/model_1.pt")


@pytest.mark.parametrize("rnn_type", [None, "gru"])
def test_a_run_goes_on_under_another_teacher(learnt, capsys, rnn_type):
    """One that remembers, too; and it stays the run's teacher."""
    before, _ = learnt
    policy = Policy(1, (8,), rnn_type=rnn_type, rnn_hidden_dim=4, output_activation="tanh")
    other = Teacher(policy, networks.init(policy, jax.random.key(9), 2, normalize=False), {"obs_size": 2})
    cfg = dataclasses.replace(before.cfg, agent=dataclasses.replace(before.cfg.agent, max_iterations=3))
    for done in (2, 3):
        runner = DistillationRunner(before.env, cfg, other, before.run_dir)
        runner.load(teacher_name=Path("other.pt"))
        said = "From iteration 2 on, other.pt teaches." in capsys.readouterr().out
        assert said == (done == 2), "once"
        assert runner.current_learning_iteration == done
        kept, state, _ = load_policy(before.run_dir / "teacher.safetensors")
        assert kept == policy
        assert_same(state, other.state)
        if done == 2:
            assert_same(runner.state.student, before.state.student)
            runner.learn()


def test_a_pointer_of_git_is_called_one(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("teacher.safetensors", "teacher.pt"):
        (tmp_path / name).write_bytes(pointer)
        read = load_policy if name.endswith("safetensors") else read_torch
        with pytest.raises(PolicyFileError, match="is a Git LFS pointer, not the file itself"):
            read(tmp_path / name)
