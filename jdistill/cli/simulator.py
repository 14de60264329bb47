"""Command lines that a simulator reads too: its flags are found, taken out, and the rest is read anew."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from bridge import registry
from bridge.tasks import Request
from jdistill.cli.parser import Parser, refuse_unknown
from jdistill.run.compose import RunCfg
from jdistill.run.devices import Placement
from jdistill.run.session import Started, start


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The command line; flags that are not ours are kept in ``unknown``, for they may be a simulator's."""
    args, unknown = parser.parse_known_intermixed_args(argv)
    args.unknown, args.argv = unknown, list(argv)
    return args


def start_simulator(
    request: Request,
    args: argparse.Namespace,
    reparse: Callable[[Sequence[str]], argparse.Namespace],
    parser: Parser,
    extra: Sequence[str] = (),
) -> tuple[argparse.Namespace, Started]:
    """Start the simulator that ``request`` means with its flags of the command line ``args.argv`` and ``extra`` ones.

    Returns:
        The command line, its overrides as ``reparse`` reads them without those flags (whose values look like
        overrides), and the simulator with the task.

    Raises:
        SettingError: see :func:`jdistill.run.session.start`.
        ConfigError: a flag that nobody knows.
    """
    said = {field.name: getattr(args, field.name) for field in fields(Placement) if hasattr(args, field.name)}
    placement = Placement(**{"devices": "1", **said})
    if not registry.find(request).flags:
        refuse_unknown(parser, args.unknown)
        return args, start(request, args.argv, placement)
    started = start(request, [*args.argv, *extra], placement)
    again = reparse(started.rest)
    refuse_unknown(parser, again.unknown)
    args.overrides = again.overrides  # The rest stays: some flags, --device for one, are the simulator's and ours.
    return args, started


def start_run(
    parser: Parser, args: argparse.Namespace, folder: Path, draws: bool = False, fixed: Sequence[str] = ()
) -> tuple[argparse.Namespace, RunCfg, Started]:
    """Start the simulator of the run in ``folder``; with ``draws``, so that it can be drawn.

    ``fixed`` are overrides below those of the command line.

    Returns:
        The command line without the simulator's flags, the run's settings with the overrides, the simulator.

    Raises:
        UserError: the run cannot be read, or its simulator not be started; one line.
    """
    from jdistill.run.saved_run import load_config, request_of

    cfg = load_config(folder)
    request = request_of(cfg, args.unknown, f"{parser.prog} ...")
    simulator = registry.find(request)
    if not simulator.flags:  # Settings that make no sense are told before anything is started.
        cfg = load_config(folder, [*fixed, *args.overrides])
    extra = simulator.drawing_flags(args.unknown) if draws else ()
    args, started = start_simulator(request, args, lambda rest: parse(parser, rest), parser, extra)
    return args, load_config(folder, [*fixed, *args.overrides]), started
