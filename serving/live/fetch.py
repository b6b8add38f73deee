"""Fetch: bring one part from a storage server into a shared region, verified.

Three threads work on neighbouring bytes: one takes pages of memory ahead (``arrivals.PagesAhead``), one receives
straight into them, one checks what has arrived and counts it in ``region.received`` (``arrivals.Verifier``).
"""

import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving.live.arrivals import PagesAhead, Verifier
from serving.live.errors import LiveError
from serving.live.frames import FrameError, recv_frame, send_frame
from serving.live.part import Part
from serving.live.part_stream import unit_bounds
from serving.live.shared_region import SharedRegion
from serving.units import MiB, Seconds

READ_LIMITS = {"max_header": 64 << 10, "max_payload": 0}
DESCRIBE_LIMITS = {"max_header": 16 << 20, "max_payload": 64 << 20}
"""Bytes of an answer. A description has a checksum of 4 bytes for each unit of the part."""
CONNECT_TIMEOUT: Seconds = 5.0
CONNECT_POLL: Seconds = 0.05
"""How long a cancelled fetch may go on connecting."""
STALL_TIMEOUT: Seconds = 10.0
PIECE = int(1 * MiB)
"""Bytes asked of the socket at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOrder:
    """What to fetch, from where, into which region."""

    store: tuple[str, int]
    """Host and port of the storage server."""
    link: str
    """The link that the bytes are counted on: the name of the server that fetches."""
    model: str
    layers: range
    region: str
    """Name of the region to make."""

    @property
    def server(self) -> str:
        """The storage server, for messages."""
        return f"storage server {self.store[0]}:{self.store[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchEvents:
    """Who hears of a fetch; called on its threads, one call at a time."""

    described: Callable[[Part], None]
    """The region is there and the first bytes are on their way."""
    progress: Callable[[int], None]
    """So many bytes from the start are verified."""


class Cancelled(Exception):
    """The fetch was cancelled."""


class Fetch:
    """One fetch; ``run`` it on a thread of its own."""

    def __init__(self, order: FetchOrder, events: FetchEvents, stall_timeout: Seconds = STALL_TIMEOUT) -> None:
        self.order = order
        self._events = events
        self._stall_timeout = stall_timeout
        self._cancelled = threading.Event()
        self._connection: socket.socket | None = None
        self._arrived = 0
        self._part: Part | None = None

    def run(self) -> None:
        """Fetch all of it. LiveError says what went wrong, Cancelled that ``cancel`` came; no region is left then."""
        region = None
        try:
            part, sums = self._describe()
            self._part = part
            region = SharedRegion.create(self.order.region, part.size)
            self._events.described(part)
            self._fill(region, part, sums)
        except BaseException as error:
            if region is not None:
                region.unlink()
            if self._cancelled.is_set():
                raise Cancelled from error
            raise
        finally:
            self._disconnect()
            if region is not None:
                region.close()

    def cancel(self) -> None:
        """Make ``run`` end soon; from any thread."""
        self._cancelled.set()
        self._cut()

    def _fill(self, region: SharedRegion, part: Part, sums: "array[int]") -> None:
        pages = PagesAhead(region)
        verifier = Verifier(region, part, sums, self._events.progress, self._cut)
        try:
            self._receive_all(region, pages, verifier, sums)
            garbage = verifier.finish()
        except LiveError as error:
            if verifier.garbage is None:
                raise
            raise self._garbage(verifier.garbage) from error  # for which the connection was cut
        finally:
            verifier.stop()
            pages.stop()
        if garbage is not None:
            raise self._garbage(garbage)

    def _receive_all(self, region: SharedRegion, pages: "PagesAhead", verifier: "Verifier", sums: "array[int]") -> None:
        """Receive to the end; when the storage server goes away, go on where it was cut off, once."""
        for attempt in (1, 2):
            try:
                self._receive(region, pages, verifier)
                return
            except (EOFError, OSError) as error:
                if attempt == 2 or verifier.garbage or self._cancelled.is_set():
                    raise LiveError(f"{self.order.server} went away: {self._so_far()}") from error
            self._disconnect()
            if self._describe() != (self._part, sums):
                raise LiveError(f"{self.order.server} came back with other weights: {self._so_far()}")

    def _receive(self, region: SharedRegion, pages: "PagesAhead", verifier: "Verifier") -> None:
        connection = self._connection
        assert connection is not None
        length = region.size - self._arrived
        self._ask(
            connection, {"op": "read", "offset": self._arrived, "length": length, "link": self.order.link}, length
        )
        while self._arrived < region.size:
            stop = min(self._arrived + PIECE, region.size)
            pages.wait(stop)
            try:
                received = connection.recv_into(region.data[self._arrived : stop])
            except TimeoutError:
                raise self._stalled() from None
            if not received:
                raise EOFError
            self._arrived += received
            verifier.arrived(self._arrived)
        self._expect_silence(connection)

    def _expect_silence(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            if connection.recv(1):
                raise self._garbage("more bytes than asked for")

    def _describe(self) -> tuple[Part, "array[int]"]:
        """Connect and ask for the part's description; keeps the connection."""
        try:
            connection = self._connect()
        except (OSError, OverflowError) as error:
            raise LiveError(f"no connection to {self.order.server} ({error}): {self._so_far()}") from error
        if self._cancelled.is_set():
            raise Cancelled
        connection.settimeout(self._stall_timeout)
        try:
            header, payload = self._ask(connection, {"op": "describe"})
        except (EOFError, OSError) as error:
            raise LiveError(f"{self.order.server} went away: {self._so_far()}") from error
        return self._parse(header.get("part"), payload)

    def _connect(self) -> socket.socket:
        """A connection, which ``cancel`` can cut before there is one."""
        family, kind, protocol, _, address = socket.getaddrinfo(*self.order.store, type=socket.SOCK_STREAM)[0]
        connection = self._connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        code = connection.connect_ex(address)
        give_up = time.monotonic() + CONNECT_TIMEOUT
        while code == errno.EINPROGRESS and not self._cancelled.is_set():
            if time.monotonic() > give_up:
                raise TimeoutError(f"no answer for {CONNECT_TIMEOUT:g} s")
            if select.select([], [connection], [], CONNECT_POLL)[1]:
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code and code != errno.EINPROGRESS:
            raise OSError(code, os.strerror(code))
        return connection

    def _parse(self, table: Any, payload: bytes) -> tuple[Part, "array[int]"]:
        try:
            part = Part.from_json(table)
        except LiveError as error:
            raise self._garbage(str(error)) from error
        expected = sum(1 for _ in unit_bounds(part))
        if (part.model, part.layers) != (self.order.model, self.order.layers) or len(payload) != 4 * expected:
            raise self._garbage("a description of another part")
        sums = array("I", payload)
        if sys.byteorder == "big":
            sums.byteswap()
        return part, sums

    def _ask(
        self, connection: socket.socket, request: dict[str, Any], length: int | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a request about the part; ``length`` bytes are expected to follow."""
        layers = [self.order.layers.start, self.order.layers.stop]
        try:
            send_frame(connection, {**request, "model": self.order.model, "layers": layers})
            header, payload = recv_frame(connection, **(DESCRIBE_LIMITS if length is None else READ_LIMITS))
        except TimeoutError:
            raise self._stalled() from None
        except FrameError as error:
            raise self._garbage(str(error)) from error
        if header.get("ok") is not True:
            raise LiveError(f"{self.order.server}: {header.get('error')}")
        if header.get("length") != length:
            raise self._garbage(f"{header.get('length')!r} bytes, {length!r} asked for")
        return header, payload

    def _garbage(self, what: str) -> LiveError:
        return LiveError(f"{self.order.server} sent garbage ({what}): {self._so_far()}")

    def _stalled(self) -> LiveError:
        return LiveError(f"{self.order.server} sent nothing for {self._stall_timeout:g} s: {self._so_far()}")

    def _so_far(self) -> str:
        size = "no" if self._part is None else f"{self._arrived:,} of {self._part.size:,}"
        layers = self.order.layers
        return f"{size} bytes of {self.order.model}, layers {layers.start}..{layers.stop}, have arrived"

    def _cut(self) -> None:
        """End what the receiving thread waits for."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
