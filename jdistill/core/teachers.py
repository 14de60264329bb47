"""Many teachers as one: parameters and normalizers stacked, and of every environment the id of its teacher.

All teachers are of one network. To give each environment its own parameters would be to read and write all of them
again in every step, which takes many times as long as the products they are for. So the observations are sorted
instead:

- Where the teachers step the environments, every teacher gets its environments' observations as rows of one batched
  product with all teachers' parameters as they lie (:meth:`TeacherBank.act`).
- Where they only say what they would have done, the whole rollout is sorted by teacher, and taken in blocks of one
  teacher's rows each (:meth:`TeacherBank.follow`).

Both cost about what one teacher does for as many observations; ``python -m benchmarks.teachers`` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge.env import where_done
from jdistill.core import networks, observations
from jdistill.core.actor import PolicyActor, follow_step_by_step
from jdistill.core.networks import Policy, PolicyState

BLOCK_ROWS = 1024
"""Rows of one teacher that :meth:`TeacherBank.follow` takes at once, at most."""
LANES = 8
"""Last layers get so many outputs, or a multiple: a CPU takes three times as long for batched products of four."""


class TeacherBank(struct.PyTreeNode):
    """An :class:`jdistill.core.actor.Actor` that is ``N`` teachers, chosen by what the environments say."""

    policy: Policy = struct.field(pytree_node=False)
    """The network of them all, its last layer widened to a multiple of :data:`LANES`."""
    num_actions: int = struct.field(pytree_node=False)
    """A; what its actions have beyond is zero parameters' and thrown away."""
    state: PolicyState
    """Their parameters and normalizers, each leaf (N, ...)."""
    ids: Array
    """(N,) int32, the teachers' ids, ascending."""
    obs_groups: tuple[str, ...] = struct.field(pytree_node=False)
    """What makes up their observation, see :mod:`jdistill.core.observations`."""
    id_group: str = struct.field(pytree_node=False, default="teacher_id")
    """The observation group, a part of one, or the entry of ``State.info`` that says which teacher an environment has.
    It may change where an episode begins. An id that no teacher has is answered with NaN."""
    clip_actions: float | None = struct.field(pytree_node=False, default=None)
    """Actions are clipped to [-clip_actions, clip_actions]; None leaves them as they are."""

    @staticmethod
    def of(policy: Policy, state: PolicyState, ids: Any, obs_groups: Sequence[str], **fields: Any) -> TeacherBank:
        """The bank of teachers of one network, each leaf of ``state`` (N, ...), with ``ids`` (N,), ascending.

        ``fields`` are the bank's others.
        """
        is_beta = policy.output_activation == "beta"  # Its outputs are two an action.
        width = policy.num_actions if is_beta else -(-policy.num_actions // LANES) * LANES
        last = f"mlp_{len(policy.hidden_dims)}"

        def widened(x: Array) -> Array:
            return jnp.pad(jnp.asarray(x), [(0, 0)] * (x.ndim - 1) + [(0, width - policy.num_actions)])

        params = {**state.params, last: jax.tree.map(widened, state.params[last])}
        return TeacherBank(
            policy=policy.clone(num_actions=width),
            num_actions=policy.num_actions,
            state=state.replace(params=params),
            ids=jnp.asarray(ids, jnp.int32),
            obs_groups=tuple(obs_groups),
            **fields,
        )

    @property
    def groups(self) -> list[str]:
        """What is read of observations and ``info`` to know the teachers."""
        return observations.group_names([self.id_group])

    def teacher(self, index: int) -> PolicyActor:
        """The teacher of ``ids[index]`` alone."""
        state, last = jax.tree.map(lambda x: x[index], self.state), f"mlp_{len(self.policy.hidden_dims)}"
        policy = self.policy.clone(num_actions=self.num_actions)
        params = {**state.params, last: jax.tree.map(lambda x: x[..., : policy.num_outputs], state.params[last])}
        return PolicyActor(policy, state.replace(params=params), self.obs_groups, self.clip_actions)

    def initial_carry(self, batch: int) -> Any:
        """See :class:`jdistill.core.actor.Actor`; the same for all teachers."""
        return networks.initial_carry(self.policy, jax.tree.map(lambda x: x[0], self.state), batch)

    def act(self, carry: Any, obs: Mapping[str, Array]) -> tuple[Any, Array]:
        """See :class:`jdistill.core.actor.Actor`; ``obs`` also holds what says the ids.

        Every teacher takes as many environments as there would be of each, were they divided evenly; while a teacher
        has more of them, there is another round for all.
        """
        selected = observations.select(obs, self.obs_groups)
        index, known = self._index(obs, selected)
        rows, number = index.shape[0], self.ids.shape[0]
        said = self._one_row_each if number > rows else self._in_rounds
        carry, action = said(index, carry, selected)
        return carry, self._checked(action, known)

    def follow(self, carry: Any, obs: Mapping[str, Array], is_first: Array) -> tuple[Any, Array]:
        """See :func:`jdistill.core.actor.follow`."""
        if self.policy.is_recurrent:
            return follow_step_by_step(self, carry, obs, is_first)[:2]
        selected = observations.select(obs, self.obs_groups)
        index, known = self._index(obs, selected)
        action = self._in_blocks(index.reshape(-1), observations.flat(selected))
        return carry, self._checked(action.reshape(*is_first.shape, -1), known)

    def _index(self, obs: Mapping[str, Array], selected: Any) -> tuple[Array, Array]:
        """Which of the teachers each observation (..., D) is for, (...) int32, and whether there is one."""
        ids = observations.teacher_ids(obs, self.id_group, observations.vector_of(selected).ndim - 1)
        index = jnp.minimum(jnp.searchsorted(self.ids, ids, method="scan_unrolled"), self.ids.shape[0] - 1)
        return index, self.ids[index] == ids

    def _checked(self, action: Array, known: Array) -> Array:
        action, clip = action[..., : self.num_actions], self.clip_actions
        action = action if clip is None else jnp.clip(action, -clip, clip)
        checked: Array = jnp.where(known[..., None], action, jnp.nan)
        return checked

    def _one_row_each(self, index: Array, carry: Any, obs: Any) -> tuple[Any, Array]:
        """Copies of the parameters for every row (B, D): for fewer rows than teachers."""
        states = jax.tree.map(lambda x: x[index], self.state)
        single: Any = jax.tree.map(lambda x: x[:, None], (carry, obs))
        said: tuple[Any, Array] = jax.tree.map(lambda x: x[:, 0], self._act_all(states, *single))
        return said

    def _in_rounds(self, index: Array, carry: Any, obs: Any) -> tuple[Any, Array]:
        """The parameters as they lie, and each teacher's next rows (B, D), round by round."""
        rows, number = index.shape[0], self.ids.shape[0]
        width = -(-rows // number)
        groups = Groups.of(index, number)
        rank = groups.rank(index)

        def one_round(loop: Any) -> Any:
            count, said = loop
            place = groups.start[:, None] + count * width + jnp.arange(width)
            taken = groups.order[jnp.minimum(place, rows - 1)]  # What is not the teacher's own is not read below.
            answers = self._act_all(self.state, *jax.tree.map(lambda x: x[taken], (carry, obs)))
            answers = jax.tree.map(lambda x: x[index, rank % width], answers)
            return count + 1, where_done(rank // width == count, answers, said)

        def is_left(loop: Any) -> Array:
            left: Array = loop[0] * width < groups.size.max()
            return left

        first = (carry, jnp.zeros((rows, self.policy.num_actions)))
        said: tuple[Any, Array] = jax.lax.while_loop(is_left, one_round, (0, first))[1]
        return said

    def _act_all(self, states: PolicyState, carry: Any, obs: Any) -> tuple[Any, Array]:
        """Every teacher on rows of its own: ``obs`` (N, rows, D) to actions (N, rows, A), and the carries likewise."""
        return jax.vmap(lambda *of_one: networks.act(self.policy, *of_one))(states, carry, obs)

    def _in_blocks(self, index: Array, obs: Any) -> Array:
        """Actions (M, A) for observations (M, D) of feed-forward teachers, block by block of rows of one teacher."""
        rows, number = index.shape[0], self.ids.shape[0]
        # Where every teacher has as many rows, its blocks are equally long and none holds rows of the next.
        evenly = -(-rows // number)
        length = -(-evenly // -(-evenly // BLOCK_ROWS))
        groups = Groups.of(index, number)
        order = jnp.concatenate([groups.order, jnp.zeros(length, groups.order.dtype)])
        blocks = -(-groups.size // length)
        ends = jnp.cumsum(blocks)

        def one_block(block: Array, out: Array) -> Array:
            who = jnp.searchsorted(ends, block, side="right")
            place = groups.start[who] + (block - ends[who] + blocks[who]) * length
            taken = jax.lax.dynamic_slice_in_dim(order, place, length)
            state = jax.tree.map(lambda x: x[who], self.state)
            action = networks.act(self.policy, state, (), jax.tree.map(lambda x: x[taken], obs))[1]
            # What lies beyond the teacher's own rows is the next block's to write.
            return jax.lax.dynamic_update_slice_in_dim(out, action, place, axis=0)

        said = jnp.zeros((rows + length, self.policy.num_actions))
        said = jax.lax.fori_loop(0, ends[-1], one_block, said)
        return jnp.zeros_like(said[:rows]).at[groups.order].set(said[:rows], unique_indices=True)


class Groups(NamedTuple):
    """Rows (M) in the order of their teachers (N)."""

    order: Array
    """(M,) int32, the rows of teacher 0, then those of teacher 1, and so on, each in their own order."""
    start: Array
    """(N,) int32, where each teacher's begin in ``order``."""
    size: Array
    """(N,) int32, how many rows each has."""

    @staticmethod
    def of(index: Array, number: int) -> Groups:
        """The groups of rows whose teachers are ``index`` (M,), of ``number`` teachers."""
        size = jnp.zeros(number, jnp.int32).at[index].add(1)
        return Groups(jnp.argsort(index).astype(jnp.int32), jnp.cumsum(size) - size, size)

    def rank(self, index: Array) -> Array:
        """(M,) int32: how many rows of its own teacher precede each row, whose teachers are ``index``."""
        rows = jnp.arange(index.shape[0], dtype=jnp.int32)
        place = jnp.zeros_like(rows).at[self.order].set(rows, unique_indices=True)
        return place - self.start[index]
