"""A run's student and its teacher side by side: ``jdistill play RUN``.

Both begin in the same state. The film is an MP4 or a GIF; ``--live`` opens a window instead. On a machine that can
draw nothing the answer is one line, and ``jdistill evaluate RUN`` has the numbers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from bridge.env import State, TrainingEnv
from jdistill.errors import RenderError
from jdistill.evaluation import video
from jdistill.evaluation.rollouts import Pilot, make_pilot
from jdistill.run.compose import RunCfg
from jdistill.run.saved_run import load_student, load_teacher

PANEL = 480
"""Width and height of a policy's picture, pixels."""


def pilots(run: Path, cfg: RunCfg, best: bool) -> dict[str, Pilot]:
    """The run's student and teacher."""
    agent = cfg.agent
    student, teacher = load_student(run, best)[:2], load_teacher(run)[:2]
    return {
        "student": make_pilot(*student, agent.obs_groups["student"], agent.clip_actions),
        "teacher": make_pilot(*teacher, agent.obs_groups["teacher"], agent.clip_actions),
    }


def film(env: TrainingEnv, flown: dict[str, Pilot], file: Path, seconds: float, seed: int) -> int:
    """Write the policies' flights from one start state, side by side; returns how many frames.

    Raises:
        RenderError: no picture can be drawn, or no such file written.
    """
    video.check_packages(file)
    stride = video.stride(env, video.GIF_FPS if file.suffix.lower() == ".gif" else video.FPS)
    dt = stride * env.step_dt
    count = max(1, round(seconds / dt))
    stage = video.Stage(env)
    with ExitStack() as stack:
        panels = []
        for name, pilot in flown.items():
            renderer = stack.enter_context(closing(video.make_renderer(env, PANEL, PANEL, video.COLORS[name])))
            states = itertools.islice(flight(stage, pilot, seed, stride), count)
            pictures = video.frames(states, renderer, name, dt)
            # A simulator that keeps its state to itself flies one after the other.
            panels.append(pictures if env.restorable else iter(list(pictures)))
        return video.write(file, video.beside(panels), 1.0 / dt)


def flight(stage: video.Stage, pilot: Pilot, seed: int, stride: int) -> Iterator[State]:
    """The way of a policy that learns no more."""
    return stage.fly(stage.actor(lambda _: pilot), (), seed, stride)


def watch(env: Any, flown: dict[str, Pilot], seed: int) -> None:
    """Show the policies beside each other in a window, as fast as time goes by, until it is closed.

    Raises:
        RenderError: there is no display, or the environment opens no window.
    """
    if not hasattr(env, "viewer"):
        raise RenderError(f"{type(env).__name__} opens no window; leave --live out for a file")
    stage, stride = video.Stage(env), video.stride(env, video.FPS)
    with closing(env.viewer([video.COLORS[name] for name in flown])) as viewer:
        ways = [flight(stage, pilot, seed, stride) for pilot in flown.values()]
        began = time.perf_counter()
        for i, states in enumerate(zip(*ways, strict=True)):
            if not viewer.show(states):
                return
            time.sleep(max(0.0, began + i * stride * env.step_dt - time.perf_counter()))
