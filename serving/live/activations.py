"""Activations between the stages of an instance: bytes over a unix socket, in the order of the steps; no torch.

Before the bytes of a step go its number and their length; a stage that failed says why instead, so that the stages
behind it need not wait. The first step connects: by then control knows that every stage listens.
"""

import contextlib
import os
import socket
import struct
from pathlib import Path

from serving.live.errors import LiveError
from serving.live.frames import recv_into, send_all
from serving.units import Seconds

PREFIX = struct.Struct("<QQ?")
"""Step, length, and whether activations follow; otherwise it is the reason why there are none, in UTF-8."""
MAX_REASON = 1 << 16
CONNECT_LIMIT: Seconds = 10.0
"""For the neighbour to call or to answer, at the first step."""


class NeighbourError(LiveError):
    """The stage before or behind this one failed, or is gone."""


def listen_at(path: str, backlog: int = 1) -> socket.socket:
    """A socket that listens at a file which only this user may call at."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        others = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(others)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise NeighbourError(f"cannot listen at {path}: {error}; give a free path of under 100 bytes") from error
    return listener


class Upstream:
    """The end at which a stage takes what the stage before it computed."""

    def __init__(self, path: str) -> None:
        """Listen at a socket file, which is removed once the neighbour has called."""
        self._path = Path(path)
        self._sock: socket.socket | None = None
        self._listener = listen_at(path)

    def receive(self, step: int, view: memoryview) -> None:
        """Fill the view with the activations of a step; those of earlier steps, which failed here, are dropped."""
        try:
            sock = self._sock or self._accept()
            while (sent := _recv_prefix(sock))[0] < step:
                _recv_bytes(sock, sent[1])
            if sent != (step, view.nbytes):
                raise NeighbourError(
                    f"step {step}: expected {view.nbytes} bytes of activations, the stage before sent "
                    f"{sent[1]} of step {sent[0]}"
                )
            recv_into(sock, view)
        except OSError as error:
            raise NeighbourError(f"step {step}: the stage before this one is gone ({_text(error)})") from error

    def close(self) -> None:
        """Hang up; the socket file goes too."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
        if self._sock is not None:
            self._sock.close()

    def _accept(self) -> socket.socket:
        self._listener.settimeout(CONNECT_LIMIT)
        self._sock, _ = self._listener.accept()
        self._sock.settimeout(None)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        return self._sock


class Downstream:
    """The end at which a stage hands on what it computed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._sock: socket.socket | None = None

    def open(self) -> None:
        """Call the neighbour, once; before a step is computed, which may take longer than it waits to be called."""
        if self._sock is None:
            try:
                self._sock = self._connect()
            except OSError as error:
                raise NeighbourError(f"the stage behind this one is gone ({_text(error)})") from error

    def send(self, step: int, view: memoryview) -> None:
        """Hand the activations of a step on."""
        self._send(step, view, computed=True)

    def fail(self, step: int, reason: str) -> None:
        """Say why the step has none; if the neighbour is gone there is nobody to tell."""
        with contextlib.suppress(NeighbourError):
            self._send(step, memoryview(reason.encode()[:MAX_REASON]), computed=False)

    def close(self) -> None:
        """Hang up."""
        if self._sock is not None:
            self._sock.close()

    def _send(self, step: int, view: memoryview, *, computed: bool) -> None:
        self.open()
        assert self._sock is not None
        try:
            send_all(self._sock, [memoryview(PREFIX.pack(step, view.nbytes, computed)), view])
        except OSError as error:
            raise NeighbourError(f"step {step}: the stage behind this one is gone ({_text(error)})") from error

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(CONNECT_LIMIT)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        sock.settimeout(None)
        return sock


def _recv_prefix(sock: socket.socket) -> tuple[int, int]:
    """Step and length of the activations that follow."""
    step, length, computed = PREFIX.unpack(_recv_bytes(sock, PREFIX.size))
    if not computed:
        reason = _recv_bytes(sock, min(length, MAX_REASON)).decode(errors="replace")
        raise NeighbourError(f"step {step} failed in the stage before: {reason}")
    return step, length


def _recv_bytes(sock: socket.socket, length: int) -> bytes:
    received = bytearray(length)
    recv_into(sock, memoryview(received))
    return bytes(received)


def _text(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
