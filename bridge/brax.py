"""Brax as a back end: ``brax/ant`` and its other environments. Importing this needs no Brax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.library import Library, parameters, settings_class

if TYPE_CHECKING:
    from bridge.env import Env


class Brax(Library):
    """Every environment that Brax has registered. Its settings are Brax's own: ``episode_length``, ``action_repeat``,
    and what the environment's class takes, ``backend`` for one."""

    name = "brax"
    title = "Brax"
    package = "brax"
    extra = "brax"
    packages = ("brax", "mujoco", "mujoco-mjx")
    sources: ClassVar = {"envs/__init__.py": "_envs"}

    def registered(self) -> Sequence[str]:
        """By Brax's names."""
        from brax import envs

        return list(envs._envs)

    def settings(self, name: str) -> type:
        """Those of ``brax.envs.create`` and of the environment's class."""
        from brax import envs

        # What every environment hands on to Brax's base class; null leaves it to the environment.
        frames = ("n_frames", int | None, None)
        return settings_class(
            [("episode_length", int, 1000), ("action_repeat", int, 1), *parameters(envs._envs[name]), frames]
        )

    def make(self, name: str, num_envs: int, settings: dict[str, Any]) -> Env:
        """A batch of the environment in Brax's ``EpisodeWrapper``."""
        from brax import envs

        said = {k: v for k, v in settings.items() if k != "n_frames" or v is not None}
        return adapted(envs.create(name, auto_reset=False, **said), num_envs, is_batch=False)

    def adapt(self, found: Any, num_envs: int) -> Env | None:
        """One of Brax's, in wrappers or without."""
        is_brax = all(hasattr(type(found), name) for name in ("reset", "step", "action_size", "backend"))
        return adapted(found, num_envs) if is_brax else None


def adapted(env: Any, num_envs: int, is_batch: bool | None = None) -> Env:
    """``env`` as a batch; see :func:`bridge.vmapped.of_brax_shape`."""
    from bridge.vmapped import of_brax_shape

    def pose(sim: Any) -> dict[str, Any]:
        return {"qpos": sim.pipeline_state.q, "qvel": sim.pipeline_state.qd}

    return of_brax_shape(env, num_envs, getattr(getattr(env, "sys", None), "mj_model", None), pose, is_batch)
