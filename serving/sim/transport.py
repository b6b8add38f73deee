"""Transport in virtual time: transfers share links max-min fairly.

Rates change only when a transfer starts or ends; between those instants bytes advance linearly, so one timer
for the next mark or end is all that is booked.
"""

from bisect import insort
from collections.abc import Sequence
from math import inf, nextafter

from serving.core.clock import Clock, Signal, Timer
from serving.core.hardware import Link, Server
from serving.core.instance import Worker
from serving.core.stages import Loader
from serving.cost.startup import StartupCosts
from serving.units import Bytes, BytesPerSecond, Seconds

ROUNDING = 1e-9
"""Relative slack for sums of floats: what is this close to a mark has reached it."""


class SimTransfer:
    """Bytes on their way over a path of links."""

    __slots__ = ("_clock", "_links", "_marks", "done", "path", "rate", "sent", "size")

    def __init__(self, clock: Clock, links: "FairShare", path: Sequence[Link], size: Bytes) -> None:
        self._clock = clock
        self._links = links
        self._marks: list[tuple[Bytes, Signal]] = []
        self.done = Signal(clock)
        self.path = tuple(path)
        self.rate: BytesPerSecond = 0.0
        self.sent: Bytes = 0.0
        self.size = size

    def reached(self, num_bytes: Bytes) -> Signal:
        """Fires when so many bytes have arrived; more than the size counts as the size."""
        mark = min(num_bytes, self.size)
        signal = Signal(self._clock)
        self._links.refresh()
        if self.sent >= self._due(mark):
            signal.fire()
        else:
            insort(self._marks, (mark, signal), key=lambda booked: booked[0])
            self._links.rebook()
        return signal

    def next_due(self) -> Bytes:
        """Bytes until the next mark or the end."""
        return min(self._marks[0][0] if self._marks else inf, self.size) - self.sent

    def advance(self, elapsed: Seconds) -> None:
        """Let time pass at the present rate and fire the marks that are reached."""
        self.sent = min(self.size, self.sent + self.rate * elapsed)
        if self.sent >= self._due(self.size):
            self.sent = self.size
        while self._marks and self.sent >= self._due(self._marks[0][0]):
            self._marks.pop(0)[1].fire()

    def _due(self, mark: Bytes) -> Bytes:
        return mark - self.size * ROUNDING


def max_min_rates(paths: Sequence[Sequence[Link]]) -> list[BytesPerSecond]:
    """Max-min fair rate of each transfer, by progressive filling: raise all alike until a link is full, freeze
    its transfers at that rate, go on with the rest (Bertsekas and Gallager, Data Networks, 6.5.2)."""
    rates = [inf] * len(paths)
    spare: dict[Link, float] = {link: link.capacity for path in paths for link in path}
    users: dict[Link, list[int]] = {link: [] for link in spare}
    for index, path in enumerate(paths):
        for link in dict.fromkeys(path):
            users[link].append(index)
    while users:
        fullest = min(users, key=lambda link: spare[link] / len(users[link]))
        share = spare[fullest] / len(users[fullest])
        for index in list(users[fullest]):
            rates[index] = share
            for link in dict.fromkeys(paths[index]):
                users[link].remove(index)
                spare[link] = max(0.0, spare[link] - share)
        users = {link: indices for link, indices in users.items() if indices}
    return rates


class FairShare:
    """All transfers under way."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._active: list[SimTransfer] = []
        self._timer: Timer | None = None
        self._advanced_at: Seconds = 0.0
        self.carried: dict[Link, Bytes] = {}
        """Bytes that each link has carried so far."""

    def move(self, size: Bytes, path: Sequence[Link]) -> SimTransfer:
        """Start a transfer; a size of 0 is there at once."""
        if size < 0 or not path:
            raise ValueError(f"a transfer needs a size >= 0 and a path, got {size} and {path}")
        transfer = SimTransfer(self._clock, self, path, size)
        if size == 0:
            transfer.done.fire()
            return transfer
        self.refresh()
        self._active.append(transfer)
        self._share()
        return transfer

    def refresh(self) -> None:
        """Bring every transfer up to now."""
        elapsed = self._clock.now - self._advanced_at
        self._advanced_at = self._clock.now
        for transfer in self._active:
            before = transfer.sent
            transfer.advance(elapsed)
            for link in dict.fromkeys(transfer.path):
                self.carried[link] = self.carried.get(link, 0.0) + transfer.sent - before

    def _share(self) -> None:
        rates = max_min_rates([transfer.path for transfer in self._active])
        for transfer, rate in zip(self._active, rates, strict=True):
            transfer.rate = rate
        self.rebook()

    def rebook(self) -> None:
        """Book the timer for the next mark or end, in the next instant at the earliest: what is still to come may
        take less time than the clock resolves, and no byte moves while time stands still."""
        if self._timer is not None:
            self._timer.cancel()
        delay = min((t.next_due() / t.rate for t in self._active), default=None)
        if delay is None:
            self._timer = None
            return
        now = self._clock.now
        self._timer = self._clock.call_at(max(now + delay, nextafter(now, inf)), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.refresh()
        ended = [transfer for transfer in self._active if transfer.sent >= transfer.size]
        if not ended:
            self.rebook()
            return
        self._active = [transfer for transfer in self._active if transfer.sent < transfer.size]
        for transfer in ended:
            transfer.done.fire()
        self._share()


class SimTransport:
    """The Transport port: weights travel storage server, server NIC, host memory, PCIe."""

    def __init__(self, clock: Clock, startup: dict[str, StartupCosts]) -> None:
        self.links = FairShare(clock)
        self._startup = startup
        self._loaders: dict[Worker, Link] = {}

    def fetch(self, worker: Worker) -> SimTransfer:
        """The worker's weights, from its server's storage server into host memory."""
        server: Server = worker.server
        return self.links.move(worker.weights, (server.store.uplink, server.downlink))

    def load(self, worker: Worker, size: Bytes, loader: Loader) -> SimTransfer:
        """Some weights, from host memory to the GPU; the engine's own loader is a narrower pipe."""
        path = [worker.gpu.pcie]
        if loader is Loader.ENGINE:
            rate = self._startup[worker.server.kind].engine_load_rate
            path.append(self._loaders.setdefault(worker, Link(f"{worker.gpu.name}/engine-loader", rate)))
        return self.links.move(size, path)
