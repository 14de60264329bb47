"""What is in a recording, and a recording in another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from jdistill.cli.parser import Parser, add, positive
from jdistill.errors import DatasetError


def make_parser() -> Parser:
    """Every argument."""
    parser = Parser(prog="jdistill dataset", description="Look into recorded episodes.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("info", help="print episodes, steps, returns and ranges")
    command.add_argument("files", nargs="+", type=Path, metavar="PATH", help="HDF5 files")
    command = commands.add_parser("export", help="write them in another format")
    command.add_argument("files", nargs="+", type=Path, metavar="PATH", help="HDF5 files")
    command.add_argument(
        "--to", choices=["lerobot"], default="lerobot", help="LeRobot's datasets, version 3.0 (default)"
    )
    add(command, "--out", required=True, help="the new folder")
    command.add_argument(
        "--action",
        default="actions",
        metavar="NAME",
        help="what becomes 'action': actions, which stepped the environment (default), or teacher_actions, the labels",
    )
    command.add_argument("--fps", type=positive, metavar="N", help="steps per second (default: what the file says)")
    command.add_argument("--describe", metavar="TEXT", help="what is done, in a sentence (default: the task's name)")
    return parser


def run(argv: list[str]) -> None:
    """The command."""
    args = make_parser().parse_args(argv)
    if args.command == "export":
        _export(args)
        return
    from jdistill.data.dataset import info, with_siblings

    print("\n\n".join(map(info, with_siblings(args.files))))


def _export(args: argparse.Namespace) -> None:
    try:
        from jdistill.data.lerobot import export
    except ModuleNotFoundError as e:
        raise DatasetError(f"--to lerobot: {e.name} is not installed; use 'uv run --extra lerobot ...'") from e
    done = export(args.files, args.out, args.action, args.fps, args.describe)
    left_out = f"; left out, being no vectors: {', '.join(done.left_out)}" if done.left_out else ""
    print(f"{args.out}: {done.episodes} episodes, {done.steps} steps at {done.fps} a second{left_out}")
