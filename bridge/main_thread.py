"""Simulators that must be stepped from the main thread, inside a compiled program all the same.

Isaac Sim's Kit may be touched by the thread that started it and by no other, while JAX calls back on whichever thread
it likes. So the program runs on a thread of its own, and what it wants of the simulator is handed to the main thread,
which waits for exactly that.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _Request:
    """Work for the main thread, and how it ended."""

    def __init__(self, work: Callable[[], Any]):
        self.work = work
        self.error: BaseException | None = None
        self._pending = threading.Lock()  # Several times faster than an Event.
        self._pending.acquire()

    def serve(self) -> None:
        """Do the work; whoever asked for it learns of an error."""
        try:
            self.work()
        except BaseException as e:
            self.error = e
        self._pending.release()

    def wait(self) -> None:
        """Return once the work is done."""
        self._pending.acquire()


class MainThread:
    """Runs programs beside the calling thread, which serves what they ask of it."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()

    def execute(self, work: Callable[[], None]) -> None:
        """From within a program: have the thread that called :meth:`run` do ``work``, and wait for it."""
        request = _Request(work)
        self._requests.put(request)
        request.wait()
        if request.error is not None:
            raise request.error

    def run(self, program: Callable[..., T], *args: Any) -> T:
        """Run ``program(*args)`` on another thread and serve its requests here until it returns.

        Raises:
            BaseException: whatever the program raised.
        """
        results: list[T] = []

        def work() -> None:
            results.append(program(*args))

        whole = _Request(work)

        def beside() -> None:
            whole.serve()
            self._requests.put(None)

        # A daemon, so that an interrupt of this thread ends the process and not just its waiting.
        threading.Thread(target=beside, daemon=True, name="program").start()
        while (request := self._requests.get()) is not None:
            request.serve()
        if whole.error is not None:
            raise whole.error
        return results[0]
