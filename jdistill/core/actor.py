"""A policy with its parameters, ready to act on an environment's observation groups.

That is what a teacher is, what an evaluation rolls out, and what a film shows. Actors are pytrees: a compiled program
takes one as an argument and serves every actor of the same structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import struct
from jax import Array

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

    @property
    def num_parameters(self) -> int:
        """Trainable numbers."""
        return networks.num_parameters(self.state)
