"""What the commands share."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Answers a bad command line with one line and status 2."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: error: {message}\n")


def positive(text: str) -> int:
    """A number of things, at least one."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive count (1, 2, ...)")
    return int(text)
