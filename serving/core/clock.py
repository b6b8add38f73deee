"""The clock: callbacks on a heap, cancellable timers, signals, and ``spawn()`` for flows.

The laws of time: ``now`` does not move inside a callback; equal times run in booking order; nothing but
the clock waits. Deciding is a call, waiting is a flow: a generator that yields seconds, a Signal or a Flow.
"""

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any, Protocol, Union

from serving.units import Seconds

Callback = Callable[..., object]
Waitable = Union[float, int, "Signal", "Flow"]
FlowBody = Generator[Waitable, Any, Any]


class Livelock(RuntimeError):
    """Events run without end while time stands still."""


class Timer:
    """A booked callback; ``cancel()`` before its time makes it a no-op."""

    __slots__ = ("args", "fn", "when")

    def __init__(self, when: Seconds, fn: Callback | None, args: tuple[Any, ...]) -> None:
        self.when = when
        self.fn = fn
        self.args = args

    def cancel(self) -> None:
        """Drop the callback; cancelling twice or after it ran does nothing."""
        self.fn = None
        self.args = ()


class Clock(Protocol):
    """Time as policies and mechanisms see it; virtual in sim, the wall's in live."""

    @property
    def now(self) -> Seconds:
        """Seconds since run start, constant during one callback."""
        ...

    def call_at(self, when: Seconds, fn: Callback, *args: Any) -> Timer:
        """Book a callback at an instant that is not in the past."""
        ...

    def call_later(self, delay: Seconds, fn: Callback, *args: Any) -> Timer:
        """Book a callback after a delay >= 0; 0 means after what is already booked for now."""
        ...

    def post(self, fn: Callback, *args: Any) -> None:
        """Book a callback for now; the only method that another thread may call."""
        ...


class Signal:
    """Something that happens once, with a value; waiters resume as events of their own."""

    __slots__ = ("_clock", "_waiters", "fired", "value")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiters: list[Callback] = []
        self.fired = False
        self.value: Any = None

    def fire(self, value: Any = None) -> None:
        """Happen now; a second firing raises."""
        if self.fired:
            raise RuntimeError("a Signal fires once")
        self.fired = True
        self.value = value
        for waiter in self._waiters:
            self._clock.call_later(0.0, waiter, value)
        self._waiters.clear()

    def wait(self, fn: Callback) -> None:
        """Call ``fn(value)`` once it has happened, at once if it already has."""
        if self.fired:
            self._clock.call_later(0.0, fn, self.value)
        else:
            self._waiters.append(fn)


class Flow:
    """A running generator: ``done`` fires with its return value; an exception in it ends the run."""

    __slots__ = ("_body", "_clock", "_timer", "cancelled", "done")

    def __init__(self, clock: Clock, body: FlowBody) -> None:
        self._clock = clock
        self._body = body
        self.cancelled = False
        self.done = Signal(clock)
        self._timer: Timer | None = clock.call_later(0.0, self._resume, None)

    def cancel(self) -> None:
        """Stop it where it waits (its ``finally`` blocks run); ``done`` does not fire."""
        if not self.done.fired and not self.cancelled:
            self.cancelled = True
            if self._timer is not None:
                self._timer.cancel()
            self._body.close()

    def _resume(self, value: Any) -> None:
        self._timer = None
        if self.cancelled:
            return
        try:
            waits_for = self._body.send(value)
        except StopIteration as stop:
            self.done.fire(stop.value)
            return
        if isinstance(waits_for, Flow):
            waits_for = waits_for.done
        if isinstance(waits_for, Signal):
            waits_for.wait(self._resume)
        else:
            self._timer = self._clock.call_later(waits_for, self._resume, None)


def spawn(clock: Clock, body: FlowBody) -> Flow:
    """Start a flow; its first step runs after what is already booked for now."""
    return Flow(clock, body)


class Agenda:
    """What is booked, by time and then in booking order: the part that virtual and real time share."""

    def __init__(self) -> None:
        self.now: Seconds = 0.0
        self.num_events = 0
        self._heap: list[tuple[Seconds, int, Timer]] = []
        self._serial = 0

    def call_at(self, when: Seconds, fn: Callback, *args: Any) -> Timer:
        """Book a callback; an instant in the past (or NaN) raises."""
        if not when >= self.now:
            raise ValueError(f"cannot book {fn!r} at t={when}: it is already t={self.now}")
        timer = Timer(when, fn, args)
        self._serial += 1
        heappush(self._heap, (when, self._serial, timer))
        return timer

    def call_later(self, delay: Seconds, fn: Callback, *args: Any) -> Timer:
        """Book a callback after a delay >= 0."""
        return self.call_at(self.now + delay, fn, *args)


class SimClock(Agenda):
    """Virtual time: jumps from event to event; ties run first in, first out."""

    def __init__(self, max_events_per_instant: int = 1_000_000) -> None:
        super().__init__()
        self.max_events_per_instant = max_events_per_instant

    def post(self, fn: Callback, *args: Any) -> None:
        """Book a callback for now."""
        self.call_at(self.now, fn, *args)

    def run(self, until: Seconds | None = None) -> None:
        """Serve events until none is left, or the next one lies after ``until``."""
        heap = self._heap
        at_this_instant = 0
        while heap:
            when, _, timer = heap[0]
            if until is not None and when > until:
                self.now = until
                return
            heappop(heap)
            fn = timer.fn
            if fn is None:
                continue
            if when > self.now:
                self.now = when
                at_this_instant = 0
            at_this_instant += 1
            if at_this_instant > self.max_events_per_instant:
                raise Livelock(f"{at_this_instant} events at t={when} without progress; the last is {fn!r}")
            self.num_events += 1
            fn(*timer.args)
