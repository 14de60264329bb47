"""The runs and how far they got."""

from __future__ import annotations

from jdistill.cli.parser import Parser, add, folder
from jdistill.run.folders import describe, log_root, run_folders, table


def make_parser() -> Parser:
    """Every argument."""
    parser = Parser(prog="jdistill runs", description="List the runs and how far they got.")
    add(parser, "--logdir", type=folder)
    return parser


def run(argv: list[str]) -> None:
    """The command."""
    args = make_parser().parse_args(argv)
    infos = [describe(found) for found in run_folders(args.logdir)]
    print(table(infos) if infos else f"no runs in {log_root(args.logdir)}")
