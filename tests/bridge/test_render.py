"""Pictures of Crazyflies, drawn without a display."""

from __future__ import annotations

from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge import mujoco_render
from bridge.crazyflie.vectors import Quaternion, Vector
from bridge.env import AutoReset
from jdistill.errors import RenderError

pytestmark = pytest.mark.full

BLUE = (0.0, 0.45, 0.70)


def share(picture: np.ndarray, color: str) -> float:
    """The share of pixels in which this channel stands out."""
    channel = {"red": 0, "green": 1, "blue": 2}[color]
    others = np.delete(picture.astype(int), channel, axis=-1).max(axis=-1)
    return float((picture[..., channel] > others + 40).mean())


def moved(state, position, target=(0.0, 0.0, 0.0), done=False):
    """The state with environment 3's craft, level, and its target elsewhere."""
    sim = state.pipeline_state
    craft = sim.craft.replace(
        pos=Vector.of(sim.craft.pos.array.at[3].set(jnp.array(position))),
        quat=Quaternion.of(sim.craft.quat.array.at[3].set(jnp.array([0.0, 0.0, 0.0, 1.0]))),
    )
    goal = sim.target.replace(pos=Vector.of(sim.target.pos.array.at[3].set(jnp.array(target))))
    done = jnp.zeros(8, bool).at[3].set(done)
    return state.replace(pipeline_state=sim.replace(craft=craft, target=goal), done=done)


@pytest.fixture(scope="module")
def renderer(crazyflie):
    with closing(crazyflie.renderer(160, 120, BLUE)) as renderer:
        yield renderer


def test_craft_target_and_path_are_seen(crazyflie, renderer):
    state = crazyflie.reset(jax.random.key(0))
    first = renderer.frame(moved(state, (0.0, -0.2, 0.0), done=True), 3)
    assert first.shape == (120, 160, 3) and first.dtype == np.uint8
    assert share(first, "green") > 0.001, "the target"
    assert share(first, "blue") == 0, "there is no path yet"
    assert (first.max(axis=-1) < 160).mean() > 0.001, "the dark craft stands out from the pale floor"
    for i in range(1, 9):
        last = renderer.frame(moved(state, (0.0, -0.2 + 0.05 * i, 0.0)), 3)
    assert share(last, "blue") > 0.003, "the path"
    assert (first != last).any()
    again = renderer.frame(moved(state, (0.0, 0.1, 0.0), done=True), 3)
    assert share(again, "blue") == 0, "a new episode, a new path"


def test_a_far_target_stays_in_the_picture(crazyflie, renderer):
    state = crazyflie.reset(jax.random.key(0))
    for _ in range(40):
        picture = renderer.frame(moved(state, (1.5, 0.0, 0.5), target=(-1.5, 0.5, -0.5)), 3)
    assert share(picture, "green") > 0


def test_two_renderers_do_not_disturb_each_other(crazyflie, renderer):
    state = crazyflie.reset(jax.random.key(1))
    near, far = moved(state, (0.0, 0.0, 0.0), done=True), moved(state, (0.3, 0.3, 0.3), done=True)
    alone = renderer.frame(near, 3)
    with closing(crazyflie.renderer(80, 80, BLUE)) as other:
        assert other.frame(far, 3).shape == (80, 80, 3)
        renderer.frame(near, 3)
    for _ in range(60):  # The camera comes to rest.
        beside = renderer.frame(near, 3)
    assert np.abs(beside.astype(int) - alone).mean() < 3


@pytest.fixture
def no_library(monkeypatch):
    """PyOpenGL pointed at a library that neither way to draw can use."""
    monkeypatch.setenv("PYOPENGL_PLATFORM", "glx")
    mujoco_render.unusable.cache_clear()
    yield
    mujoco_render.unusable.cache_clear()


def test_no_way_to_draw_is_one_line(crazyflie, no_library, monkeypatch):
    with pytest.raises(RenderError, match=r"no way to draw without a display \(egl: .*; osmesa: .*\).*libegl1 or"):
        crazyflie.renderer(80, 80, BLUE)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(
        RenderError, match=r"display \(osmesa: Can.*\); on Debian 'apt-get install libosmesa6'"
    ) as error:
        crazyflie.renderer(80, 80, BLUE)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(RenderError, match="MUJOCO_GL=glfw: draws into no file; unset it"):
        crazyflie.renderer(80, 80, BLUE)


def test_a_window_needs_a_display(crazyflie, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RenderError, match="needs a display"):
        AutoReset(crazyflie).viewer([BLUE])


def test_an_environment_that_draws_nothing(crazyflie):
    class Plain:
        """The least that an environment has."""

        num_envs, num_actions, max_episode_length, step_dt = 1, 1, 1, 0.1

    with pytest.raises(RenderError, match="Plain draws no pictures"):
        AutoReset(Plain()).renderer(80, 80, BLUE)
