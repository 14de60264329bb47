"""The loop around the compiled iteration; whatever else a run does is in :mod:`jdistill.run.callbacks`."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.env import TrainingEnv
from jdistill.core import observations
from jdistill.core.actor import PolicyActor
from jdistill.core.distillation import TrainState
from jdistill.core.networks import PolicyState
from jdistill.core.rollout import Transition
from jdistill.core.schedule import PhaseInfo
from jdistill.core.statistics import BROKEN, Metrics
from jdistill.data.dataset import Recording
from jdistill.errors import CheckpointError, PolicyFileError, TrainingError, UserError
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.run import processes
from jdistill.run.callbacks import BrokenWatch, Callback, Checkpoint, Console, Iteration, LossWatch, Scalars
from jdistill.run.checkpoint import Checkpoints
from jdistill.run.compose import RunCfg
from jdistill.run.console import Clock, Timing
from jdistill.run.held import HeldRun
from jdistill.run.inputs import Teacher, make_algorithm
from jdistill.run.mesh import BY_ENV, SAME, EnvMesh, Programs, history_specs
from jdistill.run.output import nobody_reads
from jdistill.run.signals import caught_signals
from jdistill.run.teachers import check_assigned


class Interrupted(Exception):
    """The user asked to stop; everything is saved. ``signum`` is the signal."""

    def __init__(self, signum: int, iteration: int, run_dir: Path):
        super().__init__(f"Interrupted after {iteration} iterations; everything is saved in {run_dir}")
        self.signum = signum
        self.run_dir = run_dir


class DistillationRunner:
    """Runs two-stage distillation of ``teacher`` into a student on ``env`` and keeps its folder ``run_dir``."""

    def __init__(
        self,
        env: TrainingEnv,
        cfg: RunCfg,
        teacher: Teacher,
        run_dir: Path,
        recording: Recording | None = None,
        callbacks: Sequence[Callback] = (),
        mesh: EnvMesh | None = None,
    ):
        """Train on rollouts, or on a ``recording``; ``callbacks`` join those for console, scalars and checkpoints.

        ``env`` is what each device of the ``mesh`` steps; without one, a single device does all.
        """
        self.env = env
        self.mesh = mesh or EnvMesh()
        self.cfg = cfg
        self.teacher = teacher
        self.actor = self.mesh.put(teacher.actor(cfg.agent), SAME)
        self.run_dir = run_dir
        self.recording = recording
        self.alg = make_algorithm(env, cfg.agent, self.mesh.shards)
        self.programs = Programs(self.alg, self.mesh, self.actor, cfg.agent.seed)
        self.checkpoints = Checkpoints(run_dir, cfg.agent.max_checkpoints)
        self.scalars = Scalars()
        speaking = [self.scalars, Console(), LossWatch(), BrokenWatch()] if processes.is_main() else []
        self.callbacks: list[Callback] = [*speaking, Checkpoint(), *callbacks]
        self.state: TrainState | None = None
        self._saved: int | None = None
        self.survives_hangup = False
        """Whether training goes on when the terminal is gone."""
        self.held: HeldRun | None = None
        """The run folder, in the process that holds it."""
        self.current_learning_iteration = 0
        self.phase1_end = self.alg.schedule.phase1_iterations
        """The iteration at which phase 1 ends, as far as is known."""
        self.print: Callable[[str], None] = print
        """Prints beside the progress bar, where there is one."""
        self.iteration, self._arguments = self._program()

    def _program(self) -> tuple[Any, tuple[Any, ...]]:
        """The iteration to compile, and what it takes beside the training state."""
        if self.recording:
            return self.programs.offline_iteration(), (self.mesh.put(self.recording.history, history_specs()),)
        keeps_rollout = any(callback.needs_rollout for callback in self.callbacks)
        return self.programs.iteration(keeps_rollout), (self.actor,)

    # -- the loop ------------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """Iterate until ``max_iterations``.

        Raises:
            TrainingError: data that are not finite; the last good checkpoint stays.
            Interrupted: a signal asked for it; the state is saved.
            UserError: a callback failed; the state is saved.
        """
        total = self.cfg.agent.max_iterations
        with ExitStack() as stack:
            # First, and so last of all: until everything is on disk no signal ends the program.
            received = stack.enter_context(caught_signals(self.survives_hangup))
            for callback in self.callbacks:
                callback.open(self)
                stack.callback(callback.close)
            program = self._compile()
            clock = Clock(self.current_learning_iteration, total, self._steps_per_iteration())
            while self.current_learning_iteration < total:
                phase = self.get_training_phase_info()
                for callback in self.callbacks:
                    callback.before_iteration(phase)
                clock.start()
                metrics, rollout = self._iterate(program)
                self._check_folder()
                signum = processes.largest(received[0] if received else signal.SIGPIPE * nobody_reads()) or None
                is_last = signum is not None or self.current_learning_iteration == total
                scalars = self._scalars(metrics, phase, timing := clock.read(phase.current_iteration))
                self._after(Iteration(phase, scalars, timing, self._student_return(scalars), rollout, is_last))
                if signum is not None and self.current_learning_iteration < total:
                    raise Interrupted(signum, self.current_learning_iteration, self.run_dir)

    @property
    def num_envs(self) -> int:
        """Environments of all devices."""
        return self.mesh.shards.count * self.env.num_envs

    def _compile(self) -> Any:
        started = time.perf_counter()
        compiled = self.iteration.lower(self.state, *self._arguments).compile()
        self.program_text = compiled.as_text
        self.print(f"Compiled the iteration in {time.perf_counter() - started:.1f}s.\n")
        return compiled

    def _check_folder(self) -> None:
        """Raise :class:`TrainingError` where the run folder is gone; what was learned is saved where it went.

        The folder is that of the process which holds it.
        """
        if not (self.held and (gone := self.held.gone())):
            return
        if not (place := self.held.moved_to()):
            raise TrainingError(f"{self.run_dir} {gone} while it was being trained, and all that it held with it")
        self.run_dir, self._saved = place, None
        self.checkpoints = Checkpoints(place, self.cfg.agent.max_checkpoints)
        self.save(None)
        self.checkpoints.close()
        raise TrainingError(f"the run folder {gone}; everything is saved there: --resume --load_run {place} goes on")

    def _steps_per_iteration(self) -> int:
        return 0 if self.recording else self.cfg.agent.num_steps_per_env * self.num_envs

    def _iterate(self, program: Any) -> tuple[Metrics, Transition | None]:
        """Run the program once; its scalars are read, the rollout stays on the device."""
        self.state, metrics, *rollout = self.env.drive(program, self.state, *self._arguments)
        metrics = jax.device_get(metrics)
        self._check_finite(metrics)
        self.current_learning_iteration += 1
        self.phase1_end = int(self.alg.phase1_end(self.state))
        return metrics, self.mesh.own(rollout[0], self.programs.rollout_specs()) if rollout else None

    def _after(self, iteration: Iteration) -> None:
        """Every callback's turn. If one of them fails, the state is saved before the run ends."""
        failures: list[UserError | OSError] = []
        for callback in self.callbacks:
            try:
                callback.after_iteration(iteration)
            except (UserError, OSError) as e:
                failures.append(e)
        if not processes.largest(bool(failures)):
            return
        if failures and isinstance(failures[0], CheckpointError):
            raise failures[0]
        self.save(iteration.mean_return)
        if not failures:
            processes.await_the_end()
        failure = failures[0]
        what = failure if isinstance(failure, UserError) else f"{failure.filename or self.run_dir}: {failure.strerror}"
        kind = type(failure) if isinstance(failure, UserError) else TrainingError
        raise kind(f"{what}; the training is saved, and --resume goes on with it") from failure

    # -- what an iteration says ----------------------------------------------------------------------------------

    def _check_finite(self, metrics: Metrics) -> None:
        """Raise :class:`TrainingError` that names the first of the data that are not finite.

        Or one that says that too much of it would have to be left out.
        """
        kept, number = self.checkpoints.latest(), self.current_learning_iteration
        where = f"the checkpoint of iteration {kept} is kept in {self.run_dir}" if kept else "nothing was saved yet"
        if (broken := metrics.scalars.get(BROKEN, 0)) >= self.num_envs:
            raise TrainingError(
                f"iteration {number}: NaN or infinity ended {broken:.0f} episodes of {self.num_envs} environments, too "
                f"many to leave out; {where}"
            )
        if not (what := metrics.first_cause(self.num_envs)):
            return
        raise TrainingError(f"iteration {number}: NaN or infinity in {what}; {where}")

    def _scalars(self, metrics: Metrics, phase: PhaseInfo, timing: Timing) -> dict[str, float]:
        """What is logged of an iteration, by rsl_rl's tags."""
        measured = {tag: float(value) for tag, value in metrics.scalars.items()}
        rate = self.cfg.agent.algorithm.learning_rate * float(self.alg.learning_rate_decay(phase.current_iteration))
        return {
            **{tag: value for tag, value in measured.items() if math.isfinite(value)},
            **self.env.pop_log(),
            "Loss/learning_rate": rate,
            "Policy/mean_std": self.cfg.agent.student.init_noise_std,
            "Distillation/training_phase": phase.training_phase,
            "Distillation/current_iteration": phase.current_iteration,
            "Perf/total_fps": timing.steps_per_second,
            "Perf/iteration_time": timing.iteration_time,
        }

    def _student_return(self, scalars: dict[str, float]) -> float | None:
        """The mean return if the student acted from the start in every episode in it, else None."""
        alone = self.current_learning_iteration > self.alg.schedule.student_alone_from(self.phase1_end)
        return scalars.get("Train/mean_reward") if alone else None

    def get_training_phase_info(self) -> PhaseInfo:
        """The phase of the iteration that comes next."""
        return self.alg.schedule.info(self.current_learning_iteration, self.phase1_end, bool(self.recording))

    # -- state ---------------------------------------------------------------------------------------------------

    def student_actor(self) -> PolicyActor:
        """The student as it would be saved now."""
        assert self.state is not None
        agent = self.cfg.agent
        groups = tuple(agent.obs_groups["student"])
        # A copy that lies on one device, for programs that run on one.
        student = jax.device_get(self.state.saved_student)
        return PolicyActor(self.alg.student, student, groups, agent.clip_actions)

    def start(self, student: PolicyState | None = None) -> None:
        """Begin at iteration 0, with a ``student`` that has learned something already, or a random one."""
        rng = self.mesh.put(jax.random.key(self.cfg.agent.seed), SAME)
        state = self.env.drive(self.programs.init(), rng, self.actor)
        if student is not None:
            state = state.replace(student=self.mesh.put(jax.device_get(student), SAME))
            if state.ema_params is not None:
                state = state.replace(ema_params=self.mesh.put(jax.device_get(student.params), SAME))
        if self.recording and state.student.normalizer is not None:
            # The moments of the whole dataset, from the first step on.
            # (A copy: the training state is donated to every iteration.)
            normalizer = self.mesh.put(jax.tree.map(jnp.copy, self.recording.normalizer), SAME)
            state = state.replace(student=state.student.replace(normalizer=normalizer))
        self.state = state
        self._check_teachers()
        if processes.is_main():  # Kept with the run, so that a resume needs no other file.
            save_policy(self.run_dir / "teacher.safetensors", *self.teacher)

    def _check_teachers(self) -> None:
        """See that every environment has a teacher."""
        assert self.state is not None
        if not self.recording:
            check_assigned(self.mesh.own(self.state.env_state, BY_ENV), self.actor, self.cfg.agent)

    def load(self, fallback: bool = False, teacher_name: str | None = None) -> None:
        """Go on from the newest checkpoint of the run folder; with ``fallback``, from the newest that is whole.

        ``teacher_name`` is what the teacher was read from. Where it is another than the run's, it takes its place.
        """
        state, is_best = self.checkpoints.restore(self.programs.whole(), fallback)
        another = teacher_name is not None and not processes.told_by_main(self._is_kept_teacher)
        self.state = self.mesh.put(state, specs := self.programs.specs_of(state))
        if state.student_carry is None:
            forgotten = "" if self.programs.part.history is None else ", and the history is empty"
            self.print(f"The checkpoint has another number of environments: all episodes begin anew{forgotten}.")
        elif state.env_state is None:
            self.print(
                "The checkpoint's environments are others (settings, version or devices): all episodes begin anew."
            )
        remembers = another and bool(jax.tree.leaves(self.programs.part.teacher_carry))
        if state.env_state is None or not self.env.restorable or remembers:
            self.state = self.env.drive(self.programs.restart_episodes(specs), self.state, self.actor)
        self._check_teachers()
        self.current_learning_iteration = int(self.state.iteration)
        self.phase1_end = int(self.alg.phase1_end(self.state))
        if another:
            kept = "" if self.programs.part.history is None else "; the history keeps what the one before taught"
            self.print(f"From iteration {self.current_learning_iteration} on, {teacher_name} teaches{kept}.")
            if processes.is_main():
                save_policy(self.run_dir / "teacher.safetensors", *self.teacher)
        self._save_students(is_best)  # Those of the folder may be older or newer than the checkpoint.

    def _is_kept_teacher(self) -> bool:
        """Whether the teacher is the one that the run folder holds."""
        try:
            policy, state, _ = load_policy(self.run_dir / "teacher.safetensors")
        except PolicyFileError:
            return False
        kept, ours = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (state, self.teacher.state))
        same = policy == self.teacher.policy and kept.keys() == ours.keys()
        return same and all(np.array_equal(x, ours[path]) for path, x in kept.items())

    def save(self, mean_return: float | None) -> None:
        """Write a checkpoint and the student's policy file (the best student's too, when this one is).

        ``mean_return`` is None where it says nothing about the student.
        """
        assert self.state is not None
        if self._saved == self.current_learning_iteration:
            return
        self._saved = self.current_learning_iteration
        self._save_students(self.checkpoints.save(self.current_learning_iteration, self.state, mean_return))

    def _save_students(self, is_best: bool) -> None:
        """The student's policy file; and the best student's, where this one is."""
        assert self.state is not None
        header = {
            **observations.describe(self.env, self.cfg.agent.obs_groups["student"]),
            "task": self.cfg.task,
            "iteration": self.current_learning_iteration,
        }
        for name in ["student", *(["best_student"] if is_best else [])] if processes.is_main() else []:
            save_policy(self.run_dir / f"{name}.safetensors", self.alg.student, self.state.saved_student, header)
