"""The loop around the compiled iteration: console, logs, checkpoints, profiles, signals."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge.env import TrainingEnv
from jdistill.core import observations
from jdistill.core.config import AgentCfg, StudentCfg
from jdistill.core.distillation import FINITE, Distillation, TrainState, first_steps
from jdistill.core.history import Plan
from jdistill.core.networks import Policy, PolicyState
from jdistill.data.dataset import Recording, Relabeler, load
from jdistill.data.recorder import Recorder
from jdistill.errors import ConfigError, DatasetError, TrainingError
from jdistill.evaluation.rollouts import Pilot, make_pilot
from jdistill.evaluation.video import Camera, Film
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.export.rsl_rl_checkpoint import is_torch_file, load_teacher_checkpoint
from jdistill.run.checkpoint import Checkpoints
from jdistill.run.compose import RunCfg
from jdistill.run.console import RunConsole, Timing, iteration_block, switch_banner
from jdistill.run.loggers import make_writer
from jdistill.run.profiling import Profiler, ProfileWindow


class Interrupted(Exception):
    """The user asked to stop; everything is saved. ``signum`` is the signal."""

    def __init__(self, signum: int, iteration: int, run_dir: Path):
        super().__init__(f"Interrupted after {iteration} iterations; everything is saved in {run_dir}")
        self.signum = signum
        self.run_dir = run_dir


class Teacher(NamedTuple):
    """A frozen policy as :func:`jdistill.export.policy_file.load_policy` gives it."""

    policy: Policy
    state: PolicyState
    description: dict[str, Any]


class DistillationRunner:
    """Runs two-stage distillation of ``teacher`` into a student on ``env`` and keeps its folder ``run_dir``."""

    def __init__(
        self,
        env: TrainingEnv,
        cfg: RunCfg,
        teacher: Teacher,
        run_dir: Path,
        recording: Recording | None = None,
        record: Path | None = None,
        camera: Camera | None = None,
    ):
        """Train by flying, or on a ``recording``; with ``record``, write what is flown to that new file; with a
        ``camera``, film the student from time to time."""
        self.env = env
        self.cfg = cfg
        self.teacher = teacher
        self.run_dir = run_dir
        self.student = make_student(cfg.agent.student, env.num_actions)
        self.alg = Distillation(env, self.student, teacher.policy, cfg.agent)
        self.checkpoints = Checkpoints(run_dir, cfg.agent.max_checkpoints)
        self._init = jax.jit(self.alg.init)
        self.recording = recording
        self.record = record
        self.camera = camera
        program: Any = self.alg.recorded_iteration if record else self.alg.iteration
        self._iteration = jax.jit(self.alg.offline_iteration if recording else program, donate_argnums=0)
        self._data = (recording.history,) if recording else ()
        self.state: TrainState | None = None
        self.current_learning_iteration = 0
        self.phase1_end = self.alg.phase1_iterations
        """The iteration at which phase 1 ends, as far as is known."""

    # -- state ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin at iteration 0."""
        self.state = self.env.drive(self._init, jax.random.key(self.cfg.agent.seed), self.teacher.state)
        if self.recording and self.state.student.normalizer is not None:
            # The moments of all that there is to see, from the first step on.
            # (A copy: the training state is donated to every iteration.)
            student = self.state.student.replace(normalizer=jax.tree.map(jnp.copy, self.recording.normalizer))
            self.state = self.state.replace(student=student)
        self.save_teacher()

    def load(self) -> None:
        """Go on from the newest checkpoint of the run folder."""
        template = jax.eval_shape(self.alg.init, jax.random.key(self.cfg.agent.seed), self.teacher.state)
        self.state = self.checkpoints.restore(template)
        if not self.env.restorable:
            self.state = self.env.drive(jax.jit(self.alg.restart_episodes), self.state)
        self.current_learning_iteration = int(self.state.iteration)
        self.phase1_end = int(self.alg.phase1_end(self.state))

    def save_teacher(self) -> None:
        """Keep the teacher with the run, so that a resume needs no other file."""
        save_policy(self.run_dir / "teacher.safetensors", *self.teacher)

    def save(self, mean_return: float | None) -> None:
        """Write a checkpoint and the student's policy file (the best student's too, when this one is)."""
        assert self.state is not None
        iteration = self.current_learning_iteration
        best = self.checkpoints.save(iteration, self.state, mean_return)
        for name in ["student", *(["best_student"] if best else [])]:
            save_policy(self.run_dir / f"{name}.safetensors", self.student, self.state.student, self._header())

    def _header(self) -> dict[str, Any]:
        return {
            **observations.describe(self.env, self.cfg.agent.obs_groups["student"]),
            "task": self.cfg.task,
            "iteration": self.current_learning_iteration,
        }

    # -- phases --------------------------------------------------------------------------------------------------

    def get_training_phase_info(self) -> dict[str, Any]:
        """The phase of the iteration that comes next. (Where nothing is flown there are no stages to speak of.)"""
        schedule, iteration = self.alg.schedule, self.current_learning_iteration
        phase = 1 if iteration < self.phase1_end else 2
        source = schedule.source(phase, float(schedule.beta(iteration, self.phase1_end)))
        return {
            "use_two_stage_training": self.cfg.agent.algorithm.use_two_stage_training and not self.recording,
            "training_phase": phase,
            "current_iteration": iteration,
            "phase1_iterations": self.phase1_end,
            "action_source": "dataset" if self.recording else source,
        }

    def _student_return(self, scalars: dict[str, float]) -> float | None:
        """The mean return if every episode in it was flown by the student from its start, else None."""
        pure = self.current_learning_iteration > self.alg.first_pure_iteration(self.phase1_end)
        return scalars.get("Train/mean_reward") if pure else None

    # -- the loop ------------------------------------------------------------------------------------------------

    def learn(self, profile: ProfileWindow | None = None) -> None:
        """Iterate until ``max_iterations``.

        Raises:
            TrainingError: data that are not finite; the last good checkpoint stays.
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            DatasetError: what is flown cannot be recorded; the state is saved.
        """
        first, total = self.current_learning_iteration, self.cfg.agent.max_iterations
        writer = make_writer(self.run_dir, self.cfg.agent, dataclasses.asdict(self.cfg), first)
        profiler = Profiler(self.run_dir, profile)
        recorder, broken = self._recorder(), None
        try:
            with RunConsole(first, total) as console, _signals() as received:
                iteration = self._compile(console)
                began = time.perf_counter()
                for number in range(first, total):
                    phase = self.get_training_phase_info()
                    if number == self.phase1_end > 0 and not self.recording:
                        console.print(switch_banner(number, phase["action_source"]))
                    started = time.perf_counter()
                    with profiler.iteration(number):
                        self.state, results, *rollout = self.env.drive(iteration, self.state, *self._data)
                        scalars = {**self._read(jax.device_get(results), number), **self.env.pop_log()}
                    broken = self._hand(recorder, rollout)
                    timing = self._timing(number, first, total, began, time.perf_counter() - started)
                    if shares := profiler.after(number, iteration.as_text):
                        parts = ", ".join(f"{scope} {ms:.1f} ms" for scope, ms in shares.items())
                        console.print(f"Profiler trace written to {profiler.directory}\nPer iteration: {parts}\n")
                    self.current_learning_iteration = number + 1
                    self.phase1_end = int(self.alg.phase1_end(self.state))
                    scalars = self._tagged(scalars, phase, timing)
                    writer.write(scalars, number)
                    run_name = self.cfg.agent.run_name
                    console.print(iteration_block(number, total, phase, scalars, timing, run_name))
                    console.advance()
                    if received or broken or (number + 1) % self.cfg.agent.save_interval == 0 or number + 1 == total:
                        self.save(self._student_return(scalars))
                    if self.camera and ((number + 1) % self.camera.interval == 0 or number + 1 == total):
                        writer.show(self._film(self.camera), number)
                    if broken:
                        raise broken
                    if received and number + 1 < total:
                        raise Interrupted(received[0], number + 1, self.run_dir)
        finally:
            try:
                profiler.close()
                writer.close()
                self.checkpoints.close()
            finally:
                if recorder and not broken:
                    print(recorder.close(), flush=True)

    def _film(self, camera: Camera) -> Film:
        assert self.state is not None
        return camera.film(
            self.run_dir, self.current_learning_iteration, self._pilot, self.state.student, self.cfg.agent.seed
        )

    def _pilot(self, learnt: PolicyState) -> Pilot:
        agent = self.cfg.agent
        return make_pilot(self.student, learnt, agent.obs_groups["student"], agent.clip_actions)

    def _recorder(self) -> Recorder | None:
        if self.record is None:
            return None
        assert self.state is not None
        begins = np.asarray(first_steps(self.state.env_state))
        env_args = {
            "env_name": self.cfg.task,
            "type": "jdistill",
            "env_kwargs": dataclasses.asdict(self.cfg.env),
            "step_dt": self.env.step_dt,
        }
        return Recorder(self.record, env_args, begins, self.cfg.agent.clip_actions)

    def _hand(self, recorder: Recorder | None, rollout: list[Any]) -> DatasetError | None:
        """Have a rollout recorded; returns why it cannot be, so that the state can be saved first."""
        try:
            if recorder:
                recorder.put(*rollout)
        except DatasetError as e:
            return DatasetError(f"{e}; the training is saved, and --resume goes on with it")
        return None

    def _compile(self, console: RunConsole) -> Any:
        started = time.perf_counter()
        compiled = self._iteration.lower(self.state, *self._data).compile()
        console.print(f"Compiled the iteration in {time.perf_counter() - started:.1f}s.\n")
        return compiled

    def _read(self, results: dict[str, Any], number: int) -> dict[str, float]:
        """Scalars to log; raises if the iteration met data that are not finite."""
        broken = sorted(tag for tag, value in results.items() if tag.startswith(FINITE) and not value)
        if broken:
            kept = self.checkpoints.latest()
            where = f"the checkpoint of iteration {kept} is kept in {self.run_dir}" if kept else "nothing was saved yet"
            raise TrainingError(f"iteration {number}: NaN or infinity in {broken[0].split('/', 2)[2]}; {where}")
        values = {tag: float(value) for tag, value in results.items() if not tag.startswith(FINITE)}
        return {tag: value for tag, value in values.items() if math.isfinite(value)}

    def _timing(self, number: int, first: int, total: int, began: float, seconds: float) -> Timing:
        steps = 0 if self.recording else self.cfg.agent.num_steps_per_env * self.env.num_envs
        elapsed = time.perf_counter() - began
        return Timing(
            total_steps=(number + 1) * steps,
            steps_per_second=steps / seconds,
            iteration_time=seconds,
            elapsed=elapsed,
            eta=elapsed / (number + 1 - first) * (total - number - 1),
        )

    def _tagged(self, scalars: dict[str, float], phase: dict[str, Any], timing: Timing) -> dict[str, float]:
        decay = self.alg.learning_rate_decay(phase["current_iteration"])
        rate = self.cfg.agent.algorithm.learning_rate * float(decay)
        return {
            **scalars,
            "Loss/learning_rate": rate,
            "Policy/mean_std": self.cfg.agent.student.init_noise_std,
            "Distillation/training_phase": phase["training_phase"],
            "Distillation/current_iteration": phase["current_iteration"],
            "Perf/total_fps": timing.steps_per_second,
            "Perf/iteration_time": timing.iteration_time,
        }


def make_student(cfg: StudentCfg, num_actions: int) -> Policy:
    """The student's network."""
    return Policy(
        num_actions=num_actions,
        hidden_dims=tuple(cfg.hidden_dims),
        activation=cfg.activation,
        output_activation=cfg.output_activation,
        pre_dims=tuple(cfg.pre_dims),
        rnn_type=cfg.rnn_type,
        rnn_hidden_dim=cfg.rnn_hidden_dim,
        rnn_num_layers=cfg.rnn_num_layers,
        learn_initial_carry=cfg.learn_initial_carry,
    )


def resolve_obs_groups(agent: AgentCfg, env: TrainingEnv) -> None:
    """Where the environment has no group of the set's own name, let the set be ``policy``, as rsl_rl does."""
    for name in ("student", "teacher"):
        if agent.obs_groups[name] == [name] and name not in env.obs_sizes and "policy" in env.obs_sizes:
            agent.obs_groups[name] = ["policy"]


def plan_history(env: TrainingEnv, cfg: RunCfg, teacher: Teacher) -> Plan | None:
    """How much the history is going to hold; None where there is none.

    Raises:
        ConfigError: it holds too little, or does not fit into memory.
    """
    return Distillation(env, make_student(cfg.agent.student, env.num_actions), teacher.policy, cfg.agent).plan()


def load_recording(env: TrainingEnv, cfg: RunCfg, teacher: Teacher) -> Recording | None:
    """The datasets that the config names; None where it names none.

    Raises:
        DatasetError: one that cannot be read, or does not fit the environment.
        ConfigError: too much for the memory.
    """
    algorithm, groups = cfg.agent.algorithm, cfg.agent.obs_groups
    if not algorithm.dataset:
        return None
    sizes = (observations.size(groups["student"], env.obs_sizes), env.num_actions)
    relabeler = None
    if algorithm.relabel:
        relabeler = Relabeler(teacher.policy, teacher.state, groups["teacher"], teacher.description["obs_size"])
    return load(algorithm, groups["student"], sizes, env.num_envs, cfg.agent.num_steps_per_env, relabeler)


def load_teacher(file: Path, env: TrainingEnv, cfg: RunCfg, old_output_activation: str = "identity") -> Teacher:
    """Read the teacher's policy file or rsl_rl checkpoint.

    ``old_output_activation`` ends the actors of rsl_rl 2.x and 3.x where the config does not say (see
    :func:`jdistill.export.rsl_rl_checkpoint.load_teacher_checkpoint`).

    Raises:
        PolicyFileError: it cannot be read.
        ConfigError: it does not fit the environment.
    """
    if is_torch_file(file):
        asked = cfg.agent.teacher.activation, cfg.agent.teacher.output_activation
        teacher = Teacher(*load_teacher_checkpoint(file, env.num_actions, *asked, old_output_activation))
    else:
        teacher = Teacher(*load_policy(file))
    expected = {}
    for name in ("student", "teacher"):
        try:
            expected[name] = observations.size(cfg.agent.obs_groups[name], env.obs_sizes)
        except observations.ObservationError as e:
            raise ConfigError(f"agent.obs_groups.{name}: {e}") from e
    groups = cfg.agent.obs_groups["teacher"]
    if teacher.description["obs_size"] != expected["teacher"]:
        detail = " + ".join(f"'{g}' {observations.size([g], env.obs_sizes)}" for g in groups)
        raise ConfigError(
            f"{file}: the teacher takes {teacher.description['obs_size']} observations, "
            f"the environment's {detail} has {expected['teacher']}"
        )
    if teacher.policy.num_actions != env.num_actions:
        raise ConfigError(
            f"{file}: the teacher gives {teacher.policy.num_actions} actions, the environment takes {env.num_actions}"
        )
    frame = teacher.description.get("observation", {}).get("frame")
    actual = env.obs_frames.get(groups[0], frame)
    if frame is not None and frame != actual:
        raise ConfigError(f"{file}: the teacher sees in the {frame} frame, '{groups[0]}' is in the {actual} frame")
    return teacher


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one has its usual effect."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python lets only the main thread handle signals.
        return

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        signal.signal(signum, before[signum])

    before: dict[int, Any] = {int(s): signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
