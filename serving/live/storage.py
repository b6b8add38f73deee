"""StorageServer: checkpoints in memory, and byte ranges of their parts over TCP, no faster than its links.

A client sends request frames, one after another, on a connection:

    {"op": "describe", "model": name, "layers": [start, stop]}
        -> {"ok": true, "part": Part.to_json()}, payload: CRC-32 of each unit of the part, u32 in little-endian order
    {"op": "read", "model", "layers", "offset": bytes, "length": bytes, "link": name}
        -> {"ok": true, "length": bytes}, and after that frame the bytes themselves
    -> {"ok": false, "error": text} to what cannot be served

``link`` names the client's link: what goes to one server shares one rate, however many connections it has.
``python -m serving.live.storage --fd N`` is the process; it ends when the other end of N closes.
"""

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.live.checkpoint import Checkpoint
from serving.live.errors import LiveError
from serving.live.frames import FrameError, recv_frame, send_all, send_frame
from serving.live.part_stream import PartStream, checksums
from serving.live.signals import leave_signals_to_control
from serving.live.token_bucket import TokenBucket, chunk_size
from serving.units import BytesPerSecond, Seconds

IDLE: Seconds = 60.0
"""A connection on which nothing is asked, or whose bytes nobody takes, for this long is closed."""
MAX_REQUEST = 64 << 10
"""Bytes of a request's header; nothing goes with it."""
ACCEPT_RETRY: Seconds = 0.05
"""Before the next attempt when the system has no room for a connection."""
MAX_CONNECTIONS = 256
MAX_LINKS = 4096
"""Names of links that are remembered."""
MAX_NAME = 200
"""Characters of the name of a link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRates:
    """Bytes per second; None: no limit."""

    server: BytesPerSecond | None = None
    """Of the storage server's own link, which all its clients share."""
    link: BytesPerSecond | None = None
    """Of each client's link."""
    links: Mapping[str, BytesPerSecond] = field(default_factory=dict)
    """Of single clients' links, by name, where they differ."""

    def of(self, link: str) -> BytesPerSecond | None:
        """The rate of one client's link."""
        return self.links.get(link, self.link)


class Library:
    """The checkpoints of a storage server, by model name, with the checksums of their tensors."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints = dict(checkpoints)
        self._sums: dict[tuple[str, str], Any] = {}
        self._streams: dict[tuple[str, range], PartStream] = {}
        self._lock = threading.Lock()

    @property
    def models(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._checkpoints)

    def hold(self) -> int:
        """Read all weights, so that they are in the page cache and their checksums known; returns their bytes."""
        from concurrent.futures import ThreadPoolExecutor  # used at the start only

        size = 0
        with ThreadPoolExecutor(os.cpu_count(), "hold") as readers:
            for model, checkpoint in self._checkpoints.items():
                part = checkpoint.part(checkpoint.layers, model)
                names = [(model, entry.name) for entry in part.tensors]
                self._sums.update(zip(names, readers.map(checksums, checkpoint.buffers(part)), strict=True))
                size += part.size
        return size

    def stream(self, model: str, layers: range) -> PartStream:
        """The bytes of a part; LiveError when there is no such model or no such layers."""
        with self._lock:
            stream = self._streams.get((model, layers))
            if stream is None:
                stream = self._streams[model, layers] = self._open(model, layers)
            return stream

    def _open(self, model: str, layers: range) -> PartStream:
        checkpoint = self._checkpoints.get(model)
        if checkpoint is None:
            raise LiveError(f"this storage server has no model {model!r}, it has {', '.join(self.models)}")
        if not 0 <= layers.start < layers.stop <= checkpoint.config.num_layers:
            expected = f"expected a range within 0..{checkpoint.config.num_layers}"
            raise LiveError(f"model {model} has no layers {layers.start}..{layers.stop}, {expected}")
        part = checkpoint.part(layers, model)
        tensors = checkpoint.buffers(part)
        for entry, tensor in zip(part.tensors, tensors, strict=True):
            if (model, entry.name) not in self._sums:
                self._sums[model, entry.name] = checksums(tensor)
        return PartStream(part, tensors, [self._sums[model, entry.name] for entry in part.tensors])


@dataclass(frozen=True, slots=True)
class _Read:
    """A request for bytes."""

    stream: PartStream
    offset: int
    length: int
    link: str


class StorageServer:
    """Listens and serves, a thread a connection, until it is closed."""

    def __init__(self, library: Library, rates: LinkRates, host: str = "127.0.0.1", port: int = 0) -> None:
        """Binds and serves at once; port 0: any free one. LiveError when it cannot have the address."""
        self._library = library
        self._rates = rates
        self._chunk = chunk_size(rates.server, rates.link, *rates.links.values())
        self._server_bucket = TokenBucket(rates.server)
        self._link_buckets: dict[str, TokenBucket] = {}
        self._connections: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        try:
            self._listener = socket.create_server((host, port), backlog=MAX_CONNECTIONS)
        except (OSError, OverflowError) as error:
            raise LiveError(f"cannot listen on {host}:{port}: {error}; choose another --port or --host") from error
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed; or no more files, or one that left while it waited
                self._closed.wait(ACCEPT_RETRY)
            else:
                self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        with self._lock:
            full = len(self._connections) >= MAX_CONNECTIONS
            if not full:
                self._connections[connection] = None
        try:
            if full:
                connection.close()
            else:
                threading.Thread(target=self._serve, args=(connection,), name="connection", daemon=True).start()
        except RuntimeError:  # no more threads
            self._leave(connection)

    def _serve(self, connection: socket.socket) -> None:
        """Answer requests until the client closes, falls silent, or sends what is no frame."""
        try:
            connection.settimeout(IDLE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                self._answer(connection, recv_frame(connection, max_header=MAX_REQUEST, max_payload=0)[0])
        except FrameError as error:
            with contextlib.suppress(OSError):
                send_frame(connection, {"ok": False, "error": str(error)})
        except (EOFError, OSError):
            pass
        finally:
            self._leave(connection)

    def _leave(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.pop(connection, None)
        connection.close()

    def _answer(self, connection: socket.socket, request: dict[str, Any]) -> None:
        try:
            stream = self._library.stream(_text(request, "model"), _layers(request))
            if request.get("op") == "describe":
                send_frame(connection, {"ok": True, "part": stream.part.to_json()}, little_endian(stream.checksums))
                return
            if request.get("op") != "read":
                raise LiveError(f"op is {request.get('op')!r}, expected 'describe' or 'read'")
            read = _read(request, stream)
        except LiveError as error:
            send_frame(connection, {"ok": False, "error": str(error)})
            return
        send_frame(connection, {"ok": True, "length": read.length})
        self._send(connection, read)

    def _send(self, connection: socket.socket, read: _Read) -> None:
        """Send the bytes asked for, each chunk when its last byte would be over both links."""
        link = self._bucket(read.link)
        for start, stop in _chunks(read.offset, read.offset + read.length, self._chunk):
            opens = start == read.offset
            at = max(bucket.reserve(stop - start, opens=opens) for bucket in (self._server_bucket, link))
            delay = at - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            send_all(connection, read.stream.cut(start, stop))

    def _bucket(self, link: str) -> TokenBucket:
        with self._lock:
            bucket = self._link_buckets.get(link)
            if bucket is None:
                if len(self._link_buckets) >= MAX_LINKS:
                    del self._link_buckets[next(iter(self._link_buckets))]  # the oldest name
                bucket = self._link_buckets[link] = TokenBucket(self._rates.of(link))
            return bucket


def little_endian(sums: Any) -> bytes:
    """An array of u32 as it goes over the wire."""
    if sys.byteorder == "big":
        sums = sums[:]
        sums.byteswap()
    return bytes(sums.tobytes())


def open_library(checkpoints: Mapping[str, Path], *, hold: bool = True) -> Library:
    """The checkpoints in these folders, by model name; read into memory unless ``hold`` is off."""
    library = Library({model: Checkpoint.open(folder) for model, folder in checkpoints.items()})
    if hold:
        library.hold()
    return library


def _chunks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, size):
        yield at, min(at + size, stop)


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise LiveError(f"{key} is {str(value)[:MAX_NAME]!r}, expected a name")
    return value


def _layers(request: dict[str, Any]) -> range:
    layers = request.get("layers")
    if not isinstance(layers, list) or len(layers) != 2 or not all(type(layer) is int for layer in layers):
        raise LiveError(f"layers is {str(layers)[:MAX_NAME]}, expected [start, stop]")
    return range(*layers)


def _read(request: dict[str, Any], stream: PartStream) -> _Read:
    offset, length = request.get("offset"), request.get("length")
    if type(offset) is not int or type(length) is not int or offset < 0 or not 0 < length <= stream.part.size - offset:
        raise LiveError(f"no {length!r} bytes at {offset!r}: the part has {stream.part.size} bytes")
    return _Read(stream, offset, length, _text(request, "link"))


def main() -> None:
    """The process that the control process starts: options come in a frame on ``--fd``, the address goes back."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    control = socket.socket(fileno=parser.parse_args().fd)
    leave_signals_to_control()
    try:
        options, _ = recv_frame(control)
        rates = LinkRates(server=options["server_rate"], link=options["link_rate"], links=options["link_rates"])
        library = open_library({model: Path(folder) for model, folder in options["checkpoints"].items()})
        server = StorageServer(library, rates)
        send_frame(control, {"ok": True, "address": list(server.address)})
        control.recv(1)  # returns when control closes, or dies
    except LiveError as error:
        send_frame(control, {"ok": False, "error": str(error)})
    except (EOFError, OSError):
        pass
    os._exit(0)  # threads that sleep between chunks are not worth waiting for


if __name__ == "__main__":
    main()
