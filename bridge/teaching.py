"""What a differentiable task says of itself so that teachers can be trained on it; see :mod:`jdistill.core.apg`."""

from __future__ import annotations

from typing import Any, Protocol

from jax import Array

from bridge.env import ObservationSpec, State


class Lesson(Protocol):
    """A task made for teaching: a batch of environments (B) of one craft, all of it differentiable JAX.

    Where there are several craft, ``parameters`` has their numbers along a first axis (N) of every leaf, and
    ``of_craft`` takes those of one.
    """

    num_envs: int
    """B."""
    num_actions: int
    """A."""
    group: str
    """The observation group of the teacher."""
    unsure: slice
    """Columns of that group which the student lacks, so that the teacher should not lean on them."""
    parameters: Any
    """A pytree, the leading axis of every leaf is N."""

    @property
    def obs_spec(self) -> ObservationSpec:
        """Of the group."""
        ...

    def of_craft(self, parameters: Any) -> Lesson:
        """The lesson of one craft; ``parameters`` are its own, without the axis N."""
        ...

    def reset(self, rng: Array) -> State:
        """Start all environments; ``rng`` is one key."""
        ...

    def step(self, state: State, action: Array) -> State:
        """Advance by one control step, ``action`` (B, A) in [-1, 1]."""
        ...

    def cost(self, before: State, after: State) -> Array:
        """What the step from ``before`` to ``after`` costs (B,); smooth everywhere, for the gradient."""
        ...

    def refresh(self, state: State, rng: Array) -> State:
        """Restart some of the environments, and all that are lost."""
        ...

    def at_rest(self, rng: Array) -> tuple[Array, Array]:
        """Observations (B, D) of craft that rest where they should, and the actions (B, A) that keep them there."""
        ...

    def first_action(self) -> Array:
        """() what an untrained policy best begins with, in [-1, 1]."""
        ...

    def facts(self) -> Array:
        """(F,) what a generalist, a policy for all craft, observes of this one behind the group."""
        ...
