"""The command ``jdistill``."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import jax.numpy as jnp
import pytest

from jdistill.cli.main import COMMANDS, report_errors

pytestmark = pytest.mark.full


@pytest.fixture
def jdistill(monkeypatch, capsys):
    """Runs the installed command in this process; returns its exit status, stdout and stderr."""
    (script,) = entry_points(group="console_scripts", name="jdistill")
    program = script.load()
    # What ends the process here ends the test instead; `leave` itself is tested in a process of its own.
    monkeypatch.setattr("jdistill.__main__.leave", sys.exit)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jdistill", *arguments])
        with pytest.raises(SystemExit) as stop:
            program()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def test_every_command_explains_itself(jdistill):
    status, out, _ = jdistill()
    assert status == 0 and jdistill("--help")[1] == out
    for name in COMMANDS:
        assert f"  {name} " in out
        status, text, _ = jdistill(name, "--help")
        assert status == 0 and text.startswith(f"usage: jdistill {name}"), name


def unexplained(parser: argparse.ArgumentParser) -> list[str]:
    """Arguments without help, those of subcommands among them."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [name for inner in action.choices.values() for name in unexplained(inner)]
        elif not action.help or action.help == argparse.SUPPRESS:
            found.append(action.dest)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_explained(name):
    parser = importlib.import_module(f"jdistill.cli.{name}").make_parser()
    assert not unexplained(parser)
    parser.add_argument("--mute")
    assert unexplained(parser) == ["mute"]
    assert {"help", "traceback"} <= {action.dest for action in parser._actions}


def test_commands_run_and_complain(jdistill, small_run, tmp_path):
    status, out, _ = jdistill("runs", "--logdir", str(small_run.parents[1]))
    assert status == 0 and f"exp/{small_run.name}" in out
    assert jdistill("runs", "--logdir", str(tmp_path)) == (0, f"no runs in {tmp_path}\n", "")
    assert jdistill("runs", "--logdir", "nowhere")[::2] == (
        2,
        "jdistill runs: error: argument --logdir: nowhere: no such folder\n",
    )
    status, _, err = jdistill("reprot")
    assert status == 2 and err.startswith(
        "jdistill: error: no command reprot (did you mean report?); there are train, "
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config", "nowhere"],
        ["evaluate", "nowhere"],
        ["report", "nowhere"],
        ["play", "nowhere"],
        ["export", "nowhere"],
        ["convert", "nowhere.pt", "out.safetensors"],
        ["dataset", "info", "nowhere.hdf5"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_mistake_of_the_user_is_one_line_and_a_status(jdistill, arguments):
    status, _, err = jdistill(*arguments)
    assert status == 1
    assert err.count("\n") == 1 and err.startswith(f"jdistill {arguments[0]}: error: ") and "nowhere" in err
    status, _, err = jdistill(*arguments, "--traceback")
    assert status == 1 and err.startswith("Traceback") and "Error" in err.splitlines()[-2]


def test_other_errors(capsys, tmp_path):
    def missing(argv):
        (tmp_path / "none").read_text()

    assert report_errors("x", missing, []) == 1
    assert capsys.readouterr().err == f"x: error: {tmp_path}/none: No such file or directory\n"

    def stopped(argv):
        raise KeyboardInterrupt

    assert report_errors("x", stopped, []) == 130
    assert capsys.readouterr().err == "x: error: interrupted\n"
    with pytest.raises(TypeError, match="incompatible shapes"):
        report_errors("x", lambda argv: jnp.zeros(2) + jnp.zeros(3), [])


@pytest.mark.parametrize("status", [0, 1])
def test_a_failed_command_waits_for_no_thread(status):
    """Orbax's wait for ten minutes for what a failed save does not write; those of a success have work to do."""
    program = f"""
import atexit, sys, threading, time
from jdistill.cli import main
main.PATIENCE = 0.1
atexit.register(print, "at exit")
threading.Thread(target=lambda: [time.sleep({1 if status == 0 else 60}), print("worked")]).start()
print("said", end=" ")
main.leave({status})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40)
    assert done.returncode == status
    assert done.stdout == ("said at exit\n" if status else "said worked\nat exit\n")
