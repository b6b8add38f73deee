"""Bridge: carries outputs from the engine's thread to the event loop, one wake-up for all that a step brings."""

import asyncio
import threading
from collections.abc import Callable

from serving.live.output import Output

Receiver = Callable[[int, Output], None]
"""Takes the output of one of its sequences, on the event loop."""


class Bridge:
    """A queue with its writers on any thread and its reader on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: list[tuple[Receiver, int, Output]] = []

    def put(self, receiver: Receiver, index: int, output: Output) -> None:
        """Hand an output over; from any thread, never blocks, never raises."""
        with self._lock:
            self._waiting.append((receiver, index, output))
            if len(self._waiting) > 1:
                return
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._waiting.clear()

    def _deliver(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for receiver, index, output in waiting:
            receiver(index, output)
