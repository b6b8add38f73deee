"""WorkerLink: control's side of one worker process: commands out, replies back on the clock, and its end noticed."""

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from threading import Event, Thread
from typing import Any

from serving.core.clock import Clock, Timer
from serving.live.errors import LiveError
from serving.live.frames import Buffer, FrameError, recv_frame, send_frame
from serving.live.processes import LiveProcess
from serving.units import Seconds

SEND_TIMEOUT: Seconds = 5.0
"""A worker that takes nothing off its socket for so long is taken for dead; its reader has nothing else to do."""
ANSWER_LIMIT: Seconds = 120.0
"""A worker that owes an answer and says nothing for so long is taken for hung: no step and no stage takes as long."""
LAST_CHANCE: Seconds = 1.0
"""What it has beyond the limit: this process may have been stopped itself, and an answer may lie in its socket."""
BESIDE = ("context", "part", "load", "grow", "kv_take", "kv_give")
"""Commands that a worker carries out on a thread of their own, while steps go on."""
GRACE: Seconds = 1.0
"""What a worker has to end by itself: its GPU memory has been given away already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A worker's answer to a command that it carried out."""

    header: dict[str, Any]
    payload: bytes


OnReply = Callable[[Reply], None]


@dataclass(slots=True, eq=False)
class Owed:
    """An answer that is waited for."""

    on_reply: OnReply
    beside: bool
    """The process carries the command out on its loading thread."""
    since: Seconds
    """When it was asked for, or that thread last answered."""


class WorkerLink:
    """One worker process. All but the reader thread's part runs on the clock's thread.

    ``on_fault(reason)`` is called on the clock, at most once: a command failed, the process ended before ``close``, or
    it owes a greeting or an answer, and the thread that owes it has said nothing for ``answer_limit``.
    """

    def __init__(self, live: LiveProcess, clock: Clock, answer_limit: Seconds = ANSWER_LIMIT) -> None:
        self.live = live
        self.on_fault: Callable[[str], None] | None = None
        self.greeted = False
        """The process runs and listens, and the clock's thread has heard of it."""
        self.closed = False
        self.num_loaded: dict[int, int] = {}
        """By a part's first layer, tensors of it that were ordered onto the device."""
        self.num_loads = 0
        """Commands by which they were."""
        self.num_rests = 0
        """Fetches of what the process lacked when it had started."""
        self._clock = clock
        self._listens = Event()
        self._ids = count(1)
        self._waiting: dict[int, Owed] = {}
        self._on_hello: list[Callable[[], object]] = []
        self._answer_limit = answer_limit
        self._started_at = clock.now
        self._watch: Timer | None = clock.call_later(answer_limit, self._look)
        _limit_sends(live.socket)
        self._reader = Thread(target=self._read, name=f"replies of {live.name}", daemon=True)
        self._reader.start()

    def call(self, header: dict[str, Any], on_reply: OnReply | None, buffers: Sequence[Buffer] = ()) -> None:
        """Send a command; its reply, if any is wanted, comes on the clock. Nothing after ``close`` or a fault."""
        if self.closed:
            return
        command_id = next(self._ids)
        if on_reply is not None:
            self._waiting[command_id] = Owed(on_reply, header["op"] in BESIDE, self._clock.now)
            self._expect()
        try:
            send_frame(self.live.socket, {**header, "id": command_id}, *buffers)
        except (OSError, LiveError) as error:
            self._clock.post(self._fault, f"{self.live.name} does not take commands ({error})")

    def when_greeted(self, then: Callable[[], object]) -> None:
        """Go on once the process listens; at once if it does."""
        if self.greeted:
            then()
        else:
            self._on_hello.append(then)

    def await_hello(self, timeout: Seconds) -> None:
        """Wait until the process listens, or has failed to; before the clock runs."""
        self._listens.wait(timeout)

    def close(self) -> None:
        """End the process; returns at once, ``join`` waits for it."""
        if self.closed:
            return
        self.closed = True
        self._waiting.clear()
        self._on_hello.clear()
        if self._watch is not None:
            self._watch.cancel()
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
        waiting, self._on_hello = self._on_hello, []
        for then in waiting:
            then()

    def _answer(self, command_id: int, reply: Reply) -> None:
        answered = self._waiting.pop(command_id, None)
        if answered is None:
            return
        for owed in self._waiting.values():
            if owed.beside == answered.beside:
                owed.since = self._clock.now
        answered.on_reply(reply)

    @property
    def _silent_since(self) -> Seconds | None:
        """Since when it owes something and says nothing; None: it has nothing to say."""
        since = [owed.since for owed in self._waiting.values()]
        return min(since, default=None) if self.greeted else self._started_at

    def _expect(self) -> None:
        """An answer will be owed from now on. The timer outlasts many answers: it is not booked for each."""
        if self._watch is None:
            self._watch = self._clock.call_later(self._answer_limit, self._look)

    def _look(self) -> None:
        """The timer: look again when the limit may be over, and once more a moment after it."""
        self._watch = None
        silent_since = self._silent_since
        if self.closed or silent_since is None:
            return
        left = silent_since + self._answer_limit - self._clock.now
        if left > 0:
            self._watch = self._clock.call_later(left, self._look)
        else:
            self._clock.post(self._give_last_chance, silent_since)

    def _give_last_chance(self, silent_since: Seconds) -> None:
        """As a post, for which time is what it is, however late the timer ran."""
        if not self.closed:
            self._watch = self._clock.call_later(LAST_CHANCE, self._clock.post, self._accuse, silent_since)

    def _accuse(self, silent_since: Seconds) -> None:
        self._watch = None
        now_silent_since = self._silent_since
        if now_silent_since == silent_since:
            self._fault(f"{self.live.name} (process {self.live.pid}) has not answered for {self._answer_limit:g} s")
        elif now_silent_since is not None:
            self._expect()

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
