"""Starting a task of mjlab by its name: its registry, its config objects, its recorder.

Importing this module imports mjlab, which takes its half minute; nothing is started before :func:`open_env`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mjlab.tasks  # noqa: F401  Registers them.
from mjlab.envs import ManagerBasedRlEnv
from mjlab.tasks.registry import list_tasks, load_env_cfg
from mjlab.utils.wrappers import VideoRecorder

from bridge.env import Color, Renderer
from bridge.errors import SettingError, line_of
from bridge.isaaclab.env import IsaacLabEnv
from bridge.mjlab.cfg import MjlabCfg, apply
from bridge.mjlab.render import SceneRenderer
from bridge.overrides import share
from bridge.tasks import Session

ENDLESS = 1e6
"""Seconds. The episodes of play variants are longer than this."""


class Options(NamedTuple):
    """What mjlab's flags say."""

    device: str
    video: bool = False
    video_length: int | None = None
    video_interval: int | None = None


class QuietEnv(ManagerBasedRlEnv):
    """mjlab's environment, which names every seed that it is given."""

    @staticmethod
    def seed(seed: int = -1) -> int:
        """As mjlab's, without a line for each."""
        with contextlib.redirect_stdout(io.StringIO()):
            return ManagerBasedRlEnv.seed(seed)


class MjlabEnv(IsaacLabEnv):
    """A running environment of mjlab; all but the pictures is as with Isaac Lab's."""

    def renderer(self, width: int, height: int, color: Color) -> Renderer:
        """See :class:`bridge.env.Renderer`; the robots have their own colors."""
        return SceneRenderer(self.unwrapped, width, height)


def task_names() -> Sequence[str]:
    """Every registered task."""
    return list_tasks()


def env_cfg(name: str, cfg: MjlabCfg) -> Any:
    """The task's config, or that of its play variant, with ``cfg`` applied.

    An override that the play variant has no use for, of a curriculum for one, is only checked.

    Raises:
        SettingError: a setting that there is not, or a value that it does not take.
    """
    config = load_env_cfg(name)
    if not cfg.play:
        for override in cfg.overrides:
            apply(config, override)
        return config
    played = load_env_cfg(name, play=True)
    if played.episode_length_s > ENDLESS:
        played.episode_length_s = config.episode_length_s
    for override in cfg.overrides:
        try:
            apply(played, override)
        except SettingError:
            apply(config, override)
    return played


def check(name: str, config: Any) -> None:
    """Raise :class:`SettingError` for a config that mjlab would start, or refuse to, in its own way."""
    if not config.auto_reset:
        raise SettingError(f"{name}: env.auto_reset=False leaves finished episodes as they are; leave it at True")
    for command, term in config.commands.items():
        motion = getattr(term, "motion_file", None)
        if motion is not None and not Path(motion).is_file():
            what = f"{motion}: no such file" if motion else f"command '{command}' follows a motion"
            raise SettingError(f"{name}: {what}; name one with --motion-file FILE.npz")


@contextlib.contextmanager
def open_env(name: str, cfg: MjlabCfg, options: Options, session: Session) -> Iterator[MjlabEnv]:
    """Start the task ``name``; it ends with the context.

    Raises:
        SettingError: it cannot be started as asked; one line.
    """
    config = env_cfg(name, cfg)
    check(name, config)
    config.seed = session.seed
    config.scene.num_envs = cfg.num_envs or share(name, config.scene.num_envs, session.parts)
    # A film is drawn within the step, and OpenGL wants one thread for all of it.
    mode = {"auto": "host" if options.video else "callback"}.get(session.mode, session.mode)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Tables of all its terms.
            env = QuietEnv(config, options.device, "rgb_array" if options.video else None)
    except (ValueError, KeyError, FileNotFoundError) as e:
        raise SettingError(f"{name}: {line_of(e)}") from e
    running = recorded(env, options, Path(session.video_dir)) if options.video else env
    try:
        yield MjlabEnv(running, session.groups, mode)
    finally:
        running.close()


def recorded(env: ManagerBasedRlEnv, options: Options, folder: Path) -> ManagerBasedRlEnv:
    """``env`` with mjlab's own recorder around it, as its ``--video`` does it."""
    interval = options.video_interval or 2000
    return VideoRecorder(
        env,
        video_folder=folder / "videos" / "train",
        step_trigger=lambda step: step % interval == 0,
        video_length=options.video_length or 200,
        disable_logger=True,
    )
