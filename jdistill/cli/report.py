"""A run on one HTML page."""

from __future__ import annotations

from jdistill.cli.parser import Parser, add
from jdistill.run.folders import open_run


def make_parser() -> Parser:
    """Every argument."""
    parser = Parser(prog="jdistill report", description="A run on one HTML page that needs no network.")
    add(parser, "run")
    add(parser, "--logdir")
    return parser


def run(argv: list[str]) -> None:
    """The command."""
    args = make_parser().parse_args(argv)
    from jdistill.evaluation.report import read_evaluation, write_report

    folder = open_run(args.run, args.logdir)
    print(write_report(folder, read_evaluation(folder)))
