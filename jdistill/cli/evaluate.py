"""What a run's student is worth, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
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
    parser.add_argument(
        "--student",
        action="append",
        default=[],
        metavar="FILE",
        help="a further student beside it: policy file, run folder, checkpoint of rsl_rl's distillation; repeatable",
    )
    parser.add_argument("--raptor", action="store_true", help="the published RAPTOR policy beside them")
    add(parser, "--best")
    add(
        parser,
        "--seed",
        type=shared.seeds,
        default=[SEED],
        metavar="N[,N...]",
        help=f"seed of the start states ({SEED}); with --quadrotors also several, whose episodes add up",
    )
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
    from jdistill.run.policy_paths import named_file

    parser = make_parser()
    args = parse(parser, argv)
    if len(args.seed) > 1 and not args.quadrotors:
        parser.error("--seed: several go with --quadrotors, whose episodes they add up to")
    compilation.prepare()
    students = [named_file("--student", name) for name in args.student]
    folder = open_run(args.run, args.logdir)
    if args.raptor:
        from jdistill.export import raptor

        raptor.check_installed()
    args, cfg, started = start_run(parser, args, folder)
    devices = choose_devices(args.devices, started.simulator)
    request = EvaluationRequest(
        folder, args.episodes, args.seed[0], args.scenario, args.raptor, args.best, devices, students
    )
    out = args.out or folder / "evaluation"
    if args.quadrotors:
        craft_by_craft(args.quadrotors, args.seed, request, cfg, started.task, out)
        return
    results = evaluate_run(request, cfg, started.task)
    write(results, out)
    print(f"{out / 'evaluation.json'} and evaluation.csv")
    try:
        print(write_report(folder, finite(results)))
    except ReportError as e:
        print(f"No report.html: {e}")


def craft_by_craft(file: Path, seeds: Sequence[int], request: Any, cfg: Any, task: Any, out: Path) -> None:
    """Fly the quadrotors of ``file``, once for each of ``seeds``."""
    from bridge.quadrotors import read_csv
    from jdistill.evaluation import held_out

    records, by_seed = held_out.evaluate_quadrotors(request, seeds, cfg, task, file, read_csv(file), out)
    print(held_out.craft_table(records))
    print(held_out.write(by_seed, out))
    try:
        print(held_out.write_page(request.run, records, out))
    except ReportError as e:
        print(f"No quadrotors.html: {e}")
