"""A training run from its settings to its end: ``jdistill train`` and :func:`jdistill.api.train`.

Three steps: :func:`begin` reads files and the run that is to be resumed, :func:`jdistill.run.session.start` finds the
task, :func:`train` builds everything and runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bridge import registry
from bridge.env import TrainingEnv
from bridge.tasks import DEFAULT_TASK, Request, Task
from jdistill.core.config import AlgorithmCfg
from jdistill.errors import ConfigError
from jdistill.run import processes
from jdistill.run.compose import WINDOW, RunCfg, compose_task, flatten, load_file, names_window, with_obs_groups
from jdistill.run.devices import Placement, describe_devices, device_facts, make_mesh
from jdistill.run.folders import find_run, new_run, note_start, planned_folder, settings_of
from jdistill.run.held import HeldRun
from jdistill.run.policy_paths import named_file, teacher_path
from jdistill.run.presets import config_path, preset
from jdistill.run.session import Started, open_env

if TYPE_CHECKING:
    from jdistill.run.callbacks import Callback
    from jdistill.run.mesh import EnvMesh
    from jdistill.run.runner import DistillationRunner
    from jdistill.run.teachers import Teachers

_EXPERIMENT = "agent.experiment_name="


@dataclass(frozen=True)
class Job:
    """What a training run is asked to be: the flags of ``jdistill train``, by their names. None leaves a setting as it
    is."""

    task: str | None = None
    sim: str | None = None
    config: str | Path | None = None
    num_envs: int | None = None
    max_iterations: int | None = None
    phase1: int | None = None
    seed: int | None = None
    teacher: str | Path | Sequence[str | Path] | None = None
    """One file, or several, whose ids are 0, 1, ..."""
    teacher_dir: str | Path | None = None
    teacher_id: int | None = None
    student: str | Path | None = None
    resume: bool = False
    load_run: str | Path | None = None
    fallback: bool = False
    on_hangup: str = "save"
    experiment_name: str | None = None
    run_name: str | None = None
    logger: str | None = None
    log_project_name: str | None = None
    logdir: str | Path | None = None
    device: str | None = None
    devices: str | None = None
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    dataset: Sequence[str | Path] = ()
    record: str | Path | None = None
    profile: str | None = None
    overrides: Sequence[str] = ()
    """Dotted settings, ``key=value``."""

    @property
    def placement(self) -> Placement:
        """Its flags of devices and processes."""
        return Placement(**{field.name: getattr(self, field.name) for field in fields(Placement)})

    def settings(self) -> dict[str, Any]:
        """What the flags say, as a config."""
        names = ("max_iterations", "seed", "experiment_name", "run_name", "logger", "log_project_name")
        agent = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.teacher or self.teacher_dir:
            agent["teacher"] = self._named_teachers()
        if self.teacher_id is not None:
            agent["teacher"] = {**agent.get("teacher", {}), "id": self.teacher_id}
        algorithm: dict[str, Any] = {}
        if self.phase1 is not None:
            algorithm |= {"use_two_stage_training": True, "phase1_iterations": self.phase1}
        if self.dataset:
            algorithm["dataset"] = [str(Path(file).absolute()) for file in self.dataset]
        if algorithm:
            agent["algorithm"] = algorithm
        return {"agent": agent, **({} if self.num_envs is None else {"env": {"num_envs": self.num_envs}})}

    def _named_teachers(self) -> dict[str, Any]:
        """The settings that name the teachers, in place of all that a config or a preset says of that."""
        named = [self.teacher] if isinstance(self.teacher, str | Path) else self.teacher or ()
        files = [str(name) for name in named]
        folder = str(self.teacher_dir) if self.teacher_dir else None
        one = files[0] if len(files) == 1 else None
        return {"file": one, "files": [] if one else files, "dir": folder, "id": None}


class Beginning(NamedTuple):
    """What is known of a job before there is a task."""

    request: Request
    """What task it is."""
    layers: Sequence[dict[str, Any]]
    """The resumed run's config and that of ``--config``, where there are such."""
    run: Path | None
    """The run folder to go on with."""


def begin(job: Job, flags: Sequence[str] = (), program: str = "...") -> Beginning:
    """Read the config file and the run to be resumed; ``flags`` and ``program`` are for the request.

    Raises:
        ConfigError: a file or a run that cannot be used, or one of another task; one line.
    """
    layers = [load_file(config_path(str(job.config)))] if job.config else []
    run = None
    if job.resume:
        run = find_run(job.logdir, _experiment(job, layers), job.load_run)
        layers.insert(0, settings_of(run))
    said = {key: next((x[key] for x in reversed(layers) if x.get(key)), None) for key in ("task", "sim")}
    task, sim = job.task or said["task"] or DEFAULT_TASK, job.sim or said["sim"]
    if run:
        before = layers[0]["task"]
        if job.task and not registry.canonical(job.task) & registry.canonical(before):
            raise ConfigError(f"--task {job.task}: {run} is a run of {before}; leave --task out, or begin a new run")
        task, sim = before, layers[0].get("sim")
        if job.sim and sim not in (None, job.sim):
            raise ConfigError(f"--sim {job.sim}: {run} is a run on {sim}; leave --sim out, or begin a new run")
        sim = job.sim or sim
    return Beginning(Request(task, sim, job.overrides, flags, program), layers, run)


def configure(job: Job, beginning: Beginning, started: Started) -> RunCfg:
    """The config of the run.

    Later wins: the dataclasses' defaults, the task's own, its preset, the resumed run's config, ``--config``, the
    flags, the overrides.

    Raises:
        ConfigError: a setting that there is not, makes no sense, or cannot be changed by a resume.
    """
    task, run = started.task, beginning.run
    defaults = [known_settings(task.agent_defaults)]
    if task.preset:
        # A resumed run's environment is what it was, also where its version knew nothing of a preset's.
        sections = ("agent",) if run else ("agent", "env")
        defaults.insert(0, {k: v for k, v in load_file(preset(task.preset)).items() if k in sections})

    def composed(layers: Sequence[dict[str, Any]], overrides: Sequence[str] = ()) -> RunCfg:
        layers, overrides = with_obs_groups([*defaults, *layers], overrides, task)
        return compose_task(task.name, task.cfg_cls, started.simulator, layers, overrides, not chosen)

    chosen = names_window(said := [*beginning.layers, job.settings()], job.overrides)
    cfg = composed(said, job.overrides)
    usual = dict(pair for layer in defaults for pair in flatten(layer)).get(WINDOW, AlgorithmCfg.gradient_length)
    if not chosen and cfg.agent.algorithm.gradient_length < usual and processes.is_main():
        print(f"{WINDOW}={usual} is longer than an iteration: it is {cfg.agent.algorithm.gradient_length} here")
    if run:
        before = composed(beginning.layers[:1])
        if cfg.agent.teacher.file != before.agent.teacher.file:  # What was said of the one does not hold for the other.
            cfg = composed(
                [_without_teacher(beginning.layers[0]), *beginning.layers[1:], job.settings()], job.overrides
            )
        elif cfg.agent.teacher != before.agent.teacher:
            raise ConfigError(
                f"--resume: {run} has its teacher already; leave agent.teacher out, or name another --teacher"
            )
        if cfg.agent.seed != before.agent.seed:
            raise ConfigError(f"--resume: {run} has its seed already; leave agent.seed out, or begin a new run")
        for change in changes(before, cfg) if processes.is_main() else ():
            print(f"Changed: {change}")
    return cfg


def _without_teacher(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "agent": {k: v for k, v in (settings.get("agent") or {}).items() if k != "teacher"}}


def changes(before: RunCfg, after: RunCfg) -> list[str]:
    """Every setting that differs, ``name: old -> new``."""

    def settings(cfg: RunCfg) -> dict[str, Any]:
        return dict(flatten({name: asdict(getattr(cfg, name)) for name in ("agent", "env", "bridge")}))

    old, new = settings(before), settings(after)
    differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in differ]


def known_settings(agent: Mapping[str, Any]) -> dict[str, Any]:
    """A task's registered settings as a layer, without those of its algorithm that only its own trainer knows."""
    algorithm = {k: v for k, v in agent.get("algorithm", {}).items() if k in AlgorithmCfg.__dataclass_fields__}
    return {"agent": {**agent, **({"algorithm": algorithm} if algorithm else {})}}


def _experiment(job: Job, layers: Sequence[dict[str, Any]]) -> str:
    """The experiment's name by override, flag or file, before there is a whole config."""
    names = [(layer.get("agent") or {}).get("experiment_name") for layer in layers]
    names += [job.experiment_name, *(o.split("=", 1)[1] for o in job.overrides if o.startswith(_EXPERIMENT))]
    return next((name for name in reversed(names) if name), "distillation")


def folder_suffix(cfg: RunCfg) -> str:
    """What the run folder's name ends with: the run's name, and which teacher of a folder it learns from alone."""
    alone = [] if cfg.agent.teacher.id is None else [f"distill_T{cfg.agent.teacher.id}"]
    return "_".join([*([cfg.agent.run_name] if cfg.agent.run_name else []), *alone])


OpenFilm = Callable[[TrainingEnv], "Callback"]
"""Makes the callback that films the student."""


def train(job: Job, beginning: Beginning, started: Started, command: str, open_film: OpenFilm | None = None) -> Path:
    """Build everything and run it; returns the run folder.

    Args:
        command: what the run folder remembers as the command that made it.
        open_film: makes what films the student from time to time.

    Raises:
        UserError: it cannot be done as asked, or went wrong; one line.
        Interrupted: a signal asked for it; everything is saved.
    """
    from jdistill.data.recorder import check_new
    from jdistill.run.callbacks import Profile, Record
    from jdistill.run.loggers import check_logger
    from jdistill.run.profiling import ProfileWindow
    from jdistill.run.runner import Interrupted
    from jdistill.run.teachers import flying, keep_quadrotors, quadrotors

    cfg, run = configure(job, beginning, started), beginning.run
    profile = ProfileWindow.parse(job.profile) if job.profile else None
    if profile and not run:
        profile.check(0, cfg.agent.max_iterations)
    check_logger(cfg.agent)
    student = named_file("--student", job.student) if job.student else None
    teacher = teacher_path(cfg, started.task, job, beginning)
    craft = quadrotors(cfg, None if isinstance(teacher, Path) else teacher)
    record = processes.own_file(Path(job.record)) if job.record else None
    if record:
        check_new(record, cfg.agent.algorithm.dataset)
    new = planned_folder(job.logdir, cfg.agent.experiment_name, folder_suffix(cfg))
    planned = Path(processes.told_by_main(lambda: str(run or new)))
    callbacks: list[Callback] = [Record(record)] if record else []
    if profile and processes.is_main():
        callbacks.append(Profile(profile))
    mesh = make_mesh(cfg, started, job.devices)
    with ExitStack() as stack:
        held = hold(stack, run) if run else None
        stack.enter_context(flying(cfg, craft))
        env = stack.enter_context(open_env(cfg, started.task, video_dir=str(planned), parts=mesh.shards.count))
        if open_film and processes.is_main():
            callbacks.append(open_film(env))
        files = teacher, student
        runner = make_runner(env, cfg, started.task, files, planned, run is not None, callbacks, mesh, job.fallback)
        runner.held, runner.survives_hangup = held or hold(stack, runner.run_dir), job.on_hangup == "ignore"
        first = runner.current_learning_iteration
        if run and profile:
            profile.check(first, cfg.agent.max_iterations)
        if processes.is_main():
            keep_quadrotors(cfg, craft, runner.run_dir)
            cfg.save(runner.run_dir / "config.yaml")
            note_start(runner.run_dir, command, first, device_facts(mesh))
        try:
            runner.learn()
        except Interrupted:
            processes.leave()
            raise
    processes.leave()
    print(f"Done. Student: {runner.run_dir / 'student.safetensors'}")
    return runner.run_dir


def hold(stack: ExitStack, run: Path) -> HeldRun | None:
    """Hold the folder ``run`` until the ``stack`` ends, in the process that writes to it.

    Raises:
        TrainingError: another program trains it.
    """
    if not processes.is_main():
        return None
    held = HeldRun(run)
    stack.callback(held.release)
    return held


def make_runner(
    env: TrainingEnv,
    cfg: RunCfg,
    task: Task,
    files: tuple[Path | Teachers, Path | None],
    planned: Path,
    resume: bool,
    callbacks: Sequence[Callback],
    mesh: EnvMesh,
    fallback: bool = False,
) -> DistillationRunner:
    """A runner at the iteration where it begins, in the folder ``planned`` or one beside it.

    ``files`` are the teacher's and, where it does not begin at random, the student's. With ``fallback``, a run is gone
    on with from its newest checkpoint that is whole.

    Raises:
        UserError: teacher, dataset, memory or checkpoint do not fit; one line, and nothing is written.
    """
    from jdistill.core.memory import check_rollout, plan_history
    from jdistill.run.inputs import load_recording, load_student, make_algorithm, resolve_obs_groups
    from jdistill.run.runner import DistillationRunner
    from jdistill.run.teachers import check_ids, describe, load_named

    resolve_obs_groups(cfg.agent, env)
    shards = mesh.shards
    cfg.env.num_envs = shards.count * env.num_envs
    named, student_file = files
    student = load_student(student_file, env, cfg.agent) if student_file else None
    teacher = load_named(named, env, cfg, task.old_teacher_output_activation)
    check_ids(env, teacher, cfg.agent)
    print(describe_devices(device_facts(mesh), env.num_envs))
    print(describe(teacher, named, cfg.env.num_envs))
    recording = load_recording(env, cfg, teacher, shards)
    algorithm, local_devices = make_algorithm(env, cfg.agent, shards), len(mesh.mesh.local_devices)
    if not recording:
        check_rollout(algorithm, local_devices)
    for held in (plan_history(algorithm, local_devices), recording):
        if held:
            print(held.describe())
    run = planned if resume else Path(processes.told_by_main(lambda: str(new_run(planned))))
    runner = DistillationRunner(env, cfg, teacher, run, recording, callbacks, mesh)
    if not resume:
        print(f"Logging to {run}", flush=True)
        runner.start(student)
        return runner
    runner.load(fallback, str(named) if isinstance(named, Path) else f"{cfg.agent.teacher.dir or 'a list of teachers'}")
    done, goal = runner.current_learning_iteration, cfg.agent.max_iterations
    if done >= goal:
        raise ConfigError(f"{run} already has {done} iterations, --max_iterations is {goal}: raise it")
    print(f"Resuming {run} at iteration {done}", flush=True)
    return runner
