"""Copies of KV blocks in virtual time, and which processes they keep busy beside their steps."""

from collections import Counter
from collections.abc import Sequence

from serving.core.clock import Clock, Signal, Timer
from serving.core.hardware import Link
from serving.core.worker import Process, Worker
from serving.sim.fair_share import FairShare, SimTransfer
from serving.units import Bytes, Seconds


class KvCopies:
    """The copies under way, by the processes that send or receive."""

    def __init__(self, clock: Clock, links: FairShare) -> None:
        self._clock = clock
        self._links = links
        self._copying: Counter[Process] = Counter()
        self._engines: dict[tuple[str, str], Link] = {}

    def is_copying(self, worker: Worker) -> bool:
        """Whether KV moves from or to its GPU now."""
        return worker.process in self._copying

    def start(self, ends: tuple[Worker, Worker], path: Sequence[Link], size: Bytes, delay: Seconds) -> "KvCopy":
        """Bytes from the first process to the second, which begin to flow when the delay has passed."""
        copy = KvCopy(self._clock, self, ends)
        for worker in ends:
            self._copying[worker.process] += 1
        copy.begin_later(delay, self._links, path, size)
        return copy

    def engine(self, worker: Worker, direction: str, rate: float) -> Link:
        """What copies one way on the worker's GPU."""
        key = (worker.gpu.name, direction)
        if key not in self._engines:
            self._engines[key] = Link(f"{worker.gpu.name}/kv-{direction}", rate)
        return self._engines[key]

    def end(self, ends: tuple[Worker, Worker]) -> None:
        """A copy has ended or was cancelled."""
        for worker in ends:
            self._copying[worker.process] -= 1
            if not self._copying[worker.process]:
                del self._copying[worker.process]


class KvCopy:
    """One copy: the Transfer port."""

    def __init__(self, clock: Clock, copies: KvCopies, ends: tuple[Worker, Worker]) -> None:
        self._clock = clock
        self._copies = copies
        self._ends = ends
        self._timer: Timer | None = None
        self._bytes: SimTransfer | None = None
        self._marks: list[tuple[Bytes, Signal]] = []
        self._open = True
        self.done = Signal(clock)

    def begin_later(self, delay: Seconds, links: FairShare, path: Sequence[Link], size: Bytes) -> None:
        """Let the bytes flow when the delay has passed."""
        self._timer = self._clock.call_later(delay, self._begin, links, path, size)

    def reached(self, num_bytes: Bytes) -> Signal:
        """Fires when so many bytes have arrived (at once if they have)."""
        if self._bytes is not None:
            return self._bytes.reached(num_bytes)
        signal = Signal(self._clock)
        self._marks.append((num_bytes, signal))
        return signal

    def cancel(self) -> None:
        """The rest never arrives; nothing when all has."""
        if not self._open:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._bytes is not None:
            self._bytes.cancel()
        self._close()

    def release(self) -> None:
        """There is nothing in host memory to let go of."""

    def _begin(self, links: FairShare, path: Sequence[Link], size: Bytes) -> None:
        self._bytes = links.move(size, path)
        for num_bytes, signal in self._marks:
            self._bytes.reached(num_bytes).wait(signal.fire)
        self._bytes.done.wait(self._end)

    def _end(self, value: object) -> None:
        del value  # of the signal
        if self._open:
            self._close()
            self.done.fire()

    def _close(self) -> None:
        self._open = False
        self._copies.end(self._ends)
