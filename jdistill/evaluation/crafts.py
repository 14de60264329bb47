"""Flights of many craft at once, each in several environments, and what each craft's are worth.

An environment for this has ``tracking(state)``, see :meth:`bridge.crazyflie.task.PointControl.tracking`, and flies the
craft of a file in turn: environment i the one of row i modulo N.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from bridge.tasks import Task, make_env
from jdistill.core import networks, observations
from jdistill.core.actor import Actor
from jdistill.core.networks import Policy, PolicyState
from jdistill.core.observations import visible
from jdistill.errors import ConfigError
from jdistill.evaluation.evaluate import SEED
from jdistill.run.teaching import Judge, Numbers

SETTLE_S = 3.0
"""Seconds after which an episode has settled."""
STATISTICS = ("mean", "std", "median", "max", "p95")
EPISODES = 16
"""Of each craft, in each scenario in which its teacher is measured."""
SCENARIOS = ("default", "hover")
"""In all of them a teacher has to survive; the steady error is the last one's."""


class Flights(NamedTuple):
    """One episode in every environment (B), of at most T steps."""

    step_dt: float
    """Seconds of a step."""
    is_active: np.ndarray
    """(T, B) bool, whether the episode still runs."""
    survived: np.ndarray
    """(B,) bool, whether it reached its time limit."""
    position_error: np.ndarray
    """(T, B) m."""
    velocity_error: np.ndarray
    """(T, B) m/s."""
    course: dict[str, np.ndarray]
    """Of the first environment, (T, ...): what ``tracking`` says, and ``action``."""

    @property
    def settled(self) -> np.ndarray:
        """(T, B) bool, where an episode that still runs has settled."""
        late = np.arange(len(self.is_active)) >= round(SETTLE_S / self.step_dt)
        return self.is_active & late[:, None]

    def of(self, craft: int, number: int) -> Flights:
        """The flights of row ``craft`` of ``number``."""
        mine = slice(craft, None, number)
        return self._replace(
            is_active=self.is_active[:, mine],
            survived=self.survived[mine],
            position_error=self.position_error[:, mine],
            velocity_error=self.velocity_error[:, mine],
        )

    @staticmethod
    def joined(parts: Sequence[Flights]) -> Flights:
        """Flights of equally many environments side by side; the course is the first one's."""
        found = parts[0]
        for part in parts[1:]:
            found = found._replace(
                is_active=np.concatenate([found.is_active, part.is_active], axis=1),
                survived=np.concatenate([found.survived, part.survived]),
                position_error=np.concatenate([found.position_error, part.position_error], axis=1),
                velocity_error=np.concatenate([found.velocity_error, part.velocity_error], axis=1),
            )
        return found

    def numbers(self) -> dict[str, float]:
        """``survival``, and of the settled steps the statistics of both errors, ``position_mean`` for one; NaN of
        nothing."""
        settled = self.settled
        found = {"survival": float(self.survived.mean())}
        for name, values in (("position", self.position_error), ("velocity", self.velocity_error)):
            found |= {f"{name}_{k}": v for k, v in statistics(values[settled]).items()}
        return found


def statistics(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, median, greatest, 95th percentile; NaN of nothing."""
    if not values.size:
        return dict.fromkeys(STATISTICS, float("nan"))
    x = values.astype(np.float64)
    found = (x.mean(), x.std(), np.median(x), x.max(), np.percentile(x, 95))
    return dict(zip(STATISTICS, map(float, found), strict=True))


class CraftTeachers(struct.PyTreeNode):
    """An :class:`jdistill.core.actor.Actor` that is N teachers; environment i has that of row i modulo N."""

    policy: Policy = struct.field(pytree_node=False)
    """The network of them all."""
    state: PolicyState
    """Each leaf (N, ...)."""
    obs_groups: tuple[str, ...] = struct.field(pytree_node=False)
    """What makes up their observation."""

    def initial_carry(self, batch: int) -> Any:
        """See :class:`jdistill.core.actor.Actor`; they have no memory."""
        return ()

    def act(self, carry: Any, obs: Mapping[str, Array]) -> tuple[Any, Array]:
        """See :class:`jdistill.core.actor.Actor`."""
        selected = observations.select(obs, self.obs_groups)
        number = jax.tree.leaves(self.state)[0].shape[0]
        each = selected.reshape(-1, number, selected.shape[-1]).swapaxes(0, 1)
        actions = jax.vmap(lambda state, x: networks.act(self.policy, state, (), x)[1])(self.state, each)
        return carry, actions.swapaxes(0, 1).reshape(selected.shape[0], -1)


class Flyer:
    """Flies whole episodes; environments of one structure share a program."""

    def __init__(self) -> None:
        self._programs: dict[Any, Any] = {}

    def fly(self, env: Any, actor: Actor, seed: int) -> Flights:
        """One whole episode in every environment under ``actor``.

        Raises:
            ConfigError: the task follows no targets.
        """
        if not hasattr(getattr(env, "env", None), "tracking"):
            raise ConfigError(
                "the task says nothing of targets that its craft follow, so there are no errors to measure"
            )
        if env.structure not in self._programs:

            def program(actor: Actor, parameters: Any, rng: Array) -> Any:
                return _episode(env.with_parameters(parameters), actor, rng)

            self._programs[env.structure] = jax.jit(program)
        flown = self._programs[env.structure](actor, env.parameters, jax.random.key(seed))
        is_active, survived, tracked = jax.device_get(flown)
        return Flights(env.step_dt, is_active, survived.any(axis=0), **tracked)


def _episode(env: Any, actor: Actor, rng: Array) -> Any:
    def step(loop: Any, _: None) -> Any:
        state, carry, is_active = loop
        carry, action = actor.act(carry, visible(state))
        tracked = env.env.tracking(state)
        after = env.step(state, action)
        position = jnp.linalg.norm(tracked["position"] - tracked["target"], axis=-1)
        velocity = jnp.linalg.norm(tracked["velocity"] - tracked["target_velocity"], axis=-1)
        course = {name: x[0] for name, x in {**tracked, "action": action}.items()}
        out = {"position_error": position, "velocity_error": velocity, "course": course}
        survived = is_active & after.done & after.info["time_outs"]
        return (after, carry, is_active & ~after.done), (is_active, survived, out)

    batch = env.num_envs
    start = (env.reset(rng), actor.initial_carry(batch), jnp.ones(batch, bool))
    return jax.lax.scan(step, start, None, length=env.max_episode_length)[1]


def make_judge(task: Task, env: Any, number: int, group: str) -> Judge:
    """Measures the teachers of the ``number`` craft that ``env``, settings of ``task``, names.

    They observe ``group``.
    """

    def judge(policy: Policy, states: PolicyState) -> list[Numbers]:
        scenarios = task.scenarios(dataclasses.replace(env, num_envs=number * EPISODES))
        teachers = CraftTeachers(policy, states, (group,))
        cfgs = [scenarios[name].cfg for name in SCENARIOS if name in scenarios]
        flyer = Flyer()
        flown = [flyer.fly(make_env(task, cfg), teachers, SEED) for cfg in cfgs]
        return [_numbers([flights.of(i, number) for flights in flown]) for i in range(number)]

    return judge


def _numbers(flown: Sequence[Flights]) -> Numbers:
    told = [flights.numbers() for flights in flown]
    return {
        "survival": min(t["survival"] for t in told),
        "steady_error": told[-1]["position_mean"],
        "steady_error_p95": told[-1]["position_p95"],
        "steady_velocity_error": told[-1]["velocity_mean"],
    }
