"""Students to where they are used: ``jdistill export RUN --format rsl_rl,jit,onnx,safetensors``."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from bridge.tasks import TASKS, make_env
from jdistill.cli.parser import Parser
from jdistill.errors import ConfigError, ExportError, PolicyFileError
from jdistill.export import exporters, formats
from jdistill.export.formats import Student
from jdistill.run import compilation
from jdistill.run.folders import open_run
from jdistill.run.provenance import versions
from jdistill.run.saved_run import load_config, load_student


def main(argv: list[str]) -> int:
    """The command."""
    parser = Parser(prog="jdistill export", description=__doc__.split("\n")[0])
    parser.add_argument("run", metavar="RUN", help="run folder, or its name in 'jdistill runs'")
    known = ", ".join(formats.known_formats())
    parser.add_argument("--format", default="safetensors", help=f"any of {known}, separated by commas")
    parser.add_argument("--out", type=Path, help="folder for the files (default: RUN/exported)")
    parser.add_argument(
        "--actor_std", type=deviation, default=0.1, help="rsl_rl: deviation with which its PPO begins to explore (0.1)"
    )
    parser.add_argument("--best", action="store_true", help="the best student instead of the newest")
    args = parser.parse_args(argv)
    compilation.prepare()
    try:
        export_run(args)
    except (ExportError, ConfigError, PolicyFileError) as e:
        print(f"jdistill export: error: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"jdistill export: error: {e.filename or args.out}: {e.strerror}", file=sys.stderr)
        return 1
    return 0


def export_run(args: argparse.Namespace) -> None:
    """Export the student of the run that the command line names."""
    names = [name.strip() for name in args.format.split(",")]
    for name in names:
        formats.load(name)
    run = open_run(args.run)
    cfg = load_config(run, ["env.num_envs=1"])
    policy, state, header = load_student(run, args.best)
    student = Student(policy, state, header, cfg.agent, run / "teacher.safetensors", args.actor_std)
    env = make_env(TASKS[cfg.task](), cfg.env) if cfg.task in TASKS else None
    notes = {"task": cfg.task, "versions": versions("jdistill", "jax", "flax", "torch", "onnx")}
    exporters.export(student, names, args.out or run / "exported", env, notes)


def deviation(text: str) -> float:
    """A standard deviation above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
