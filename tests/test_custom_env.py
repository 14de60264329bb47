"""Tasks and simulators from outside: by a function's place, by entry points; the example from end to end."""

from __future__ import annotations

import json
import runpy
import sys
import traceback
from pathlib import Path

import pytest
import yaml

from bridge import custom, registry
from bridge.errors import SettingError
from bridge.tasks import Request
from jdistill.cli.main import run_command
from jdistill.run.folders import open_run, starts
from jdistill.run.progress import read_progress
from tests.conftest import ROOT

pytestmark = pytest.mark.full

EXAMPLE = ROOT / "examples" / "custom_env.py"
SMALL = ["--num_envs", "4", "--logger", "none", "agent.num_steps_per_env=32", "agent.algorithm.gradient_length=8"]


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder like an installed package's, where entry points can be announced: ``outside(group, name, value)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(sys.modules)

    def forget():
        custom.announced.cache_clear()
        registry.simulators.cache_clear()

    def announce(group: str, name: str, value: str) -> None:
        info = tmp_path / "outside-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[{group}]\n{name} = {value}\n")
        forget()

    yield announce
    forget()
    for name in set(sys.modules) - set(before):
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def teacher(outside):
    """The example's own teacher, in the current folder."""
    runpy.run_path(str(EXAMPLE))["write_teacher"](Path("teacher.safetensors"))
    return "teacher.safetensors"


def test_the_example_from_end_to_end(teacher, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)  # The place is given relative to where the user stands, and kept absolute.
    folder = Path(sys.path[0])
    logs = ["--logdir", str(folder / "logs")]
    task = ["--task", "examples/custom_env.py:inverted_pendulum", "env.length=0.4"]
    arguments = [*SMALL, *logs, "--teacher", str(folder / teacher), "--phase1", "2"]
    assert run_command("train", [*task, *arguments, "--max_iterations", "3"]) == 0
    (run,) = (folder / "logs" / "distillation").iterdir()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["task"] == f"{EXAMPLE}:inverted_pendulum" and config["sim"] == "jax"
    assert config["env"] == {"num_envs": 4, "length": 0.4, "torque": 40.0}

    monkeypatch.chdir(folder)
    assert run_command("train", [*logs, "--resume", "--max_iterations", "5"]) == 0
    curves = read_progress(run)
    assert curves["Loss/behavior"][0] == [0, 1, 2, 3, 4] and "Metrics/angle_error" in curves
    assert [start["iteration"] for start in starts(run)] == [0, 3]
    assert starts(run)[0]["command"].startswith("jdistill train --task examples/custom_env.py")

    assert run_command("evaluate", [run.name, *logs, "--episodes", "4", "env.length=0.6"]) == 0
    results = json.loads((run / "evaluation" / "evaluation.json").read_text())
    policies = results["scenarios"]["default"]["policies"]
    assert policies["teacher"]["survival"] == 1.0 and policies["teacher"]["metrics"]["angle_error"]["steady"] < 0.05
    assert run_command("export", [run.name, *logs]) == 0
    assert "100 steps beside the original" in capsys.readouterr().out
    assert (run / "exported" / "policy.safetensors").is_file()


def test_a_package_announces_its_task(outside, teacher, tmp_path, capsys):
    (tmp_path / "their_envs.py").write_text(EXAMPLE.read_text())
    outside("jdistill.tasks", "pendulum", "their_envs:inverted_pendulum")
    assert run_command("tasks", []) == 0
    listed = capsys.readouterr().out.splitlines()
    assert ["pendulum", "jax"] in [line.split() for line in listed]
    assert listed[-1].startswith("Not installed: ") and "mjlab (--extra mjlab)" in listed[-1]
    arguments = ["--task", "pendulum", "--teacher", teacher, "--logdir", "logs", "--max_iterations", "1", *SMALL]
    assert run_command("train", arguments) == 0
    (run,) = Path("logs").glob("*/*")
    assert yaml.safe_load((run / "config.yaml").read_text())["task"] == "pendulum"
    assert run_command("evaluate", [str(run), "--episodes", "2"]) == 0
    # Nothing of this needs an announcement.
    assert registry.find(Request("their_envs:inverted_pendulum")).name == "jax"


TASKS = """
import jdistill
from their_envs import inverted_pendulum as make

def whole_task():
    from bridge.custom import as_task
    return as_task("ours", make)

def needs(size, num_envs=3):
    return make(num_envs)

def no_environment():
    return 3

def half(num_envs: int = 3):
    return object()

def broken(num_envs: int = 3):
    import dataclasses, jax.numpy as jnp
    class Broken(type(make())):
        def step(self, state, action):
            return super().step(state, action + jnp.zeros((7, 5)))
    return Broken(**{f.name: getattr(make(num_envs), f.name) for f in dataclasses.fields(make())})
"""


@pytest.fixture
def tasks(outside, tmp_path):
    """A file of good and bad tasks in the current folder, ``tasks.py``."""
    (tmp_path / "their_envs.py").write_text(EXAMPLE.read_text())
    (tmp_path / "tasks.py").write_text(TASKS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "nowhere.py:make"], "nowhere.py: no such file"),
        (["--task", "tasks.py:whole_tusk"], "has no 'whole_tusk' (did you mean whole_task?)"),
        (["--task", "no_such_module:make"], "--task no_such_module:make: No module named 'no_such_module'"),
        (["--task", "tasks.py:needs"], "its parameter size needs a default"),
        (["--task", "tasks.py:no_environment"], "is a int; expected a Task, or a function with a parameter num_envs"),
        (["--task", "tasks.py:half", "--teacher", "teacher.safetensors"], "object has no num_envs and no num_actions"),
        (
            ["--task", "their_envs:inverted_pendulum", "env.lenght=2"],
            "env.lenght: unknown setting (did you mean env.le",
        ),
        (["--task", "their_envs:inverted_pendulum", "env.length=long"], "env.length=long: "),
        (["--task", "their_envs:inverted_pendulum", "--num_envs", "2"], "name its teacher with --teacher FILE"),
        (["--task", "their_envs:inverted_pendulum", "--viz", "x"], "unknown flag --viz here: it belongs to Isaac Lab"),
    ],
)
def test_complaints(tasks, teacher, capsys, arguments, expected):
    assert run_command("train", ["--logdir", "logs", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jdistill train: error: ") and expected in line
    assert not Path("logs").exists()


def test_what_a_place_may_lead_to(tasks, tmp_path):
    simulator = registry.find(Request("tasks.py:whole_task"))
    task = registry.load(simulator, "tasks.py:whole_task")
    assert task.name == f"{tmp_path}/tasks.py:whole_task", "runs are filed under what finds the task again"
    assert task.cfg_cls(num_envs=2).length == 0.5
    with pytest.raises(SettingError, match="expected a positive number"):
        task.cfg_cls(num_envs=0).validate()


def test_a_mistake_in_an_environment_comes_out_with_its_place(tasks, teacher):
    """JAX's shape errors are errors of a program, not of its user."""
    arguments = ["--task", "tasks.py:broken", "--teacher", teacher, "--logdir", "logs", *SMALL]
    with pytest.raises((TypeError, ValueError)) as error:
        run_command("train", arguments)
    text = "".join(traceback.format_exception(error.value))
    assert not isinstance(error.value, SettingError) and "tasks.py" in text and "(7, 5)" in text


SIMULATOR = """
from bridge.tasks import Launch, Simulator, UnknownTaskError

class Theirs(Simulator):
    name, title = "theirs", "Their Simulator"
    packages = ("outside",)

    def task_names(self):
        return ["theirs:pole"]

    def load(self, name, options):
        if name != "theirs:pole":
            raise UnknownTaskError(name, self.task_names())
        import their_envs
        from bridge.custom import as_task
        return as_task(name, their_envs.inverted_pendulum)
"""


def test_a_simulator_costs_one_file(outside, tasks, teacher, tmp_path):
    (tmp_path / "their_simulator.py").write_text(SIMULATOR)
    outside("jdistill.simulators", "theirs", "their_simulator:Theirs")
    assert registry.task_names()["theirs:pole"] == "theirs"
    arguments = ["--task", "theirs:pole", "--teacher", teacher, "--logdir", "logs", "--max_iterations", "1", *SMALL]
    assert run_command("train", arguments) == 0
    (run,) = Path("logs").glob("*/*")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["task"], config["sim"]) == ("theirs:pole", "theirs")
    assert starts(open_run(str(run)))[0]["versions"]["outside"] == "1.0"
