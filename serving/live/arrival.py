"""Arrival: a Transfer as the clock's thread hears of it; live news and recorded news drive the same object."""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

from serving.core.clock import Clock, Signal
from serving.core.cluster import Cluster
from serving.core.hardware import Server
from serving.core.instance import Instance, Phase
from serving.live.recording import WorkerKey
from serving.units import Bytes


def _nothing() -> None:
    """For transfers that nothing has to be done for."""


class Arrival:
    """Bytes on their way. ``advance`` and ``finish`` tell it of news, the rest is the Transfer port."""

    __slots__ = ("_clock", "_marks", "_on_cancel", "_on_release", "cancelled", "done", "received", "released", "size")

    def __init__(
        self,
        clock: Clock,
        size: Bytes,
        on_cancel: Callable[[], None] = _nothing,
        on_release: Callable[[], None] = _nothing,
    ) -> None:
        self.done = Signal(clock)
        self.size = size
        self.received: Bytes = 0
        self.cancelled = False
        """Nothing more fires: it was cancelled, or failed."""
        self.released = False
        self._clock = clock
        self._marks: list[tuple[Bytes, Signal]] = []
        self._on_cancel = on_cancel
        self._on_release = on_release

    @property
    def under_way(self) -> bool:
        """Whether there is news to come."""
        return not self.done.fired and not self.cancelled

    def reached(self, num_bytes: Bytes) -> Signal:
        """Fires when so many bytes have arrived; more than the size counts as the size."""
        mark = min(num_bytes, self.size)
        signal = Signal(self._clock)
        if self.received >= mark:
            signal.fire()
        elif not self.cancelled:
            insort(self._marks, (mark, signal), key=lambda booked: booked[0])
        return signal

    def advance(self, received: Bytes) -> None:
        """So many bytes have arrived by now."""
        if not self.under_way:
            return
        self.received = max(self.received, received)
        while self._marks and self._marks[0][0] <= self.received:
            self._marks.pop(0)[1].fire()

    def finish(self) -> None:
        """All bytes are here."""
        if self.under_way:
            self.advance(self.size)
            self.done.fire()

    def fail(self) -> None:
        """The rest never arrives; who waits waits on."""
        self.cancelled = self.cancelled or not self.done.fired

    def cancel(self) -> None:
        """The rest is not wanted any more; nothing when all have arrived."""
        if self.under_way:
            self.cancelled = True
            self._on_cancel()

    def release(self) -> None:
        """Let go of the bytes, and of those that are still to come."""
        self.cancel()
        if not self.released:
            self.released = True
            self._on_release()


@dataclass(slots=True, eq=False)
class Inflow:
    """A fetch: whose it is, where its bytes go, and how far it is."""

    instance: Instance
    """Whose worker asked first; others may have joined by the server's cache."""
    rank: int
    server: Server
    arrival: Arrival
    serial: int
    """Which of the worker's fetches."""

    @property
    def key(self) -> WorkerKey:
        """What a recording calls the worker that asked."""
        return self.instance.instance_id, self.rank

    def forget(self) -> None:
        """All bytes had arrived, and are gone: whoever wants them fetches anew."""
        self.arrival.release()
        if self.server.cache is not None and not self.serial:
            self.server.cache.forget(self.instance.model)

    def fail(self, cluster: Cluster, reason: str, lose: Callable[[Instance, str], None]) -> None:
        """The rest never arrives: the cache forgets the model, and every instance that starts from it is lost. So is a
        pipeline that serves, if it was to become another instance with these bytes."""
        if self.serial:
            self.arrival.fail()
            lose(self.instance, reason)
            return
        model, cache = self.instance.model, self.server.cache
        readers = {self.instance: None} if self.instance.phase is Phase.STARTING else {}
        if cache is not None:
            starting = cluster.instances_of(model, Phase.STARTING)
            here = (i for i in starting if any(worker.server is self.server for worker in i.workers))
            readers |= dict.fromkeys(here)
        self.arrival.fail()
        if cache is not None:
            cache.discard(model)
        for instance in readers:
            lose(instance, reason)
