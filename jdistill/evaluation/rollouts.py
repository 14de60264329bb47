"""Whole episodes under one policy, in one compiled program, with others looking on.

Every policy acts on every observation; the one that flies steps the environment. So each policy's agreement with the
teacher is known on the states that any of them visits, and one program serves for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.env import EPISODE_METRIC_PREFIX, Parametric, State, TrainingEnv
from jdistill.core import networks, observations
from jdistill.core.networks import Policy, PolicyState

TERMINATION = "Episode_Termination/"
TRACES = 3
"""Episodes whose course is kept."""
TRACE_POINTS = 500
"""Points of such a course, at most."""


class Pilot(NamedTuple):
    """A policy as the thing that flies."""

    initial_carry: Callable[[int], Any]
    """Its memory in so many episodes that begin."""
    act: Callable[[Any, dict[str, Array]], tuple[Any, Array]]
    """Memory and observation groups, each (B, size), to the next memory and actions (B, A)."""
    parameters: int
    """Numbers that were trained."""


def make_pilot(policy: Policy, learnt: PolicyState, groups: Sequence[str], clip: float | None = None) -> Pilot:
    """The deterministic policy on the observation ``groups`` (see :mod:`jdistill.core.observations`).

    ``clip`` bounds its actions, as ``agent.clip_actions`` does in training.
    """

    def act(carry: Any, obs: dict[str, Array]) -> tuple[Any, Array]:
        carry, action = networks.act(policy, learnt, carry, observations.select(obs, groups))
        return carry, action if clip is None else jnp.clip(action, -clip, clip)

    return Pilot(lambda batch: networks.initial_carry(policy, learnt, batch), act, networks.num_parameters(learnt))


class Flight(NamedTuple):
    """One episode in every environment."""

    numbers: dict[str, Any]
    """``survival``, the share that reached the time limit; ``return`` and ``length`` (steps), means over episodes;
    ``action_change``, the mean absolute change of an action from step to step; ``agreement``, of each policy, see
    :func:`agreement`; ``metrics``, of each metric of the environment the ``mean`` and the 95th percentile ``p95`` over
    all steps and the mean ``steady`` over the settled ones; ``terminations``, how many episodes each limit ended. NaN
    where there is nothing to average."""
    settled: dict[str, np.ndarray]
    """Each metric's values at the settled steps of all episodes."""
    traces: list[dict[str, Any]]
    """The course of the first episodes: ``time`` (s), ``action`` and the reference's ``<name>_action``, ``error``
    (where there is a metric ``position_error``) and what the environment shows; each a list, one entry a point."""


class Flights:
    """Flies episodes with each of ``pilots``; programs are compiled once per structure of environment."""

    def __init__(self, pilots: Mapping[str, Pilot], reference: str | None = None, settle_s: float = 3.0):
        """``reference`` names the pilot with which all agree or not; settled means ``settle_s`` into an episode."""
        self.pilots = dict(pilots)
        self.reference = reference
        self.settle_s = settle_s
        self._programs: dict[Hashable, Any] = {}

    def fly(self, env: TrainingEnv, pilot: str, seed: int) -> Flight:
        """One whole episode in every environment; the start states depend on ``seed`` and ``env`` alone."""
        key, parameters = (env.structure, env.parameters) if isinstance(env, Parametric) else (id(env), ())
        if key not in self._programs:
            # The environment is kept with its program, so that no other one gets its id.
            self._programs[key] = env, jax.jit(self._program(env))
        _, program = self._programs[key]
        driver = list(self.pilots).index(pilot)
        out = jax.device_get(env.drive(program, parameters, jax.random.key(seed), driver))
        return self._flight(env, out)

    def _program(self, env: TrainingEnv) -> Callable[..., Any]:
        pilots = list(self.pilots.values())

        def program(parameters: Any, rng: Array, driver: Array) -> Any:
            world = env.with_parameters(parameters) if isinstance(env, Parametric) else env

            def step(loop: Any, _: None) -> Any:
                state, carries, before, flying = loop
                acted = [pilot.act(carry, state.obs) for pilot, carry in zip(pilots, carries, strict=True)]
                actions = jnp.stack([action for _, action in acted])  # (P, B, A)
                action = actions[driver]
                after = world.step(state, action)
                outputs = self._outputs(world, state, after, actions, action, before, flying)
                return (after, [carry for carry, _ in acted], action, flying & ~after.done), outputs

            batch = env.num_envs
            carries = [pilot.initial_carry(batch) for pilot in pilots]
            start = (world.reset(rng), carries, jnp.zeros((batch, env.num_actions)), jnp.ones(batch, bool))
            return jax.lax.scan(step, start, None, length=env.max_episode_length)[1]

        return program

    def _outputs(
        self, env: Any, state: State, after: State, actions: Array, action: Array, before: Array, flying: Array
    ) -> dict[str, Any]:
        """What is kept of one step: sums over episodes under way, and each environment's own metrics."""
        ended = flying & after.done
        steps = {k: v for k, v in after.metrics.items() if not k.startswith(EPISODE_METRIC_PREFIX)}
        outputs = {
            "flying": flying,
            "ended": ended,
            "survived": (ended & after.info["time_outs"]).sum(),
            "reward": jnp.where(flying, after.reward, 0.0).sum(),
            "change": jnp.where(flying, jnp.abs(action - before).mean(axis=-1), 0.0).sum(),
            "metrics": {k: v for k, v in steps.items() if k not in ("episode_return", "episode_length")},
            "terminations": {k: (v * ended).sum() for k, v in after.metrics.items() if k.startswith(TERMINATION)},
            "trace": {"flying": flying, "action": action, "error": state.metrics.get("Metrics/position_error")},
        }
        if hasattr(env, "trace"):
            outputs["trace"] |= env.trace(state)
        if self.reference is not None:
            label = actions[list(self.pilots).index(self.reference)]
            mask = flying[:, None]
            outputs["trace"][f"{self.reference}_action"] = label
            outputs["agreement"] = {
                "label": jnp.where(mask, label, 0.0).sum(axis=0),
                "label_squared": jnp.where(mask, label**2, 0.0).sum(axis=0),
                "error_squared": jnp.where(mask, (actions - label) ** 2, 0.0).sum(axis=1),
            }
        outputs["trace"] = {k: v[:TRACES] for k, v in outputs["trace"].items() if v is not None}
        return outputs

    def _flight(self, env: TrainingEnv, out: dict[str, Any]) -> Flight:
        flying = out["flying"]
        under_way = flying & ~out["ended"]
        settled = under_way.copy()
        settled[: round(self.settle_s / env.step_dt)] = False
        metrics, values = {}, {}
        for key, value in out["metrics"].items():
            name = key.removeprefix("Metrics/")
            values[name] = value[settled]
            metrics[name] = {
                "mean": mean(value[under_way]),
                "p95": float(np.percentile(value[under_way], 95)) if under_way.any() else float("nan"),
                "steady": mean(values[name]),
            }
        ended = {k.removeprefix(TERMINATION): int(v.sum()) for k, v in out["terminations"].items()}
        later = flying[1:].sum()
        numbers = {
            "survival": float(out["survived"].sum() / env.num_envs),
            "return": float(out["reward"].sum(dtype=np.float64) / env.num_envs),
            "length": float(flying.sum() / env.num_envs),
            "action_change": float(out["change"][1:].sum(dtype=np.float64) / later) if later else float("nan"),
            "agreement": agreement(list(self.pilots), out["agreement"], flying.sum()) if self.reference else {},
            "metrics": metrics,
            "terminations": {k: v for k, v in ended.items() if v},
        }
        return Flight(numbers, values, traces(out["trace"], env.step_dt))


def mean(values: np.ndarray) -> float:
    """The mean, in double precision; NaN of nothing."""
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def agreement(names: Sequence[str], sums: Mapping[str, np.ndarray], steps: int) -> dict[str, dict[str, float]]:
    """How well each policy's actions are the reference's, over ``steps`` steps of all episodes.

    ``rmse`` is the root of the mean squared difference over steps and action dimensions. ``r2`` is one minus the summed
    squared differences over the reference's summed squared deviations from its own mean, the mean of each dimension;
    NaN where the reference never changes.

    Args:
        names: of the policies (P).
        sums: per time step, over the episodes under way: ``label`` and ``label_squared`` (T, A), ``error_squared``
            (T, P, A).
        steps: how many steps were summed over.
    """
    total = {k: v.sum(axis=0, dtype=np.float64) for k, v in sums.items()}
    deviation = (total["label_squared"] - total["label"] ** 2 / steps).sum()
    changes = deviation > 1e-6 * total["label_squared"].sum()  # Below that it is the sums' own rounding.
    result = {}
    for name, error in zip(names, total["error_squared"], strict=True):
        rmse = float(np.sqrt(error.mean() / steps))
        result[name] = {"rmse": rmse, "r2": float(1.0 - error.sum() / deviation) if changes else float("nan")}
    return result


def traces(kept: Mapping[str, np.ndarray], step_dt: float) -> list[dict[str, Any]]:
    """The courses of the episodes whose steps are ``kept``, each (T, K, ...); see :class:`Flight`."""
    found = []
    for i in range(kept["flying"].shape[1]):
        steps = np.flatnonzero(kept["flying"][:, i])
        steps = steps[:: -(-len(steps) // TRACE_POINTS)]
        course = {k: np.round(v[steps, i].astype(float), 5).tolist() for k, v in kept.items() if k != "flying"}
        found.append({"time": np.round(steps * step_dt, 5).tolist(), **course})
    return found


def inference_cost(pilot: Pilot, obs: dict[str, jax.ShapeDtypeStruct]) -> dict[str, float]:
    """Of one action in one environment: ``parameters``, and by XLA's cost analysis ``flops`` and ``bytes`` accessed.

    ``obs`` are the observation groups of one environment, each (1, size).
    """
    carry = jax.eval_shape(lambda: pilot.initial_carry(1))
    cost: Any = jax.jit(pilot.act).lower(carry, obs).compile().cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost or {}
    return {
        "parameters": pilot.parameters,
        "flops": float(cost.get("flops", float("nan"))),
        "bytes": float(cost.get("bytes accessed", float("nan"))),
    }
