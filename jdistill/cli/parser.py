"""What the commands share: how a command line is read, and the arguments that several of them take."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from bridge import registry
from jdistill.errors import ConfigError, nearest
from jdistill.run.folders import LOGDIR

_OVERRIDE = re.compile(r"^--((agent|env|bridge)\.[^=]+=)")


class Parser(argparse.ArgumentParser):
    """Answers a bad command line with one line and status 2. Every command takes ``--traceback``."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.add_argument("--traceback", action="store_true", help="show where in the program an error comes from")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See :class:`argparse.ArgumentParser`; a flag with nothing behind it is an error."""
        # Tools that try out settings, W&B's sweeps for one, write overrides as flags.
        args = [_OVERRIDE.sub(r"\1", argument) for argument in (sys.argv[1:] if args is None else args)]
        for before, argument in pairwise(["", *args]):
            if not argument.strip() or (argument.startswith("--") and argument.find("=") == len(argument) - 1):
                what = argument.rstrip("=") or before or "an argument"
                self.error(f"{what}: is empty; leave it out, or say what it is")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


# -- kinds of values -----------------------------------------------------------------------------------------------


def is_number(text: str) -> bool:
    """Whether it is a number of ordinary digits and length."""
    return text.isascii() and text.isdigit() and len(text) < 19


def positive(text: str) -> int:
    """A number of things, at least one."""
    if not is_number(text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive count (1, 2, ...)")
    return int(text)


def count(text: str) -> int:
    """A number of things, zero included."""
    if not is_number(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a count (0, 1, 2, ...)")
    return int(text)


def boolean(text: str) -> bool:
    """True or false, as people write them."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false (--load_run names a run)")
    return text.lower() in ("true", "1", "yes")


def folder(text: str) -> str:
    """A folder that exists."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return text


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",")]


def seeds(text: str) -> list[int]:
    """Seeds separated by commas, each once."""
    found = [name.strip() for name in text.split(",")]
    if not all(is_number(name.removeprefix("-")) for name in found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no seed, nor several different ones (1,2,3)")
    return [int(name) for name in found]


# -- arguments of several commands ---------------------------------------------------------------------------------

SHARED: dict[str, dict[str, Any]] = {
    "run": {"metavar": "RUN", "help": "run folder, or its name in 'jdistill runs'"},
    "overrides": {"nargs": "*", "metavar": "KEY=VALUE", "help": "settings of the environment, as in training"},
    "--device": {"metavar": "NAME", "help": "cpu, cuda or cuda:N (default: the fastest that JAX finds)"},
    "--devices": {
        "metavar": "N",
        "help": "devices that share the environments: a number or 'all' (default: all GPUs, or "
        "as many CPU cores as pay off)",
    },
    "--logdir": {"metavar": "DIR", "help": f"folder of all experiments ({LOGDIR})"},
    "--seed": {"metavar": "N", "type": int, "help": "seed of the start states (%(default)s)"},
    "--best": {"action": "store_true", "help": "the best student instead of the newest"},
    "--out": {"metavar": "DIR", "type": Path, "help": "folder for the files"},
}


def add(parser: argparse.ArgumentParser, name: str, **changes: Any) -> None:
    """Add the shared argument ``name``, with ``changes`` where a command's differs."""
    parser.add_argument(name, **{**SHARED[name], **changes})


# -- flags that are a simulator's ----------------------------------------------------------------------------------


def epilog() -> str:
    """That runs of some simulators take flags of those."""
    titles = registry.titles(s for s in registry.simulators().values() if s.flags)
    return f"Runs of {titles}'s tasks take its launcher's flags too."


def refuse_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    """Answer a flag that nobody knows by the nearest known one.

    Raises:
        ConfigError: there is such a flag.
    """
    for flag in (text.split("=")[0] for text in unknown):
        owner = next((s for s in registry.simulators().values() if flag in s.flags), None)
        if owner:
            theirs = f" here: it belongs to {owner.title}'s tasks (--task NAME, --sim {owner.name})"
            raise ConfigError(f"unknown flag {flag}{theirs}")
        flags = [option for action in parser._actions for option in action.option_strings]
        raise ConfigError(f"unknown flag {flag}{nearest(flag, flags)}")
