"""RealClock: the wall's time for the same callbacks, timers and flows as in virtual time.

Time moves between callbacks only. A timer runs at its own ``when``, however late it is; what another thread posts runs
at the time at which it is taken up, strictly above every time there was before. So no two posts share an instant, and
none shares one with a timer: a SimClock on which the posts are booked at their times runs everything in the same order.
"""

from collections import deque
from collections.abc import Callable
from heapq import heappop
from math import inf, nextafter
from threading import TIMEOUT_MAX, Condition
from time import monotonic
from typing import Any

from serving.core.clock import Agenda, Callback
from serving.units import Seconds

LAGS_KEPT = 20_000
"""Timers whose lag is remembered."""


class RealClock(Agenda):
    """Time since ``run`` first began. One thread runs it and books timers (another may, before it runs); any thread may
    ``post`` and ``stop``."""

    def __init__(self) -> None:
        super().__init__()
        self._origin: Seconds | None = None
        self._inbox: deque[tuple[Callback, tuple[Any, ...]]] = deque()
        self._news = Condition()
        self._stopping = False
        self._lags: deque[Seconds] = deque(maxlen=LAGS_KEPT)

    def post(self, fn: Callback, *args: Any) -> None:
        """Have a callback run as soon as the clock's thread is free; the method for other threads."""
        with self._news:
            self._inbox.append((fn, args))
            self._news.notify()

    def stop(self) -> None:
        """Let ``run`` return when what is booked for this instant has run; from any thread."""
        with self._news:
            self._stopping = True
            self._news.notify()

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Serve timers and posts until ``stop``, or until the condition holds after a callback; what is booked for that
        instant runs still. What a callback raises ends it at once. It can be run on."""
        if self._origin is None:
            self._origin = monotonic() - self.now
        while not self._stopping and not (until is not None and until()):
            self._serve_next()
        while self._heap and self._heap[0][0] <= self.now:
            self._serve_timer(self.now)
        self._stopping = False

    def lag(self, share: float) -> Seconds:
        """How late timers ran, as a quantile of the latest 20,000 that time had to pass for; 0 when there was none."""
        lags = sorted(self._lags.copy())
        return lags[min(len(lags) - 1, int(share * len(lags)))] if lags else 0.0

    def _serve_next(self) -> None:
        """Run one callback, or wait until there may be one: due timers go before posts."""
        actual = self._actual()
        post_at = max(actual, nextafter(self.now, inf))
        while self._heap and self._heap[0][2].fn is None:
            heappop(self._heap)
        if self._heap and self._heap[0][0] <= (post_at if self._inbox else actual):
            self._serve_timer(actual)
        elif self._inbox:
            fn, args = self._inbox.popleft()
            self.now = post_at
            self.num_events += 1
            fn(*args)
        else:
            self._wait(actual)

    def _serve_timer(self, actual: Seconds) -> None:
        when, _, timer = heappop(self._heap)
        if when > self.now:
            self._lags.append(max(0.0, actual - when))
            self.now = when
        if timer.fn is not None:
            self.num_events += 1
            timer.fn(*timer.args)

    def _wait(self, actual: Seconds) -> None:
        timeout = min(self._heap[0][0] - actual, TIMEOUT_MAX) if self._heap else None
        with self._news:
            if not self._inbox and not self._stopping:
                self._news.wait(timeout)

    def _actual(self) -> Seconds:
        assert self._origin is not None
        return monotonic() - self._origin
