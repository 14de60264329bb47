"""What a run does beside training: console, scalars, checkpoints, profile, recording. Each opens and closes itself."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from jdistill.core import observations
from jdistill.core.rollout import Transition
from jdistill.core.schedule import PhaseInfo
from jdistill.core.statistics import BROKEN, is_first_step
from jdistill.data.recorder import Recorder
from jdistill.run import processes
from jdistill.run.console import RunConsole, Timing, iteration_block, switch_banner
from jdistill.run.loggers import Film, Writer, make_writer
from jdistill.run.mesh import BY_ENV
from jdistill.run.profiling import Profiler, ProfileWindow

if TYPE_CHECKING:
    from jdistill.run.runner import DistillationRunner


@dataclass(frozen=True)
class Iteration:
    """One iteration, as the callbacks see it."""

    phase: PhaseInfo
    """Its number is ``phase.current_iteration``."""
    scalars: dict[str, float]
    """By rsl_rl's log tags."""
    timing: Timing
    mean_return: float | None
    """The student's, None where it did not act alone in every episode of that mean."""
    rollout: Transition | None
    """(T, B, ...), on the devices of this process; None unless a callback has ``needs_rollout``."""
    is_last: bool
    """Whether this program ends with it."""

    @property
    def number(self) -> int:
        """Iterations before this one."""
        return self.phase.current_iteration


class Callback:
    """Base class; whatever a subclass leaves out does nothing."""

    needs_rollout = False
    """Whether the rollouts of all iterations are kept for it."""

    def open(self, runner: DistillationRunner) -> None:
        """The loop is about to begin."""

    def before_iteration(self, phase: PhaseInfo) -> None:
        """An iteration is about to begin."""

    def after_iteration(self, iteration: Iteration) -> None:
        """An iteration has ended.

        Raises:
            UserError, OSError: it cannot be done; the runner saves the training state and ends.
        """

    def close(self) -> None:
        """The loop has ended, in whatever way."""


class Console(Callback):
    """Prints the iteration blocks; on a terminal a progress bar stays below them."""

    def open(self, runner: DistillationRunner) -> None:
        """Show the progress bar."""
        self._run_name, self._total = runner.cfg.agent.run_name, runner.cfg.agent.max_iterations
        self._console = RunConsole(runner.current_learning_iteration, self._total)
        self._console.__enter__()
        runner.print = self._console.print

    def before_iteration(self, phase: PhaseInfo) -> None:
        """Announce the switch of phases."""
        if phase.is_switch:
            self._console.print(switch_banner(phase.current_iteration, phase.action_source))

    def after_iteration(self, iteration: Iteration) -> None:
        """Print the block."""
        at = iteration.number, self._total, iteration.phase
        self._console.print(iteration_block(*at, iteration.scalars, iteration.timing, self._run_name))
        self._console.advance()

    def close(self) -> None:
        """Take the progress bar away."""
        self._console.__exit__()


class Scalars(Callback):
    """Writes scalars to ``progress.csv`` and to what ``agent.logger`` names."""

    _writer: Writer

    def open(self, runner: DistillationRunner) -> None:
        """Begin, or go on with, the files."""
        config = dataclasses.asdict(runner.cfg)
        self._writer = make_writer(runner.run_dir, runner.cfg.agent, config, runner.current_learning_iteration)

    def after_iteration(self, iteration: Iteration) -> None:
        """Write a row."""
        self._writer.write(iteration.scalars, iteration.number)

    def show(self, film: Film, iteration: int) -> None:
        """Show a film of the student beside the scalars, where the logger can."""
        self._writer.show(film, iteration)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class Checkpoint(Callback):
    """Saves every ``save_interval`` iterations, every ``save_minutes``, and at the end."""

    def open(self, runner: DistillationRunner) -> None:
        """Remember what to save."""
        self._runner, self._saved_at = runner, time.monotonic()

    def after_iteration(self, iteration: Iteration) -> None:
        """Save, if it is time."""
        agent = self._runner.cfg.agent
        minutes = (time.monotonic() - self._saved_at) / 60
        due = iteration.is_last or (iteration.number + 1) % agent.save_interval == 0
        # Clocks differ; all processes save together.
        if due or processes.largest(agent.save_minutes is not None and minutes >= agent.save_minutes):
            self._runner.save(iteration.mean_return)
            self._saved_at = time.monotonic()

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._runner.checkpoints.close()


class LossWatch(Callback):
    """Says so when the loss or the student explodes, which a run can go on with to its end."""

    FIRST, TIMES = 5, 100
    """A loss this many times the largest of so many first ones has exploded."""
    LARGEST = 1e3
    """A parameter beyond this has. Where the output is bounded, so is the loss."""

    def open(self, runner: DistillationRunner) -> None:
        """Nothing has exploded yet."""
        self._runner, self._said = runner, False
        self._first: list[float] = []

    def after_iteration(self, iteration: Iteration) -> None:
        """Compare."""
        loss = iteration.scalars["Loss/behavior"]
        if len(self._first) < self.FIRST:
            self._first.append(loss)
        elif loss > self.TIMES * max(self._first):
            self._say(f"the loss is {loss:.3g}, that of the first iterations was {max(self._first):.3g}", iteration)
        if iteration.is_last or iteration.number == self.FIRST:
            assert self._runner.state is not None
            params = jax.device_get(jax.tree.leaves(self._runner.state.student.params))
            if (largest := max(float(np.abs(x).max()) for x in params)) > self.LARGEST:
                self._say(f"the student has parameters as large as {largest:.3g}", iteration)

    def _say(self, what: str, iteration: Iteration) -> None:
        if iteration.is_last or not self._said:
            self._said = True
            advice = "the student does not learn; lower agent.algorithm.learning_rate"
            self._runner.print(f"Warning: {what}: {advice}\n")


class BrokenWatch(Callback):
    """Says so when an environment gave NaN or infinity and was restarted for it: once, the log counts them all."""

    def open(self, runner: DistillationRunner) -> None:
        """Nothing has broken yet."""
        self._runner, self._said = runner, False

    def after_iteration(self, iteration: Iteration) -> None:
        """Look at the count."""
        if (broken := iteration.scalars.get(BROKEN, 0)) and not self._said:
            self._said = True
            self._runner.print(
                f"Warning: NaN or infinity ended {broken:.0f} episodes; the environments were restarted and those "
                f"episodes are not learned from (agent.on_nonfinite=mask). {BROKEN} in the log counts them\n"
            )


class Profile(Callback):
    """Traces a window of iterations with JAX's profiler."""

    def __init__(self, window: ProfileWindow):
        self.window = window

    def open(self, runner: DistillationRunner) -> None:
        """Nothing is traced before the window."""
        self._runner, self._profiler = runner, Profiler(runner.run_dir, self.window)

    def before_iteration(self, phase: PhaseInfo) -> None:
        """Begin the trace where the window begins."""
        self._step = self._profiler.iteration(phase.current_iteration)
        self._step.__enter__()

    def after_iteration(self, iteration: Iteration) -> None:
        """End the trace where the window ends, and say what it shows."""
        self._step.__exit__(None, None, None)
        if shares := self._profiler.after(iteration.number, self._runner.program_text):
            parts = ", ".join(f"{scope} {ms:.1f} ms" for scope, ms in shares.items())
            self._runner.print(f"Profiler trace written to {self._profiler.directory}\nPer iteration: {parts}\n")

    def close(self) -> None:
        """End a trace that still runs."""
        self._profiler.close()


def _names(runner: DistillationRunner) -> dict[str, list[str]]:
    """What the numbers of a recording's observation groups and actions are called, where the environment says."""
    env, sets = runner.env, runner.cfg.agent.obs_groups
    groups = observations.group_names([entry for entries in sets.values() for entry in entries])
    known = {name: observations.names(name, env.obs_specs) for name in groups}
    return {name: x for name, x in {**known, "actions": list(env.action_layout.get("layout", ()))}.items() if x}


class Record(Callback):
    """Records every whole episode to a new HDF5 file."""

    needs_rollout = True

    def __init__(self, file: Path):
        self.file = file
        self._recorder: Recorder | None = None

    def open(self, runner: DistillationRunner) -> None:
        """Begin the file."""
        assert runner.state is not None
        env_args = {
            "env_name": runner.cfg.task,
            "type": "jdistill",
            "env_kwargs": dataclasses.asdict(runner.cfg.env),
            "step_dt": runner.env.step_dt,
            "obs_groups": runner.cfg.agent.obs_groups,
            "names": _names(runner),
        }
        is_first = np.asarray(is_first_step(runner.mesh.own(runner.state.env_state, BY_ENV)))
        self._recorder = Recorder(self.file, env_args, is_first, runner.cfg.agent.clip_actions)

    def after_iteration(self, iteration: Iteration) -> None:
        """Hand the rollout over."""
        assert self._recorder is not None
        recorder, self._recorder = self._recorder, None  # One that fails closes itself.
        recorder.put(iteration.rollout)
        self._recorder = recorder

    def close(self) -> None:
        """Write what waits, and say what the file holds."""
        if self._recorder:
            print(self._recorder.close(), flush=True)
