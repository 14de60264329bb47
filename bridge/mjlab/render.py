"""Pictures of mjlab's environments, by MuJoCo."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from mjlab.viewer.offscreen_renderer import OffscreenRenderer

from bridge.env import State
from bridge.errors import RenderError, line_of


class SceneRenderer:
    """A :class:`bridge.env.Renderer` of one robot, seen as the task's ``viewer`` settings have it.

    Raises:
        RenderError: MuJoCo draws nothing on this machine.
    """

    def __init__(self, env: Any, width: int, height: int):
        self._env, self._size = env, {"width": width, "height": height}
        self._index, self._renderer = 0, self._of(0)

    def _of(self, index: int) -> OffscreenRenderer:
        """mjlab's renderer of the environment ``index``, without its neighbors."""
        sim, viewer = self._env.sim, self._env.cfg.viewer
        view = dataclasses.replace(viewer, **self._size, env_idx=index, max_extra_envs=0)
        renderer = OffscreenRenderer(sim.mj_model, view, self._env.scene, sim.model, sim.expanded_fields)
        try:
            renderer.initialize()
        except Exception as e:  # OpenGL's errors come in as many kinds as there are drivers.
            hint = "MUJOCO_GL=egl needs libEGL (apt-get install libegl1), MUJOCO_GL=osmesa draws without a GPU"
            raise RenderError(f"MuJoCo draws nothing here ({line_of(e)}); {hint}") from e
        return renderer

    def frame(self, state: State, index: int = 0) -> np.ndarray:
        """See :class:`bridge.env.Renderer`; the simulator draws what it is, not what ``state`` says."""
        if index != self._index:
            self.close()
            self._index, self._renderer = index, self._of(index)
        self._renderer.update(self._env.sim.data, self._env.update_visualizers)
        return self._renderer.render()

    def close(self) -> None:
        """Free what drawing takes."""
        self._renderer.close()
