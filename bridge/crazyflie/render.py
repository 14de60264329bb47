"""Pictures of a Crazyflie under way: Crazyflow's MuJoCo model, the target, and the path flown.

MuJoCo draws off-screen (:mod:`bridge.mujoco_render`), or into a window where there is a display.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import mujoco
import numpy as np

from bridge import SCIPY_WITHOUT_ARRAY_API
from bridge.crazyflie.airframe import Airframe
from bridge.crazyflie.cfg import PointControlCfg
from bridge.env import Color, State
from bridge.errors import RenderError
from bridge.mujoco_render import Canvas

HEIGHT = 1.5
"""Of the spawn point above the floor, m. The task itself knows no floor."""
SPREAD = 0.6
"""Between the spawn points of craft that share a picture, m."""
TRAIL_POINTS = 150
"""Newest points of the path that are drawn."""
TARGET_RADIUS, TRAIL_RADIUS = 0.02, 0.004
TARGET_COLOR = (0.10, 0.65, 0.35)
SKY, FLOOR = 240, 230
"""How pale the scene is, 0..255."""
VIEW = 0.7
"""Least distance from which the camera looks, m."""
CALM = 0.1
"""Share of its way to where it wants to look that the camera goes per frame."""


class Scene:
    """Crazyflow's model of ``len(colors)`` craft beside each other, with their targets and paths."""

    target_radius, trail_radius = TARGET_RADIUS, TRAIL_RADIUS

    def __init__(self, drone: str, colors: Sequence[Color], origins: Sequence[np.ndarray] | None = None):
        """``origins`` (3,) m are where the scene has the origin of each craft's world; None puts them beside each
        other, high enough above the floor."""
        self.model, self.colors = scene_model(drone, len(colors)), colors
        self.data = mujoco.MjData(self.model)
        middle = 0.5 * (len(colors) - 1)
        beside = [np.array([0.0, SPREAD * (middle - i), HEIGHT]) for i in range(len(colors))]
        self._origins = list(origins or beside)
        self._trails: list[deque[np.ndarray]] = [deque(maxlen=TRAIL_POINTS) for _ in colors]
        self._targets = [origin.copy() for origin in self._origins]
        self.camera = mujoco.MjvCamera()
        self.camera.azimuth, self.camera.elevation, self.camera.distance = 200.0, -18.0, VIEW
        self.camera.lookat[:] = (0.0, 0.0, HEIGHT)

    def show(self, states: Sequence[State], index: int = 0) -> None:
        """Put every craft where environment ``index`` of its state has it. Where an episode begins, so does a path."""
        for i, (state, origin) in enumerate(zip(states, self._origins, strict=True)):
            craft = state.pipeline_state.craft
            seen = (craft.pos.array, craft.quat.array, self._target(state), state.done)
            pos, quat, target, ended = (x[index] for x in jax.device_get(seen))
            if ended:
                self._trails[i].clear()
            self.data.mocap_pos[i], self.data.mocap_quat[i] = pos + origin, np.roll(quat, 1)  # MuJoCo has w first.
            self._trails[i].append(pos + origin)
            self._targets[i] = target + origin
        self._look()
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _target(self, state: State) -> Any:
        """(B, 3) m, where each environment's craft should go."""
        return state.pipeline_state.target.pos.array

    def _look(self) -> None:
        """Turn towards the middle of all that matters, from where it fits into the picture."""
        points = np.stack([*(trail[-1] for trail in self._trails), *self._targets])
        low, high = points.min(axis=0), points.max(axis=0)
        distance = VIEW + 1.2 * float(np.linalg.norm(high - low))
        first = all(len(trail) == 1 for trail in self._trails)
        share = 1.0 if first else CALM
        self.camera.lookat[:] += share * (0.5 * (low + high) - self.camera.lookat)
        self.camera.distance += share * (distance - self.camera.distance)

    def decorate(self, scene: mujoco.MjvScene) -> None:
        """Add targets and paths to what is about to be drawn."""
        for trail, target, color in zip(self._trails, self._targets, self.colors, strict=True):
            radius = [self.target_radius] * 3
            add_geom(scene, mujoco.mjtGeom.mjGEOM_SPHERE, np.array(radius), target, (*TARGET_COLOR, 0.6))
            points = list(trail)
            for age, (a, b) in enumerate(zip(points[:0:-1], points[-2::-1], strict=True)):
                rgba = (*color, 0.9 * (1 - age / TRAIL_POINTS))
                geom = add_geom(scene, mujoco.mjtGeom.mjGEOM_CAPSULE, np.zeros(3), np.zeros(3), rgba)
                if geom is not None:
                    mujoco.mjv_connector(geom, mujoco.mjtGeom.mjGEOM_CAPSULE, self.trail_radius, a, b)


class OffscreenRenderer:
    """A :class:`bridge.env.Renderer` that needs no display."""

    def __init__(self, scene: Scene, width: int, height: int):
        self._scene = scene
        self._canvas = Canvas(self._scene.model, width, height)

    def frame(self, state: State, index: int = 0) -> np.ndarray:
        """See :class:`bridge.env.Renderer`."""
        self._scene.show([state], index)
        return self._canvas.picture(self._scene.data, self._scene.camera, self._scene.decorate)

    def close(self) -> None:
        """See :class:`bridge.env.Renderer`."""
        self._canvas.close()


class LiveViewer:
    """A :class:`bridge.env.Viewer`: MuJoCo's own window."""

    def __init__(self, scene: Callable[[], Scene]):
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise RenderError("a live view needs a display (DISPLAY is not set); leave --live out for a file")
        import mujoco.viewer

        self._scene = scene()
        try:
            self._viewer = mujoco.viewer.launch_passive(
                self._scene.model, self._scene.data, show_left_ui=False, show_right_ui=False
            )
        except Exception as e:
            text = " ".join(str(e).split()) or type(e).__name__
            raise RenderError(f"MuJoCo opens no window ({text[:160]}); leave --live out for a file") from e
        # The user may turn and zoom from there on.
        for name in ("azimuth", "elevation", "distance"):
            setattr(self._viewer.cam, name, getattr(self._scene.camera, name))
        self._viewer.cam.distance *= 1 + SPREAD * (len(self._scene.colors) - 1)

    def show(self, states: Sequence[State], index: int = 0) -> bool:
        """See :class:`bridge.env.Viewer`."""
        if not self._viewer.is_running():
            return False
        with self._viewer.lock():
            self._scene.show(states, index)
            self._viewer.user_scn.ngeom = 0
            self._scene.decorate(self._viewer.user_scn)
            self._viewer.cam.lookat[:] = self._scene.camera.lookat
        self._viewer.sync()
        return True

    def close(self) -> None:
        """See :class:`bridge.env.Viewer`."""
        self._viewer.close()


@functools.cache
def scene_model(drone: str, count: int) -> mujoco.MjModel:
    """Crazyflow's model of ``count`` craft, in daylight and over a pale floor, so that ten centimetres stand out."""
    # An airframe that Crazyflow does not have is drawn as one that it has.
    shape = drone if drone in Airframe.names() else PointControlCfg.drone
    model = build_sim(shape, 1, 500, count).mj_model
    model.mat_reflectance[:] = 0.0
    for i, kind in enumerate(model.tex_type):
        start = model.tex_adr[i]
        pixels = model.tex_data[start : start + model.tex_width[i] * model.tex_height[i] * model.tex_nchannel[i]]
        if kind == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            pixels[:] = SKY
        else:
            pixels[:] = FLOOR - (pixels.max() - pixels.astype(int)) // 6
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.6, 0.4
    model.light_diffuse[:] = 0.25
    model.vis.rgba.haze[:3] = SKY / 255
    model.vis.quality.offsamples = 4
    return model


def build_sim(drone: str, num_envs: int, physics_freq: int, num_drones: int = 1) -> Any:
    """Crazyflow's simulator, ``num_drones`` in each environment.

    The remarks that its dependencies print at import are kept off the user's terminal.
    """
    if SCIPY_WITHOUT_ARRAY_API:
        raise RuntimeError("scipy was imported before bridge: set SCIPY_ARRAY_API=1 in the environment")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from crazyflow.sim import Sim

        # MuJoCo warns about a naming detail of the scene, on stderr and in a log file where the user stands.
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            return Sim(
                n_worlds=num_envs,
                n_drones=num_drones,
                drone=drone,
                dynamics="first_principles",
                control="rotor_vel",
                freq=physics_freq,
                device=jax.default_backend(),
            )
        finally:
            mujoco.set_mju_user_warning(None)


def add_geom(
    scene: mujoco.MjvScene, kind: Any, size: np.ndarray, pos: np.ndarray, rgba: tuple[float, float, float, float]
) -> Any:
    """A geom more, or None where the scene is full."""
    if scene.ngeom >= scene.maxgeom:
        return None
    geom = scene.geoms[scene.ngeom]
    mujoco.mjv_initGeom(geom, kind, size, pos, np.eye(3).ravel(), np.array(rgba, np.float32))
    scene.ngeom += 1
    return geom
