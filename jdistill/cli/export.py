"""A run's student as ONNX, TorchScript, safetensors or for rsl_rl."""

from __future__ import annotations

import argparse
import math
import warnings
from contextlib import ExitStack

from bridge import registry
from jdistill.cli.parser import Parser, add, names
from jdistill.errors import ExportError
from jdistill.run.folders import open_run


def make_parser() -> Parser:
    """Every argument."""
    from jdistill.export.exporters import FORMATS

    parser = Parser(prog="jdistill export", description="Students to where they are used.")
    add(parser, "run")
    parser.add_argument(
        "--format", type=names, default=["safetensors"], help=f"any of {', '.join(FORMATS)}, separated by commas"
    )
    add(parser, "--out", help="folder for the files (default: RUN/exported)")
    parser.add_argument(
        "--actor_std", type=deviation, default=0.1, help="rsl_rl: deviation with which its PPO begins to explore (0.1)"
    )
    add(parser, "--best")
    add(parser, "--logdir")
    return parser


def deviation(text: str) -> float:
    """A standard deviation above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def run(argv: list[str]) -> None:
    """The command."""
    args = make_parser().parse_args(argv)
    from jdistill.export.exporters import FORMATS, export
    from jdistill.run import compilation
    from jdistill.run.saved_run import load_config, request_of
    from jdistill.run.session import open_env, start

    compilation.prepare()
    if unknown := [f for f in args.format if f not in FORMATS]:
        raise ExportError(f"--format {unknown[0] or '(empty)'}: expected some of {', '.join(FORMATS)}")
    folder = open_run(args.run, args.logdir)
    cfg = load_config(folder, ["env.num_envs=1"])
    request = request_of(cfg)
    with ExitStack() as stack:
        env = None
        if registry.find(request).is_jax:  # Any other would have to be started first.
            env = stack.enter_context(open_env(cfg, start(request).task))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what was asked for.
            export(folder, cfg, env, args.format, args.out or folder / "exported", args.best, args.actor_std)
