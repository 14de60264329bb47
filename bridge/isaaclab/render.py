"""Pictures of Isaac Lab's environments, by Isaac Lab's own visualizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bridge.env import State
from bridge.errors import RenderError


class VisualizerRenderer:
    """A :class:`bridge.env.Renderer` that asks the simulation's first visualizer for its picture.

    The camera stands where the visualizer's settings have it, unless the environment has ``camera_view(index)``, which
    gives eye and target (3, m, world frame) of the environment ``index``.
    """

    def __init__(self, env: Any, width: int, height: int):
        found = getattr(getattr(env, "sim", None), "visualizers", None) or []
        drawing = [visualizer for visualizer in found if hasattr(visualizer, "render_rgb_array")]
        if not drawing:
            raise RenderError("Isaac Lab runs no visualizer that gives pictures; add --viz newton_gl (or kit)")
        self._env, self._visualizer, self._size = env, drawing[0], (height, width)

    def frame(self, state: State, index: int = 0) -> np.ndarray:
        """See :class:`bridge.env.Renderer`; the simulator draws what it is, not what ``state`` says."""
        if hasattr(self._env, "camera_view"):
            self._visualizer.set_camera_view(*self._env.camera_view(index))
        try:
            picture = self._visualizer.render_rgb_array()
        except Exception as e:  # OpenGL's errors come in as many kinds as there are drivers.
            raise RenderError(f"Isaac Lab's {type(self._visualizer).__name__} draws nothing ({e})") from e
        if picture is None:
            raise RenderError(f"Isaac Lab's {type(self._visualizer).__name__} gives no picture; try --viz newton_gl")
        return fitted(np.asarray(picture)[..., :3], *self._size)

    def close(self) -> None:
        """Nothing: the visualizer is the simulation's."""


def fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a picture (H, W, 3) uint8 in another size, not distorted."""
    scale = max(height / picture.shape[0], width / picture.shape[1])
    rows, columns = round(height / scale), round(width / scale)
    top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    middle = torch.tensor(picture[top : top + rows, left : left + columns]).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(middle, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
