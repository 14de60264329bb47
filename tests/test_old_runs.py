"""Run folders of version 0.1.0 go on: they are resumed, evaluated, reported and exported.

``runs-0.1.0.tar.gz`` holds two runs of four iterations of that version. ``default`` is the Crazyflie task's own with a
recurrent teacher; ``history`` has all that a checkpoint may hold: an LSTM, a history with stored states, a draw per
episode, and an end of phase 1 that depends on the return.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import train_jax
from jdistill.cli.main import run_command
from jdistill.core.networks import Policy
from jdistill.export.policy_file import load_policy
from jdistill.run.folders import best_return, newest_checkpoint, starts
from jdistill.run.progress import read_progress
from tests.conftest import ROOT

pytestmark = pytest.mark.full

ARCHIVE = ROOT / "tests" / "fixtures" / "runs-0.1.0.tar.gz"


@pytest.fixture
def logdir(tmp_path) -> Path:
    """A folder of experiments with the old runs."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "v0.1.0", filter="data")
    return tmp_path


def run_of(logdir: Path, name: str) -> Path:
    (run,) = (logdir / "v0.1.0").glob(f"*_{name}")
    return run


def test_the_archive_is_small():
    assert ARCHIVE.stat().st_size < 300_000


@pytest.mark.parametrize("name", ["default", "history"])
def test_an_old_run_is_resumed(logdir, name, capsys):
    run = run_of(logdir, name)
    before = load_file(run / "student.safetensors")
    teacher = (run / "teacher.safetensors").read_bytes()
    assert newest_checkpoint(run) == 4 and read_progress(run)["Loss/behavior"][0] == [0, 1, 2, 3]
    where = ["--logdir", str(logdir), "--experiment_name", "v0.1.0", "--load_run", run.name]
    assert train_jax.main(["--resume", *where, "--max_iterations", "6"]) == 0
    assert "all episodes begin anew" in capsys.readouterr().out, "its simulator had other arrays"
    assert newest_checkpoint(run) == 6 and [s["iteration"] for s in starts(run)] == [0, 4]
    iterations, losses = read_progress(run)["Loss/behavior"]
    assert iterations == [*range(6)]
    assert max(losses[4:]) < losses[0], "it goes on with what it had learned"
    after = load_file(run / "student.safetensors")
    assert before.keys() == after.keys() and any((before[key] != after[key]).any() for key in before)
    assert (run / "teacher.safetensors").read_bytes() == teacher
    assert read_progress(run)["Distillation/training_phase"][1][-1] == 2, "the end of phase 1 is remembered"


def test_an_old_run_is_evaluated_reported_and_exported(logdir, capsys):
    run = run_of(logdir, "default")
    assert best_return(run) is not None
    assert run_command("evaluate", [str(run), "--episodes", "8", "--scenario", "hover"]) == 0
    results = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert results["scenarios"]["hover"]["policies"]["teacher"]["length"] > 0 and results["iteration"] == 4
    assert run_command("report", [str(run)]) == 0 and (run / "report.html").stat().st_size > 100_000
    assert run_command("export", [str(run), "--format", "safetensors,onnx,jit,rsl_rl"]) == 0
    out = capsys.readouterr().out
    assert out.count("100 steps beside the original") == 4
    exported, _, header = load_policy(run / "exported" / "policy.safetensors")
    assert exported == load_policy(run / "student.safetensors")[0] and isinstance(exported, Policy)
    assert header["iteration"] == 4 and (run / "exported" / "model_4.pt").is_file()
