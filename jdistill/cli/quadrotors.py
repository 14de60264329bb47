"""Files of quadrotors, for ``env.quadrotors=FILE``, ``jdistill teach`` and ``jdistill evaluate --quadrotors``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge.quadrotor_distribution import DISTRIBUTIONS, Distribution
from bridge.quadrotors import QuadrotorSpec, read_csv, to_csv
from bridge.tasks import DEFAULT_TASK, TASKS
from jdistill.cli.parser import Parser, count, positive
from jdistill.errors import ConfigError
from jdistill.files import replace_file

SHOWN = {
    "id": "d",
    "mass": ".4f",
    "arm_length": ".4f",
    "Ixx": ".3e",
    "twr": ".2f",
    "roll_acceleration": ".0f",
    "motor_tau": ".3f",
    "motor_tau_down": ".3f",
    "hover": ".3f",
}
"""Columns of the table and how they are printed."""


def make_parser() -> Parser:
    """Every argument."""
    parser = Parser(prog="jdistill quadrotors", description="Quadrotors as rows of a CSV file.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sample", help="draw quadrotors at random")
    command.add_argument("file", type=Path, metavar="FILE", help="the CSV file to write")
    command.add_argument("--num", type=positive, default=100, metavar="N", help="how many (%(default)s)")
    command.add_argument("--seed", type=count, default=0, metavar="N", help="of the random numbers (%(default)s)")
    command.add_argument(
        "--distribution",
        choices=list(DISTRIBUTIONS),
        default="wide",
        help="the ranges: RAPTOR's, widened where known drones lie outside (wide), as published (raptor), or those of "
        "the Foundation fork (foundation)",
    )
    command = commands.add_parser("drones", help="those that the simulator knows by name")
    command.add_argument("file", type=Path, metavar="FILE", help="the CSV file to write")
    command = commands.add_parser("show", help="print a file as a table, with what lies outside the ranges")
    command.add_argument("file", type=Path, metavar="FILE", help="a CSV file")
    command.add_argument("--distribution", choices=list(DISTRIBUTIONS), default="wide", help="the ranges (%(default)s)")
    return parser


def run(argv: list[str]) -> None:
    """The command."""
    args = make_parser().parse_args(argv)
    if args.command == "show":
        print(table(read_csv(args.file), DISTRIBUTIONS[args.distribution]))
        return
    if args.command == "sample":
        rows: Sequence[QuadrotorSpec] = DISTRIBUTIONS[args.distribution].sample(args.num, args.seed)
    else:
        known = TASKS[DEFAULT_TASK]().quadrotors
        rows = known() if known else []
    write(args.file, rows)
    print(f"{args.file}: {len(rows)} quadrotors")


def write(file: Path, rows: Sequence[QuadrotorSpec]) -> None:
    """Write ``rows`` to ``file``, which must not hold others.

    Raises:
        ConfigError: it does.
    """
    text = to_csv(rows)
    if file.exists() and file.read_bytes() != text.encode():
        raise ConfigError(f"{file}: exists and holds something else; remove it, or name another file")
    replace_file(file, text)


def table(rows: Sequence[QuadrotorSpec], distribution: Distribution) -> str:
    """The quadrotors, a line each, and what of each lies outside of ``distribution``."""
    widths = {name: max(len(name), 9) + 1 for name in SHOWN}
    lines = ["".join(f"{name:>{width}}" for name, width in widths.items()) + "  name, what is outside"]
    for row in rows:
        outside = ", ".join(distribution.outside(row))
        cells = "".join(f"{format(getattr(row, name), form):>{widths[name]}}" for name, form in SHOWN.items())
        lines.append(f"{cells}  {row.name}{' outside: ' * bool(outside)}{outside}".rstrip())
    return "\n".join(lines)
