"""Distill a teacher policy into a student; the same as ``jdistill train``.

python train_jax.py --phase1 500
"""

from __future__ import annotations

import sys

from jdistill.cli import train
from jdistill.cli.main import leave


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    return train.main(argv, program=("python", "train_jax.py"))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
