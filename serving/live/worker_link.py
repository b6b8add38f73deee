"""WorkerLink: control's side of one worker process: commands out, replies back on the clock, and its end noticed."""

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from threading import Event, Thread
from typing import Any

from serving.core.clock import Clock
from serving.live.errors import LiveError
from serving.live.frames import Buffer, FrameError, recv_frame, send_frame
from serving.live.processes import LiveProcess
from serving.units import Seconds

SEND_TIMEOUT: Seconds = 5.0
"""A worker that takes nothing off its socket for so long is taken for dead; its reader has nothing else to do."""
GRACE: Seconds = 1.0
"""What a worker has to end by itself: its GPU memory has been given away already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A worker's answer to a command that it carried out."""

    header: dict[str, Any]
    payload: bytes


OnReply = Callable[[Reply], None]


class WorkerLink:
    """One worker process. All but the reader thread's part runs on the clock's thread.

    ``on_fault(reason)`` is called on the clock, at most once: a command failed, or the process ended before ``close``.
    """

    def __init__(self, live: LiveProcess, clock: Clock) -> None:
        self.live = live
        self.on_fault: Callable[[str], None] | None = None
        self.on_hello: Callable[[], object] | None = None
        self.greeted = False
        """The process runs and listens, and the clock's thread has heard of it."""
        self.closed = False
        self.num_loaded = 0
        """Tensors of its part that were ordered onto the device, in ``num_loads`` commands."""
        self.num_loads = 0
        self._clock = clock
        self._listens = Event()
        self._ids = count(1)
        self._waiting: dict[int, OnReply] = {}
        _limit_sends(live.socket)
        self._reader = Thread(target=self._read, name=f"replies of {live.name}", daemon=True)
        self._reader.start()

    def call(self, header: dict[str, Any], on_reply: OnReply | None, buffers: Sequence[Buffer] = ()) -> None:
        """Send a command; its reply, if any is wanted, comes on the clock. Nothing after ``close`` or a fault."""
        if self.closed:
            return
        command_id = next(self._ids)
        if on_reply is not None:
            self._waiting[command_id] = on_reply
        try:
            send_frame(self.live.socket, {**header, "id": command_id}, *buffers)
        except (OSError, LiveError) as error:
            self._clock.post(self._fault, f"{self.live.name} does not take commands ({error})")

    def await_hello(self, timeout: Seconds) -> None:
        """Wait until the process listens, or has failed to; before the clock runs."""
        self._listens.wait(timeout)

    def close(self) -> None:
        """End the process; returns at once, ``join`` waits for it."""
        if self.closed:
            return
        self.closed = True
        self._waiting.clear()
        with contextlib.suppress(OSError):
            self.live.socket.shutdown(socket.SHUT_RDWR)  # which ends the worker, and wakes our reader

    @property
    def ending(self) -> bool:
        """Whether the process may still be there."""
        return self._reader.is_alive()

    def join(self) -> None:
        """Wait until the process has ended after ``close``."""
        self._reader.join()

    def _read(self) -> None:
        try:
            while True:
                header, payload = recv_frame(self.live.socket)
                self._take(header, payload)
        except (EOFError, OSError):
            reason = None
        except FrameError as error:
            reason = f"{self.live.name} sent garbage: {error}"
        self.live.stop(GRACE)
        self._listens.set()
        if not self.closed:
            self._clock.post(self._fault, reason or self.live.obituary())

    def _take(self, header: dict[str, Any], payload: bytes) -> None:
        """On the reader's thread: pass on what somebody waits for."""
        if header.get("event") == "hello":
            self._listens.set()
            self._clock.post(self._hello)
        elif header.get("ok") is False:
            self._clock.post(self._fault, f"{self.live.name}: {header.get('error', 'a command failed')}")
        elif header.get("id") in self._waiting:
            self._clock.post(self._answer, header["id"], Reply(header=header, payload=payload))

    def _hello(self) -> None:
        self.greeted = True
        if self.on_hello is not None and not self.closed:
            self.on_hello()

    def _answer(self, command_id: int, reply: Reply) -> None:
        on_reply = self._waiting.pop(command_id, None)
        if on_reply is not None:
            on_reply(reply)

    def _fault(self, reason: str) -> None:
        if self.closed:
            return
        self.close()
        if self.on_fault is not None:
            self.on_fault(reason)


def _limit_sends(sock: socket.socket) -> None:
    """Let a blocked send fail after a while, and reads wait as long as they like."""
    seconds = struct.pack("ll", int(SEND_TIMEOUT), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
