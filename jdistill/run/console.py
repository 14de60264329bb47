"""What a run prints: rsl_rl's iteration block with the phase lines, the switch banner, a progress bar."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jdistill.core.schedule import PhaseInfo

WIDTH, PAD = 80, 40


@dataclass(frozen=True)
class Timing:
    """How fast it goes."""

    total_steps: int
    """Environment steps since the run began, all environments together; 0 where a dataset takes their place."""
    steps_per_second: float
    """In this iteration."""
    iteration_time: float
    """Seconds."""
    elapsed: float
    """Seconds since this program began to iterate."""
    eta: float
    """Seconds until the last iteration, at the mean speed so far."""


class Clock:
    """Times the iterations of a run."""

    def __init__(self, first: int, total: int, steps: int):
        """From iteration ``first`` on, of ``total``, each of so many ``steps``, all environments together."""
        self._first, self._total, self._steps = first, total, steps
        self._began = self._started = time.perf_counter()

    def start(self) -> None:
        """An iteration begins."""
        self._started = time.perf_counter()

    def read(self, number: int) -> Timing:
        """Iteration ``number`` has ended."""
        now = time.perf_counter()
        seconds, elapsed = now - self._started, now - self._began
        return Timing(
            total_steps=(number + 1) * self._steps,
            steps_per_second=self._steps / seconds,
            iteration_time=seconds,
            elapsed=elapsed,
            eta=elapsed / (number + 1 - self._first) * (self._total - number - 1),
        )


class RunConsole:
    """Prints plain lines; on a terminal a progress bar with the remaining time stays below them."""

    def __init__(self, start: int, total: int):
        self._console = Console(highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("Iteration"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=total, completed=start)

    def __enter__(self) -> RunConsole:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress:
            self._progress.stop()

    def print(self, text: str) -> None:
        """One or more lines, as they are."""
        self._console.print(text, markup=False)
        self._console.file.flush()

    def advance(self) -> None:
        """One iteration is done."""
        if self._progress:
            self._progress.advance(self._task)


def switch_banner(iteration: int, action_source: str) -> str:
    """Announces the first iteration of phase 2."""
    rule = "=" * WIDTH
    return "\n".join(
        [
            rule,
            rule,
            f"  SWITCHING TO PHASE 2: Now using {action_source.upper()} actions to update environment",
            f"  Iteration: {iteration}",
            rule,
            rule,
        ]
    )


def iteration_block(
    iteration: int, total: int, phase: PhaseInfo, scalars: dict[str, float], timing: Timing, run_name: str
) -> str:
    """The block of one iteration; its scalars are by rsl_rl's log tags."""
    lines = ["#" * WIDTH, f" Learning iteration {iteration}/{total} ".center(WIDTH).rstrip(), ""]
    if phase.use_two_stage_training:
        lines += [
            f"Training Phase: Phase {phase.training_phase} ({phase.action_source} actions)",
            f"Phase Iteration: {iteration}/{phase.phase1_iterations} (Phase 1)",
        ]
    if phase.action_source == "mixed":
        lines.append(_row("Steps by the teacher", f"{scalars['Distillation/teacher_share']:.1%}"))
    if run_name:
        lines.append(_row("Run name", run_name))
    if timing.total_steps:
        lines.append(_row("Total steps", str(timing.total_steps)))
        lines.append(_row("Steps per second", f"{timing.steps_per_second:.0f}"))
    lines += [
        _row("Mean behavior loss", f"{scalars['Loss/behavior']:.3g}"),
    ]
    if "Policy/mean_action_error" in scalars:
        lines.append(_row("Mean action error", f"{scalars['Policy/mean_action_error']:.4f}"))
    lines.append(_row("Mean action std", f"{scalars['Policy/mean_std']:.2f}"))
    if "Train/mean_reward" in scalars:
        lines.append(_row("Mean reward", f"{scalars['Train/mean_reward']:.2f}"))
        lines.append(_row("Mean episode length", f"{scalars['Train/mean_episode_length']:.2f}"))
    extras = [tag for tag in scalars if tag.startswith(("Metrics/", "Episode"))]
    lines += [_row(tag, f"{scalars[tag]:.4f}") for tag in extras]
    lines += [
        "-" * WIDTH,
        _row("Iteration time", f"{timing.iteration_time:.2f}s"),
        _row("Time elapsed", str(datetime.timedelta(seconds=int(timing.elapsed)))),
        _row("ETA", str(datetime.timedelta(seconds=int(timing.eta)))),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, value: str) -> str:
    return f"{name + ':':>{PAD}} {value}"
