"""Pictures of a Crazyflie in the forest, with what its camera sees in a corner."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import mujoco
import numpy as np

from bridge.crazyflie.forest.cfg import ForestFlightCfg
from bridge.crazyflie.render import CALM, OffscreenRenderer, Scene, add_geom
from bridge.env import Color, State

COLUMN_COLOR, WALL_COLOR = (0.55, 0.45, 0.36, 0.8), (0.70, 0.73, 0.78, 0.25)
BEHIND, ELEVATION = 2.6, -24.0
"""Distance of the camera from the craft, m, and its angle, degrees."""
INSET = 0.3
"""Height of the inset as a share of the picture's."""
FRAME = 2
"""Width of the inset's frame, pixels."""


class ForestScene(Scene):
    """The craft among the columns of the first policy's forest; the camera follows the first craft.

    Policies that share a scene begin in the same forest. Once their episodes have ended at different times they do not:
    the columns are the first one's then.
    """

    trail_radius = 0.012

    def __init__(self, cfg: ForestFlightCfg, colors: Sequence[Color]):
        super().__init__(cfg.drone, colors, [np.zeros(3) for _ in colors])
        self._hall, self.target_radius = cfg.forest, cfg.forest.goal_radius
        self._columns = np.zeros((3, 0))

    def show(self, states: Sequence[State], index: int = 0) -> None:
        """Put craft and columns where environment ``index`` has them."""
        columns = states[0].pipeline_state.columns
        self._columns = np.stack([x[index] for x in jax.device_get((columns.x, columns.y, columns.radius))])
        super().show(states, index)

    def _target(self, state: State) -> object:
        return state.pipeline_state.goal.array

    def _look(self) -> None:
        """From behind the craft towards the goal."""
        craft, goal = self._trails[0][-1], self._targets[0]
        first = len(self._trails[0]) == 1
        wanted = craft + np.array([0.8, 0.0, 0.0])
        self.camera.lookat[:] += (1.0 if first else 2 * CALM) * (wanted - self.camera.lookat)
        towards = float(np.degrees(np.arctan2(*(goal - craft)[1::-1])))
        self.camera.azimuth = 0.3 * np.clip(towards, -60.0, 60.0)
        self.camera.elevation, self.camera.distance = ELEVATION, BEHIND

    def decorate(self, scene: mujoco.MjvScene) -> None:
        """Add columns and walls, then targets and paths."""
        hall = self._hall
        for x, y, radius in self._columns.T:
            if 0 < x < hall.length:  # Others are not there.
                size = np.array([radius, hall.height / 2, 0.0])
                place = np.array([x, y, hall.height / 2])
                add_geom(scene, mujoco.mjtGeom.mjGEOM_CYLINDER, size, place, COLUMN_COLOR)
        for side in (-0.5, 0.5):
            size = np.array([hall.length / 2, 0.01, hall.height / 2])
            place = np.array([hall.length / 2, side * hall.width, hall.height / 2])
            add_geom(scene, mujoco.mjtGeom.mjGEOM_BOX, size, place, WALL_COLOR)
        super().decorate(scene)


class ForestRenderer(OffscreenRenderer):
    """A :class:`bridge.env.Renderer` with an inset: what the camera sees, near is bright."""

    def __init__(self, cfg: ForestFlightCfg, width: int, height: int, color: Color):
        super().__init__(ForestScene(cfg, [color]), width, height)

    def frame(self, state: State, index: int = 0) -> np.ndarray:
        """See :class:`bridge.env.Renderer`."""
        picture, image = super().frame(state, index), state.pipeline_state.image
        return picture if image is None else inset(picture, np.asarray(image[index]))


def inset(picture: np.ndarray, image: np.ndarray) -> np.ndarray:
    """``picture`` (H, W, 3) uint8 with ``image`` (h, w), 0 near and 1 far, in its lower left corner, enlarged."""
    height = max(1, round(INSET * picture.shape[0]))
    width = min(max(1, round(height * image.shape[1] / image.shape[0])), picture.shape[1] - 4 * FRAME)
    # Every pixel stays a sharp square, so that what the student has is seen, and not what one might guess.
    rows, columns = (np.arange(size) * count // size for size, count in zip((height, width), image.shape, strict=True))
    gray = np.round(255 * (1 - np.clip(image, 0, 1)))[rows][:, columns].astype(np.uint8)
    out = picture.copy()
    bottom, left = out.shape[0] - FRAME, FRAME
    out[bottom - height - 2 * FRAME : bottom, left : left + width + 2 * FRAME] = 255
    out[bottom - height - FRAME : bottom - FRAME, left + FRAME : left + FRAME + width] = gray[..., None]
    return out
