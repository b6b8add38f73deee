"""PrefetchLink: control's side of the prefetcher of one server: fetches ordered, their news heard on the clock."""

from collections.abc import Callable
from threading import Thread
from typing import Any

from serving.core.clock import Clock
from serving.live.errors import LiveError
from serving.live.frames import recv_frame, send_frame
from serving.live.processes import PrefetcherProcess

OnEvent = Callable[[dict[str, Any]], None]


class PrefetchLink:
    """One prefetcher process. ``on_event(event)`` and, if it dies, ``on_end(reason)`` are called on the clock."""

    def __init__(self, process: PrefetcherProcess, clock: Clock, on_event: OnEvent) -> None:
        self.process = process
        self.on_end: Callable[[str], None] | None = None
        self.ended = False
        """The process is gone, or about to go."""
        self._reason: str | None = None
        self._clock = clock
        self._on_event = on_event
        self._reader = Thread(target=self._read, name=f"events of {process.live.name}", daemon=True)
        self._reader.start()

    def send(self, command: dict[str, Any]) -> None:
        """Give a command; one that has ended takes none, and ``on_end`` tells of it."""
        if not self.ended:
            try:
                send_frame(self.process.socket, command)
            except OSError:
                return  # its death is noticed by the reader

    def kill(self, reason: str) -> None:
        """It is of no use any more; ``on_end`` will say why."""
        live = self.process.live
        self._reason = f"{live.name} (process {live.pid}) {reason}"
        live.process.kill()

    def close(self) -> None:
        """End the process and wait for it."""
        self.ended = True
        self.process.stop()
        self._reader.join()

    def _read(self) -> None:
        reason: str | None = None
        try:
            while True:
                event, _ = recv_frame(self.process.socket)
                self._clock.post(self._on_event, event)
        except (EOFError, OSError):
            pass
        except LiveError as error:
            reason = f"{self.process.live.name} sent garbage: {error}"
        if not self.ended:
            self._clock.post(self._end, self._reason or reason)

    def _end(self, reason: str | None) -> None:
        if not self.ended:
            self.ended = True
            self.process.stop()
            if self.on_end is not None:
                self.on_end(reason or self.process.live.obituary())
