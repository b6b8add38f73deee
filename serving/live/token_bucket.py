"""TokenBucket: when bytes may go over a link of a given rate."""

import threading
import time
from collections.abc import Callable

from serving.units import Bytes, BytesPerSecond, KiB, MiB, Seconds, ms

BURST: Seconds = 5 * ms
"""How far a stream may be behind its rate and still catch up: what a sleep on a busy machine is late by."""
CHUNK_TIME: Seconds = 2 * ms
"""A chunk is as long as its link needs this time for, within the two bounds: what is finest at which sleeping works."""
MIN_CHUNK, MAX_CHUNK = int(32 * KiB), int(4 * MiB)


class TokenBucket:
    """A link on which chunks go one behind the other; streams that ask in turn get equal shares.

    Thread-safe. It does not sleep: the asker does, until the instant it is told.
    """

    def __init__(self, rate: BytesPerSecond | None, now: Callable[[], Seconds] = time.monotonic) -> None:
        """``rate`` None: no limit."""
        if rate is not None and not rate > 0:
            raise ValueError(f"rate of a link: {rate}, expected more than 0 bytes per second")
        self.rate = rate
        self._now = now
        self._lock = threading.Lock()
        self._free_at = now()

    def reserve(self, num_bytes: Bytes, *, opens: bool = False) -> Seconds:
        """The instant at which the last of these bytes is over the link, if it goes behind those reserved before.

        The first chunk of a stream (``opens``) makes up for nothing: a link that was idle has no credit.
        """
        if self.rate is None:
            return self._now()
        with self._lock:
            now = self._now()
            self._free_at = max(self._free_at, now if opens else now - BURST) + num_bytes / self.rate
            return self._free_at


def chunk_size(*rates: BytesPerSecond | None) -> int:
    """Bytes that go at once where streams share links of these rates: the same for all, so that turns are fair."""
    limits = [rate for rate in rates if rate is not None]
    return max(MIN_CHUNK, min(MAX_CHUNK, int(min(limits) * CHUNK_TIME))) if limits else MAX_CHUNK
