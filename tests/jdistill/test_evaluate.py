"""Evaluation: the bundled teacher's promise, and the counting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from bridge.crazyflie import PointControl, PointControlCfg
from bridge.crazyflie.cfg import TargetCfg
from bridge.env import AutoReset
from jdistill import networks
from jdistill.evaluate import evaluate
from jdistill.networks import Policy
from jdistill.policy_file import load_policy
from tests.conftest import BUNDLED_TEACHER


def test_bundled_teacher_holds_a_point():
    policy, learnt, _ = load_policy(BUNDLED_TEACHER)
    env = AutoReset(PointControl(PointControlCfg(num_envs=200, target=TargetCfg(kind="fixed"))))
    numbers = evaluate(env, policy, learnt, ["teacher"], seed=5)
    assert numbers["survival"] >= 0.99
    assert numbers["steady"]["position_error"] <= 0.05
    assert numbers["length"] > 990 and numbers["return"] > 1000


def test_a_policy_that_falls_is_counted_as_such():
    env = AutoReset(PointControl(PointControlCfg(num_envs=50, episode_length_s=3.0)))
    policy = Policy(4, ())
    learnt = networks.init(policy, jax.random.key(0), 22, normalize=False)
    off = jax.tree.map(jnp.zeros_like, learnt.params)
    off["mlp_0"]["dense"]["bias"] = jnp.full(4, -1.0)
    numbers = evaluate(env, policy, learnt.replace(params=off), ["student"], settle_s=0.0)
    assert numbers["survival"] == 0.0 and numbers["episodes"] == 50
    assert sum(numbers["terminations"].values()) >= 50, "free fall breaks the speed limit"
    assert 20 < numbers["length"] < 100
    assert numbers["return"] < 0
    assert numbers["action_change"] == pytest.approx(0.0)
