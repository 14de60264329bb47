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


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; the :data:`LAST` one has its usual effect.

    One Ctrl-C may come twice: from the terminal, and passed on by a launcher.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python lets only the main thread handle signals.
        return

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if len(received) >= LAST - 1:
            signal.signal(signum, before[signum])

    before: dict[int, Any] = {int(s): signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
