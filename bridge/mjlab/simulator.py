"""mjlab as a back end. Importing this needs no mjlab."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from bridge.errors import SettingError, line_of
from bridge.mjlab.cfg import MjlabCfg
from bridge.mjlab.names import task_names
from bridge.overrides import separate
from bridge.tasks import Launch, Request, Scenario, Session, Simulator, Task, UnknownTaskError

if TYPE_CHECKING:
    from bridge.env import TrainingEnv

PREFIX = "Mjlab-"
"""How mjlab's own tasks are called."""
SHORT = {
    "--motion-file": "env.commands.motion.motion_file",
    "--enable-nan-guard": "env.sim.nan_guard.enabled",
}
"""mjlab's flags for settings of the environment."""


class Mjlab(Simulator):
    """Every task that is registered with mjlab, by mjlab's names, flags and settings."""

    name = "mjlab"
    title = "mjlab"
    package = "mjlab"
    extra = "mjlab"
    packages = ("mjlab", "mujoco", "mujoco-warp", "warp-lang", "torch")
    is_jax = False
    shares_gpu = True
    records_video = True
    open_ended = True
    flags = ("--env.KEY", "--motion-file")
    cfg_cls = MjlabCfg

    def claims(self, request: Request) -> bool:
        """mjlab's own names are known without mjlab."""
        return request.task.startswith(PREFIX) or request.task in task_names()

    def task_names(self) -> Sequence[str]:
        """See :func:`bridge.mjlab.names.task_names`."""
        return task_names()

    def separate(
        self, sections: Sequence[Mapping[str, Any]], overrides: Sequence[str]
    ) -> tuple[list[Mapping[str, Any]], list[str]]:
        """All but the fields of :class:`bridge.mjlab.cfg.MjlabCfg` becomes an override in mjlab's words, in order."""
        return separate(MjlabCfg, ("env.",), sections, overrides)

    def parse_flags(self, argv: Sequence[str], device: str | None) -> Launch:
        """mjlab's flags for settings (``--env.scene.num-envs 64``, ``--motion-file``) become overrides, which a run
        keeps; ``--video`` and what belongs to it is read."""
        launch = _imported()
        parser = _Parser(add_help=False, allow_abbrev=False)
        parser.add_argument("--video", action="store_true")
        for name in ("--video_length", "--video_interval"):
            parser.add_argument(name, name.replace("video_", "video-"), type=int)
        args, rest = parser.parse_known_args(as_overrides(argv))
        where = _torch_device(device)
        return Launch(launch.Options(where, args.video, args.video_length, args.video_interval), rest, where)

    def load(self, name: str, options: Any) -> Task:
        """A registered task, to be evaluated as it is and in its play variant."""
        launch = _imported()
        if name not in launch.task_names():
            raise UnknownTaskError(name, launch.task_names())
        from bridge.mjlab.agent import agent_defaults

        @contextmanager
        def open_env(cfg: Any, session: Session) -> Iterator[TrainingEnv]:
            with launch.open_env(name, cfg, options, session) as env:
                yield env

        return Task(name, MjlabCfg, open_env, agent_defaults(name), scenarios=scenarios)


def scenarios(cfg: MjlabCfg) -> dict[str, Scenario]:
    """The task as it was trained on, and the variant that mjlab plays policies in."""
    found = {"default": Scenario("the task as it is", cfg)}
    if not cfg.play:
        played = dataclasses.replace(cfg, play=True)
        found["play"] = Scenario("mjlab's play variant: without noise, pushes and curricula", played)
    return found


def as_overrides(argv: Sequence[str]) -> list[str]:
    """``argv`` with mjlab's flags for settings written as ``key=value``.

    Raises:
        SettingError: one without a value.
    """
    found, tokens = [], iter(argv)
    for token in tokens:
        flag, equals, value = token.partition("=")
        key = SHORT.get(flag.replace("_", "-"))
        if key is None and flag.startswith("--env."):
            key = flag.removeprefix("--").replace("-", "_")
        if key is not None and not equals and (value := next(tokens, "--")).startswith("--"):
            raise SettingError(f"{flag}: expected a value after it")
        found.append(token if key is None else f"{key}={value}")
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingError(message)


def _imported() -> Any:
    """:mod:`bridge.mjlab.launch`, and with it mjlab."""
    os.environ.setdefault("MJLAB_WARP_QUIET", "1")  # Else Warp names each kernel that it loads.
    try:
        from bridge.mjlab import launch
    except (ImportError, AttributeError, OSError) as e:  # MuJoCo's, where there is no OpenGL of the kind it wants.
        hint = "; is libEGL there (apt-get install libegl1)?" if "gl" in str(e).lower() else ""
        raise SettingError(f"mjlab cannot be imported: {line_of(e)}{hint}") from e
    return launch


def _torch_device(device: str | None) -> str:
    """Where mjlab runs: ``cpu`` or ``cuda:0``; the first GPU that torch finds where nothing is said."""
    import torch

    kind = device.partition(":")[0] if device else ("cuda" if torch.cuda.is_available() else "cpu")
    return "cpu" if kind == "cpu" else "cuda:0"
