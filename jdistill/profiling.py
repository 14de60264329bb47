"""JAX profiler traces of chosen iterations."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import jax

from jdistill.config import ConfigError


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
        if not (separator and start.isdigit() and count.isdigit() and int(count) > 0):
            raise ConfigError(f"--profile {text}: expected START:COUNT, for example 10:3")
        return ProfileWindow(int(start), int(count))


class Profiler:
    """Traces a window of iterations into ``RUN/profile``, for TensorBoard, XProf or Perfetto."""

    def __init__(self, run_dir: Path, window: ProfileWindow | None):
        self.directory = run_dir / "profile"
        self._window = window
        self._tracing = False

    def iteration(self, number: int) -> AbstractContextManager[None]:
        """A context around one iteration; it names the step in the trace."""
        if self._window and not self._tracing and number == self._window.start:
            jax.profiler.start_trace(str(self.directory))
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("iteration", step_num=number)

    def after(self, number: int) -> bool:
        """To be called when the iteration's results are there; returns whether that completed the trace."""
        if self._window and number + 1 >= self._window.start + self._window.count:
            return self.close()
        return False

    def close(self) -> bool:
        """End a trace that still runs and write it; returns whether there was one."""
        tracing, self._tracing = self._tracing, False
        if tracing:
            jax.profiler.stop_trace()
        return tracing
