"""A policy with its parameters, ready to act on an environment's observation groups.

That is what a teacher is, what an evaluation rolls out, and what a film shows. Actors are pytrees: a compiled program
takes one as an argument and serves every actor of the same structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.env import where_done
from jdistill.core import networks, observations
from jdistill.core.networks import Policy, PolicyState


@runtime_checkable
class Actor(Protocol):
    """Chooses actions for a batch of environments; a pytree."""

    def initial_carry(self, batch: int) -> Any:
        """Recurrent state of ``batch`` environments whose episodes begin, a pytree of (batch, ...); ``()`` if none."""
        ...

    def act(self, carry: Any, obs: Mapping[str, Array]) -> tuple[Any, Array]:
        """Carry and observation groups, each (B, ...), to the next carry and actions (B, A)."""
        ...


@runtime_checkable
class Follower(Actor, Protocol):
    """An actor that takes the steps of a whole rollout at once."""

    def follow(self, carry: Any, obs: Mapping[str, Array], is_first: Array) -> tuple[Any, Array]:
        """See :func:`follow` of this module."""
        ...


class PolicyActor(struct.PyTreeNode):
    """The deterministic actor of a :class:`jdistill.core.networks.Policy`."""

    policy: Policy = struct.field(pytree_node=False)
    """The network."""
    state: PolicyState
    """Its parameters and normalizer."""
    obs_groups: tuple[str, ...] = struct.field(pytree_node=False)
    """What makes up its observation, see :mod:`jdistill.core.observations`."""
    clip_actions: float | None = struct.field(pytree_node=False, default=None)
    """Actions are clipped to [-clip_actions, clip_actions]; None leaves them as they are."""

    def initial_carry(self, batch: int) -> Any:
        """See :class:`Actor`."""
        return networks.initial_carry(self.policy, self.state, batch)

    def act(self, carry: Any, obs: Mapping[str, Array]) -> tuple[Any, Array]:
        """See :class:`Actor`."""
        selected = observations.select(obs, self.obs_groups)
        carry, action = networks.act(self.policy, self.state, carry, selected)
        return carry, action if self.clip_actions is None else jnp.clip(action, -self.clip_actions, self.clip_actions)

    def follow(self, carry: Any, obs: Mapping[str, Array], is_first: Array) -> tuple[Any, Array]:
        """See :func:`follow` of this module."""
        selected = observations.select(obs, self.obs_groups)
        carry, actions = networks.follow(self.policy, self.state, carry, selected, is_first)
        clip = self.clip_actions
        return carry, actions if clip is None else jnp.clip(actions, -clip, clip)

    @property
    def num_parameters(self) -> int:
        """Trainable numbers."""
        return networks.num_parameters(self.state)


def follow(actor: Actor, carry: Any, obs: Mapping[str, Array], is_first: Array) -> tuple[Any, Array]:
    """What ``actor`` does along observations that come from elsewhere.

    Args:
        actor: whoever; a :class:`Follower` takes the steps at once.
        carry: its recurrent state before the first step.
        obs: observation groups, each (T, B, ...).
        is_first: (T, B) bool, whether an episode begins with the step.

    Returns:
        The carry after the last step, and the actions (T, B, A).
    """
    if isinstance(actor, Follower):
        return actor.follow(carry, obs, is_first)
    carry, actions, _ = follow_step_by_step(actor, carry, obs, is_first)
    return carry, actions


def follow_step_by_step(actor: Actor, carry: Any, obs: Mapping[str, Array], is_first: Array) -> tuple[Any, Array, Any]:
    """The same as :func:`follow`, and the carry before every step, each leaf (T, B, ...)."""
    initial = actor.initial_carry(is_first.shape[1])

    def step(carry: Any, inputs: Any) -> Any:
        now, new = inputs
        before = where_done(new, initial, carry)
        carry, action = actor.act(before, now)
        return carry, (action, before)

    carry, (actions, carries) = jax.lax.scan(step, carry, (dict(obs), is_first))
    return carry, actions, carries
