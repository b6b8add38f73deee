"""KV blocks from one worker process to another: raw bytes over a unix socket, tensor by tensor; no torch.

Every move of KV has a number that both processes are told, and that goes before the bytes: those of a move that was
given up are told from the next one's. Whoever takes listens before anybody gives, and takes no faster than the link
between the two servers would let the bytes through. Either process may be killed at any point, and the other only hears
that nothing comes any more: who is to blame is for control to know.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from serving.live.activations import NeighbourError, listen_at
from serving.live.frames import recv_into_all, send_all
from serving.live.token_bucket import TokenBucket, chunk_size
from serving.units import BytesPerSecond, Seconds

PREFIX = struct.Struct("<QQ")
"""Number of the move, bytes."""
PREFIX_LIMIT: Seconds = 10.0
"""For a caller to say which move he gives: long for a process on a busy machine, as nobody tries a second time."""
BACKLOG = 16
"""Callers at once: stages of a pipeline but one, at most."""

Views = Sequence[memoryview]


class Outcome(StrEnum):
    """How a move ended for one of its two processes."""

    WHOLE = "whole"
    """All bytes went."""
    DROPPED = "dropped"
    """Control had it stopped."""
    GONE = "gone"
    """The other process hung up, or is not there."""
    STALLED = "stalled"
    """The other process said nothing for too long."""


class Rows(Protocol):
    """The bytes of KV blocks, given or taken in the same order."""

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        ...

    def give(self, send: Callable[[Views], object]) -> None:
        """Call with views of the bytes, again and again."""
        ...

    def take(self, fill: Callable[[Views], object]) -> None:
        """Call with views to be filled; returns when the last bytes are in their blocks."""
        ...


@dataclass(slots=True, eq=False)
class Move:
    """One move, as this process sees it."""

    number: int
    sock: socket.socket | None = None
    runs: bool = False
    dropped: bool = False


class KvTraffic:
    """The KV that a process gives and takes. One thread carries the moves out, in the order of their numbers; another
    may drop them; a third, its own, answers those who call."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._moves: dict[int, Move] = {}
        """Those expected or under way."""
        self._called: dict[int, tuple[socket.socket, int]] = {}
        """By number: who called and was not taken from yet, and the bytes that he has."""
        self._next = 0
        """Takes with lower numbers have ended."""
        self._path: Path | None = None
        self._listener: socket.socket | None = None

    def listen(self, path: str) -> None:
        """Be called at a socket file from now on."""
        self._path = Path(path)
        self._listener = listen_at(path, BACKLOG)
        threading.Thread(target=self._answer, args=(self._listener,), name="KV calls", daemon=True).start()

    def expect(self, number: int) -> None:
        """A move will be carried out; until then it can be dropped."""
        with self._news:
            self._moves[number] = Move(number)

    def drop(self, number: int) -> None:
        """Stop a move, or see that it is never begun; nothing when it has ended. It stops soon: ``await_end``."""
        with self._news:
            move = self._moves.get(number)
            if move is not None:
                move.dropped = True
                if move.sock is not None:
                    with contextlib.suppress(OSError):
                        move.sock.shutdown(socket.SHUT_RDWR)
                self._news.notify_all()

    def await_end(self, number: int) -> None:
        """Wait until a move that was dropped writes no more bytes."""
        with self._news:
            self._news.wait_for(lambda: number not in self._moves or not self._moves[number].runs)

    def take(self, number: int, rows: Rows, rate: BytesPerSecond | None, patience: Seconds) -> Outcome:
        """Take the bytes of a move from whoever gives it, at a rate at most."""
        try:
            return self._carry(number, lambda move: self._take(move, rows, rate, patience))
        finally:
            self._forget_callers(number)

    def give(self, number: int, to: str, rows: Rows, patience: Seconds) -> Outcome:
        """Give the bytes of a move to the process that listens at a path; returns when its socket has all of them."""
        return self._carry(number, lambda move: self._give(move, to, rows, patience))

    def end(self, number: int) -> None:
        """A move is over, or will never be carried out."""
        with self._news:
            move = self._moves.pop(number, None)
            if move is not None and move.sock is not None:
                move.sock.close()
            self._news.notify_all()

    def close(self) -> None:
        """Answer no more calls; the socket file goes too."""
        if self._listener is not None and self._path is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._path.unlink(missing_ok=True)

    def _carry(self, number: int, go: Callable[[Move], None]) -> Outcome:
        with self._news:
            move = self._moves.setdefault(number, Move(number))
            move.runs = not move.dropped
        outcome = Outcome.DROPPED
        try:
            if move.runs:
                go(move)
                outcome = Outcome.WHOLE
        except TimeoutError:
            outcome = Outcome.STALLED
        except OSError:
            outcome = Outcome.GONE
        finally:
            self.end(number)
        return Outcome.DROPPED if move.dropped and outcome is not Outcome.WHOLE else outcome

    def _take(self, move: Move, rows: Rows, rate: BytesPerSecond | None, patience: Seconds) -> None:
        with self._news:
            if not self._news.wait_for(lambda: move.number in self._called or move.dropped, patience):
                raise TimeoutError
        sock, num_bytes = self._hold(move, lambda: self._called.pop(move.number))
        if num_bytes != rows.num_bytes:
            raise NeighbourError(f"KV: expected {rows.num_bytes} bytes, {num_bytes} are given")
        sock.settimeout(patience)
        rows.take(self._intake(move, sock, rate))

    def _give(self, move: Move, to: str, rows: Rows, patience: Seconds) -> None:
        sock, num_bytes = self._hold(move, lambda: (socket.socket(socket.AF_UNIX), rows.num_bytes))
        sock.settimeout(patience)
        sock.connect(to)
        if move.dropped:  # while there was nothing yet to shut down
            raise ConnectionAbortedError
        send_all(sock, [memoryview(PREFIX.pack(move.number, num_bytes))])
        rows.give(lambda views: send_all(sock, views))

    def _hold(self, move: Move, take: Callable[[], tuple[socket.socket, int]]) -> tuple[socket.socket, int]:
        """A move's socket, which a drop shuts down from now on, and its bytes."""
        with self._news:
            if move.dropped:
                raise ConnectionAbortedError
            move.sock, num_bytes = take()
        return move.sock, num_bytes

    def _intake(self, move: Move, sock: socket.socket, rate: BytesPerSecond | None) -> Callable[[Views], None]:
        """Fills views from a socket, at a rate at most; returns when the last byte would be over the link."""
        if rate is None:
            return lambda views: recv_into_all(sock, views)
        chunk, bucket = chunk_size(rate), TokenBucket(rate)

        def fill(views: Views) -> None:
            for view in views:
                for start in range(0, view.nbytes, chunk):
                    piece = view[start : start + chunk]
                    recv_into_all(sock, [piece])
                    self._rest(move, bucket.reserve(piece.nbytes) - time.monotonic())

        return fill

    def _rest(self, move: Move, delay: Seconds) -> None:
        if delay > 0:
            with self._news:
                self._news.wait_for(lambda: move.dropped, delay)

    def _forget_callers(self, number: int) -> None:
        """Of this take and those before, whose turn is over."""
        with self._news:
            self._next = max(self._next, number + 1)
            for stale in [called for called in self._called if called < self._next]:
                self._called.pop(stale)[0].close()

    def _answer(self, listener: socket.socket) -> None:
        """The thread: ask who calls."""
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # closed
            prefix = bytearray(PREFIX.size)
            try:
                sock.settimeout(PREFIX_LIMIT)
                recv_into_all(sock, [memoryview(prefix)])
            except OSError:
                sock.close()
                continue
            number, num_bytes = PREFIX.unpack(prefix)
            with self._news:
                if number < self._next:
                    sock.close()
                else:
                    self._called[number] = sock, num_bytes
                    self._news.notify_all()
