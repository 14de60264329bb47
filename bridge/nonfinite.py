"""Environments that go on when one of them breaks: simulators give NaN or infinity now and then, one in thousands."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.errors import SettingError

if TYPE_CHECKING:
    from bridge.env import TrainingEnv


def finite_envs(tree: Any) -> Array:
    """(B,) bool, whether all numbers of an environment are finite, of leaves (B, ...).

    So must their squares be, which variances and losses are made of: a simulator that explodes passes through 1e30.
    """
    leaves = [jnp.isfinite(jnp.square(x)).reshape(x.shape[0], -1).all(axis=1) for x in jax.tree.leaves(tree)]
    return functools.reduce(operator.and_, leaves)


def restarting(env: TrainingEnv) -> TrainingEnv:
    """``env``, but an environment whose observations or reward are not finite, or have no finite
    squares, is restarted.

    Such a step is one with ``done`` whose reward and metrics are 0; ``info["nonfinite"]`` (B,) bool tells it from
    others. What is observed is always finite: the new episode's, or 0 where a simulator restarts one step later.

    Raises:
        SettingError: the environment restarts its episodes itself, and cannot be told to.
    """
    if not hasattr(env, "restarting_nonfinite"):
        raise SettingError(
            f"agent.on_nonfinite=mask: {type(env).__name__} restarts its own episodes, so a broken one cannot be "
            "restarted; it needs a method restarting_nonfinite() (bridge.nonfinite says what it returns), or to be an "
            "Env that leaves restarts to AutoReset"
        )
    changed: TrainingEnv = env.restarting_nonfinite()
    return changed
