"""Signals that ask a run to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

LAST = 5
"""Signals until one is obeyed at once."""
ENDING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C; what ends a batch job; Slurm's warning that it is about to; a terminal or a connection that is gone."""


@contextmanager
def caught_signals(survives_hangup: bool = False) -> Iterator[list[int]]:
    """Collect the signals of :data:`ENDING` instead of dying of them; the :data:`LAST` one has its usual effect.

    One Ctrl-C may come twice: from the terminal, and passed on by a launcher. A program that was started with SIGHUP
    ignored, by ``nohup``, goes on ignoring it; ``survives_hangup`` makes any do so.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python lets only the main thread handle signals.
        return

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if len(received) >= LAST - 1:
            signal.signal(signum, before[signum])

    before: dict[int, Any] = {}
    for signum in (getattr(signal, name) for name in ENDING if hasattr(signal, name)):
        before[signum] = signal.getsignal(signum)
        if signum == getattr(signal, "SIGHUP", None) and (survives_hangup or before[signum] == signal.SIG_IGN):
            signal.signal(signum, signal.SIG_IGN)
        else:
            signal.signal(signum, note)
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
