"""MuJoCo Playground as a back end: ``playground/CartpoleBalance`` and its other environments.

Importing this needs no Playground. Its robots' meshes come from MuJoCo Menagerie, which Playground clones by git when
the first environment is made. Here the package ``mujoco-menagerie`` brings the one robot that is needed: from its
cache, from the folder ``MENAGERIE_ROOT``, or over the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.errors import SettingError
from bridge.library import Library, Setting, setting, settings_class

if TYPE_CHECKING:
    from bridge.env import Env

SUITES = ("dm_control_suite", "locomotion", "manipulation")


class Playground(Library):
    """Every environment of Playground's registry, with the settings of its config by Playground's names.

    ``impl`` is ``jax`` where Playground's own is ``warp``: that one runs on NVIDIA's GPUs alone, and keeps what touches
    in arrays without an axis of environments, which cannot restart one by one.
    """

    name = "playground"
    title = "MuJoCo Playground"
    package = "mujoco_playground"
    extra = "playground"
    packages = ("playground", "brax", "mujoco", "mujoco-mjx")
    sources: ClassVar = {f"_src/{suite}/__init__.py": "_envs" for suite in SUITES}

    def registered(self) -> Sequence[str]:
        """By Playground's names."""
        from mujoco_playground import registry

        return list(registry.ALL_ENVS)

    def settings(self, name: str) -> type:
        """The environment's default config."""
        fields: list[Setting] = []
        for key, value in _config(name).items():
            if (plain := setting("jax" if (key, value) == ("impl", "warp") else value)) is not None:
                fields.append((key, *plain))
        return settings_class(fields)

    def make(self, name: str, num_envs: int, settings: dict[str, Any]) -> Env:
        """A batch of the environment; where actions are repeated, in Brax's ``EpisodeWrapper``."""
        from brax.envs.wrappers.training import EpisodeWrapper
        from mujoco_playground import registry

        config = _config(name)
        config.update(_plain(settings))
        bring_robots()
        env: Any = registry.load(name, config)
        if (repeat := settings.get("action_repeat", 1)) > 1:
            env = EpisodeWrapper(env, config.episode_length, repeat)
        return adapted(env, num_envs, is_batch=False)

    def adapt(self, found: Any, num_envs: int) -> Env | None:
        """One of Playground's, in wrappers or without."""
        is_playground = all(hasattr(type(found), name) for name in ("reset", "step", "action_size", "mj_model"))
        return adapted(found, num_envs) if is_playground else None


def adapted(env: Any, num_envs: int, is_batch: bool | None = None) -> Env:
    """``env`` as a batch; see :func:`bridge.vmapped.of_brax_shape`."""
    from bridge.vmapped import of_brax_shape

    def pose(sim: Any) -> dict[str, Any]:
        return {name: getattr(sim.data, name) for name in ("qpos", "qvel", "mocap_pos", "mocap_quat")}

    return of_brax_shape(env, num_envs, env.mj_model, pose, is_batch)


def _config(name: str) -> Any:
    from mujoco_playground import registry

    return registry.get_default_config(name)


def _plain(tree: Any) -> Any:
    """Sections of settings as dicts."""
    if dataclasses.is_dataclass(tree):
        return {field.name: _plain(getattr(tree, field.name)) for field in dataclasses.fields(tree)}
    return {name: _plain(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


class Menagerie:
    """Stands where Playground has the path of its clone: ``/ "unitree_go1"`` is that robot's folder."""

    def exists(self) -> bool:
        """Robots are brought one by one."""
        return True

    def __truediv__(self, robot: str) -> Any:
        """The folder of ``robot``.

        Raises:
            SettingError: it is not there and cannot be brought.
        """
        from etils import epath

        try:
            import mujoco_menagerie
        except ImportError as e:
            raise SettingError(
                f"the robot {robot} is in MuJoCo Menagerie: 'pip install mujoco-menagerie', or clone it and set "
                "MENAGERIE_ROOT to the folder"
            ) from e
        try:
            return epath.Path(mujoco_menagerie.get(robot).path())
        except (mujoco_menagerie.MenagerieError, OSError) as e:
            raise SettingError(
                f"the robot {robot} of MuJoCo Menagerie: {e}; where there is a network 'mujoco-menagerie prefetch "
                f"{robot}' brings it, or set MENAGERIE_ROOT to a clone"
            ) from e


def bring_robots() -> None:
    """Let Playground take its robots from :class:`Menagerie`, unless it has its clone."""
    from mujoco_playground._src import mjx_env

    if not mjx_env.MENAGERIE_PATH.exists():
        mjx_env.MENAGERIE_PATH = Menagerie()
