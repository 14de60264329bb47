"""Forest flight: columns, what the cameras see of them, how episodes end, and what the craft does with commands."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.check import check_env
from bridge.crazyflie.cfg import RandomizationCfg, SensorCfg
from bridge.crazyflie.forest import camera as cameras
from bridge.crazyflie.forest.camera import CAMERAS
from bridge.crazyflie.forest.cfg import CLEARING, ForestCfg, ForestFlightCfg, ImageCfg, PilotCfg, most_columns
from bridge.crazyflie.forest.columns import Columns, nearest, plant
from bridge.crazyflie.forest.task import ForestFlight
from bridge.crazyflie.forest.teaching import GuidedForestFlight
from bridge.crazyflie.random import Stream
from bridge.crazyflie.vectors import Quaternion, Vector
from bridge.env import AutoReset
from bridge.errors import SettingError
from tests.conftest import ROOT

B = 8
HALL = ForestCfg()
EXACT = ImageCfg(noise=0.0, dropout=0.0)


@pytest.fixture(scope="module")
def env():
    still = RandomizationCfg(mass=0.0, inertia=0.0, thrust=0.0, motor=0.0)
    return ForestFlight(ForestFlightCfg(num_envs=B, randomization=still))


@pytest.fixture(scope="module")
def reset(env):
    return jax.jit(env.reset)


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(env.step)


def forests(count: int, cfg: ForestCfg = HALL, seed: int = 0) -> Columns:
    return plant(cfg, jax.random.split(jax.random.key(seed), count))


# -- the forest ----------------------------------------------------------------------------------------------------


def test_a_craft_fits_between_any_two_columns():
    columns = forests(50)
    found = []
    for x, y, r in zip(*(np.asarray(v) for v in (columns.x, columns.y, columns.radius)), strict=True):
        there = x < HALL.length
        x, y, r = x[there], y[there], r[there]
        found.append(len(x))
        gaps = np.hypot(x[:, None] - x, y[:, None] - y) - r[:, None] - r + 9 * np.eye(len(x))
        assert gaps.min() >= HALL.gap - 1e-5
        assert (x >= CLEARING).all() and (x <= HALL.length - CLEARING).all() and (abs(y) <= HALL.width / 2).all()
        assert (r >= HALL.min_radius).all() and (r <= HALL.max_radius).all()
    assert np.mean(found) > 0.95 * HALL.obstacles and max(found) == HALL.obstacles
    assert np.asarray(columns.x).std(axis=0).min() > 1.0, "every forest is another one"


def test_a_forest_hangs_on_its_own_key_alone():
    many, few = forests(20), plant(HALL, jax.random.split(jax.random.key(0), 20)[:3])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:3], b), many, few)


def test_the_nearest_columns_are_those_of_a_sorted_list():
    columns, rng = forests(6), np.random.default_rng(0)
    pos = rng.uniform((2, -2, 1), (12, 2, 1), (6, 3)).astype(np.float32)
    angle = rng.uniform(-3, 3, 6).astype(np.float32)
    by = (jnp.cos(angle), jnp.sin(angle))
    found = np.asarray(nearest(columns, Vector.of(pos), by, 5, 3.0)).reshape(6, 5, 3)
    for i in range(6):
        offset = np.stack([columns.x[i] - pos[i, 0], columns.y[i] - pos[i, 1]], axis=-1)
        away, radius = np.linalg.norm(offset, axis=-1), np.asarray(columns.radius[i])
        for place, j in enumerate(np.argsort(away - radius)[:5]):
            turned = offset[j] @ np.array([[np.cos(angle[i]), -np.sin(angle[i])], [np.sin(angle[i]), np.cos(angle[i])]])
            near = 1 / (max(away[j] - radius[j], 0.0) + 0.5) - 1 / 3.5
            expected = [*turned * near / away[j], radius[j]] if near > 0 else [0.0, 0.0, 0.0]
            np.testing.assert_allclose(found[i, place], expected, atol=1e-4)


def test_where_there_are_fewer_columns_than_are_shown_the_rest_is_zero():
    columns = jax.tree.map(lambda x: x[:, :2], forests(3))
    found = nearest(columns, Vector.zeros(3), (jnp.ones(3), jnp.zeros(3)), 4, 5.0).reshape(3, 4, 3)
    np.testing.assert_array_equal(found[:, 2:], 0.0)


# -- cameras -------------------------------------------------------------------------------------------------------


def places(count: int, seed: int = 1) -> tuple[np.ndarray, Quaternion]:
    """Somewhere in the forest, tilted and turned; (count, 3) and rotations."""
    rng = np.random.default_rng(seed)
    pos = rng.uniform((0.5, -2.5, 0.4), (13.0, 2.5, 2.0), (count, 3)).astype(np.float32)
    roll, pitch, yaw = (jnp.asarray(rng.uniform(-w, w, count), jnp.float32) for w in (0.5, 0.5, 3.1))
    return pos, Quaternion.of_euler(roll, pitch, yaw)


@pytest.mark.parametrize("name", CAMERAS)
def test_rays_end_where_a_march_along_them_does(name):
    """In steps of 4 mm, until a point lies in a column or outside of the hall."""
    camera, columns = CAMERAS[name], forests(4)
    pos, quat = places(4)
    clear = (np.hypot(columns.x - pos[:, :1], columns.y - pos[:, 1:2]) > columns.radius).all(axis=1)
    assert clear.sum() >= 3
    depth = np.asarray(cameras.cast(camera, HALL, columns, Vector.of(pos), quat.rotation()))
    left, up = (slopes[::37] if name == "depth" else slopes for slopes in camera.slopes)
    depth = depth[:, ::37] if name == "depth" else depth
    ray = np.stack([np.ones_like(left), left, up], axis=-1)
    turn = np.stack([row.array for row in quat.rotation()], axis=1)
    ways = np.arange(0.0, 6.0, 0.004)
    for i in np.flatnonzero(clear):
        point = pos[i] + ways[:, None, None] * (ray @ turn[i].T)  # (ways, pixels, 3)
        x, y, z = np.moveaxis(point, -1, 0)
        inside = (x > 0) & (x < HALL.length) & (abs(y) < HALL.width / 2) & (z > 0) & (z < HALL.height)
        for cx, cy, r in zip(columns.x[i], columns.y[i], columns.radius[i], strict=True):
            inside &= (x - float(cx)) ** 2 + (y - float(cy)) ** 2 > float(r) ** 2
        ends = np.where(inside.all(axis=0), np.inf, ways[np.argmin(inside, axis=0)])
        seen = ends < 5.9
        # A march steps over what a ray only grazes.
        assert np.mean(abs(depth[i] - ends)[seen] < 0.006) > 0.99
        assert (depth[i][~seen] > 5.9).all()


def test_the_first_pixel_is_the_upper_left_one():
    camera = CAMERAS["tof"]
    one = Columns(*(jnp.array([[v]]) for v in (4.0, 0.5, 0.3)))  # Ahead, to the left.
    level = Quaternion.of_euler(*jnp.zeros((3, 1)))
    pos = Vector.of(jnp.array([[2.0, 0.0, 1.0]]))
    image = np.asarray(cameras.cast(camera, HALL, one, pos, level.rotation())).reshape(8, 8)
    assert image[0, 1] < 2.0 and image[0, 6] > 3.0, "the column is on the left"
    assert image[7, 6] < image[0, 6], "the floor is nearer than the wall"


def test_noise_and_dropouts_are_as_strong_as_asked():
    camera, columns = CAMERAS["tof"], forests(400)
    pos, quat = places(400)
    words = cameras.draw(camera, Stream.create(jax.random.key(3), 400), 6)
    args = (HALL, columns, Vector.of(pos), quat.rotation(), words)
    perfect = np.asarray(cameras.picture(camera, EXACT, *args)).ravel()
    noisy = np.asarray(cameras.picture(camera, ImageCfg(noise=0.05, dropout=0.1), *args)).ravel()
    seen = (perfect > 0) & (perfect < 0.7)
    lost = noisy[seen] == 1.0
    assert lost.mean() == pytest.approx(0.1, abs=0.01)
    error = (noisy[seen] / perfect[seen] - 1.0)[~lost]
    assert error.std() == pytest.approx(0.05, rel=0.05) and abs(error.mean()) < 0.002
    assert (noisy[perfect == 1.0] == 1.0).all() and noisy.min() >= 0.0


def test_a_picture_is_held_until_the_next_is_due(env, reset, step):
    state = reset(jax.random.key(0))
    changed = []
    for _ in range(30):
        before, state = state, step(state, jnp.zeros((B, 4)))
        images = [np.asarray(s.obs["tof"]) for s in (before, state)]
        changed.append({bool((a != b).any()) for a, b in zip(*images, strict=True)})
    assert all(len(c) == 1 for c in changed), "all cameras share a clock"
    assert sum(c.pop() for c in changed) == env.cfg.image.rate_hz
    assert images[0].dtype == np.float32 and images[0].shape == (B, 8, 8, 1)


def test_other_cameras():
    for name, shape in (("depth", (60, 100, 1)), ("none", None)):
        specs = check_env(ForestFlight(ForestFlightCfg(num_envs=2, camera=name)))
        assert set(specs) == {"student", "teacher"} | ({name} if shape else set())
        assert not shape or specs[name].shape == shape
    check_env(ForestFlight(ForestFlightCfg(num_envs=2, forest=ForestCfg(obstacles=0))))


# -- episodes ------------------------------------------------------------------------------------------------------


def moved(state, **rows):
    """The state with the craft of environment 3 elsewhere, in an empty hall but for one column."""
    sim = state.pipeline_state
    columns = jax.tree.map(lambda x: x.at[3].set(50.0), sim.columns)
    columns = columns.replace(
        x=columns.x.at[3, 0].set(6.0), y=columns.y.at[3, 0].set(1.0), radius=columns.radius.at[3].set(0.3)
    )
    craft = sim.craft.rows | {"vel": jnp.zeros((B, 3))}
    for name, row in rows.items():
        craft[name] = craft[name].at[3].set(jnp.array(row))
    return state.replace(pipeline_state=sim.replace(craft=type(sim.craft).of(**craft), columns=columns))


@pytest.mark.parametrize(
    ("end", "rows"),
    [
        (None, {"pos": (6.0, 0.5, 1.0)}),
        ("obstacle", {"pos": (6.0, 0.63, 1.0)}),
        ("wall", {"pos": (6.0, -2.95, 1.0)}),
        ("wall", {"pos": (6.0, -1.0, 0.05)}),
        ("wall", {"pos": (6.0, -1.0, 2.46)}),
        ("tilt", {"pos": (6.0, -1.0, 1.0), "quat": (0.8, 0.0, 0.0, 0.6)}),
        ("goal", {}),
        ("nan", {"pos": (6.0, -1.0, float("nan"))}),
    ],
)
def test_episodes_end_for_a_reason(reset, step, end, rows):
    state = reset(jax.random.key(1))
    rows = rows or {"pos": tuple(state.pipeline_state.goal.array[3].tolist())}
    after = step(moved(state, **rows), jnp.zeros((B, 4)))
    reasons = {k.partition("/")[2] for k, v in after.metrics.items() if k.startswith("Episode_Termination/") and v[3]}
    assert reasons == ({end} if end else set()) and bool(after.done[3]) == (end is not None)
    assert not after.done[0] and after.metrics["Episode_TimeOut"][0] == 1
    share = {name: float(after.metrics[f"Episode_{name}"][3]) for name in ("Success", "Collision", "TimeOut")}
    assert share == {
        "Success": float(end == "goal"),
        "Collision": float(end in ("obstacle", "wall")),
        "TimeOut": float(end is None),
    }
    assert np.isfinite(after.reward).all()
    assert (after.reward[3] > 5) == (end == "goal") and (after.reward[3] < -5) == (end not in (None, "goal"))


def test_the_same_seed_is_the_same_episode_and_a_saved_one_goes_on(env, reset, step):
    action = jnp.tile(jnp.array([0.6, 0.1, 0.0, 0.2]), (B, 1))

    def fly(state, steps):
        for _ in range(steps):
            state = step(state, action)
        return state

    first = fly(reset(jax.random.key(7)), 8)
    halfway = jax.device_get(fly(reset(jax.random.key(7)), 4))
    again = fly(jax.tree.map(jnp.asarray, halfway), 4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(again))
    other = reset(jax.random.key(8))
    assert (np.asarray(other.obs["tof"]) != np.asarray(reset(jax.random.key(7)).obs["tof"])).any(axis=(1, 2, 3)).all()


def test_what_the_student_measures_is_noisy_and_the_teacher_sees_the_truth(env, reset):
    state = reset(jax.random.key(2))
    sim, obs = state.pipeline_state, state.obs
    error = np.asarray(obs["student"] - obs["teacher"][:, :19])
    # Half a degree of heading is a decimetre at the goal.
    assert 0 < abs(error[:, :15]).max() < 0.6
    np.testing.assert_array_equal(error[:, 15:], 0)  # Its own commands.
    cos, sin = np.asarray(obs["teacher"][:, 12:14]).T
    goal = sim.goal.array - sim.craft.pos.array
    np.testing.assert_allclose(obs["teacher"][:, 0], cos * goal[:, 0] + sin * goal[:, 1], rtol=1e-4)


def test_the_craft_flies_what_it_is_told(reset, step):
    state = moved(reset(jax.random.key(4)), pos=(3.0, -1.0, 1.0), quat=(0.0, 0.0, 0.0, 1.0))
    cfg = PilotCfg()
    for _ in range(45):
        state = step(state, jnp.tile(jnp.array([0.5, -0.2, 0.1, 0.0]), (B, 1)))
    velocity = state.pipeline_state.craft.vel.array[3]
    np.testing.assert_allclose(velocity, [0.5 * cfg.speed, -0.2 * cfg.speed, 0.1 * cfg.climb], atol=0.06)
    for _ in range(20):
        state = step(state, jnp.tile(jnp.array([0.0, 0.0, 0.0, 0.4]), (B, 1)))
    assert state.pipeline_state.craft.ang_vel.z[3] == pytest.approx(0.4 * cfg.yaw_rate, abs=0.1)


@pytest.mark.parametrize(
    ("cfg", "complaint"),
    [
        (ForestFlightCfg(camera="foo"), r"env\.camera='foo': expected one of tof, depth, none"),
        (ForestFlightCfg(forest=ForestCfg(obstacles=200)), r"env\.forest\.obstacles=200: at most \d+ fit into 60 m"),
        (ForestFlightCfg(forest=ForestCfg(obstacles=-1)), r"env\.forest\.obstacles=-1: expected"),
        (ForestFlightCfg(forest=ForestCfg(gap=0.1)), r"env\.forest\.gap=0\.1: expected at least"),
        (ForestFlightCfg(forest=ForestCfg(min_radius=0.5)), r"env\.forest\.min_radius=0\.5: is more than"),
        (ForestFlightCfg(forest=ForestCfg(width=1.0)), r"env\.forest\.width=1\.0: expected at least 2 m"),
        (ForestFlightCfg(image=ImageCfg(dropout=1.5)), r"env\.image\.dropout=1\.5: expected a number in"),
        (ForestFlightCfg(image=ImageCfg(rate_hz=0)), r"env\.image\.rate_hz=0: expected a positive number"),
        (ForestFlightCfg(physics_freq=100), r"env\.physics_freq=100: expected a multiple"),
        (ForestFlightCfg(drone="kite"), r"env\.drone='kite': expected one of"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(cfg, complaint):
    with pytest.raises(SettingError, match=complaint) as error:
        ForestFlight(cfg)
    assert "\n" not in str(error.value)
    assert most_columns(HALL) > HALL.obstacles


# -- the teacher ---------------------------------------------------------------------------------------------------


def test_the_expert_reaches_the_goal_and_says_so_in_a_group_of_its_own(env):
    guided = AutoReset(GuidedForestFlight(replace(env.cfg, num_envs=32)))
    assert set(guided.obs_specs) == {"student", "teacher", "expert"}

    def fly(state):
        def step(loop, _):
            state, ended = loop
            after = guided.step(state, state.obs["expert"])
            first = after.done & ~ended
            return (after, ended | after.done), first * after.metrics["Episode_Success"]

        return jax.lax.scan(step, (state, state.done), None, length=guided.max_episode_length)[1].sum()

    assert jax.jit(fly)(guided.reset(jax.random.key(3))) >= 29


def test_the_bundled_teacher_reaches_the_goal():
    from jdistill.evaluation.evaluate import evaluate
    from jdistill.export.policy_file import load_policy

    policy, state, header = load_policy(ROOT / "jdistill" / "teachers" / "crazyflie_forest.safetensors")
    assert header["numbers"]["default"]["success"] >= 0.9
    env = AutoReset(ForestFlight(ForestFlightCfg(num_envs=64, camera="none", sensor=SensorCfg())))
    assert evaluate(env, policy, state, ["teacher"], seed=5)["success"] >= 0.85
