"""KV blocks from one worker process to another: raw bytes over a unix socket, tensor by tensor; no torch.

Before the bytes go the layers that they are of and their number. Whoever takes listens before anybody gives, and takes
them no faster than the link between the two servers would let them through.
"""

import contextlib
import socket
import struct
import time
from pathlib import Path
from typing import Protocol

from serving.live.activations import CONNECT_LIMIT, NeighbourError, listen_at
from serving.live.frames import recv_into, send_all
from serving.live.token_bucket import TokenBucket, chunk_size
from serving.units import BytesPerSecond

PREFIX = struct.Struct("<QQQ")
"""First layer, the one behind the last, bytes."""
MAX_GIVERS = 16
"""Stages of a pipeline but one, at most."""


class Rows(Protocol):
    """The bytes of KV blocks, given or taken in the same order."""

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        ...

    def give(self, send: "Fill") -> None:
        """Call with view after view of the bytes."""
        ...

    def take(self, fill: "Fill") -> None:
        """Call with view after view, to be filled."""
        ...


class Fill(Protocol):
    """Sends or fills a view."""

    def __call__(self, view: memoryview, /) -> object: ...


class KvInlet:
    """Where a process takes KV. One thread uses it."""

    def __init__(self, path: str) -> None:
        """Listen at a socket file."""
        self._path = Path(path)
        self._listener = listen_at(path, MAX_GIVERS)
        self._listener.settimeout(CONNECT_LIMIT)
        self._called: dict[tuple[int, int], tuple[socket.socket, int]] = {}
        """By layers: who called and was not taken from yet, and the bytes that he has."""

    def take(self, layers: range, rows: Rows, rate: BytesPerSecond | None = None) -> None:
        """Take the KV of these layers from whoever gives it, at a rate at most."""
        what = f"KV of layers {layers.start}..{layers.stop}"
        wanted = layers.start, layers.stop
        try:
            while wanted not in self._called:
                self._accept()
            sock, num_bytes = self._called.pop(wanted)
            with sock:
                if num_bytes != rows.num_bytes:
                    raise NeighbourError(f"{what}: expected {rows.num_bytes} bytes, {num_bytes} are given")
                rows.take(Intake(sock, rate))
        except OSError as error:
            raise NeighbourError(f"{what} did not come: {error}") from error

    def close(self) -> None:
        """Take no more; the socket file goes too."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for sock, _ in self._called.values():
            with contextlib.suppress(OSError):
                sock.close()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        prefix = bytearray(PREFIX.size)
        recv_into(sock, memoryview(prefix))
        start, stop, num_bytes = PREFIX.unpack(prefix)
        self._called[start, stop] = sock, num_bytes


class Intake:
    """Bytes from a socket, at a rate at most."""

    def __init__(self, sock: socket.socket, rate: BytesPerSecond | None) -> None:
        self._sock = sock
        self._chunk = chunk_size(rate)
        self._bucket = TokenBucket(rate)

    def __call__(self, view: memoryview, /) -> None:
        """Fill a view; returns when its last byte would be over the link."""
        for start in range(0, view.nbytes, self._chunk):
            piece = view[start : start + self._chunk]
            recv_into(self._sock, piece)
            delay = self._bucket.reserve(piece.nbytes) - time.monotonic()
            if delay > 0:
                time.sleep(delay)


def give_kv(path: str, layers: range, rows: Rows) -> None:
    """Give the KV of these layers to the process that listens at a path; returns when its socket has all of it."""
    what = f"KV of layers {layers.start}..{layers.stop}"
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.settimeout(CONNECT_LIMIT)
            sock.connect(path)
            sock.settimeout(None)  # others may give first
            send_all(sock, [memoryview(PREFIX.pack(layers.start, layers.stop, rows.num_bytes))])
            rows.give(lambda view: send_all(sock, [view]))
        except OSError as error:
            raise NeighbourError(f"{what} was not taken: {error}") from error
