"""Standard output and error that may go away: a pipe whose reader has ended, a lost terminal, a full disk behind ``>``.

That is never a reason to lose anything else, so what cannot be written is dropped.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Output:
    """A text stream whose writing never fails; whatever is written after a failure is dropped."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.failure: OSError | None = None
        """What went wrong first."""

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        if self.failure is None:
            try:
                self._stream.write(text)
            except OSError as e:
                self._give_up(e)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as e:
                self._give_up(e)

    def _give_up(self, failure: OSError) -> None:
        self.failure = failure
        try:  # What the stream still holds would fail once more when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def kept_going() -> Iterator[None]:
    """Let ``sys.stdout`` and ``sys.stderr`` be such streams; what was lost of the first is told on the second."""
    before = sys.stdout, sys.stderr
    out, err = sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
    try:
        yield
    finally:
        out.flush()
        if out.failure and out.failure.errno != errno.EPIPE:
            err.write(f"standard output failed ({out.failure.strerror}): what came after that is lost, nothing else\n")
        err.flush()
        sys.stdout, sys.stderr = before


def quieten_libraries() -> None:
    """Drop the tracebacks that libraries print from threads of their own, one a file when a disk is full.

    What went wrong there reaches whoever waits for the result, and is told then. Exceptions of this thread, and of
    threads that Python started, are printed as ever.
    """
    if not getattr(sys.unraisablehook, "drops", False):
        ours = sys.unraisablehook

        def hook(unraisable: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                ours(unraisable)

        hook.drops = True  # type: ignore[attr-defined]
        sys.unraisablehook = hook


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has ended, as that of ``| head`` does."""
    failure = getattr(sys.stdout, "failure", None)
    return failure is not None and failure.errno == errno.EPIPE
