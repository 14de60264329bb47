"""``jdistill COMMAND``, and the one place where an error becomes a line and a status.

A command is a module of this package with

- ``make_parser() -> Parser``, every argument with a line of help, and
- ``run(argv) -> int | None``, which does the work and raises what goes wrong.
"""

from __future__ import annotations

import atexit
import contextlib
import getpass
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from jdistill.errors import UserError, nearest
from jdistill.run import processes
from jdistill.run.output import kept_going, quieten_libraries

PATIENCE = 5.0
"""Seconds that threads have to end where a command has failed."""
COMMANDS = {
    "train": "distill a teacher into a student; the same as train_jax.py",
    "tasks": "list the tasks that can be trained on",
    "runs": "list the runs and how far they got",
    "evaluate": "what a run's student is worth, in numbers",
    "report": "a run's curves, numbers and episodes on one HTML page",
    "play": "a film of a run's student beside its teacher",
    "export": "a run's student as C, ONNX, TorchScript, safetensors or for rsl_rl",
    "convert": "a checkpoint of another trainer as a policy that needs no torch",
    "dataset": "what is in a recording; a recording as a dataset of LeRobot",
    "teach": "train a teacher for every quadrotor of a file",
    "quadrotors": "files of quadrotors: drawn at random, known by name, looked at",
}
"""Each is the module of that name; only the one that is asked for is imported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    name, arguments = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        print("usage: jdistill COMMAND ..., where COMMAND --help says more\n")
        print("\n".join(f"  {command:10} {what}" for command, what in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        hint = f"{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}"
        print(f"jdistill: error: no command {name}{hint}", file=sys.stderr)
        return 2
    return run_command(name, arguments)


def leave(status: int) -> NoReturn:
    """End the program with ``status``.

    Where a save has failed, threads of the checkpoint library wait for what will never come, and Python would wait for
    them, for many minutes. What is to be done at exit is done.
    """
    deadline = time.monotonic() + PATIENCE

    def waiting() -> list[threading.Thread]:
        others = (t for t in threading.enumerate() if t is not threading.current_thread())
        return [thread for thread in others if thread.is_alive() and not thread.daemon]

    for thread in waiting() if status else ():
        thread.join(max(0.0, deadline - time.monotonic()))
    if status and waiting():
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def run_command(name: str, argv: Sequence[str]) -> int:
    """Run the command ``name`` on its arguments ``argv``; returns its exit status."""
    module = importlib.import_module(f"jdistill.cli.{name}")
    return report_errors(f"jdistill {name}", module.run, argv)


def report_errors(prog: str, command: Callable[[list[str]], int | None], argv: Sequence[str]) -> int:
    """Run ``command`` on ``argv``; an error that the user can mend becomes one line on stderr and a status.

    Anything else is a mistake in a program, ours or the user's, and comes out with its traceback.
    """
    _name_the_user()
    if "--traceback" not in argv:
        quieten_libraries()
    with kept_going():
        return _answered(prog, command, argv)


def _name_the_user() -> None:
    """Give a user without an entry in the password file, as containers have them, a name; torch asks for it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"


def _answered(prog: str, command: Callable[[list[str]], int | None], argv: Sequence[str]) -> int:
    try:
        return command(list(argv)) or 0
    except (UserError, OSError, KeyboardInterrupt) as e:
        if "--traceback" in argv:
            traceback.print_exc()
        message, status = _told(e)
        line = f"{prog}: error: {message}"
        return processes.fail(message, lambda: print(line, file=sys.stderr), status)
    except Exception as e:
        if processes.number() == 1:
            raise
        # What is computed together fails too when another process is gone, and then that is what is to be told.
        processes.await_the_end()
        return processes.fail(f"{type(e).__name__}: {e}", traceback.print_exc, 1)


def _told(error: BaseException) -> tuple[str, int]:
    """The line and the exit status."""
    if isinstance(error, UserError):
        return str(error), error.status
    if isinstance(error, OSError):
        what = error.strerror or " ".join(str(error).split()) or type(error).__name__
        return (f"{error.filename}: {what}" if error.filename else what), 1
    return "interrupted", 130
