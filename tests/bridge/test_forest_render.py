"""Films of forest flight: columns in the scene, and in a corner what the student sees."""

from __future__ import annotations

from contextlib import closing

import jax
import numpy as np
import pytest

from bridge.crazyflie.forest.cfg import ForestFlightCfg
from bridge.crazyflie.forest.render import inset
from bridge.crazyflie.forest.task import ForestFlight

pytestmark = pytest.mark.full


def test_an_inset_shows_every_pixel_as_a_square():
    image = np.linspace(0.0, 1.0, 64, dtype=np.float32).reshape(8, 8)
    before = np.full((160, 200, 3), 9, np.uint8)
    after = inset(before, image)
    assert (before == 9).all() and after.shape == before.shape
    assert (after[:100] == 9).all() and (after[:, 60:] == 9).all()
    shown = after[108:156, 4:52].reshape(8, 6, 8, 6, 3)
    assert (shown == shown[:, :1, :, :1, :1]).all(), "sharp, and gray"
    assert (np.diff(shown[:, 0, :, 0, 0].ravel().astype(int)) <= 0).all(), "near is bright"
    assert shown.max() == 255 and shown.min() == 0


def test_columns_and_what_is_seen_of_them_are_in_the_picture():
    pictures = {}
    for camera in ("tof", "none"):
        env = ForestFlight(ForestFlightCfg(num_envs=2, camera=camera))
        state = jax.jit(env.reset)(jax.random.key(0))
        with closing(env.renderer(160, 120, (0.0, 0.45, 0.70))) as renderer:
            pictures[camera] = renderer.frame(state, 1)
            columns = state.pipeline_state.columns
            bare = state.pipeline_state.replace(columns=columns.replace(x=columns.x + 1e3))
            empty = renderer.frame(state.replace(pipeline_state=bare), 1)
        assert (pictures[camera] != empty).any(axis=-1).mean() > 0.02, "columns"
    corner = slice(80, 118), slice(2, 42)
    differs = (pictures["tof"] != pictures["none"]).any(axis=-1)
    assert differs[corner].mean() > 0.5 and not differs[:78].any() and not differs[:, 44:].any()
