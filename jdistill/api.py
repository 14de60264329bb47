"""Training and evaluating from Python; :mod:`jdistill` names what is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge import registry, tasks
from bridge.env import TrainingEnv
from bridge.tasks import Request
from jdistill.errors import ConfigError
from jdistill.run import compilation, training
from jdistill.run.compose import compose_task
from jdistill.run.devices import Placement
from jdistill.run.folders import open_run
from jdistill.run.saved_run import load_config, request_of
from jdistill.run.session import start


def train(task: str | None = None, **settings: Any) -> Path:
    """Distill a student; returns the run folder.

    Args:
        task: as ``--task`` names it: ``crazyflie``, ``package.module:function``, ``file.py:function``, or a task of a
            simulator. With ``resume=True`` it may be left out.
        settings: the flags of ``jdistill train`` by their names, such as ``phase1=500``, ``num_envs=256``,
            ``teacher="teacher.safetensors"``, ``logdir="logs"``, ``resume=True``; and ``overrides``, a sequence of
            dotted settings (``["agent.algorithm.learning_rate=5e-4"]``). See :class:`jdistill.run.training.Job`.

    Raises:
        UserError: it cannot be done as asked, or went wrong; one line.
    """
    known = training.Job.__dataclass_fields__
    if unknown := [name for name in settings if name not in known]:
        raise ConfigError(f"train({unknown[0]}=...): there is no such setting; there are {', '.join(known)}")
    compilation.prepare()
    job = training.Job(task=task, **settings)
    beginning = training.begin(job)
    said = {name: value for name, value in {"task": task, **settings}.items() if value is not None}
    call = f"jdistill.train({', '.join(f'{name}={value!r}' for name, value in said.items())})"
    return training.train(job, beginning, start(beginning.request, placement=job.placement), call)


def evaluate(
    run: str | Path,
    episodes: int = 1000,
    scenarios: Sequence[str] = (),
    overrides: Sequence[str] = (),
    seed: int | None = None,
    best: bool = False,
    devices: int | str | None = None,
) -> dict[str, Any]:
    """What a run's student is worth beside its teacher: what ``jdistill evaluate`` writes into ``evaluation.json``.

    Args:
        run: the run folder, or its name in ``jdistill runs``.
        episodes: of each policy in each scenario.
        scenarios: names of the task's scenarios; none means all.
        overrides: settings of the environment, ``key=value``.
        seed: of the start states.
        best: the best student instead of the newest.
        devices: how many share the work; None, or ``all``, takes all, and of a CPU every core. Where JAX has begun to
            compute already, those are the devices that it has.

    Raises:
        UserError: something is missing or does not fit; one line.
    """
    from jdistill.evaluation.evaluate import SEED, EvaluationRequest, choose_devices, evaluate_run

    compilation.prepare()
    folder = open_run(str(run))
    cfg = load_config(folder, overrides)
    started = start(request_of(cfg), placement=Placement(devices=None if devices is None else str(devices)))
    wanted = EvaluationRequest(folder, episodes, SEED if seed is None else seed, scenarios, best=best)
    return evaluate_run(wanted._replace(devices=choose_devices(devices, started.simulator)), cfg, started.task)


def make_env(task: str = tasks.DEFAULT_TASK, num_envs: int | None = None, overrides: Sequence[str] = ()) -> TrainingEnv:
    """The environment of a task that is JAX, with its settings changed by ``overrides`` (``env.key=value``).

    Raises:
        UserError: no such task, or one whose simulator is not JAX; a setting that cannot be used; one line.
    """
    compilation.prepare()
    request = Request(task)
    simulator = registry.find(request)
    if not simulator.is_jax:
        raise ConfigError(f"{task}: {simulator.title} ends with its environment; use 'with task.open(...)'")
    loaded = registry.load(simulator, task)
    cfg = compose_task(loaded.name, loaded.cfg_cls, simulator, [], overrides).env
    return tasks.make_env(loaded, cfg if num_envs is None else replace(cfg, num_envs=num_envs))
