"""What goes on beside the receiving of a part: memory is taken ahead of the bytes, and the bytes are verified."""

import queue
import threading
import time
import zlib
from array import array
from collections.abc import Callable

from serving.live.errors import LiveError
from serving.live.part import Part
from serving.live.part_stream import unit_bounds
from serving.live.shared_region import SharedRegion
from serving.units import MiB, Seconds, ms

PROGRESS_PERIOD: Seconds = 10 * ms
"""Progress is told no more often than this, and no later than this after it was made."""
PAGES = int(2 * MiB)
"""Bytes of memory taken at once."""
AHEAD = int(32 * MiB)
"""Bytes of memory that are kept ready for what comes next."""


class PagesAhead:
    """Takes a region's memory ahead of the bytes that are received, on two threads of its own.

    One reserves memory, which the bytes wait for. One maps it, which they do not: where it falls behind, the kernel
    maps page by page as it writes, at half the rate.
    """

    def __init__(self, region: SharedRegion) -> None:
        self._region = region
        self._changed = threading.Condition()
        self._needed = self._reserved = 0
        self._error: LiveError | None = None
        self._stopped = False
        loops = {"reserve": self._reserve, "map": self._map}
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in loops.items()]
        for thread in self._threads:
            thread.start()

    def wait(self, stop: int) -> None:
        """Until there is memory for the bytes up to ``stop``; LiveError when there is no more."""
        if stop <= self._needed:
            return
        with self._changed:
            self._needed = stop
            self._changed.notify_all()
            while self._reserved < stop:
                if self._error is not None:
                    raise self._error
                self._changed.wait()

    def stop(self) -> None:
        """End the threads."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _reserve(self) -> None:
        while self._reserved < self._region.size and self._error is None:
            with self._changed:
                while self._reserved >= self._needed + AHEAD and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
            self._take(min(self._reserved + PAGES, self._region.size))

    def _take(self, stop: int) -> None:
        error = None
        try:
            self._region.reserve(self._reserved, stop)
        except LiveError as full:
            error = full
        except OSError as failed:
            error = LiveError(f"no memory for region {self._region.name}: {failed.strerror}")
        with self._changed:
            self._error = error
            self._reserved = self._reserved if error else stop
            self._changed.notify_all()

    def _map(self) -> None:
        mapped = 0
        while mapped < self._region.size:
            with self._changed:
                while self._reserved <= mapped and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                start, stop = max(mapped, self._needed), self._reserved
            mapped = min(max(start, mapped) + PAGES, stop) if start < stop else stop
            self._region.map_pages(start, mapped)


class Verifier:
    """Checks what has arrived, unit by unit, counts it in the region and tells of it, on a thread of its own."""

    def __init__(
        self,
        region: SharedRegion,
        part: Part,
        sums: "array[int]",
        progress: Callable[[int], None],
        refuse: Callable[[], None],
    ) -> None:
        """``sums``: CRC-32 of each unit; ``refuse`` is called, on the thread, when a unit has another."""
        self.garbage: str | None = None
        """Which bytes are wrong."""
        self._region = region
        self._part = part
        self._sums = sums
        self._progress = progress
        self._refuse = refuse
        self._arrivals: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._told = 0
        self._told_at = 0.0
        self._thread = threading.Thread(target=self._run, name="verifier", daemon=True)
        self._thread.start()

    def arrived(self, num_bytes: int) -> None:
        """So many bytes from the start are in the region."""
        self._arrivals.put(num_bytes)

    def finish(self) -> str | None:
        """Once all have arrived: wait for the verdict, which is ``garbage``."""
        self._thread.join()
        return self.garbage

    def stop(self) -> None:
        """End the thread."""
        self._arrivals.put(None)
        self._thread.join()

    def _run(self) -> None:
        arrived = 0
        for (start, stop), expected in zip(unit_bounds(self._part), self._sums, strict=True):
            while arrived < stop:
                latest = self._next()
                if latest is None:
                    return
                arrived = latest
            if zlib.crc32(self._region.data[start:stop]) != expected:
                self.garbage = f"bytes {start:,} to {stop:,} have the wrong checksum"
                self._refuse()
                return
            self._region.received = stop
            if time.monotonic() >= self._told_at + PROGRESS_PERIOD:
                self._tell()
        self._tell()

    def _next(self) -> int | None:
        """How much has arrived, when more has; meanwhile what is verified is told in time."""
        while True:
            untold = self._region.received > self._told
            timeout = max(0.0, self._told_at + PROGRESS_PERIOD - time.monotonic()) if untold else None
            try:
                return self._arrivals.get(timeout=timeout)
            except queue.Empty:
                self._tell()

    def _tell(self) -> None:
        if self._region.received > self._told:
            self._told, self._told_at = self._region.received, time.monotonic()
            self._progress(self._told)
