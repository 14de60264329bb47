"""Run folders as the commands and the list see them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from jdistill.cli.main import run_command
from jdistill.errors import ConfigError
from jdistill.run import folders as runs
from jdistill.run.saved_run import load_config
from tests.conftest import ROOT


@pytest.fixture
def logdir(small_run, tmp_path):
    """A folder of experiments with a copy of the small run, ``exp/good``."""
    shutil.copytree(small_run, tmp_path / "exp" / "good")
    return tmp_path


def listed(logdir, capsys) -> dict[str, str]:
    """What ``jdistill runs`` says of each run."""
    assert run_command("runs", ["--logdir", str(logdir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["RUN", "TASK", "ITERATIONS", "PHASE", "BEST", "RETURN", "UPDATED"]
    return {line.split()[0]: line for line in lines[1:]}


def test_the_list(logdir, small_run, capsys):
    (best,) = (small_run / "best").glob("[0-9]*")
    best = json.loads((best / "info" / "metadata").read_text())["mean_return"]
    line = listed(logdir, capsys)["exp/good"]
    assert re.fullmatch(rf"exp/good  crazyflie  6/6 +2 +{best:.2f} +\d{{4}}-\d\d-\d\d \d\d:\d\d", line)


def test_the_phase_is_the_newest_iterations(logdir, capsys):
    run = logdir / "exp" / "good"
    rows = (run / "progress.csv").read_text().splitlines(keepends=True)
    (run / "progress.csv").write_text("".join(rows[:3]))
    for folder in (run / "checkpoints").glob("[3-6]"):
        shutil.rmtree(folder)
    assert listed(logdir, capsys)["exp/good"].split()[2:4] == ["2/6", "1"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "no checkpoint yet"),
        (lambda run: (run / "student.safetensors").unlink(), "no student.safetensors"),
        (lambda run: (run / "config.yaml").unlink(), "no run folder (it has no config.yaml)"),
        (lambda run: (run / "config.yaml").write_text("task: [a"), "config.yaml: not valid YAML"),
        (lambda run: (run / "config.yaml").write_text("agent: 3"), "config.yaml: expected the keys task"),
        (lambda run: (run / "config.yaml").write_text("task: a\nagent: {algorithm: 3}"), "cannot be read (Attribute"),
        (lambda run: next((run / "best").glob("*/info/metadata")).write_text("{"), " is damaged (JSONDecodeError)"),
        (lambda run: (run / "checkpoints" / "6" / "info" / "metadata").unlink(), "checkpoints/6 is damaged"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json: damaged"),
        (lambda run: (run / "progress.csv").write_text("iteration,a\nx,1\n"), "progress.csv: damaged"),
    ],
)
def test_what_is_wrong_stands_in_the_list(logdir, capsys, damage, expected):
    shutil.copytree(logdir / "exp" / "good", logdir / "exp" / "bad")
    damage(logdir / "exp" / "bad")
    lines = listed(logdir, capsys)
    assert expected in lines["exp/bad"]
    assert lines["exp/good"].rstrip()[-3] == ":", "nothing behind the time"


def test_names_and_paths_open_a_run(logdir):
    run = logdir / "exp" / "good"
    for text in ("good", "exp/good", str(run)):
        assert runs.open_run(text, str(logdir)) == run
    shutil.copytree(run, logdir / "other" / "good")
    with pytest.raises(ConfigError, match=r"good: there are .*exp/good and .*other/good; name one of them"):
        runs.open_run("good", str(logdir))
    with pytest.raises(ConfigError, match=r"exp/goood: no such run \(did you mean exp/good\?\)"):
        runs.open_run("exp/goood", str(logdir))
    with pytest.raises(ConfigError, match=r"no run folder \(it has no config.yaml\)"):
        runs.open_run(str(logdir), str(logdir))


def test_a_run_of_another_version(logdir):
    run = logdir / "exp" / "good"
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("  seed: 42\n", "  seeds: 42\n"))
    with pytest.raises(
        ConfigError, match=r"a run of jdistill 0.*, this is jdistill 0.* \(agent.seeds: unknown setting"
    ):
        load_config(run)
    (run / "config.yaml").write_text(config)
    with pytest.raises(ConfigError, match=r"^agent.seeds: unknown setting"):
        load_config(run, ["agent.seeds=1"])
    record = json.loads((run / "run.json").read_text())
    record["format"] = 2
    record["starts"][0]["versions"]["jdistill"] = "9.1"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"a run of jdistill 9.1 \(format 2\), this is .* \(format 1\): use that"):
        runs.open_run(str(run))


def test_folders_of_new_runs(tmp_path):
    planned = runs.planned_folder(str(tmp_path), "my experiment", "a  night flight")
    assert re.fullmatch(r"my_experiment/[\d_-]+_a_night_flight", str(planned.relative_to(tmp_path)))
    folders = {runs.new_run(planned) for _ in range(3)}
    assert len(folders) == 3 and all(folder.is_dir() for folder in folders)
    assert runs.planned_folder(str(tmp_path), "x", "").name == runs.planned_folder(str(tmp_path), "x", "").name[:19]


def test_the_command_is_quick_and_needs_no_jax(logdir):
    code = (
        f"import sys; from jdistill.cli.main import main; main(['runs', '--logdir', {str(logdir)!r}]); "
        "print(sorted(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "exp/good" in out and not {"'jax'", "'numpy'", "'orbax'"} & set(re.findall(r"'\w+'", out))
