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
    longer: Seconds
    """What the process may take for it beyond the limit of every answer."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Of a process that owes something: since when, and how long it may last."""

    since: Seconds
    limit: Seconds

    @property
    def over_at(self) -> Seconds:
        """When it has lasted too long."""
        return self.since + self.limit


class WorkerLink:
    """One worker process. All but the reader thread's part runs on the clock's thread.

    ``on_fault(reason)`` is called on the clock, at most once: a command failed, the process ended before ``close``, or
    it owes a greeting or an answer, and the thread that owes it has said nothing for ``answer_limit``, or for what the
    command that it carries out may take beyond that.
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

    def call(
        self,
        header: dict[str, Any],
        on_reply: OnReply | None,
        buffers: Sequence[Buffer] = (),
        longer: Seconds = 0.0,
    ) -> None:
        """Send a command; its reply, if any is wanted, comes on the clock. Nothing after ``close`` or a fault.
        ``longer``: what the process may take for it beyond ``answer_limit``, from when it has answered those before."""
        if self.closed:
            return
        command_id = next(self._ids)
        if on_reply is not None:
            self._waiting[command_id] = Owed(on_reply, header["op"] in BESIDE, self._clock.now, longer)
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
    def _silence(self) -> Silence | None:
        """The one that is too long first; None: it has nothing to say. A thread answers in order, so it is the first
        answer that it owes that counts: those behind it cannot come before."""
        if not self.greeted:
            return Silence(self._started_at, self._answer_limit)
        first: dict[bool, Owed] = {}
        for owed in self._waiting.values():
            first.setdefault(owed.beside, owed)
        silences = [Silence(owed.since, self._answer_limit + owed.longer) for owed in first.values()]
        return min(silences, key=lambda silence: silence.over_at, default=None)

    def _expect(self) -> None:
        """An answer will be owed from now on. The timer outlasts many answers: it is not booked for each."""
        if self._watch is None:
            self._watch = self._clock.call_later(self._answer_limit, self._look)

    def _look(self) -> None:
        """The timer: look again when the limit may be over, and once more a moment after it. No later than after the
        shortest limit, which an answer may have that is asked for from now on."""
        self._watch = None
        silence = self._silence
        if self.closed or silence is None:
            return
        left = silence.over_at - self._clock.now
        if left > 0:
            self._watch = self._clock.call_later(min(left, self._answer_limit), self._look)
        else:
            self._clock.post(self._give_last_chance, silence)

    def _give_last_chance(self, silence: Silence) -> None:
        """As a post, for which time is what it is, however late the timer ran."""
        if not self.closed:
            self._watch = self._clock.call_later(LAST_CHANCE, self._clock.post, self._accuse, silence)

    def _accuse(self, silence: Silence) -> None:
        if self._silence == silence:
            self._fault(f"{self.live.name} (process {self.live.pid}) has not answered for {silence.limit:g} s")
        else:
            self._look()

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
