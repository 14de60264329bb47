"""Whole episodes under one actor, in one compiled program, with the others asked what they would have done.

Every actor acts on every observation; one of them steps the environment. So each one's agreement with the reference is
known on the states that any of them visits, and one program serves for all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.env import EPISODE_METRIC_PREFIX, Parametric, State, TrainingEnv
from bridge.episodes import SUCCESS
from jdistill.core.actor import Actor
from jdistill.core.observations import visible
from jdistill.evaluation.metrics import find_main_metric
from jdistill.run.mesh import SAME, EnvMesh

METRIC, TERMINATION = "Metrics/", "Episode_Termination/"
TRACES = 3
"""Episodes whose course is kept."""
TRACE_POINTS = 500
"""Points of such a course, at most."""
FLIGHTS = "flight"
"""The axis along which flights are divided among the devices; their environments are not."""
BY_FLIGHT = jax.sharding.PartitionSpec(FLIGHTS)
"""Divided along the first axis, which is that of the flights."""


class EpisodeStatistics(NamedTuple):
    """One episode in every environment."""

    numbers: dict[str, Any]
    """``survival``, the share that reached the time limit; ``success``, the share that reached the goal, where the task
    has one; ``return`` and ``length`` (steps), means over episodes;
    ``action_change``, the mean absolute change of an action from step to step; ``agreement``, of each actor, see
    :func:`agreement`; ``metrics``, of each metric of the environment the ``mean`` and the 95th percentile ``p95`` over
    all steps and the mean ``steady`` over the settled ones; ``terminations``, how many episodes each limit ended. NaN
    where there is nothing to average."""
    settled: dict[str, np.ndarray]
    """Each metric's values at the settled steps of all episodes."""
    traces: list[dict[str, Any]]
    """The course of the first episodes: ``time`` (s), ``action`` and the reference's ``<name>_action``, ``main_metric``
    (where there is one) and what the environment shows; each a list, one entry a point."""


def step_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a State's ``metrics`` that speak of a single step, by name: ``Metrics/speed`` is ``speed``."""
    sums = ("episode_return", "episode_length")
    steps = {k: v for k, v in metrics.items() if not k.startswith(EPISODE_METRIC_PREFIX) and k not in sums}
    return {k.removeprefix(METRIC): v for k, v in steps.items()}


class Evaluator:
    """Rolls out whole episodes with each of ``actors``; programs are compiled once per structure of environment."""

    def __init__(
        self,
        actors: Mapping[str, Actor],
        reference: str | None = None,
        settle_s: float = 3.0,
        main_metric: str | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """``reference`` names the actor that the others are compared with; an episode has settled after ``settle_s``
        seconds; ``main_metric`` is the task's, see :mod:`jdistill.evaluation.metrics`; ``devices`` share the flights,
        None takes JAX's first."""
        self.actors = dict(actors)
        self.reference = reference
        self.settle_s = settle_s
        self.main_metric = main_metric
        self.devices = list(devices or jax.devices()[:1])
        self._programs: dict[Hashable, Any] = {}

    def rollout(self, env: TrainingEnv, name: str, seed: int) -> EpisodeStatistics:
        """One whole episode in every environment under the actor ``name``; the start states depend on ``seed`` and
        ``env`` alone.

        Raises:
            SimulatorError: the simulator failed.
        """
        return next(iter(self.rollouts([(env, name)], seed)))

    def rollouts(self, flights: Sequence[tuple[TrainingEnv, str]], seed: int) -> Iterator[EpisodeStatistics]:
        """The same for each of ``flights``, in their order and as soon as it is known.

        Flights of one structure share a program, and all devices fly them.
        """
        alike: dict[Hashable, list[tuple[TrainingEnv, str]]] = {}
        for flight in flights:
            alike.setdefault(_key(flight[0]), []).append(flight)
        found = {key: self._fly(those, seed) for key, those in alike.items()}
        for env, _ in flights:
            yield next(found[_key(env)])

    def _fly(self, flights: Sequence[tuple[TrainingEnv, str]], seed: int) -> Iterator[EpisodeStatistics]:
        """Flies ``flights`` of one structure, round by round.

        In a round every core of a CPU flies one, whose arrays fit its caches; any other device flies its share of all
        in one batch. A simulator that is called back is there once and knows no batches of batches, so its flights go
        one by one.
        """
        env = flights[0][0]
        can_share = isinstance(env, Parametric)
        mesh = EnvMesh(self.devices[: len(flights) if can_share else 1], FLIGHTS)
        share = -(-len(flights) // mesh.shards.count) if can_share and flies_batches(mesh.devices[0]) else 1
        at_once = mesh.shards.count * share
        actors, rng = mesh.put((list(self.actors.values()), jax.random.key(seed)), SAME)
        for first in range(0, len(flights), at_once):
            taken = list(flights[first : first + at_once])
            filled = taken + taken[-1:] * (at_once - len(taken))  # One program serves the last round too.
            parameters, acting = mesh.put(self._by_flight(filled), BY_FLIGHT)
            arguments = (actors, parameters, rng, acting)
            out = jax.device_get(env.drive(self._compiled(env, mesh, share, arguments), *arguments))
            for i, (world, _) in enumerate(taken):
                yield self._statistics(world, jax.tree.map(operator.itemgetter(i), out))

    def _by_flight(self, flights: Sequence[tuple[TrainingEnv, str]]) -> tuple[Any, np.ndarray]:
        """What tells ``flights`` (F) of one structure apart: the environments' parameters, and which actor acts."""
        parameters = [env.parameters if isinstance(env, Parametric) else () for env, _ in flights]
        stacked = jax.tree.map(lambda *values: np.stack([np.asarray(v) for v in values]), *parameters)
        names = list(self.actors)
        return stacked, np.array([names.index(name) for _, name in flights])

    def _compiled(self, env: TrainingEnv, mesh: EnvMesh, share: int, arguments: Sequence[Any]) -> Any:
        """The program that flies ``share`` flights on each device of ``mesh``."""
        key = (_key(env), mesh.shards.count, share)
        if key not in self._programs:
            flown = jax.vmap(self._program(env), in_axes=(None, 0, None, 0)) if share > 1 else self._single(env)
            program = mesh.program(flown, (SAME, BY_FLIGHT, SAME, BY_FLIGHT), BY_FLIGHT)
            # The environment is kept with its program, so that no other one gets its id.
            self._programs[key] = env, program.lower(*arguments).compile()
        return self._programs[key][1]

    def _single(self, env: TrainingEnv) -> Callable[..., Any]:
        """The program of one flight as a batch of one: a simulator that is called back knows no batches of batches."""
        program = self._program(env)

        def batch_of_one(actors: list[Actor], parameters: Any, rng: Array, acting: Array) -> Any:
            first = jax.tree.map(operator.itemgetter(0), parameters)
            return jax.tree.map(lambda x: x[None], program(actors, first, rng, acting[0]))

        return batch_of_one

    def _program(self, env: TrainingEnv) -> Callable[..., Any]:
        def program(actors: list[Actor], parameters: Any, rng: Array, acting: Array) -> Any:
            world = env.with_parameters(parameters) if isinstance(env, Parametric) else env

            def step(loop: Any, number: Array) -> Any:
                state, carries, before, is_active, sums = loop
                seen = visible(state)
                acted = [actor.act(carry, seen) for actor, carry in zip(actors, carries, strict=True)]
                actions = jnp.stack([action for _, action in acted])  # (P, B, A)
                action = actions[acting]
                after = world.step(state, action)
                change = jnp.where(number > 0, action - before, 0.0)  # The first action changes none.
                sums = jax.tree.map(jnp.add, sums, self._terms(after, actions, change, is_active))
                outputs = self._step_outputs(world, state, after, actions, action, is_active)
                return (after, [carry for carry, _ in acted], action, is_active & ~after.done, sums), outputs

            batch = env.num_envs
            state = world.reset(rng)
            carries = [actor.initial_carry(batch) for actor in actors]
            nothing, everyone = jnp.zeros((batch, env.num_actions)), jnp.ones(batch, bool)
            terms = self._terms(state, jnp.stack([nothing] * len(actors)), nothing, everyone)
            start = (state, carries, nothing, everyone, jax.tree.map(jnp.zeros_like, terms))
            end, outputs = jax.lax.scan(step, start, jnp.arange(env.max_episode_length))
            return {**outputs, **end[-1]}

        return program

    def _terms(self, after: State, actions: Array, change: Array, is_active: Array) -> dict[str, Any]:
        """What a step adds to the sums over each episode, (B, ...) and (P, B, A).

        Sums over the environments are for the end: a reduction in every step would take a third of a flight.
        """
        ended, mask = is_active & after.done, is_active[:, None]
        terms: dict[str, Any] = {
            "survived": ended & after.info["time_outs"],
            "reward": jnp.where(is_active, after.reward, 0.0),
            "change": jnp.where(mask, jnp.abs(change), 0.0),
            "terminations": {k: v * ended for k, v in after.metrics.items() if k.startswith(TERMINATION)},
        }
        if SUCCESS in after.metrics:
            terms["succeeded"] = after.metrics[SUCCESS] * ended
        if self.reference is not None:
            expert = actions[list(self.actors).index(self.reference)]
            terms["agreement"] = {
                "reference": jnp.where(mask, expert, 0.0),
                "reference_squared": jnp.where(mask, expert**2, 0.0),
                "error_squared": jnp.where(mask, (actions - expert) ** 2, 0.0),
            }
        return terms

    def _step_outputs(
        self, env: Any, state: State, after: State, actions: Array, action: Array, is_active: Array
    ) -> dict[str, Any]:
        """What is kept of one step: each environment's metrics, and the first episodes' course."""
        outputs = {
            "is_active": is_active,
            "ended": is_active & after.done,
            "metrics": step_metrics(after.metrics),
        }
        metrics = step_metrics(state.metrics)
        trace = {"is_active": is_active, "action": action}
        if (main := find_main_metric(self.main_metric, metrics)) is not None:
            trace["main_metric"] = metrics[main]
        if hasattr(env, "trace"):
            trace |= env.trace(state)
        if self.reference is not None:
            trace[f"{self.reference}_action"] = actions[list(self.actors).index(self.reference)]
        outputs["trace"] = {k: v[:TRACES] for k, v in trace.items()}
        return outputs

    def _statistics(self, env: TrainingEnv, out: dict[str, Any]) -> EpisodeStatistics:
        is_active = out["is_active"]
        going_on = is_active & ~out["ended"]
        settled = going_on.copy()
        settled[: round(self.settle_s / env.step_dt)] = False
        metrics, values = {}, {}
        for name, value in out["metrics"].items():
            values[name] = value[settled]
            metrics[name] = {
                "mean": mean(value[going_on]),
                "p95": float(np.percentile(value[going_on], 95)) if going_on.any() else float("nan"),
                "steady": mean(values[name]),
            }
        ended = {k.removeprefix(TERMINATION): int(v.sum()) for k, v in out["terminations"].items()}
        later = is_active[1:].sum()
        numbers = {
            "survival": float(out["survived"].sum() / env.num_envs),
            **({"success": float(out["succeeded"].sum() / env.num_envs)} if "succeeded" in out else {}),
            "return": float(out["reward"].sum(dtype=np.float64) / env.num_envs),
            "length": float(is_active.sum() / env.num_envs),
            "action_change": float(out["change"].mean(axis=1, dtype=np.float64).sum() / later)
            if later
            else float("nan"),
            "agreement": agreement(list(self.actors), out["agreement"], is_active.sum()) if self.reference else {},
            "metrics": metrics,
            "terminations": {k: v for k, v in ended.items() if v},
        }
        return EpisodeStatistics(numbers, values, traces(out["trace"], env.step_dt))


def flies_batches(device: jax.Device) -> bool:
    """Whether ``device`` flies several flights in less time as one batch than one after the other."""
    return device.platform != "cpu"


def _key(env: TrainingEnv) -> Hashable:
    """What environments of one program have in common."""
    return env.structure if isinstance(env, Parametric) else id(env)


def mean(values: np.ndarray) -> float:
    """The mean, in double precision; NaN of nothing."""
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def agreement(names: Sequence[str], sums: Mapping[str, np.ndarray], steps: int) -> dict[str, dict[str, float]]:
    """How well each actor's actions are the reference's, over ``steps`` steps of all episodes.

    ``rmse`` is the root of the mean squared difference over steps and action dimensions. ``r2`` is one minus the summed
    squared differences over the reference's summed squared deviations from its own mean, the mean of each dimension;
    NaN where the reference never changes.

    Args:
        names: of the actors (P).
        sums: over the steps of each of B episodes: ``reference`` and ``reference_squared`` (B, A), its actions and
            their squares, and ``error_squared`` (P, B, A).
        steps: how many steps were summed over.
    """
    total = {k: v.sum(axis=-2, dtype=np.float64) for k, v in sums.items()}
    deviation = (total["reference_squared"] - total["reference"] ** 2 / steps).sum()
    changes = deviation > 1e-6 * total["reference_squared"].sum()  # Below that it is the sums' own rounding.
    result = {}
    for name, error in zip(names, total["error_squared"], strict=True):
        rmse = float(np.sqrt(error.mean() / steps))
        result[name] = {"rmse": rmse, "r2": float(1.0 - error.sum() / deviation) if changes else float("nan")}
    return result


def traces(kept: Mapping[str, np.ndarray], step_dt: float) -> list[dict[str, Any]]:
    """The courses of the episodes whose steps are ``kept``, each (T, K, ...); see :class:`EpisodeStatistics`."""
    found = []
    for i in range(kept["is_active"].shape[1]):
        steps = np.flatnonzero(kept["is_active"][:, i])
        steps = steps[:: -(-len(steps) // TRACE_POINTS)]
        course = {k: np.round(v[steps, i].astype(float), 5).tolist() for k, v in kept.items() if k != "is_active"}
        found.append({"time": np.round(steps * step_dt, 5).tolist(), **course})
    return found


def inference_cost(actor: Actor, obs: dict[str, jax.ShapeDtypeStruct]) -> dict[str, float]:
    """Of one action in one environment: ``parameters`` (0 for an actor that has no ``num_parameters``), and by XLA's
    cost analysis ``flops`` and ``bytes`` accessed.

    ``obs`` are the observation groups of one environment, each (1, ...).
    """
    carry = jax.eval_shape(lambda: actor.initial_carry(1))
    cost: Any = jax.jit(actor.act).lower(carry, obs).compile().cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost or {}
    return {
        "parameters": getattr(actor, "num_parameters", 0),
        "flops": float(cost.get("flops", float("nan"))),
        "bytes": float(cost.get("bytes accessed", float("nan"))),
    }
