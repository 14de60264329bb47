"""Distill a teacher policy into a student: parse the command line, build, run.

python train_jax.py --phase1 500
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from bridge.env import TrainingEnv
from bridge.isaaclab.cfg import IsaacLabCfg, as_overrides
from bridge.tasks import POINT_CONTROL, SIMULATORS, TASKS, Session, Task, isaaclab_task, on_isaaclab
from jdistill.cli.parser import Parser, positive, select_device
from jdistill.core.config import LOGGERS, AlgorithmCfg
from jdistill.errors import ConfigError, RenderError, SimulatorError, nearest
from jdistill.run.compose import RunCfg, compose, load_file
from jdistill.run.folders import find_run, new_run, note_start, planned_folder

if TYPE_CHECKING:
    from jdistill.evaluation.video import Camera
    from jdistill.run.profiling import ProfileWindow

CONFIGS = Path(__file__).parent / "configs"
PROGRAM = ["python", "train_jax.py"]
EXPERIMENT = "agent.experiment_name="
ISAACLAB_FLAGS = ("--viz", "--external_callback", "--agent")
"""The best known of those that only tasks on Isaac Lab take."""


def fail(message: str, status: int = 1) -> NoReturn:
    """Say what is wrong on stderr and exit."""
    print(f"train_jax.py: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def count(text: str) -> int:
    """A number of things, zero included."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a count (0, 1, 2, ...)")
    return int(text)


def boolean(text: str) -> bool:
    """True or false, as people write them."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false (--load_run names a run)")
    return text.lower() in ("true", "1", "yes")


def make_parser() -> Parser:
    """Every flag, one line of help each."""
    parser = Parser(
        prog="train_jax.py",
        description="Two-stage distillation of a teacher policy into a student, in JAX.",
        epilog="Any setting can be overridden: agent.algorithm.learning_rate=5e-4 env.randomization.mass=0.1. Tasks of "
        f"Isaac Lab take its own flags too: {', '.join(ISAACLAB_FLAGS)} and others.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--task", metavar="NAME", help="task to train on: crazyflie (default), its alias distillation, or Isaac Lab's")
    add("--sim", choices=SIMULATORS, help="simulator of the point-control task: crazyflow (default) or isaaclab")
    add("--num_envs", type=positive, metavar="N", help="environments flown side by side (100)")
    add("--max_iterations", type=positive, metavar="N", help="iterations of the whole run, resumes included (1500)")
    add("--phase1", type=count, metavar="N", help="two-stage training: the teacher steps the first N iterations")
    add("--seed", type=count, metavar="N", help="seed of every random number (42)")
    add(
        "--teacher",
        metavar="FILE",
        help="the teacher: a .safetensors policy or an rsl_rl .pt (default: the bundled one)",
    )
    add("--checkpoint", metavar="FILE", help="the same as --teacher, by Isaac Lab's name")
    add("--resume", type=boolean, nargs="?", const=True, metavar="BOOL", help="go on with a run (default: the newest)")
    add("--load_run", metavar="RUN", help="name or path of the run that --resume goes on with")
    add("--experiment_name", metavar="NAME", help="folder of related runs (distillation)")
    add("--run_name", metavar="NAME", help="appended to the run folder's name")
    add("--logger", choices=LOGGERS, help="where scalars go: tensorboard (default), wandb or none")
    add("--log_project_name", metavar="NAME", help="project of a wandb run (jdistill)")
    add("--logdir", metavar="DIR", help="folder of all experiments (logs/jdistill)")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: the fastest that JAX finds)")
    add("--record", metavar="FILE", help="write every episode that is flown to a new HDF5 file")
    add("--dataset", action="append", metavar="FILE", help="train on recorded episodes instead of flying; repeatable")
    add("--headless", action="store_true", help="open no window, which is the default")
    add("--video", action="store_true", help="film the student from time to time (on Isaac Lab, its own recording)")
    add("--video_interval", type=positive, metavar="N", help="iterations (on Isaac Lab, steps) between films (100)")
    add("--video_length", type=positive, metavar="N", help="steps of a film (a whole episode; on Isaac Lab 200)")
    add("--profile", metavar="START:COUNT", help="write a JAX profiler trace of COUNT iterations from START on")
    add("--config", metavar="FILE", help="YAML file with task, agent and env settings, or the name of one in configs/")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the agent and the environment, dotted")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Flags that are not ours are kept in ``unknown``: they may be Isaac Lab's."""
    parser = make_parser()
    # argparse would take an override behind a bare --resume for its value.
    explicit = [x for a, b in zip(argv, [*argv[1:], ""], strict=True) for x in _explicit_resume(a, b)]
    args, unknown = parser.parse_known_intermixed_args(explicit)
    args.unknown, args.argv, args.simulator_flags = unknown, argv, []
    if args.teacher and args.checkpoint and args.teacher != args.checkpoint:
        parser.error("--teacher and --checkpoint both name the teacher: give one of them")
    if (args.video_interval or args.video_length) and not args.video:
        parser.error("--video_interval and --video_length are a film's: add --video")
    if args.load_run and not args.resume:
        parser.error("--load_run names the run to go on with: add --resume")
    return args


def refuse_unknown(args: argparse.Namespace) -> None:
    """Answer a flag that nobody knows by the nearest known one."""
    for flag in (text.split("=")[0] for text in args.unknown):
        flags = [o for action in make_parser()._actions for o in action.option_strings]
        theirs = " here: it belongs to Isaac Lab's tasks (--task NAME, --sim isaaclab)"
        raise ConfigError(f"unknown flag {flag}{theirs if flag in ISAACLAB_FLAGS else nearest(flag, flags)}")


def _explicit_resume(argument: str, following: str) -> list[str]:
    bare = argument == "--resume" and ("=" in following or following.startswith("-") or not following)
    return ["--resume", "true"] if bare else [argument]


def flag_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as a config."""
    agent = {
        "max_iterations": args.max_iterations,
        "seed": args.seed,
        "experiment_name": args.experiment_name,
        "run_name": args.run_name,
        "logger": args.logger,
        "log_project_name": args.log_project_name,
    }
    settings: dict[str, Any] = {"agent": {k: v for k, v in agent.items() if v is not None}}
    if args.teacher or args.checkpoint:
        settings["agent"]["teacher"] = {"file": args.teacher or args.checkpoint}
    algorithm: dict[str, Any] = {}
    if args.phase1 is not None:
        algorithm |= {"use_two_stage_training": True, "phase1_iterations": args.phase1}
    if args.dataset:
        algorithm["dataset"] = [str(Path(file).absolute()) for file in args.dataset]
    if algorithm:
        settings["agent"]["algorithm"] = algorithm
    if args.num_envs is not None:
        settings["env"] = {"num_envs": args.num_envs}
    return settings


def configure(args: argparse.Namespace) -> tuple[RunCfg, Task, Path | None]:
    """The config, the task, and the run folder to go on with, if any.

    Later wins: the dataclasses' defaults, the task's own, its preset, the resumed run's config, ``--config``, the
    flags, the overrides.
    """
    layers = [load_file(config_path(args.config))] if args.config else []
    run = None
    if args.resume:
        run = find_run(args.logdir, _experiment(args, layers), args.load_run)
        layers.insert(0, load_file(run / "config.yaml"))
    name = args.task or next((layer["task"] for layer in reversed(layers) if layer.get("task")), "crazyflie")
    if run:
        name = resumed_task(layers[0]["task"], args.task, run)
    task = find_task(name, args)
    defaults = [known_settings(task.agent_defaults)]
    if task.preset:
        preset = load_file(CONFIGS / f"{task.preset}.yaml")
        defaults.insert(0, {"agent": preset["agent"]})
    layers = [simulators_part(task, layer) for layer in layers]
    collected = [o for layer in layers for o in (layer.get("env") or {}).get("overrides", ())]
    theirs = [o for o in args.overrides if task.takes_override(o)]
    ours = [o for o in args.overrides if o not in theirs]
    flags = flag_settings(args)
    if theirs or collected:
        flags["env"] = {**flags.get("env", {}), "overrides": [*collected, *theirs]}
    cfg = compose(task.name, task.cfg_cls, [*defaults, *layers, flags], ours)
    if run:
        refuse_changes(cfg, compose(task.name, task.cfg_cls, [*defaults, layers[0]], []), run)
    return cfg, task, run


def find_task(name: str, args: argparse.Namespace) -> Task:
    """The task ``name``; for one of Isaac Lab's the command line is read anew, without Isaac Lab's own flags."""
    try:
        if not on_isaaclab(name, args.sim, args.overrides, args.unknown):
            refuse_unknown(args)
            select_device(args.device)
            return TASKS[name]()
        if importlib.util.find_spec("isaaclab") is None:
            what = "this task" if name in TASKS else f"unknown task {name}{nearest(name, TASKS)}; every other"
            raise ConfigError(f"{what} needs Isaac Lab, use 'uv run --extra isaaclab train_jax.py ...'")
        # The simulator needs memory on the GPU that JAX would otherwise take for itself.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        select_device(args.device)
        from bridge.isaaclab.launch import parse_flags

        launch, rest = parse_flags(args.argv, args.device and args.device.partition(":")[0].replace("gpu", "cuda"))
        select_device(args.device or launch.device)
        again = parse(rest)
        refuse_unknown(again)
        taken = Counter(args.argv) - Counter(rest)
        args.simulator_flags = [token for token in args.argv if token in taken]
        args.overrides = again.overrides
        return isaaclab_task(name, launch)
    except ConfigError:
        raise
    except ValueError as e:
        raise ConfigError(str(e)) from e


def resumed_task(before: str, asked: str | None, run: Path) -> str:
    """The task of a resumed run, which may be asked for by any of its names."""
    point_control = (*TASKS, POINT_CONTROL)
    if asked not in (None, before) and not (asked in point_control and before in point_control):
        raise ConfigError(f"--task {asked}: {run} is a run of {before}; leave --task out, or begin a new run")
    return before


def known_settings(agent: Mapping[str, Any]) -> dict[str, Any]:
    """A task's registered settings as a layer, without those of its algorithm that only its own trainer knows."""
    algorithm = {k: v for k, v in agent.get("algorithm", {}).items() if k in AlgorithmCfg.__dataclass_fields__}
    return {"agent": {**agent, **({"algorithm": algorithm} if algorithm else {})}}


def simulators_part(task: Task, layer: dict[str, Any]) -> dict[str, Any]:
    """A config file's layer, in which settings that the simulator applies have become its overrides."""
    if task.cfg_cls is not IsaacLabCfg or not layer.get("env"):
        return layer
    env = dict(layer["env"])
    kept = {name: env.pop(name) for name in IsaacLabCfg.__dataclass_fields__ if name in env}
    if env:
        kept["overrides"] = [*(kept.get("overrides") or ()), *as_overrides(env)]
    return {**layer, "env": kept}


def refuse_changes(cfg: RunCfg, before: RunCfg, run: Path) -> None:
    """What a checkpoint holds cannot be changed by a resume; say so rather than ignore it."""
    for name in ("teacher", "seed"):
        if getattr(cfg.agent, name) != getattr(before.agent, name):
            raise ConfigError(f"--resume: {run} has its {name} already; leave agent.{name} out, or begin a new run")


def _experiment(args: argparse.Namespace, layers: list[dict[str, Any]]) -> str:
    """The experiment's name by override, flag or file, before there is a whole config."""
    names = [(layer.get("agent") or {}).get("experiment_name") for layer in layers]
    names += [args.experiment_name, *(o.split("=", 1)[1] for o in args.overrides if o.startswith(EXPERIMENT))]
    return next((name for name in reversed(names) if name), "distillation")


def config_path(text: str) -> Path:
    """A path as given, or the name of a preset."""
    path = Path(text)
    preset = CONFIGS / f"{text.removesuffix('.yaml')}.yaml"
    if path.is_file():
        return path
    if preset.is_file():
        return preset
    names = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
    raise ConfigError(f"--config {text}: no such file or preset{nearest(text, names)}; presets: {', '.join(names)}")


def teacher_path(cfg: RunCfg, task: Task, run: Path | None, args: argparse.Namespace) -> Path:
    """The teacher's file: the one named, the one a resumed run kept, or the task's; bundled ones go by their names."""
    if run and not (args.teacher or args.checkpoint):
        return run / "teacher.safetensors"
    if not (name := cfg.agent.teacher.file or task.teacher):
        raise ConfigError(f"{task.name}: name its teacher with --teacher FILE (or --checkpoint FILE)")
    bundled = Path(str(files("jdistill"))) / "teachers" / f"{name}.safetensors"
    return bundled if bundled.is_file() and not Path(name).is_file() else Path(name)


class Extras(NamedTuple):
    """What a run does beside training."""

    command: str
    """The command line, which the run folder remembers."""
    profile: ProfileWindow | None
    """Iterations to be traced."""
    record: Path | None
    """File for what is flown."""
    camera: Camera | None
    """Films the student."""


def train(args: argparse.Namespace) -> Path:
    """Build everything and run it; returns the run folder."""
    from jdistill.run.profiling import ProfileWindow

    profile = ProfileWindow.parse(args.profile) if args.profile else None
    cfg, task, resumed = configure(args)
    if profile and not resumed:
        profile.check(0, cfg.agent.max_iterations)
    from jdistill.core.observations import group_names
    from jdistill.data.recorder import check_new
    from jdistill.errors import ObservationError
    from jdistill.run.loggers import check_logger

    check_logger(cfg.agent)
    file = teacher_path(cfg, task, resumed, args)
    record = Path(args.record) if args.record else None
    if record and cfg.agent.algorithm.dataset:
        raise ConfigError("--record writes what is flown, of a dataset nothing is: leave one of the two out")
    if record:
        check_new(record)
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    run = resumed or planned_folder(args.logdir, cfg.agent.experiment_name, cfg.agent.run_name)
    try:
        # rsl_rl's name for what policies see where nothing else is said.
        groups = ["policy", *group_names([e for entries in cfg.agent.obs_groups.values() for e in entries])]
    except ObservationError as e:
        raise ConfigError(f"agent.obs_groups: {e}") from e
    with ExitStack() as stack:
        try:
            session = Session(cfg.agent.seed, groups, cfg.bridge.mode, str(run))
            env = stack.enter_context(task.open(cfg.env, session))
        except ValueError as e:
            raise ConfigError(str(e)) from e
        camera = None
        if args.video and task.cfg_cls is not IsaacLabCfg:
            from jdistill.evaluation.video import Camera

            film = args.video_interval or 100, args.video_length, task.main_metric
            camera = stack.enter_context(closing(Camera(env, *film)))
        extras = Extras(shlex.join(PROGRAM + args.argv), profile, record, camera)
        return train_on(env, cfg, task, file, run, bool(resumed), extras)


def train_on(
    env: TrainingEnv,
    cfg: RunCfg,
    task: Task,
    teacher_file: Path,
    run: Path,
    resumed: bool,
    extras: Extras,
) -> Path:
    """Distill on an open environment; returns the run folder."""
    from jdistill.core.networks import summary
    from jdistill.run.runner import DistillationRunner, load_recording, load_teacher, plan_history, resolve_obs_groups

    resolve_obs_groups(cfg.agent, env)
    cfg.env.num_envs = env.num_envs
    teacher = load_teacher(teacher_file, env, cfg, task.old_teacher_output_activation)
    print(f"Teacher: {teacher_file}: {summary(teacher.policy, teacher.state, teacher.description['obs_size'])}")
    recording = load_recording(env, cfg, teacher)
    for held in (plan_history(env, cfg, teacher), recording):
        if held:
            print(held.describe())
    run = run if resumed else new_run(run)
    runner = DistillationRunner(env, cfg, teacher, run, recording, extras.record, extras.camera)
    if resumed:
        runner.load()
        if runner.current_learning_iteration >= cfg.agent.max_iterations:
            done, goal = runner.current_learning_iteration, cfg.agent.max_iterations
            raise ConfigError(f"{run} already has {done} iterations, --max_iterations is {goal}: raise it")
        if extras.profile:
            extras.profile.check(runner.current_learning_iteration, cfg.agent.max_iterations)
        print(f"Resuming {run} at iteration {runner.current_learning_iteration}", flush=True)
    else:
        print(f"Logging to {run}", flush=True)
        runner.start()
    cfg.save(run / "config.yaml")
    note_start(run, extras.command, runner.current_learning_iteration)
    runner.learn(extras.profile)
    print(f"Done. Student: {run / 'student.safetensors'}")
    return run


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    args = parse(argv)
    from jdistill.errors import CheckpointError, DatasetError, PolicyFileError, TrainingError
    from jdistill.run import compilation
    from jdistill.run.runner import Interrupted

    told = ConfigError, CheckpointError, DatasetError, PolicyFileError, TrainingError, SimulatorError, RenderError
    compilation.prepare()
    try:
        train(args)
    except told as e:
        fail(str(e))
    except OSError as e:
        fail(f"{e.filename or 'the log folder'}: {e.strerror}")
    except Interrupted as stop:
        print(f"{stop}. Go on with: {resume_command(args, stop.run_dir)}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    return 0


def resume_command(args: argparse.Namespace, run: Path) -> str:
    """The command that goes on with ``run``."""
    flags = ["--device", args.device] if args.device else []
    if args.video and not args.simulator_flags:  # Isaac Lab's flags hold those of its own videos.
        flags.append("--video")
        for name in ("video_interval", "video_length"):
            flags += [f"--{name}", str(getattr(args, name))] if getattr(args, name) else []
    return shlex.join([*PROGRAM, "--resume", "--load_run", str(run), *flags, *args.simulator_flags])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
