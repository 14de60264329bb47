"""Films of policies at work: rolled out step by step, drawn by the environment, labelled, written as MP4 or GIF."""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax import Array

from bridge.env import Color, Renderer, State, TrainingEnv, where_done
from jdistill.core.actor import Actor
from jdistill.core.observations import visible
from jdistill.errors import RenderError
from jdistill.evaluation.metrics import find_main_metric
from jdistill.evaluation.rollouts import step_metrics
from jdistill.run.callbacks import Callback, Iteration

if TYPE_CHECKING:
    from jdistill.run.runner import DistillationRunner

COLORS: dict[str, Color] = {"student": (0.0, 0.45, 0.70), "teacher": (0.84, 0.37, 0.0), "raptor": (0.0, 0.62, 0.45)}
"""Of each policy's path and label: Okabe and Ito's, which the color-blind tell apart."""
FPS = 25
"""Frames per second of a film, about: every n-th step is a frame."""
GIF_FPS = 12.5
PAPER, INK = (255, 255, 255), (40, 44, 52)


class StepwiseRollout:
    """Rolls out actors state by state, so that each state can be drawn.

    Everything is compiled once, the policy for all actors of one structure.
    """

    def __init__(self, env: TrainingEnv):
        def initial_carry(actor: Actor) -> Any:
            return actor.initial_carry(env.num_envs)

        def act(actor: Actor, carry: Any, obs: Mapping[str, Array], is_first: Array) -> tuple[Any, Array]:
            return actor.act(where_done(is_first, initial_carry(actor), carry), obs)

        self._env = env
        self._reset, self._step = jax.jit(env.reset), jax.jit(env.step)
        self._initial_carry, self._act = jax.jit(initial_carry), jax.jit(act)

    def states(self, actor: Actor, seed: int, stride: int) -> Iterator[State]:
        """Endless: the start state that ``seed`` means, and every ``stride``-th after it.

        ``done`` tells which episodes have ended since the state before.
        """
        carry, state = self._initial_carry(actor), self._env.drive(self._reset, jax.random.key(seed))
        yield state
        while True:
            ended = np.zeros(self._env.num_envs, bool)
            for _ in range(stride):
                carry, action = self._act(actor, carry, visible(state), state.done)
                state = self._env.drive(self._step, state, action)
                ended |= np.asarray(state.done)
            yield state.replace(done=ended)


def stride(env: TrainingEnv, fps: float = FPS) -> int:
    """Steps from frame to frame for about ``fps`` frames per second of simulated time."""
    return max(1, round(1.0 / (env.step_dt * fps)))


def make_renderer(env: TrainingEnv, width: int, height: int, color: Color) -> Renderer:
    """What draws ``env``.

    Raises:
        RenderError: this environment, or this machine, draws nothing; one line.
    """
    if not hasattr(env, "renderer"):
        raise RenderError(f"{type(env).__name__} draws no pictures; its numbers come from 'jdistill evaluate'")
    return env.renderer(width, height, color)


def frames(
    states: Iterable[State], renderer: Renderer, name: str, dt: float, main_metric: str | None = None
) -> Iterator[np.ndarray]:
    """Pictures (H, W, 3) uint8 of environment 0, labelled; ``dt`` seconds of simulated time lie between two.

    ``main_metric`` is the task's, see :mod:`jdistill.evaluation.metrics`.
    """
    endings = 0
    for i, state in enumerate(states):
        endings += int(state.done[0])
        facts = [f"{i * dt:4.1f} s"]
        metrics = step_metrics(state.metrics)
        if (shown := find_main_metric(main_metric, metrics)) is not None:
            facts.append(f"{shown.replace('_', ' ')} {float(metrics[shown][0]):.2f}")
        if endings:
            facts.append(f"episode {endings + 1}")
        yield labelled(renderer.frame(state), name, "   ".join(facts), COLORS.get(name, COLORS["student"]))


def labelled(picture: np.ndarray, name: str, facts: str, color: Color) -> np.ndarray:
    """A caption above the picture: the policy's name in its color, and what is to be said."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    band = max(28, height // 14) // 2 * 2
    font = ImageFont.load_default(size=band * 0.55)
    image = Image.new("RGB", (width, height + band), PAPER)
    image.paste(Image.fromarray(picture), (0, band))
    draw = ImageDraw.Draw(image)
    rgb = tuple(round(255 * c) for c in color)
    draw.rectangle((0, 0, 5, band - 1), fill=rgb)
    draw.text((14, band / 2), name, font=font, fill=rgb, anchor="lm")
    draw.text((width - 8, band / 2), facts, font=font, fill=INK, anchor="rm")
    return np.asarray(image)


def beside(panels: list[Iterator[np.ndarray]], gap: int = 4) -> Iterator[np.ndarray]:
    """The panels' frames side by side, until the first panel ends."""
    for pictures in zip(*panels, strict=False):
        space = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
        spaced = list(itertools.chain.from_iterable((space, p) for p in pictures))[1:]
        yield np.concatenate(spaced, axis=1)


# -- during training -----------------------------------------------------------------------------------------------


class Camera:
    """Films the student in training: ``RUN/videos/student_<iteration>.mp4``.

    Opened before the run folder exists, so that a machine that draws nothing is told before anything begins.

    Raises:
        RenderError: nothing can be drawn or written here.
    """

    PANEL = 320
    """Width and height of the picture, pixels."""
    NAME = "student"

    def __init__(self, env: TrainingEnv, length: int | None, main_metric: str | None = None):
        """Film ``length`` steps (None: a whole episode); ``main_metric`` is the task's, for the captions."""
        check_packages("video.mp4")
        self._main_metric = main_metric
        self._env, self._rollout = env, StepwiseRollout(env)
        self._steps = length or env.max_episode_length
        self._renderer = make_renderer(env, self.PANEL, self.PANEL, COLORS[self.NAME])

    def film(self, run: Path, iteration: int, actor: Actor, seed: int) -> Film:
        """Film ``actor`` from the start state that ``seed`` means; all actors of one structure share a program.

        Raises:
            RenderError, SimulatorError: nothing can be drawn, or the simulator failed.
            OSError: the file cannot be written.
        """
        every = stride(self._env)
        dt = every * self._env.step_dt
        states = itertools.islice(self._rollout.states(actor, seed, every), -(-self._steps // every))
        pictures = list(frames(states, self._renderer, self.NAME, dt, self._main_metric))
        file = run / "videos" / f"{self.NAME}_{iteration}.mp4"
        write(file, pictures, 1.0 / dt)
        return Film(file, pictures, 1.0 / dt)

    def close(self) -> None:
        """Free what drawing takes."""
        self._renderer.close()


class Film(NamedTuple):
    """A film as a file, and its pictures for those who show it in another form."""

    file: Path
    pictures: list[np.ndarray]
    fps: float

    def gif(self) -> tuple[bytes, int, int]:
        """The film as a small GIF, with its height and width in pixels."""
        every = max(1, round(self.fps / GIF_FPS))
        height, width = self.pictures[0].shape[:2]
        return gif(self.pictures[::every], self.fps / every), height, width


class FilmStudent(Callback):
    """Films the student every ``interval`` iterations and at the end, and shows it beside the scalars."""

    def __init__(self, camera: Camera, interval: int):
        self.camera = camera
        self.interval = interval

    def open(self, runner: DistillationRunner) -> None:
        """Remember whose student it is."""
        self._runner = runner

    def after_iteration(self, iteration: Iteration) -> None:
        """Film, if it is time."""
        number, runner = iteration.number + 1, self._runner
        if number % self.interval and number != runner.cfg.agent.max_iterations:
            return
        film = self.camera.film(runner.run_dir, number, runner.student_actor(), runner.cfg.agent.seed)
        runner.scalars.show(film, iteration.number)

    def close(self) -> None:
        """Free what drawing takes."""
        self.camera.close()


# -- files ---------------------------------------------------------------------------------------------------------


def check_packages(file: Path | str) -> None:
    """Raise :class:`RenderError` unless a film can be written to a file of this name."""
    suffix = Path(file).suffix.lower()
    if suffix not in (".mp4", ".gif"):
        raise RenderError(f"{file}: a film is an .mp4 or a .gif")
    needed = {"PIL": "pillow", "av": "av"} if suffix == ".mp4" else {"PIL": "pillow"}
    for module, package in needed.items():
        if importlib.util.find_spec(module) is None:
            raise RenderError(f"{file}: {package} is not installed; use 'uv run --extra video ...'")


def write(file: Path, pictures: Iterable[np.ndarray], fps: float) -> int:
    """Write an ``.mp4`` (H.264) or ``.gif``; returns how many frames it has.

    Raises:
        RenderError: a package is missing, or no such kind of file.
        OSError: the file cannot be written.
    """
    check_packages(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".gif":
        kept = list(pictures)
        file.write_bytes(gif(kept, fps))
        return len(kept)
    return _write_mp4(file, pictures, fps)


def gif(pictures: list[np.ndarray], fps: float) -> bytes:
    """An endless GIF."""
    from PIL import Image

    first, *others = [Image.fromarray(p).quantize(128, dither=Image.Dither.NONE) for p in pictures]
    target = io.BytesIO()
    first.save(target, "GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    return target.getvalue()


def _write_mp4(file: Path, pictures: Iterable[np.ndarray], fps: float) -> int:
    import av

    pictures = iter(pictures)
    first = next(pictures)
    # H.264 has half as many color samples, so sizes are even.
    height, width = (size // 2 * 2 for size in first.shape[:2])
    count = 0
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "20"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for picture in itertools.chain([first], pictures):
            even = np.ascontiguousarray(picture[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            count += 1
        container.mux(stream.encode())
    return count
