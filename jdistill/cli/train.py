"""Distill a teacher policy into a student: read the command line, run, say how to go on."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bridge import registry
from bridge.tasks import TASKS
from jdistill.cli.main import report_errors
from jdistill.cli.parser import Parser, add, boolean, count, positive
from jdistill.cli.simulator import start_simulator
from jdistill.core.config import LOGGERS

PROGRAM = ["jdistill", "train"]


def make_parser(prog: str = "jdistill train") -> Parser:
    """Every flag, one line of help each."""
    every = registry.simulators()
    others = registry.titles(s for s in every.values() if s.open_ended)
    filming = registry.titles(s for s in every.values() if s.records_video)
    flags = ", ".join(flag for s in every.values() for flag in s.flags)
    parser = Parser(
        prog=prog,
        description="Two-stage distillation of a teacher policy into a student, in JAX.",
        epilog="Any setting can be overridden: agent.algorithm.learning_rate=5e-4 env.randomization.mass=0.1. Tasks of "
        f"{others} take its own flags too: {flags} and others.",
        allow_abbrev=False,
    )
    _add_what_to_train(parser, every, others)
    _add_what_comes_out(parser, filming)
    add(parser, "overrides", help="settings of the agent and the environment, dotted")
    return parser


def _add_what_to_train(parser: Parser, every: dict[str, Any], others: str) -> None:
    argument = parser.add_argument
    argument(
        "--task",
        metavar="NAME",
        help=f"task to train on: {', '.join(TASKS)}, package.module:function, file.py:function, or {others}'s "
        "('jdistill tasks' lists them; default: the first)",
    )
    argument("--sim", choices=sorted(every), help="simulator, where several have the task")
    argument("--num_envs", type=positive, metavar="N", help="environments side by side (the task's own, else 100)")
    argument(
        "--max_iterations", type=positive, metavar="N", help="iterations of the whole run, resumes included (1500)"
    )
    argument("--phase1", type=count, metavar="N", help="two-stage training: the teacher steps the first N iterations")
    add(parser, "--seed", type=count, help="seed of every random number (42)")
    argument(
        "--teacher",
        metavar="FILE",
        nargs="+",
        action="extend",
        help="the teacher: a .safetensors policy, an rsl_rl .pt, its run folder, or 'latest' (default: the task's own);"
        " several are those of the environments with teacher_id 0, 1, ...",
    )
    argument(
        "--teacher_dir", metavar="DIR", help="a teacher per quadrotor: teacher_dynamics.csv and teacher_0000/, ..."
    )
    argument("--teacher_id", type=count, metavar="K", help="of --teacher_dir this quadrotor and its teacher alone")
    argument("--checkpoint", metavar="FILE", help="the same as --teacher, by rsl_rl's name")
    argument("--student", metavar="FILE", help="the student to begin with: a policy, or rsl_rl's distillation .pt")
    argument(
        "--resume", type=boolean, nargs="?", const=True, metavar="BOOL", help="go on with a run (default: the newest)"
    )
    argument("--fallback", action="store_true", help="go on from the newest checkpoint that is whole")
    argument("--load_run", metavar="RUN", help="name or path of the run that --resume goes on with")
    argument("--dataset", action="append", metavar="FILE", help="train on recorded episodes alone; repeatable")
    argument("--config", metavar="FILE", help="YAML file with task, agent and env settings, or the name of a preset")
    add(parser, "--device")
    add(parser, "--devices")
    argument("--distributed", action="store_true", help="one of several processes, started by torchrun or srun")
    argument("--coordinator", metavar="HOST:PORT", help="one of several processes: where the first one listens")
    argument("--num_processes", type=positive, metavar="N", help="how many there are")
    argument("--process_id", type=count, metavar="I", help="which one this is, from 0 on")
    argument(
        "--on_hangup",
        choices=("save", "ignore"),
        default="save",
        help="when the terminal is gone: save and end (save), or go on",
    )


def _add_what_comes_out(parser: Parser, filming: str) -> None:
    argument = parser.add_argument
    argument("--experiment_name", metavar="NAME", help="folder of related runs (distillation)")
    argument("--run_name", metavar="NAME", help="appended to the run folder's name")
    argument("--logger", choices=LOGGERS, help="where scalars go: tensorboard (default), wandb or none")
    argument("--log_project_name", metavar="NAME", help="project of a wandb run (jdistill)")
    add(parser, "--logdir")
    argument("--record", metavar="FILE", help="write every episode to a new HDF5 file")
    argument("--headless", action="store_true", help="open no window, which is the default")
    argument(
        "--video", action="store_true", help=f"film the student from time to time (on {filming}, its own recording)"
    )
    argument(
        "--video_interval", type=positive, metavar="N", help=f"iterations (on {filming}, steps) between films (100)"
    )
    argument("--video_length", type=positive, metavar="N", help=f"steps of a film (a whole episode; on {filming} 200)")
    argument("--profile", metavar="START:COUNT", help="write a JAX profiler trace of COUNT iterations from START on")


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Flags that are not ours are kept in ``unknown``: they may be a simulator's."""
    # argparse would take an override behind a bare --resume for its value.
    explicit = [x for a, b in zip(argv, [*argv[1:], ""], strict=True) for x in _explicit_resume(a, b)]
    args, unknown = parser.parse_known_intermixed_args(explicit)
    args.unknown, args.argv = unknown, list(argv)
    _separate_teachers(args)
    if args.teacher and args.checkpoint and args.teacher != args.checkpoint:
        parser.error("--teacher and --checkpoint both name the teacher: give one of them")
    if args.teacher_dir and (args.teacher or args.checkpoint):
        parser.error("--teacher_dir names the teachers, and so does --teacher (or --checkpoint): give one of them")
    if args.teacher_id is not None and not args.teacher_dir:
        parser.error("--teacher_id is that of a folder: add --teacher_dir DIR")
    if (args.video_interval or args.video_length) and not args.video:
        parser.error("--video_interval and --video_length are a film's: add --video")
    if args.load_run and not args.resume:
        parser.error("--load_run names the run to go on with: add --resume (a teacher is named by --teacher FILE)")
    if args.student and args.resume:
        parser.error("--student is what a new run begins with, and --resume goes on with a run's own")
    if args.fallback and not args.resume:
        parser.error("--fallback chooses the checkpoint to go on from: add --resume")
    return args


def _separate_teachers(args: argparse.Namespace) -> None:
    """Behind the teachers' files stand overrides too, as far as argparse knows they are files."""
    files: list[str] = []
    settings: list[str] = []
    for name in args.teacher or ():
        (settings if "=" in name and not Path(name).exists() else files).append(name)
    args.overrides = [*args.overrides, *settings]
    args.teacher = (files[0] if len(files) == 1 else files) or None


def _explicit_resume(argument: str, following: str) -> list[str]:
    bare = argument == "--resume" and ("=" in following or following.startswith("-") or not following)
    return ["--resume", "true"] if bare else [argument]


def job_of(args: argparse.Namespace) -> Any:
    """The command line as a :class:`jdistill.run.training.Job`."""
    from jdistill.run.training import Job

    said = {field.name: getattr(args, field.name) for field in fields(Job)}
    said |= {"teacher": args.teacher or args.checkpoint, "resume": bool(args.resume), "dataset": args.dataset or ()}
    return Job(**said)


def run(argv: list[str], program: Sequence[str] = PROGRAM) -> int:
    """The command; ``program`` is what the user calls it."""
    parser = make_parser(_prog(program))
    args = parse(parser, argv)
    from jdistill.run import compilation, training
    from jdistill.run.policy_paths import check_named
    from jdistill.run.processes import is_main
    from jdistill.run.runner import Interrupted

    compilation.prepare()
    if not (args.distributed or args.coordinator):  # Connected processes tell an error once.
        check_named(job_of(args))
    beginning = training.begin(job_of(args), args.unknown, f"{_prog(program)} ...")
    args, started = start_simulator(beginning.request, args, lambda rest: parse(parser, rest), parser)

    def open_film(env: Any) -> Any:
        from jdistill.evaluation.video import Camera, FilmStudent

        metric = started.task.main_metric
        return FilmStudent(Camera(env, args.video_length, metric), args.video_interval or 100)

    films = args.video and not started.simulator.records_video
    command = shlex.join([*program, *argv])
    try:
        training.train(job_of(args), beginning, started, command, open_film if films else None)
    except Interrupted as stop:
        flags = [*_camera_flags(args), *started.flags] if films else started.flags
        on = [f"--{name}={value}" for name in ("device", "devices") if (value := getattr(args, name))]
        on += [
            f"--{name}={value}"
            for name in ("coordinator", "num_processes", "process_id")
            if (value := getattr(args, name)) is not None
        ]
        on += ["--distributed"] if args.distributed else []
        on += ["--on_hangup=ignore"] if args.on_hangup == "ignore" else []
        again = shlex.join([*program, "--resume", "--load_run", str(stop.run_dir), *on, *flags])
        if is_main():
            print(f"{stop}. Go on with: {again}", file=sys.stderr)
        return 128 + stop.signum
    return 0


def _prog(program: Sequence[str]) -> str:
    """The program as messages and help name it."""
    return " ".join(name for name in program if name != "python")


def _camera_flags(args: argparse.Namespace) -> list[str]:
    flags = ["--video"]
    for name in ("video_interval", "video_length"):
        flags += [f"--{name}", str(getattr(args, name))] if getattr(args, name) else []
    return flags


def main(argv: Sequence[str], program: Sequence[str] = PROGRAM) -> int:
    """Run the command as a program of its own; returns its exit status."""
    return report_errors(_prog(program), lambda argv: run(argv, program), argv)
