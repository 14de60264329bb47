"""A part of the drill of faults, the same each time: ``python -m benchmarks.faults`` has all of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import faults
from tests.jdistill.run.test_faults import make_runner

pytestmark = pytest.mark.full


@pytest.fixture
def flags(tmp_path) -> list[str]:
    """A run of a task that is compiled in no time."""
    make_runner(tmp_path / "start").start()
    teacher = tmp_path / "start" / "teacher.safetensors"
    return ["--task", "tests/masses.py:masses", "--teacher", str(teacher), *faults.RUN, "agent.student.rnn_type=null"]


def test_a_run_that_is_killed_again_and_again_ends_as_if_nobody_had(tmp_path: Path, flags):
    (found,) = faults.kills(tmp_path, faults.build(tmp_path), 1, random.Random(3), flags)
    assert found["tried"] >= 1 and found["survived"] == 1
    assert not (found["lost"] or found["silent"] or found["tracebacks"])


def test_a_full_disk_is_one_line_and_loses_no_checkpoint(tmp_path: Path, flags):
    (found,) = faults.full_disks(tmp_path, faults.build(tmp_path), 1, random.Random(0), flags)
    assert found["survived"] == 1 and not (found["lost"] or found["silent"] or found["tracebacks"])
