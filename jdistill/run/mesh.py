"""The devices of a run: the learner's programs on all of them at once, and where the training state lies.

What belongs to environments is divided along the mesh's one axis, everything else is the same on every device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jdistill.core.distillation import Distillation, TrainState
from jdistill.core.history import History
from jdistill.core.rollout import Transition
from jdistill.core.sharding import AXIS, Shards

SAME: Any = PartitionSpec()
"""The same on every device."""
BY_ENV: Any = PartitionSpec(AXIS)
"""Divided along the first axis, which is that of the environments."""
BY_TIME_AND_ENV: Any = PartitionSpec(None, AXIS)
"""Divided along the second axis."""


class EnvMesh:
    """One axis of devices, along which the environments, or whatever ``axis`` names, are divided equally."""

    def __init__(self, devices: Sequence[jax.Device] | None = None, axis: str = AXIS):
        """``devices`` are those of all processes; None takes the first one of this process."""
        self.devices = list(devices or jax.local_devices()[:1])
        self.shards = Shards(len(self.devices), axis)
        self.mesh = Mesh(np.array(self.devices), (axis,))

    def program(self, function: Callable[..., Any], ins: Any, outs: Any, donate: tuple[int, ...] = ()) -> Any:
        """``function`` compiled to run on every device with its part; ``ins`` and ``outs`` say how all is divided.

        On a single device it is what ``jax.jit`` makes of it.
        """
        if self.shards.count > 1:
            # Replicated results are so by our own reductions; JAX's check would add some of its own to the gradients.
            function = jax.shard_map(function, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)
        return jax.jit(function, donate_argnums=donate)

    def put(self, tree: Any, spec: Any) -> Any:
        """Arrays, each whole in every process, divided among the devices as ``spec`` (a prefix of ``tree``) says."""
        if self.shards.count == 1:
            return jax.tree.map(lambda x: jax.device_put(x, self.devices[0]), tree)
        specs = jax.tree.broadcast(spec, tree, is_leaf=_is_spec)
        return jax.tree.map(lambda x, spec: self._divide(x, NamedSharding(self.mesh, spec)), tree, specs)

    def own(self, tree: Any, spec: Any) -> Any:
        """The part of arrays that this process's devices hold, by itself; ``spec`` as for :meth:`put`."""
        if jax.process_count() == 1:
            return tree
        specs = jax.tree.broadcast(spec, tree, is_leaf=_is_spec)
        return multihost_utils.global_array_to_host_local_array(tree, self.mesh, specs)

    def _divide(self, x: Any, sharding: NamedSharding) -> Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._divide(jax.random.key_data(x), sharding))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


class Programs:
    """What a run computes, on its devices. ``alg`` is the algorithm on one device's environments."""

    def __init__(self, alg: Distillation, mesh: EnvMesh, teacher: Any, seed: int):
        self.alg = alg
        self.mesh = mesh
        self.seed = seed
        alone = Distillation(alg.env, alg.student, alg.cfg, dataclasses.replace(mesh.shards, axis=None))
        self.part = jax.eval_shape(alone.init, jax.random.key(seed), teacher)
        """The shapes of one device's training state."""
        num_envs = alg.env.num_envs
        self._by_env = jax.tree.map(lambda x: x.shape[:1] == (num_envs,), self.part.env_state)
        self.specs = self._specs()

    def _specs(self) -> TrainState:
        """How the training state is divided. What a simulator keeps for all of its environments together lies there
        for each device, along an axis that is added to it."""
        part = self.part
        return part.replace(
            iteration=SAME,
            student=SAME,
            opt_state=SAME,
            student_carry=BY_ENV,
            teacher_carry=BY_ENV,
            env_state=BY_ENV,
            episodes=SAME,
            rng=SAME,
            history=part.history and history_specs(part.history.counts is not None),
            phase1_end=SAME,
            teacher_acts=BY_ENV,
            ema_params=SAME,
        )

    def whole(self) -> TrainState:
        """The shapes of the whole training state, all devices' together."""
        part, count = self.part.replace(env_state=self._packed(self.part.env_state)), self.mesh.shards.count

        def grown(x: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
            shape = tuple(
                n * count if axis == AXIS else n for n, axis in zip(x.shape, (*spec, *[None] * x.ndim), strict=False)
            )
            return jax.ShapeDtypeStruct(shape, x.dtype)

        specs = jax.tree.broadcast(self.specs, part, is_leaf=_is_spec)
        return jax.tree.map(grown, part, specs)

    def init(self) -> Any:
        """``(rng, teacher) -> state``, see :meth:`.Distillation.init`."""
        return self.mesh.program(lambda *args: self._pack(self.alg.init(*args)), SAME, self.specs)

    def specs_of(self, state: TrainState) -> TrainState:
        """How a ``state`` is divided in which some fields may be None."""
        return self.specs.replace(**{name: SAME for name, value in vars(state).items() if value is None})

    def restart_episodes(self, specs: TrainState) -> Any:
        """``(state, teacher) -> state``, see :meth:`.Distillation.restart_episodes`; ``specs`` are the state's."""

        def restart(state: TrainState, teacher: Any) -> TrainState:
            return self._pack(self.alg.restart_episodes(state, teacher))

        return self.mesh.program(restart, (specs, SAME), self.specs)

    def iteration(self, keeps_rollout: bool) -> Any:
        """``(state, teacher) -> (state, metrics[, rollout])``, see :meth:`.Distillation.iteration`."""
        outs = (self.specs, SAME, self.rollout_specs())[: 3 if keeps_rollout else 2]

        def iteration(state: TrainState, teacher: Any) -> Any:
            state, *others = self.alg.iteration(self._unpack(state), teacher)
            return (self._pack(state), *others)[: len(outs)]

        return self.mesh.program(iteration, (self.specs, SAME), outs, donate=(0,))

    def offline_iteration(self) -> Any:
        """``(state, history) -> (state, metrics)``, see :meth:`.Distillation.offline_iteration`."""

        def iteration(state: TrainState, history: History) -> Any:
            state, metrics = self.alg.offline_iteration(self._unpack(state), history)
            return self._pack(state), metrics

        return self.mesh.program(iteration, (self.specs, history_specs()), (self.specs, SAME), donate=(0,))

    def rollout_specs(self) -> Transition:
        """How a rollout is divided."""
        specs = Transition(*[BY_TIME_AND_ENV] * len(Transition._fields))
        return specs if self.alg.collector.both_act else specs._replace(teacher_acts=SAME)

    def _pack(self, state: TrainState) -> TrainState:
        return state.replace(env_state=self._packed(state.env_state))

    def _packed(self, env_state: Any) -> Any:
        if self.mesh.shards.count == 1:
            return env_state
        return jax.tree.map(lambda own, x: x if own else _stacked(x), self._by_env, env_state)

    def _unpack(self, state: TrainState) -> TrainState:
        if self.mesh.shards.count == 1:
            return state
        return state.replace(env_state=jax.tree.map(lambda own, x: x if own else x[0], self._by_env, state.env_state))


def history_specs(leaves_out: bool = False) -> History:
    """How a history is divided: by its columns. ``leaves_out`` tells whether it says which steps count."""
    return History(
        obs=BY_TIME_AND_ENV,
        teacher_action=BY_TIME_AND_ENV,
        is_first=BY_TIME_AND_ENV,
        carry=BY_TIME_AND_ENV,
        origin=SAME,
        length=BY_ENV,
        counts=BY_TIME_AND_ENV if leaves_out else None,
    )


def _stacked(x: Any) -> Any:
    return jax.ShapeDtypeStruct((1, *x.shape), x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x[None]


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
