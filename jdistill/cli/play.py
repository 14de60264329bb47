"""A film of a run's student beside its teacher."""

from __future__ import annotations

import argparse
from pathlib import Path

from jdistill.cli import parser as shared
from jdistill.cli.parser import Parser, add
from jdistill.cli.simulator import parse, start_run
from jdistill.run.folders import open_run


def make_parser() -> Parser:
    """Every argument."""
    parser = Parser(
        prog="jdistill play",
        description="A film of a run's student beside its teacher.",
        epilog=shared.epilog(),
        allow_abbrev=False,
    )
    add(parser, "run")
    add(parser, "overrides", help="settings of the environment: env.target.kind=figure_eight")
    add(parser, "--out", metavar="FILE", help="an .mp4 or .gif (default: RUN/videos/play.mp4)")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="length of the film (10)")
    parser.add_argument("--scenario", metavar="NAME", help="one of the task's scenarios, as in jdistill evaluate")
    add(parser, "--seed", default=1000)
    add(parser, "--best")
    parser.add_argument("--live", action="store_true", help="a window in place of a file")
    add(parser, "--device")
    add(parser, "--logdir")
    return parser


def seconds(text: str) -> float:
    """The length of a film."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to 3600")
    return value


def run(argv: list[str]) -> None:
    """The command."""
    from jdistill.evaluation import play, video
    from jdistill.evaluation.evaluate import chosen
    from jdistill.run import compilation
    from jdistill.run.session import open_env

    parser = make_parser()
    args = parse(parser, argv)
    compilation.prepare()
    folder = open_run(args.run, args.logdir)
    file: Path = args.out or folder / "videos" / f"play{'' if args.scenario is None else '_' + args.scenario}.mp4"
    if not args.live:
        video.check_packages(file)
    args, cfg, started = start_run(parser, args, folder, draws=True, fixed=["env.num_envs=1"])
    actors = play.load_actors(folder, cfg, args.best)
    task, settings = started.task, None
    if args.scenario is not None:
        settings = chosen(task.scenarios(cfg.env), [args.scenario])[args.scenario].cfg
    with open_env(cfg, task, args.seed, settings, str(folder)) as env:
        if args.live:
            play.watch(env, actors, args.seed)
            return
        frames = play.film(env, actors, file, args.seconds, args.seed, task.main_metric)
    print(f"{file}: {frames} frames, {' and '.join(actors)}")
