"""``python -m jdistill COMMAND``, and what the script ``jdistill`` runs."""

from __future__ import annotations

from typing import NoReturn

from jdistill.cli.main import leave, main


def program() -> NoReturn:
    """Run the command that the command line names, and end."""
    leave(main())


if __name__ == "__main__":
    program()
