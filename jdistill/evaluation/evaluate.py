"""What a student is worth: ``jdistill evaluate RUN``.

Rolls out a run's student and its teacher in the scenarios of the run's task, all from the same start states, and
writes ``evaluation.json`` and ``evaluation.csv`` into the run's folder ``evaluation/``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bridge.env import Parametric, TrainingEnv
from bridge.registry import packages
from bridge.tasks import Scenario, Simulator, Task
from jdistill.core import observations
from jdistill.core.actor import Actor, PolicyActor
from jdistill.core.networks import Policy, PolicyState
from jdistill.core.teachers import TeacherBank
from jdistill.errors import ConfigError, SettingError, nearest
from jdistill.evaluation.metrics import find_main_metric, outcome
from jdistill.evaluation.rollouts import EpisodeStatistics, Evaluator, inference_cost
from jdistill.files import replace_file
from jdistill.run.compose import RunCfg
from jdistill.run.devices import parse_devices
from jdistill.run.folders import STUDENT_FILE
from jdistill.run.inputs import Teacher, load_other_student, make_actor
from jdistill.run.provenance import machine, versions
from jdistill.run.saved_run import Saved, load_student, load_teacher
from jdistill.run.session import open_env
from jdistill.run.teachers import check_ids

FORMAT = 1
SEED = 20_000
"""Of the start states; training draws from the run's own seed, 42 if not told otherwise."""
BINS = 40
"""Of a histogram; the last one also counts what lies beyond it."""
POLICIES = ("student", "teacher", "raptor")
"""Names that no further student goes by."""
COLUMNS = ("survival", "return", "length", "action_change")


def evaluate(
    env: TrainingEnv,
    policy: Policy,
    policy_state: PolicyState,
    groups: Sequence[str],
    seed: int = 1000,
    settle_s: float = 3.0,
) -> dict[str, Any]:
    """The numbers of one policy in one environment, over ``env.num_envs`` episodes.

    Args:
        groups: what makes up the policy's observation (see :mod:`jdistill.core.observations`).
        seed: of the start states; any number but a training run's own gives starts that it never met.
        settle_s: seconds after which an episode counts as settled.

    Returns:
        ``episodes``; ``survival``, ``success``, ``return``, ``length``, ``action_change`` and ``terminations`` as in
        :class:`jdistill.evaluation.rollouts.EpisodeStatistics`; ``steady``, every metric of the environment averaged
        over the settled steps.
    """
    evaluator = Evaluator({"policy": PolicyActor(policy, policy_state, tuple(groups))}, settle_s=settle_s)
    numbers = evaluator.rollout(env, "policy", seed).numbers
    steady = {name: metric["steady"] for name, metric in numbers["metrics"].items()}
    known = ("survival", "success", *COLUMNS[1:], "terminations")
    return {"episodes": env.num_envs, **{k: numbers[k] for k in known if k in numbers}, "steady": steady}


# -- a run ---------------------------------------------------------------------------------------------------------


class EvaluationRequest(NamedTuple):
    """What is asked for."""

    run: Path
    episodes: int
    seed: int
    scenarios: Sequence[str]
    """Names; none means all."""
    raptor: bool = False
    best: bool = False
    """The best student in place of the newest."""
    devices: Sequence[jax.Device] | None = None
    """They share the work; None takes JAX's first."""
    students: Sequence[Path] = ()
    """Files of further students, which see what the run's student sees."""


def choose_devices(asked: str | int | None, simulator: Simulator) -> list[jax.Device]:
    """The devices that share the work: as many as ``asked``, which is what ``--devices`` says, or all.

    A simulator that is not JAX has a single one.

    Raises:
        ConfigError: there are not so many.
    """
    devices = jax.local_devices()
    count = parse_devices(None if asked is None else str(asked)) or len(devices)
    if not simulator.is_jax:
        if asked not in (None, "all") and count > 1:
            raise ConfigError(f"--devices {asked}: {simulator.title} steps one simulator, on one device")
        return devices[:1]
    if count > len(devices):
        raise ConfigError(f"--devices {asked}: there are {len(devices)}")
    return devices[:count]


def evaluate_run(request: EvaluationRequest, cfg: RunCfg, task: Task) -> dict[str, Any]:
    """Roll out every policy in every scenario; prints a table as it goes, returns what ``evaluation.json`` holds.

    Raises:
        ConfigError, PolicyFileError: something is missing, or does not fit; one line.
        SimulatorError: a simulator failed.
    """
    saved = {"student": load_student(request.run, request.best), "teacher": load_teacher(request.run)}
    cfg.env.num_envs = request.episodes
    scenarios = chosen(task.scenarios(cfg.env), request.scenarios)
    flown = Flights(request, cfg, task, saved)
    devices = request.devices or jax.devices()[:1]
    main_metric: str | None = None
    results: dict[str, Any] = {}
    for name, statistics in flown.fly(scenarios):
        policies = side_by_side(statistics)
        results[name] = {"description": scenarios[name].description, "policies": policies}
        if len(results) == 1:
            main_metric = find_main_metric(task.main_metric, statistics["student"].numbers["metrics"])
            width = max(map(len, policies))
            print(header(main_metric, outcome(policies["student"]), width))
        for key, numbers in policies.items():
            print(row(name, key, numbers, main_metric, width), flush=True)
    if not results:
        raise ConfigError(f"{request.run}: no scenario has the run's teachers")
    return {
        "format": FORMAT,
        "run": str(request.run),
        "task": cfg.task,
        "main_metric": main_metric,
        "iteration": saved["student"].header.get("iteration"),
        "episodes": request.episodes,
        "seed": request.seed,
        "machine": {**machine(), "device": devices[0].device_kind, "devices": len(devices)},
        "versions": versions("jdistill", "jax", "flax", *packages(), "foundation-policy"),
        "policies": flown.costs,
        "scenarios": results,
    }


class Flights:
    """Every policy in every scenario."""

    def __init__(self, request: EvaluationRequest, cfg: RunCfg, task: Task, saved: Mapping[str, Saved]):
        self.request, self.cfg, self.task, self.saved = request, cfg, task, saved
        self.costs: dict[str, Any] = {}
        """Of one action of each policy, see :func:`jdistill.evaluation.rollouts.inference_cost`."""
        self._evaluator: Evaluator | None = None

    def fly(self, scenarios: Mapping[str, Scenario]) -> Iterator[tuple[str, dict[str, EpisodeStatistics]]]:
        """Each scenario's name and the statistics of each policy in it."""
        with ExitStack() as stack:
            opened: dict[str, TrainingEnv] = {}
            for name, scenario in scenarios.items():
                with naming(name):
                    env = stack.enter_context(open_env(self.cfg, self.task, self.request.seed, scenario.cfg))
                if not self._has_teachers(name, env):
                    continue
                opened[name] = env
                if not isinstance(env, Parametric):  # A simulator that is there once only.
                    yield from self._fly(opened)
                    opened.clear()
                    stack.close()
            yield from self._fly(opened)

    def _has_teachers(self, name: str, env: TrainingEnv) -> bool:
        """Whether the environments of the scenario ``name`` say which of several teachers they have."""
        try:
            check_ids(env, Teacher(*self.saved["teacher"]), self.cfg.agent)
        except ConfigError as e:
            print(f"{name}: left out, for it has none of the run's teachers ({e})")
            return False
        return True

    def _fly(self, envs: Mapping[str, TrainingEnv]) -> Iterator[tuple[str, dict[str, EpisodeStatistics]]]:
        if not envs:
            return
        if self._evaluator is None:
            name, env = next(iter(envs.items()))
            with naming(name):
                self._evaluator = self._make_evaluator(env)
        policies = list(self._evaluator.actors)
        flights = [(env, policy) for env in envs.values() for policy in policies]
        found = self._evaluator.rollouts(flights, self.request.seed)
        for name in envs:
            yield name, {policy: next(found) for policy in policies}

    def _make_evaluator(self, env: TrainingEnv) -> Evaluator:
        actors = make_actors(self.request, self.cfg, env, self.saved)
        # Of one action in one environment, which has one teacher.
        single = {k: actor.teacher(0) if isinstance(actor, TeacherBank) else actor for k, actor in actors.items()}
        self.costs = {key: inference_cost(actor, shapes(env)) for key, actor in single.items()}
        return Evaluator(actors, "teacher", main_metric=self.task.main_metric, devices=self.request.devices)


@contextmanager
def naming(scenario: str) -> Iterator[None]:
    """Settings that make no sense are this scenario's."""
    try:
        yield
    except SettingError as e:
        raise ConfigError(f"{scenario}: {e}") from e


def chosen(scenarios: Mapping[str, Scenario], names: Sequence[str]) -> dict[str, Scenario]:
    """The scenarios ``names``, or all."""
    for name in names:
        if name not in scenarios:
            hint = nearest(name, scenarios)
            raise ConfigError(f"--scenario {name}: not known{hint}; there are {', '.join(scenarios)}")
    return {name: scenarios[name] for name in names or scenarios}


def make_actors(
    request: EvaluationRequest, cfg: RunCfg, env: TrainingEnv, saved: Mapping[str, Saved]
) -> dict[str, Actor]:
    """The policies to evaluate: the run's own two, and others that were asked for."""
    actors: dict[str, Actor] = {}
    for name, (policy, state, header) in saved.items():
        entries = cfg.agent.obs_groups[name]
        size = observations.size(entries, env.obs_specs)
        if header["obs_size"] != size:
            raise ConfigError(f"the {name} takes {header['obs_size']} observations, {'+'.join(entries)} has {size}")
        actors[name] = make_actor(name, (policy, state, header), cfg.agent, cfg.agent.clip_actions)
    if request.raptor:
        from jdistill.export import raptor

        actors["raptor"] = raptor.make_actor(env, cfg.agent.obs_groups["student"])
    return actors | further_students(request.students, cfg, env)


def further_students(files: Sequence[Path], cfg: RunCfg, env: TrainingEnv) -> dict[str, Actor]:
    """The students of ``files``, by the name of their run's folder, or of the file where it has another name.

    Raises:
        PolicyFileError: one that cannot be read.
        ConfigError: one that sees something else than the run's student, or gives other actions.
    """
    found: dict[str, Actor] = {}
    for file in files:
        name = file.parent.name if file.name == STUDENT_FILE else file.stem
        taken = sum(other.partition("#")[0] == name for other in (*found, *POLICIES))
        found[f"{name}#{taken + 1}" if taken else name] = load_other_student(file, env, cfg.agent)
    return found


def shapes(env: TrainingEnv) -> dict[str, jax.ShapeDtypeStruct]:
    """The observation groups of one environment."""
    return {name: jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype) for name, spec in env.obs_specs.items()}


def side_by_side(statistics: Mapping[str, EpisodeStatistics]) -> dict[str, Any]:
    """What ``evaluation.json`` says of each policy in one scenario.

    ``agreement`` is with the teacher, on the states that the policy itself visits, and ``agreement_on_teacher`` on
    those that the teacher visits. Histograms of one metric have the same edges for all policies.
    """
    edges = {}
    for metric in next(iter(statistics.values())).settled:
        values = [found.settled[metric] for found in statistics.values() if found.settled[metric].size]
        if values:
            low, high = min(v.min() for v in values), max(np.percentile(v, 99) for v in values)
            edges[metric] = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    policies = {}
    for name, found in statistics.items():
        policies[name] = {
            **found.numbers,
            "agreement": found.numbers["agreement"][name],
            "agreement_on_teacher": statistics["teacher"].numbers["agreement"][name],
            "histograms": {metric: histogram(found.settled[metric], e) for metric, e in edges.items()},
            "traces": found.traces,
        }
    return policies


def histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list[Any]]:
    """How many values lie between the ``edges``; the last bin takes what lies beyond."""
    counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
    return {"edges": np.round(edges, 6).tolist(), "counts": counts.tolist()}


# -- the table and the files ---------------------------------------------------------------------------------------


def header(metric: str | None, ending: str = "survival", width: int = 8) -> str:
    """The table's head; ``metric`` is the main one, ``ending`` tells how episodes end, ``width`` is that of the
    policies' column."""
    names = [ending, "return", *([metric, "95 %", "steady"] if metric else []), "change", "RMSE", "R^2"]
    return f"{'scenario':<18} {'policy':<{max(8, width)}}" + "".join(f" {name:>9}" for name in names)


def row(scenario: str, policy: str, numbers: Mapping[str, Any], metric: str | None, width: int = 8) -> str:
    """One line of the table: of the main ``metric`` the mean, the 95th percentile, and the mean after 3 s."""
    cells = [f"{numbers[outcome(numbers)]:.1%}", f"{numbers['return']:.1f}"]
    if metric:
        values = numbers["metrics"].get(metric, {})
        mean, *others = (f"{values[k]:.4f}" if k in values else "" for k in ("mean", "p95", "steady"))
        cells += [f"{mean:>{len(metric)}}", *others]
    cells += [f"{numbers['action_change']:.4f}", *(f"{numbers['agreement'][k]:.4f}" for k in ("rmse", "r2"))]
    return f"{scenario:<18} {policy:<{max(8, width)}}" + "".join(f" {cell:>9}" for cell in cells)


def records(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One flat record for each scenario and policy."""
    for scenario, result in results["scenarios"].items():
        for policy, numbers in result["policies"].items():
            record = {"scenario": scenario, "policy": policy, **{name: numbers[name] for name in COLUMNS}}
            record |= {"success": numbers["success"]} if "success" in numbers else {}
            for metric, values in numbers["metrics"].items():
                record |= {f"{metric}_{statistic}": value for statistic, value in values.items()}
            for states in ("agreement", "agreement_on_teacher"):
                record |= {f"{states}_{measure}": value for measure, value in numbers[states].items()}
            yield record | results["policies"][policy]


def finite(tree: Any) -> Any:
    """``tree`` with null where JSON has no number: NaN of nothing, infinity."""
    if isinstance(tree, Mapping):
        return {k: finite(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [finite(v) for v in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def write(results: Mapping[str, Any], folder: Path) -> None:
    """``evaluation.json`` with everything, ``evaluation.csv`` with one line for each scenario and policy."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "evaluation.json", json.dumps(finite(results)) + "\n")
    rows = list(records(results))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    replace_file(folder / "evaluation.csv", table.getvalue())
