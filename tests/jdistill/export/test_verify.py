"""The comparison of an exported policy with the original, on policies that differ where it is easily missed."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.export import verify
from jdistill.export.layers import describe

pytestmark = pytest.mark.full

MLP = Policy(4, (8,), activation="relu")


@pytest.fixture(scope="module")
def env():
    """Episodes of five steps."""
    return AutoReset(PointControl(PointControlCfg(num_envs=1, episode_length_s=0.05)))


@pytest.fixture(scope="module")
def original():
    state = networks.init(MLP, jax.random.key(0), 22, False)
    return verify.jax_policy(MLP, state)


def changed(start, at: int, change):
    """The policy ``start`` with ``change`` to the action of step ``at``, counted over all episodes."""
    steps = [0]

    def begin():
        act = start()

        def changed_act(obs):
            action = act(obs)
            steps[0] += 1
            return change(action) if steps[0] == at else action

        return changed_act

    return begin


def compared(how: str, env, original, exported) -> float:
    if how == "rollout":
        return verify.difference(next(verify.flights(env, ["student"], original)), exported)
    layers = describe(MLP, networks.init(MLP, jax.random.key(0), 22, True))
    return verify.difference(next(verify.draws(layers, original)), exported)


@pytest.mark.parametrize(("how", "at"), [("rollout", 50), ("drawn", 1), ("drawn", 50), ("drawn", 100)])
def test_one_nan_at_any_step_is_no_agreement(env, original, how, at):
    """Python's max would lose it: max(0.0, nan) is 0.0."""

    def with_nan(action):
        return np.where(np.arange(4) == 2, np.nan, action)

    difference = compared(how, env, original, changed(original, at, with_nan))
    assert np.isnan(difference) and not difference <= verify.TOLERANCE


@pytest.mark.parametrize("how", ["rollout", "drawn"])
def test_the_largest_difference_of_all_steps_counts(env, original, how):
    assert compared(how, env, original, original) == 0.0
    exported = changed(original, 73, lambda action: action + np.array([0.0, 0.0, -0.25, 0.125], np.float32))
    assert compared(how, env, original, exported) == pytest.approx(0.25)
    # Would be broadcast without a word.
    assert compared(how, env, original, changed(original, 5, lambda action: action[0])) == np.inf


def test_both_policies_begin_anew_where_an_episode_ends(env, original):
    """A policy that crashes ends its episode long before 100 steps; the comparison covers the rest all the same."""
    calls = []

    def counted():
        calls.append(0)
        act = original()

        def counted_act(obs):
            calls[-1] += 1
            return act(obs)

        return counted_act

    assert verify.difference(next(verify.flights(env, ["student"], original)), counted) == 0.0
    assert sum(calls) == 100 and calls == [5] * 20
