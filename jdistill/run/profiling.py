"""JAX profiler traces of chosen iterations, and what they say of each part of the program."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import jax

from jdistill.errors import ConfigError
from jdistill.files import replace_file

SCOPES = ("teacher", "student", "env_step", "update")
"""The named scopes of :mod:`jdistill.core.distillation`. They stand in the trace as parts of the operations' names."""

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(.*op_name=\"([^\"]+)\"", re.MULTILINE)
_CONTAINERS = ("while", "conditional", "call")
"""Operations whose events span those of the operations inside them."""


@dataclass(frozen=True)
class ProfileWindow:
    """Iterations ``start .. start + count - 1``."""

    start: int
    count: int

    @staticmethod
    def parse(text: str) -> ProfileWindow:
        """Read ``START:COUNT``.

        Raises:
            ConfigError: anything but two counts, the second positive.
        """
        start, separator, count = text.partition(":")
        if not (separator and start.isdecimal() and count.isdecimal() and len(text) < 30 and int(count) > 0):
            raise ConfigError(f"--profile {text}: expected START:COUNT, for example 10:3")
        return ProfileWindow(int(start), int(count))

    def check(self, first: int, total: int) -> None:
        """Raise :class:`ConfigError` unless the window lies in a run of iterations ``first .. total - 1``."""
        if not (first <= self.start and self.start + self.count <= total):
            raise ConfigError(f"--profile {self.start}:{self.count}: this run has iterations {first} to {total - 1}")


class Profiler:
    """Traces a window of iterations into ``RUN/profile``, for XProf, TensorBoard or Perfetto."""

    def __init__(self, run_dir: Path, window: ProfileWindow | None):
        self.directory = run_dir / "profile"
        self._window = window
        self._tracing = False

    def iteration(self, number: int) -> AbstractContextManager[None]:
        """A context around one iteration; it names the step in the trace."""
        if self._window and not self._tracing and number == self._window.start:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # The loop's Python is a few calls; its trace would bury the rest.
            jax.profiler.start_trace(str(self.directory), profiler_options=options)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("iteration", step_num=number)

    def after(self, number: int, program: Callable[[], str]) -> dict[str, float] | None:
        """To be called when iteration ``number`` has ended; ``program`` gives its compiled HLO text.

        When that completes the trace: write it, and ``scopes.json`` beside it, and return the latter's content, the
        milliseconds per iteration spent in each scope (summed over threads and devices; ``other`` is in none).
        """
        if not (self._tracing and self._window and number + 1 == self._window.start + self._window.count):
            return None
        self.close()
        totals = scope_times(self.directory, program())
        shares = {scope: ms / self._window.count for scope, ms in totals.items()}
        replace_file(self.directory / "scopes.json", json.dumps(shares, indent=1))
        return shares

    def close(self) -> None:
        """End a trace that still runs and write it."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()


def scope_times(directory: Path, program: str) -> dict[str, float]:
    """Milliseconds in each scope over the newest trace under ``directory``; ``program`` is the traced HLO text."""
    totals: dict[str, float] = defaultdict(float)
    for path, ms in operation_times(directory, program).items():
        inside = [part for part in path.split("/") if part in SCOPES]
        totals[inside[-1] if inside else "other"] += ms
    return {scope: totals[scope] for scope in (*SCOPES, "other")}


def operation_times(directory: Path, program: str) -> dict[str, float]:
    """The same by JAX's names of the operations, with the scopes that they are in: ``jit(f)/update/dot_general``."""
    path_of = {name: path for name, opcode, path in _INSTRUCTION.findall(program) if opcode not in _CONTAINERS}
    newest = max(directory.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    totals: dict[str, float] = defaultdict(float)
    planes = list(jax.profiler.ProfileData.from_file(str(newest)).planes)
    # Where there is an accelerator its own planes count, not what the host did to start its kernels.
    planes = [plane for plane in planes if plane.name.startswith(("/device:GPU", "/device:TPU"))] or planes
    for event in (event for plane in planes for line in plane.lines for event in line.events):
        # A GPU's events are named by their kernels, and say of which operation each is.
        path = path_of.get(event.name) or path_of.get(str(dict(event.stats).get("hlo_op")))
        if path:
            totals[path] += event.duration_ns * 1e-6
    return totals
