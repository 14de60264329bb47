"""RAPTOR as one of our policies: its own NumPy answers, and the frame that it observes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundation_policy import Raptor
from scipy.spatial.transform import Rotation

from bridge.crazyflie import PointControl, PointControlCfg
from jdistill.core import networks
from jdistill.core.actor import Actor
from jdistill.errors import ConfigError
from jdistill.export import raptor

rng = np.random.default_rng(0)


def test_the_network_is_the_packages_own():
    policy, state = raptor.load()
    assert networks.num_parameters(state) == 2084
    theirs = Raptor()
    theirs.reset()
    carry = networks.initial_carry(policy, state, 5)
    for _ in range(40):
        obs = rng.normal(size=(5, 22)).astype(np.float32)
        carry, action = networks.act(policy, state, carry, jnp.asarray(obs))
        np.testing.assert_allclose(action, theirs.evaluate_step(obs), atol=2e-5)


def observation(frame: str, position, velocity, rotation: Rotation, rates, command) -> jax.Array:
    """Point control's observation, put together by hand."""
    if frame == "body":
        position, velocity = rotation.inv().apply(position), rotation.inv().apply(velocity)
    parts = [position, velocity, rotation.as_matrix().reshape(-1, 9), rates, command]
    return jnp.asarray(np.concatenate(parts, axis=1), jnp.float32)


@pytest.fixture(scope="module")
def seen():
    """Position and velocity errors, attitude (heading 0), rates and motor commands of eight craft."""
    attitude = Rotation.from_euler("ZYX", np.c_[np.zeros(8), rng.uniform(-0.5, 0.5, (8, 2))])
    return rng.normal(size=(8, 3)), rng.normal(size=(8, 3)), attitude, rng.normal(size=(8, 3)), rng.uniform(size=(8, 4))


@pytest.mark.parametrize("frame", ["body", "world"])
def test_the_world_is_turned_by_the_first_heading(seen, frame):
    """What RAPTOR sees first does not depend on the heading, and it is laid out as the package says."""
    position, velocity, attitude, rates, command = seen
    expected = np.concatenate([position, attitude.as_matrix().reshape(-1, 9), velocity, rates, 2 * command - 1], axis=1)
    heading = Rotation.from_euler("Z", rng.uniform(-np.pi, np.pi, (8, 1)))
    turned = observation(frame, heading.apply(position), heading.apply(velocity), heading * attitude, rates, command)
    told = raptor.observe(turned, frame, raptor.turn_back(turned))
    np.testing.assert_allclose(told, expected, atol=1e-5)


def test_it_keeps_the_frame_of_its_first_step(seen):
    """A craft that yaws later is seen to have yawed."""
    position, velocity, attitude, rates, command = seen
    env = PointControl(PointControlCfg(num_envs=8, frame="world"))
    actor = raptor.make_actor(env, ["student"])
    assert isinstance(actor, Actor) and actor.num_parameters == 2084
    obs = {"student": observation("world", position, velocity, attitude, rates, command)}
    act = jax.jit(lambda actor, carry, obs: actor.act(carry, obs))
    carry, first = act(actor, actor.initial_carry(8), obs)
    later = Rotation.from_euler("Z", 1.0) * attitude
    _, second = act(actor, carry, {"student": observation("world", position, velocity, later, rates, command)})
    policy, state = raptor.load()
    theirs = networks.initial_carry(policy, state, 8)
    for rotation, action in ((attitude, first), (later, second)):
        parts = [position, rotation.as_matrix().reshape(-1, 9), velocity, rates, 2 * command - 1]
        theirs, expected = networks.act(policy, state, theirs, jnp.asarray(np.concatenate(parts, axis=1), jnp.float32))
        np.testing.assert_allclose(action, jnp.clip(expected, -1, 1), atol=1e-4)


def test_another_observation_is_told():
    env = PointControl(PointControlCfg(num_envs=1))
    for groups in (["teacher"], ["student", "teacher"], ["student[:20]"]):
        with pytest.raises(ConfigError, match="--raptor: needs point control with 100 commands a second and its whole"):
            raptor.make_actor(env, groups)
