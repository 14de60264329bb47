"""Teachers for the quadrotors of a file, all at once.

jdistill teach quads.csv --out teachers/
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from bridge.tasks import DEFAULT_TASK, Request, Task
from jdistill.cli.parser import Parser, add, count, positive
from jdistill.errors import ConfigError


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def above_zero(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def make_parser() -> Parser:
    """Every argument."""
    parser = Parser(
        prog="jdistill teach",
        description="Train a teacher for every quadrotor of a file, all at once. The same command goes on where a run "
        "was interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("quadrotors", type=Path, metavar="FILE", help="CSV file, see 'jdistill quadrotors'")
    add(parser, "--out", required=True, help="folder of the teachers, for --teacher_dir")
    parser.add_argument("--task", default=DEFAULT_TASK, metavar="NAME", help="what they fly (%(default)s)")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--init", type=Path, metavar="FILE", help="policy file to begin with (the bundled generalist)")
    begin.add_argument("--scratch", action="store_true", help="begin with nothing")
    parser.add_argument("--num_envs", type=positive, default=32, metavar="N", help="of each teacher (%(default)s)")
    parser.add_argument("--updates", type=positive, metavar="N", help="gradient steps of a round (300; scratch: 1000)")
    parser.add_argument("--rounds", type=positive, default=2, metavar="N", help="for those that are weak (%(default)s)")
    parser.add_argument("--learning_rate", type=above_zero, metavar="X", help="at first (0.001; scratch: 0.002)")
    parser.add_argument("--horizon", type=positive, default=120, metavar="N", help="steps of a gradient (%(default)s)")
    parser.add_argument("--min_survival", type=share, default=0.95, metavar="X", help="of a good teacher (%(default)s)")
    parser.add_argument(
        "--max_error", type=above_zero, default=0.05, metavar="M", help="steady, of a good one (%(default)s m)"
    )
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="of everything random (%(default)s)")
    add(parser, "--device")
    add(
        parser,
        "--devices",
        help="devices that share the teachers: a number or 'all' (all; those of a CPU are its cores)",
    )
    add(parser, "overrides", help="settings of the environment, env.KEY=VALUE")
    return parser


def run(argv: list[str]) -> int:
    """The command; status 1 where teachers are too weak."""
    from bridge.quadrotors import read_csv
    from jdistill.evaluation.crafts import make_judge
    from jdistill.evaluation.evaluate import choose_devices
    from jdistill.run.compose import compose_task
    from jdistill.run.devices import Placement
    from jdistill.run.session import start
    from jdistill.run.teaching import Teaching

    args = make_parser().parse_intermixed_args(argv)
    specs = read_csv(args.quadrotors)
    started = start(Request(args.task), placement=Placement(device=args.device, devices=args.devices))
    task = started.task
    if task.lesson is None:
        raise ConfigError(f"--task {args.task}: is not differentiable, its teachers have to be trained elsewhere")
    env = compose_task(task.name, task.cfg_cls, started.simulator, [], args.overrides).env
    env = dataclasses.replace(env, quadrotors=str(args.quadrotors), num_envs=args.num_envs)
    lesson = task.lesson(env, 0.01)
    policy, begin, name = beginning(args, task, lesson)
    spec = lesson.obs_spec
    description: dict[str, Any] = {
        "trained_by": "jdistill teach",
        "begun_with": name,
        "overrides": args.overrides,
        "num_envs": args.num_envs,
        "observation": {
            "group": lesson.group,
            "frame": spec.frame,
            "layout": [dict(zip(("name", "size", "unit"), part, strict=True)) for part in spec.layout],
        },
    }
    devices = choose_devices(args.devices, started.simulator)
    judge = make_judge(task, env, len(specs), lesson.group)
    teaching = Teaching(specs, lesson, policy, begin, judge, settings(args), args.out, description, devices)
    rows = teaching.run()
    print(table(rows))
    weak = [str(row["id"]) for row in rows if not row["passed"]]
    print(f"{args.out}: {len(rows) - len(weak)} teachers of {len(rows)} quadrotors")
    if weak:
        print(f"Too weak, and left out of {args.out / 'teacher_dynamics.csv'}: {', '.join(weak)}")
    return 1 if len(weak) == len(rows) else 0


def settings(args: argparse.Namespace) -> Any:
    """How they are trained. From scratch a policy first has to learn to fly, with firm errors and no trim."""
    from jdistill.core.apg import ApgCfg
    from jdistill.run.teaching import TeachCfg

    rate = args.learning_rate or (2e-3 if args.scratch else 1e-3)
    updates = args.updates or (1000 if args.scratch else 300)
    apg = ApgCfg(updates=updates, horizon=args.horizon, learning_rate=rate)
    apg = dataclasses.replace(apg, trim=1.0) if args.scratch else dataclasses.replace(apg, action_error=0.03)
    return TeachCfg(apg, args.rounds, args.seed, args.min_survival, args.max_error)


def beginning(args: argparse.Namespace, task: Task, lesson: Any) -> tuple[Any, Any, str]:
    """The network, what all begin with (None: nothing), and its name.

    Raises:
        ConfigError: a policy of another size.
    """
    from jdistill.core import apg
    from jdistill.core.networks import Policy
    from jdistill.export.policy_file import load_policy

    if args.scratch or (args.init is None and task.generalist is None):
        hidden = Policy(lesson.num_actions, hidden_dims=(64, 64, 64), activation="elu", output_activation="tanh")
        return hidden, None, "scratch"
    path = args.init or Path(str(files("jdistill"))) / "teachers" / f"{task.generalist}.safetensors"
    policy, state, header = load_policy(path)
    size = lesson.obs_spec.shape[0]
    sizes = (size, size + lesson.of_craft(first_of(lesson.parameters)).facts().shape[0])
    if policy.is_recurrent or policy.num_actions != lesson.num_actions or header["obs_size"] not in sizes:
        raise ConfigError(
            f"{path}: takes {header['obs_size']} observations, expected an MLP of {sizes[0]} or {sizes[1]}"
        )
    if header["obs_size"] != size and state.normalizer is None:
        raise ConfigError(f"{path}: a generalist needs a normalizer")
    assert apg.num_inputs(state) == header["obs_size"]
    return policy, state, str(path.name)


def first_of(parameters: Any) -> Any:
    """The first craft's."""
    import jax

    return jax.tree.map(lambda x: x[0], parameters)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The quality table, a line for each teacher."""
    lines = [f"{'id':>6} {'survival':>9} {'steady (m)':>11} {'95 % (m)':>9} {'round':>6}"]
    for row in rows:
        weak = "" if row["passed"] else "  weak"
        lines.append(
            f"{row['id']:>6} {row['survival']:>9.1%} {row['steady_error']:>11.4f} {row['steady_error_p95']:>9.4f} "
            f"{row['round']:>6}{weak}"
        )
    return "\n".join(lines)
