"""MuJoCo's pictures without a display, of any model.

MuJoCo draws through EGL or OSMesa, whichever the machine has; ``MUJOCO_GL=egl`` or ``osmesa`` insists on one.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import mujoco
import numpy as np

from bridge.env import State
from bridge.errors import RenderError

BACKENDS = {"egl": "libegl1", "osmesa": "libosmesa6"}
"""Ways to draw without a display, best first, and the Debian package of each."""
PROBE = """
import os
try:
    from mujoco.{} import GLContext
    context = GLContext(8, 8)
    context.make_current()
except Exception as e:
    print(type(e).__name__ + ":", *str(e).split(), flush=True)
    os._exit(1)
os._exit(0)
"""
"""Exits as it stands, as contexts that were never whole complain when they are taken apart."""


class Canvas:
    """What ``model`` is drawn on. It raises :class:`RenderError` where this machine cannot draw."""

    def __init__(self, model: mujoco.MjModel, width: int, height: int):
        self._context = gl_context(width, height)
        self._context.make_current()
        self._model = model
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._mjr)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._drawn = mujoco.MjvScene(model, maxgeom=10_000)
        self._drawn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0  # Two thirds of the time, where no GPU draws.
        self._options, self._nothing = mujoco.MjvOption(), mujoco.MjvPerturb()

    def picture(
        self, data: mujoco.MjData, camera: mujoco.MjvCamera, decorate: Callable[[mujoco.MjvScene], None] | None = None
    ) -> np.ndarray:
        """(height, width, 3) uint8; ``decorate`` adds to the scene what is not in the model."""
        self._context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, self._nothing, camera, everything, self._drawn)
        if decorate:
            decorate(self._drawn)
        mujoco.mjr_render(self._rect, self._drawn, self._mjr)
        pixels = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._mjr)
        return np.flipud(pixels)

    def close(self) -> None:
        """Free what drawing takes."""
        self._context.make_current()
        self._mjr.free()
        self._context = None  # Frees itself, and OSMesa's bears no second time.


class MujocoRenderer:
    """A :class:`bridge.env.Renderer` of a MuJoCo model that a simulator steps by itself.

    The camera is the model's first one, else it follows the first body that moves freely, else it sees the whole model.
    """

    def __init__(self, model: mujoco.MjModel, pose: Callable[[Any], Mapping[str, Any]], width: int, height: int):
        """``pose`` gives ``qpos`` and more of ``MjData``, each (B, ...), from a state's ``pipeline_state``."""
        self._model, self._data, self._pose = model, mujoco.MjData(model), pose
        self._canvas = Canvas(model, width, height)
        self._camera = _camera(model)

    def frame(self, state: State, index: int = 0) -> np.ndarray:
        """See :class:`bridge.env.Renderer`."""
        for name, value in self._pose(state.pipeline_state).items():
            getattr(self._data, name)[:] = jax.device_get(value[index])
        mujoco.mj_forward(self._model, self._data)
        return self._canvas.picture(self._data, self._camera)

    def close(self) -> None:
        """See :class:`bridge.env.Renderer`."""
        self._canvas.close()


def _camera(model: mujoco.MjModel) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    if model.ncam:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    elif free.size:
        camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, model.jnt_bodyid[free[0]]
    return camera


def gl_context(width: int, height: int) -> Any:
    """MuJoCo's OpenGL context of the first way to draw off-screen that works here.

    Raises:
        RenderError: none does; the message says why and what to install.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked and asked not in BACKENDS:
        raise RenderError(f"MUJOCO_GL={asked}: draws into no file; unset it, or set {' or '.join(BACKENDS)}")
    reasons = []
    for name in [asked] if asked else BACKENDS:
        reason = unusable(name)
        if not reason:
            return importlib.import_module(f"mujoco.{name}").GLContext(width, height)
        reasons.append(f"{name}: {reason}")
    packages = " or ".join(BACKENDS[name] for name in ([asked] if asked else BACKENDS))
    raise RenderError(
        f"no way to draw without a display ({'; '.join(reasons)}); on Debian 'apt-get install {packages}'"
    )


@functools.cache
def unusable(backend: str) -> str:
    """Why this way to draw does not work here; empty where it does.

    A process of its own tries, because PyOpenGL keeps to the first library that it was pointed at, and because drivers
    may take the program down with them.
    """
    command = [sys.executable, "-c", PROBE.format(backend)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return ""
    kind, _, text = done.stdout.partition(":")
    if kind == "AttributeError":  # PyOpenGL's way to say that there is none.
        return "no such library"
    return text.strip()[:160] or f"ends with status {done.returncode}"
