"""Starting a task of Isaac Lab by its name: Isaac Lab's own flags, registry, overrides and launcher.

Importing this module needs Isaac Lab, and takes its ten seconds; nothing is started before :func:`open_env`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import gymnasium as gym
import isaaclab_tasks  # noqa: F401  Registers Isaac Lab's tasks.
import torch
from isaaclab.app import add_launcher_args, launch_simulation, validate_launch
from isaaclab.utils.string import string_to_callable
from isaaclab_rl.entrypoints.common import apply_video_recording, enable_cameras_for_video, pre_launch_video_config
from isaaclab_tasks.utils import resolve_task_config

import bridge.isaaclab_tasks  # noqa: F401  Registers ours.
from bridge.errors import SettingError, line_of
from bridge.isaaclab.cfg import IsaacLabCfg
from bridge.isaaclab.env import IsaacLabEnv
from bridge.overrides import locate, share


class LaunchError(SettingError):
    """A flag, a task or a setting that Isaac Lab does not know; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchError(message)


# -- flags ---------------------------------------------------------------------------------------------------------


def parse_flags(argv: Sequence[str], device: str | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Read Isaac Lab's flags (``--viz``, ``--video``, ``--external_callback``, ``--agent``, ...) out of ``argv``.

    ``device`` is the simulator's; None takes the first GPU that torch finds, else the CPU. External tasks are
    registered on the way.

    Returns:
        The flags, and the rest of ``argv``. What the external callback has taken is not in the rest.

    Raises:
        LaunchError: a flag with a value that makes no sense, a callback that cannot be called.
    """
    parser = _Parser(prog="train_jax.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--external_callback", metavar="MODULE.FUNCTION")
    parser.add_argument("--agent", metavar="ENTRY_POINT")
    parser.add_argument("--video", action="store_true")
    parser.add_argument("--video_length", type=int)
    parser.add_argument("--video_interval", type=int)
    before = list(sys.argv)
    try:
        add_launcher_args(parser)  # Rewrites sys.argv for Kit.
    finally:
        sys.argv[:] = before
    args, rest = parser.parse_known_args(list(argv))
    left_by_callback = _register_external(args.external_callback)
    if left_by_callback is not None:
        rest = [token for token in rest if token in left_by_callback]
    args.device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    enable_cameras_for_video(args)
    return args, rest


def _register_external(callback: str | None) -> list[str] | None:
    """Run the function that registers an external package's tasks; returns the arguments that it left."""
    if callback is None:
        return None
    try:
        return string_to_callable(callback, separator=".")()
    except (ImportError, AttributeError, ValueError) as e:
        raise LaunchError(f"--external_callback {callback}: {line_of(e)}") from e


# -- tasks and their settings --------------------------------------------------------------------------------------


def task_names() -> list[str]:
    """Every registered task that an Isaac Lab config stands behind."""
    return [name for name, spec in gym.registry.items() if "env_cfg_entry_point" in spec.kwargs]


def has_task(name: str) -> bool:
    """Whether ``name`` is one of them; of ``package:name`` the package is imported first, as Gymnasium does."""
    package, separator, name = name.rpartition(":")
    if separator:
        try:
            importlib.import_module(package)
        except ImportError as e:
            raise LaunchError(f"--task {package}:{name}: {line_of(e)}") from e
    return name in task_names()


def agent_entry_points(name: str) -> dict[str, Any]:
    """What the task has registered beside its environment's config, by Isaac Lab's keys."""
    return dict(gym.registry[name.rpartition(":")[2]].kwargs)


def load_env_cfg(name: str, overrides: Sequence[str]) -> Any:
    """The task's config with ``overrides`` applied by Isaac Lab.

    Raises:
        LaunchError: a setting that there is not, or a preset that the task does not offer.
    """
    try:
        if paths := [o for o in overrides if o.startswith("env.")]:
            # Isaac Lab takes any last name for a new attribute, so a slip of the pen would go unnoticed.
            plain, _ = resolve_task_config(name, None, overrides=[o for o in overrides if o not in paths])
            for override in paths:
                locate(plain, override)
        return resolve_task_config(name, None, overrides=list(overrides))[0]
    except SettingError:
        raise
    except (ValueError, AttributeError, TypeError, KeyError) as e:
        raise LaunchError(f"{name}: {line_of(e)}") from e


# -- the environment -----------------------------------------------------------------------------------------------


@contextmanager
def open_env(
    name: str,
    cfg: IsaacLabCfg,
    launch: argparse.Namespace,
    seed: int,
    groups: Sequence[str] | None,
    mode: str,
    video_dir: str,
    parts: int = 1,
    part: int = 0,
) -> Iterator[IsaacLabEnv]:
    """Start the simulator and the task ``name``; both end with the context.

    Args:
        name: the task's name in Gymnasium's registry.
        cfg: what is set beside its registered config.
        launch: flags, from :func:`parse_flags`.
        seed: of everything random in the simulator until the first reset.
        groups: observation groups to bring over; None brings all.
        mode: how the simulator is stepped, see :class:`bridge.isaaclab.env.IsaacLabEnv`; ``auto`` takes ``host`` where
            Isaac Sim's Kit runs, which wants its main thread, else ``callback``.
        video_dir: folder above the videos of ``--video``.
        parts: processes that share the number of environments in the task's config, where ``cfg`` has none.
        part: which process this is.

    Raises:
        SettingError: the task cannot be started as asked; one line.
    """
    env_cfg = load_env_cfg(name, cfg.overrides)
    if cfg.quadrotors:
        # Not as an override: a path may hold what Hydra's grammar has other uses for.
        setattr(*locate(env_cfg, f"env.quadrotors={cfg.quadrotors}"), cfg.quadrotors)
    env_cfg.seed = seed
    env_cfg.sim.device = launch.device
    number_envs(name, env_cfg, cfg.num_envs, parts, part)
    with _told(name):
        pre_launch_video_config(env_cfg, launch)
        needs_kit = bool(validate_launch(env_cfg, launch)[1])
    if mode == "auto":
        mode = "host" if needs_kit else "callback"
    failure: Exception | None = None
    with launch_simulation(env_cfg, launch):
        env = None
        try:
            with _told(name):
                apply_video_recording(env_cfg, video_dir, launch)
                env = gym.make(name, cfg=env_cfg)
            yield IsaacLabEnv(env, groups, mode)
        except Exception as e:
            # The launcher prints a traceback of whatever passes it, also of what is for the user to read.
            if needs_kit:
                raise  # And Kit ends the process, so that nothing could be said after it.
            failure = e
        finally:
            if env is not None:
                env.close()
    if isinstance(failure, FileNotFoundError) and failure.filename is None:  # Isaac Lab's, of an asset.
        raise LaunchError(f"{name}: {line_of(failure)}") from failure
    if failure is not None:
        raise failure


def number_envs(name: str, env_cfg: Any, num_envs: int | None, parts: int, part: int) -> None:
    """Say in the config of the task ``name`` how many environments this process has, and which: see :func:`open_env`.

    A setting ``env.first_env``, where the task has one, becomes the number of the first among those of all processes.
    """
    env_cfg.scene.num_envs = share(name, env_cfg.scene.num_envs, parts) if num_envs is None else num_envs
    if hasattr(env_cfg, "first_env"):
        env_cfg.first_env = part * env_cfg.scene.num_envs


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Isaac Lab refuses settings by a ``ValueError``; the user gets it in one line."""
    try:
        yield
    except SettingError:
        raise
    except ValueError as e:
        raise LaunchError(f"{name}: {line_of(e)}") from e
