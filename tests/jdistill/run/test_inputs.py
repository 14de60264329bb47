"""Which files a run begins with, and what it takes from them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import torch

from jdistill.cli.main import run_command
from jdistill.errors import ConfigError, PolicyFileError
from jdistill.export.policy_file import load_policy
from jdistill.export.rsl_rl_checkpoint import read_torch
from jdistill.export.rsl_rl_export import distillation_checkpoint
from jdistill.run.inputs import load_student
from jdistill.run.training import named_file
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
    with pytest.raises(ConfigError, match=r"latest: no such file; name a file \(model_1499.pt"):
        named_file("--teacher", "latest")


def test_a_pointer_of_git_is_called_one(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("teacher.safetensors", "teacher.pt"):
        (tmp_path / name).write_bytes(pointer)
        read = load_policy if name.endswith("safetensors") else read_torch
        with pytest.raises(PolicyFileError, match="is a Git LFS pointer, not the file itself"):
            read(tmp_path / name)
