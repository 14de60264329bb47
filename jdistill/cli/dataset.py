"""What is in a recording."""

from __future__ import annotations

from pathlib import Path

from jdistill.cli.parser import Parser


def make_parser() -> Parser:
    """Every argument."""
    parser = Parser(prog="jdistill dataset", description="Look into recorded episodes.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("info", help="print episodes, steps, returns and ranges")
    command.add_argument("files", nargs="+", type=Path, metavar="PATH", help="HDF5 files")
    return parser


def run(argv: list[str]) -> None:
    """The command."""
    args = make_parser().parse_args(argv)
    from jdistill.data.dataset import info, with_siblings

    print("\n\n".join(map(info, with_siblings(args.files))))
