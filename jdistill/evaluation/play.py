"""A run's student and its teacher side by side: ``python -m jdistill.play RUN``.

Both begin in the same state. The film is an MP4 or a GIF; ``--live`` opens a window instead. On a machine that can
draw nothing the answer is one line, and ``python -m jdistill.evaluate RUN`` has the numbers.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from bridge.env import TrainingEnv
from bridge.tasks import TASKS, Session
from jdistill.cli.parser import Parser, select_device
from jdistill.core.actor import Actor, PolicyActor
from jdistill.core.observations import group_names
from jdistill.errors import ConfigError, PolicyFileError, RenderError, SimulatorError
from jdistill.evaluation import video
from jdistill.evaluation.evaluate import chosen
from jdistill.run import compilation
from jdistill.run.compose import RunCfg
from jdistill.run.folders import open_run
from jdistill.run.saved_run import find_task, load_config, load_student, load_teacher

PANEL = 480
"""Width and height of a policy's picture, pixels."""


def load_actors(run: Path, cfg: RunCfg, best: bool) -> dict[str, Actor]:
    """The run's student and teacher."""
    agent, saved = cfg.agent, {"student": load_student(run, best), "teacher": load_teacher(run)}
    return {
        name: PolicyActor(policy, state, tuple(agent.obs_groups[name]), agent.clip_actions)
        for name, (policy, state, _) in saved.items()
    }


def film(
    env: TrainingEnv,
    actors: Mapping[str, Actor],
    file: Path,
    seconds: float,
    seed: int,
    main_metric: str | None = None,
) -> int:
    """Write the actors' episodes from one start state, side by side; returns how many frames.

    ``main_metric`` is the task's, to be shown in the captions.

    Raises:
        RenderError: no picture can be drawn, or no such file written.
    """
    video.check_packages(file)
    stride = video.stride(env, video.GIF_FPS if file.suffix.lower() == ".gif" else video.FPS)
    dt = stride * env.step_dt
    count = max(1, round(seconds / dt))
    rollout = video.StepwiseRollout(env)
    with ExitStack() as stack:
        panels = []
        for name, actor in actors.items():
            renderer = stack.enter_context(closing(video.make_renderer(env, PANEL, PANEL, video.COLORS[name])))
            states = itertools.islice(rollout.states(actor, seed, stride), count)
            pictures = video.frames(states, renderer, name, dt, main_metric)
            # A simulator that keeps its state to itself can run only one after the other.
            panels.append(pictures if env.restorable else iter(list(pictures)))
        return video.write(file, video.beside(panels), 1.0 / dt)


@contextmanager
def open_env(
    cfg: RunCfg, scenario: str | None, seed: int, run: Path, flags: Sequence[str] = (), device: str | None = None
) -> Iterator[TrainingEnv]:
    """The run's environment, one copy of it, as it is or in a scenario.

    ``flags`` are for Isaac Lab's launcher, ``device`` for its simulator.

    Raises:
        ConfigError: no such task or scenario, or settings that cannot be used.
    """
    if cfg.task not in TASKS and not any(flag.startswith(("--viz", "--visualizer")) for flag in flags):
        flags = [*flags, "--viz", "newton_gl"]  # The one that draws without Isaac Sim and without a display.
    task = find_task(cfg.task, flags, device)
    settings = cfg.env if scenario is None else chosen(task.scenarios(cfg.env), [scenario])[scenario].cfg
    groups = group_names([e for entries in cfg.agent.obs_groups.values() for e in entries])
    with ExitStack() as stack:
        try:
            env = stack.enter_context(task.open(settings, Session(seed, groups, cfg.bridge.mode, str(run))))
        except ValueError as e:
            raise ConfigError(str(e)) from e
        yield env


def watch(env: Any, actors: Mapping[str, Actor], seed: int) -> None:
    """Show the actors beside each other in a window, as fast as time goes by, until it is closed.

    Raises:
        RenderError: there is no display, or the environment opens no window.
    """
    if not hasattr(env, "viewer"):
        raise RenderError(f"{type(env).__name__} opens no window; leave --live out for a file")
    rollout, stride = video.StepwiseRollout(env), video.stride(env, video.FPS)
    with closing(env.viewer([video.COLORS[name] for name in actors])) as viewer:
        rollouts = [rollout.states(actor, seed, stride) for actor in actors.values()]
        began = time.perf_counter()
        for i, states in enumerate(zip(*rollouts, strict=True)):
            if not viewer.show(states):
                return
            time.sleep(max(0.0, began + i * stride * env.step_dt - time.perf_counter()))


def play(args: argparse.Namespace, flags: Sequence[str]) -> None:
    """Run the command.

    Raises:
        ConfigError, PolicyFileError, RenderError, SimulatorError: it cannot be done; one line.
    """
    run = open_run(args.run, args.logdir)
    cfg = load_config(run, ["env.num_envs=1", *args.overrides])
    actors = load_actors(run, cfg, args.best)
    file = args.out or run / "videos" / f"play{'' if args.scenario is None else '_' + args.scenario}.mp4"
    if not args.live:
        video.check_packages(file)
    select_device(args.device)
    with open_env(cfg, args.scenario, args.seed, run, flags, args.device) as env:
        if args.live:
            watch(env, actors, args.seed)
            return
        main_metric = TASKS[cfg.task]().main_metric if cfg.task in TASKS else None
        count = film(env, actors, file, args.seconds, args.seed, main_metric)
        print(f"{file}: {count} frames, {' and '.join(actors)}")


def main(argv: list[str]) -> int:
    """The command."""
    parser = Parser(
        prog="jdistill play",
        description="A film of a run's student beside its teacher.",
        epilog="Runs of Isaac Lab's tasks take its launcher's flags too.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder, or its name in 'jdistill runs'")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the environment: env.target.kind=figure_eight")
    add("--out", type=Path, metavar="FILE", help="an .mp4 or .gif (default: RUN/videos/play.mp4)")
    add("--seconds", type=_seconds, default=10.0, help="length of the film (10)")
    add("--scenario", metavar="NAME", help="one of the task's scenarios, as in jdistill evaluate")
    add("--seed", type=int, default=1000, help="of the start state (1000)")
    add("--best", action="store_true", help="the best student instead of the newest")
    add("--live", action="store_true", help="a window in place of a file")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: the fastest that JAX finds)")
    add("--logdir", metavar="DIR", help="folder of all experiments, where RUN is a name")
    args, flags = parser.parse_known_intermixed_args(argv)
    compilation.prepare()
    try:
        play(args, flags)
    except (ConfigError, PolicyFileError, RenderError, SimulatorError) as e:
        print(f"jdistill play: error: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"jdistill play: error: {e.filename or args.out}: {e.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to 3600")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
