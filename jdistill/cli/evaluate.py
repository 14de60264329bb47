"""What a run's student is worth, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jdistill.cli import parser as shared
from jdistill.cli.parser import Parser, add
from jdistill.cli.simulator import parse, start_run
from jdistill.errors import ReportError
from jdistill.run.folders import open_run


def make_parser() -> Parser:
    """Every argument."""
    from jdistill.evaluation.evaluate import SEED

    parser = Parser(
        prog="jdistill evaluate",
        description="What a student is worth, beside its teacher, in every scenario of the run's task.",
        epilog=shared.epilog(),
        allow_abbrev=False,
    )
    add(parser, "run")
    parser.add_argument(
        "--episodes", type=shared.positive, default=1000, metavar="N", help="for each policy and scenario (1000)"
    )
    parser.add_argument(
        "--scenario", type=shared.names, default=[], metavar="NAMES", help="some only, separated by commas"
    )
    parser.add_argument(
        "--quadrotors",
        type=Path,
        metavar="FILE",
        help="craft by craft: the episodes are shared out among the quadrotors of a CSV file",
    )
    parser.add_argument("--raptor", action="store_true", help="the published RAPTOR policy beside them")
    add(parser, "--best")
    add(parser, "--seed", default=SEED)
    add(parser, "--device")
    add(parser, "--devices", help="devices that share the work: a number or 'all' (all; those of a CPU are its cores)")
    add(parser, "--out", help="folder for the files (default: RUN/evaluation)")
    add(parser, "--logdir")
    add(parser, "overrides")
    return parser


def run(argv: list[str]) -> None:
    """The command."""
    from jdistill.evaluation.evaluate import EvaluationRequest, choose_devices, evaluate_run, finite, write
    from jdistill.evaluation.report import write_report
    from jdistill.run import compilation

    parser = make_parser()
    args = parse(parser, argv)
    compilation.prepare()
    folder = open_run(args.run, args.logdir)
    if args.raptor:
        from jdistill.export import raptor

        raptor.check_installed()
    args, cfg, started = start_run(parser, args, folder)
    devices = choose_devices(args.devices, started.simulator)
    request = EvaluationRequest(folder, args.episodes, args.seed, args.scenario, args.raptor, args.best, devices)
    out = args.out or folder / "evaluation"
    if args.quadrotors:
        craft_by_craft(args.quadrotors, request, cfg, started.task, out)
        return
    results = evaluate_run(request, cfg, started.task)
    write(results, out)
    print(f"{out / 'evaluation.json'} and evaluation.csv")
    try:
        print(write_report(folder, finite(results)))
    except ReportError as e:
        print(f"No report.html: {e}")


def craft_by_craft(file: Path, request: Any, cfg: Any, task: Any, out: Path) -> None:
    """Fly the quadrotors of ``file``."""
    from bridge.quadrotors import read_csv
    from jdistill.evaluation import held_out

    records = held_out.evaluate_quadrotors(request, cfg, task, file, read_csv(file), out)
    print(held_out.craft_table(records))
    print(held_out.write(records, out))
    try:
        print(held_out.write_page(request.run, records, out))
    except ReportError as e:
        print(f"No quadrotors.html: {e}")
