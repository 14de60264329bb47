"""A run's student and its teacher side by side: ``jdistill play RUN``.

Both begin in the same state. The film is an MP4 or a GIF; ``--live`` opens a window instead. On a machine that can
draw nothing the answer is one line, and ``jdistill evaluate RUN`` has the numbers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from bridge.env import TrainingEnv
from jdistill.core.actor import Actor
from jdistill.errors import RenderError
from jdistill.evaluation import video
from jdistill.run.compose import RunCfg
from jdistill.run.inputs import make_actor
from jdistill.run.saved_run import load_student, load_teacher

PANEL = 480
"""Width and height of a policy's picture, pixels."""


def load_actors(run: Path, cfg: RunCfg, best: bool) -> dict[str, Actor]:
    """The run's student and teacher."""
    agent, saved = cfg.agent, {"student": load_student(run, best), "teacher": load_teacher(run)}
    return {name: make_actor(name, policy, agent, agent.clip_actions) for name, policy in saved.items()}


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
