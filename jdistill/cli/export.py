"""A run's student as ONNX, TorchScript, safetensors or C, for rsl_rl, the Crazyflie's firmware or PX4."""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack

from bridge import registry
from jdistill.cli.parser import Parser, add, names, positive
from jdistill.run.folders import open_run


def make_parser() -> Parser:
    """Every argument."""
    from jdistill.export.formats import known_formats

    parser = Parser(prog="jdistill export", description="Students to where they are used.")
    add(parser, "run")
    parser.add_argument(
        "--format",
        type=names,
        default=["safetensors"],
        help=f"any of {', '.join(known_formats())}, separated by commas",
    )
    add(parser, "--out", help="folder for the files (default: RUN/exported)")
    parser.add_argument(
        "--actor_std", type=deviation, default=0.1, help="rsl_rl: deviation with which its PPO begins to explore (0.1)"
    )
    parser.add_argument("--name", default="policy", help="c: what its files, functions and types begin with (policy)")
    parser.add_argument(
        "--batch", type=batch, default=1, help="onnx: environments that it takes at once, a number or 'free' (1)"
    )
    parser.add_argument("--opset", type=positive, default=20, help="onnx: version of its operators, from 17 (20)")
    parser.add_argument(
        "--rnn", choices=["operator", "unrolled"], default="operator", help="onnx: what a recurrent layer is (operator)"
    )
    parser.add_argument(
        "--state",
        choices=["separate", "inside"],
        default="separate",
        help="onnx: the recurrent state has inputs and outputs of its own, or stands behind obs and actions (separate)",
    )
    parser.add_argument(
        "--dtype", choices=["float32", "float16"], default="float32", help="onnx: of weights and arithmetic (float32)"
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


def batch(text: str) -> int | None:
    """A number of environments, or any."""
    return None if text == "free" else positive(text)


def run(argv: list[str]) -> None:
    """The command."""
    args = make_parser().parse_args(argv)
    from jdistill.export import formats
    from jdistill.export.exporters import export
    from jdistill.export.formats import OnnxCfg, Student
    from jdistill.run import compilation
    from jdistill.run.provenance import versions
    from jdistill.run.saved_run import load_config, load_student, request_of
    from jdistill.run.session import open_env, start

    compilation.prepare()
    for name in args.format:
        formats.load(name)  # A missing package is told before anything is written.
    folder = open_run(args.run, args.logdir)
    cfg = load_config(folder, ["env.num_envs=1"])
    policy, state, header = load_student(folder, args.best)
    graph = OnnxCfg(args.batch, args.opset, args.rnn, args.state, args.dtype)
    teacher = folder / "teacher.safetensors"
    notes = {"task": cfg.task, "versions": versions("jdistill", "jax", "flax", "torch", "onnx")}
    request = request_of(cfg)
    with ExitStack() as stack:
        env = None
        if registry.find(request).is_jax:  # Any other would have to be started first.
            env = stack.enter_context(open_env(cfg, start(request).task))
            header = {**getattr(env, "deployment", {}), **header}  # What policy files of earlier versions do not say.
        student = Student(policy, state, header, cfg.agent, teacher, args.actor_std, args.name, graph)
        export(student, args.format, args.out or folder / "exported", env, notes)
