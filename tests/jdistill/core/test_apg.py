"""Analytic policy gradients: what a generalist becomes for one craft, and that the updates teach."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from bridge.crazyflie import PointControlCfg
from bridge.crazyflie.teaching import PointControlLesson
from bridge.quadrotor_distribution import WIDE
from bridge.quadrotors import to_csv
from jdistill.core import apg, networks
from jdistill.core.apg import ApgCfg, Learner
from jdistill.core.networks import Policy
from jdistill.export.policy_file import load_policy
from tests.conftest import BUNDLED_TEACHER
from tests.lessons import PointMasses

GENERALIST = BUNDLED_TEACHER.with_name("quadrotors.safetensors")


@pytest.fixture(scope="module")
def lesson(tmp_path_factory) -> PointControlLesson:
    """Three craft, one physics step a command."""
    file = tmp_path_factory.mktemp("lesson") / "quads.csv"
    file.write_text(to_csv(WIDE.sample(3, 1)))
    return PointControlLesson(PointControlCfg(num_envs=8, quadrotors=str(file), physics_freq=100), 0.01)


def craft(lesson, i):
    return lesson.of_craft(jax.tree.map(lambda x: x[i], lesson.parameters))


def test_a_specialist_is_the_generalist_that_knows_its_craft(lesson):
    policy, generalist, _ = load_policy(GENERALIST)
    obs = jax.random.normal(jax.random.key(0), (5, 26))
    mean, scale = generalist.normalizer.mean[26:], generalist.normalizer.scale[26:]
    for facts in (mean + 0.5 * scale, mean - 9.0 * scale):
        specialist = apg.specialize(generalist, facts)
        assert apg.num_inputs(specialist) == 26
        known = jnp.maximum(facts, mean - 3**0.5 * scale)  # No further than it has ever seen.
        told = jnp.concatenate([obs, jnp.broadcast_to(known, (5, 4))], axis=-1)
        wanted = networks.act(policy, generalist, (), told)[1]
        np.testing.assert_allclose(networks.act(policy, specialist, (), obs)[1], wanted, atol=1e-5)


def test_a_craft_of_the_lesson_rests_by_the_action_that_it_names(lesson):
    one = craft(lesson, 1)
    obs, action = one.at_rest(jax.random.key(0))
    np.testing.assert_allclose(obs[:, 18:22], 0.5 * (action + 1), atol=1e-6)
    np.testing.assert_allclose(obs[:, 22:26], 0.5 * (action + 1), atol=1e-6)
    np.testing.assert_allclose(obs[:, :6], 0.0, atol=1e-6)
    assert abs(float(one.facts()[0]) - WIDE.draw(1, 1).hover) < 1e-5


def taught(cfg: ApgCfg) -> tuple[Learner, Learner, dict]:
    """A teacher of a point mass before and after its updates, and the metrics of each."""
    lesson = PointMasses([2.0], num_envs=16).of_craft(jnp.asarray(2.0))
    policy = Policy(num_actions=1, hidden_dims=(16,), output_activation="tanh")
    begin = apg.init(lesson, cfg, apg.fresh_policy(lesson, policy, jax.random.key(0)), jax.random.key(1))

    def update(learner: Learner, i: Array) -> tuple[Learner, dict]:
        return apg.update(lesson, policy, cfg, learner, i < cfg.normalizer_updates)

    after, metrics = jax.jit(lambda learner: jax.lax.scan(update, learner, jnp.arange(cfg.updates)))(begin)
    return begin, after, jax.device_get(metrics)


def test_updates_lower_the_cost():
    begin, after, metrics = taught(ApgCfg(updates=200, horizon=30, learning_rate=0.02, normalizer_updates=20))
    assert metrics["cost"][-20:].mean() < 0.5 * metrics["cost"][:20].mean()
    assert after.policy.normalizer.count == 20 * 30 * 16 and begin.policy.normalizer.count == 0


def test_a_gradient_that_is_not_finite_changes_nothing():
    begin, after, metrics = taught(ApgCfg(updates=2, horizon=3, action_error=float("nan"), normalizer_updates=0))
    assert not np.isfinite(metrics["cost"]).any()
    for a, b in zip(jax.tree.leaves(after.policy), jax.tree.leaves(begin.policy), strict=True):
        np.testing.assert_array_equal(a, b)
