"""FairShare: transfers in virtual time share links max-min fairly.

Invariant: a transfer's rate is constant from the instant it was set, so ``sent`` is a linear function of the time since
then, and one timer of its own is booked for its next mark or its end. Looking at a transfer changes nothing. Rates are
set anew only when a transfer starts, ends or is cancelled, and only among those that share a link with it, directly or
through others; who keeps its rate keeps its timer.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from math import inf, nextafter

from serving.core.clock import Clock, Signal, Timer
from serving.core.hardware import Link
from serving.units import Bytes, BytesPerSecond, Seconds

ROUNDING = 1e-9
"""Relative slack for sums of floats: what is this close to a mark has reached it."""


class SimTransfer:
    """Bytes on their way over a path of links."""

    __slots__ = (
        "_clock",
        "_links",
        "_marks",
        "_sent_before",
        "_since",
        "_timer",
        "cancelled",
        "done",
        "path",
        "rate",
        "serial",
        "size",
    )

    def __init__(self, clock: Clock, links: "FairShare", path: Sequence[Link], size: Bytes, serial: int) -> None:
        self._clock = clock
        self._links = links
        self._marks: list[tuple[Bytes, Signal]] = []
        self._sent_before: Bytes = 0.0
        self._since: Seconds = clock.now
        self._timer: Timer | None = None
        self.cancelled = False
        self.done = Signal(clock)
        self.path = tuple(dict.fromkeys(path))
        self.rate: BytesPerSecond = 0.0
        self.serial = serial
        self.size = size

    @property
    def sent(self) -> Bytes:
        """Bytes that have arrived by now."""
        return min(self.size, self._sent_before + self.rate * (self._clock.now - self._since))

    @property
    def complete(self) -> bool:
        """Whether all bytes have arrived, but for rounding."""
        return self.sent >= self._due(self.size)

    def reached(self, num_bytes: Bytes) -> Signal:
        """Fires when so many bytes have arrived; more than the size counts as the size."""
        mark = min(num_bytes, self.size)
        signal = Signal(self._clock)
        if self.sent >= self._due(mark):
            signal.fire()
        elif not self.cancelled:
            insort(self._marks, (mark, signal), key=lambda booked: booked[0])
            if self._marks[0][1] is signal:
                self._book()
        return signal

    def cancel(self) -> None:
        """Stop here: the rest never arrives, ``done`` and open marks never fire; once it is done this does nothing."""
        if self.done.fired or self.cancelled:
            return
        self.cancelled = True
        self._halt(self.sent)
        self._links.drop(self)

    def release(self) -> None:
        """Host memory is accounted for by its owner; there are no bytes to let go of."""

    def set_rate(self, rate: BytesPerSecond) -> None:
        """Go on at another rate from now on."""
        self._sent_before = self.sent
        self._since = self._clock.now
        self.rate = rate
        self._fire_marks()
        self._book()

    def finish(self) -> None:
        """Fire what is open and ``done``: every byte is there."""
        self._halt(self.size)
        self._fire_marks()
        self.done.fire()

    def _halt(self, sent: Bytes) -> None:
        self._sent_before = sent
        self.rate = 0.0
        if self._timer is not None:
            self._timer.cancel()

    def _book(self) -> None:
        """Book the timer for the next mark or end, in the next instant at the earliest: what is still to come may
        take less time than the clock resolves, and no byte moves while time stands still."""
        if self._timer is not None:
            self._timer.cancel()
        due = self._marks[0][0] if self._marks else self.size
        when = self._since + (due - self._sent_before) / self.rate
        self._timer = self._clock.call_at(max(when, nextafter(self._clock.now, inf)), self._wake)

    def _wake(self) -> None:
        if self.complete:
            self._links.share(self.path)
        else:
            self._fire_marks()
            self._book()

    def _fire_marks(self) -> None:
        while self._marks and self.sent >= self._due(self._marks[0][0]):
            self._marks.pop(0)[1].fire()

    def _due(self, mark: Bytes) -> Bytes:
        return mark - self.size * ROUNDING


def max_min_rates(paths: Sequence[Sequence[Link]]) -> list[BytesPerSecond]:
    """Max-min fair rate of each transfer, by progressive filling: raise all alike until a link is full, freeze
    its transfers at that rate, go on with the rest (Bertsekas and Gallager, Data Networks, 6.5.2)."""
    if len(paths) == 1:
        return [min(link.capacity for link in paths[0])]
    rates = [inf] * len(paths)
    spare: dict[Link, float] = {link: link.capacity for path in paths for link in path}
    users: dict[Link, dict[int, None]] = {link: {} for link in spare}
    for index, path in enumerate(paths):
        for link in path:
            users[link][index] = None
    while users:
        fullest = min(users, key=lambda link: spare[link] / len(users[link]))
        share = spare[fullest] / len(users[fullest])
        for index in list(users[fullest]):
            rates[index] = share
            for link in dict.fromkeys(paths[index]):
                del users[link][index]
                spare[link] = max(0.0, spare[link] - share)
        users = {link: indices for link, indices in users.items() if indices}
    return rates


class FairShare:
    """All transfers under way, by the links that they use."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._users: dict[Link, dict[SimTransfer, None]] = {}
        self._carried: dict[Link, Bytes] = {}
        self._num_started = 0

    @property
    def carried(self) -> dict[Link, Bytes]:
        """Bytes that each link has carried by now."""
        carried = dict(self._carried)
        for link, users in self._users.items():
            carried[link] += sum(transfer.sent for transfer in users)
        return carried

    def move(self, size: Bytes, path: Sequence[Link]) -> SimTransfer:
        """Start a transfer; a size of 0 is there at once."""
        if size < 0 or not path:
            raise ValueError(f"a transfer needs a size >= 0 and a path, got {size} and {path}")
        self._num_started += 1
        transfer = SimTransfer(self._clock, self, path, size, serial=self._num_started)
        if size == 0:
            transfer.done.fire()
            return transfer
        for link in transfer.path:
            self._carried.setdefault(link, 0.0)
            self._users.setdefault(link, {})[transfer] = None
        self.share(transfer.path)
        return transfer

    def drop(self, transfer: SimTransfer) -> None:
        """Take a cancelled transfer off its links and give its share to the others."""
        self._remove(transfer)
        self.share(transfer.path)

    def share(self, path: Iterable[Link]) -> None:
        """End what is complete and set the rates of the rest, among all that the links of a path connect."""
        moving = []
        for transfer in self._connected(path):
            if transfer.complete:
                transfer.finish()
                self._remove(transfer)
            else:
                moving.append(transfer)
        for transfer, rate in zip(moving, max_min_rates([transfer.path for transfer in moving]), strict=True):
            if rate != transfer.rate:
                transfer.set_rate(rate)

    def _connected(self, path: Iterable[Link]) -> list[SimTransfer]:
        """Transfers on these links and all that share a link with one found, in the order they started."""
        links = list(path)
        seen = dict.fromkeys(links)
        found: dict[SimTransfer, None] = {}
        while links:
            for transfer in self._users.get(links.pop(), ()):
                if transfer not in found:
                    found[transfer] = None
                    fresh = [link for link in transfer.path if link not in seen]
                    seen.update(dict.fromkeys(fresh))
                    links += fresh
        return sorted(found, key=lambda transfer: transfer.serial)

    def _remove(self, transfer: SimTransfer) -> None:
        for link in transfer.path:
            self._carried[link] += transfer.sent
            del self._users[link][transfer]
            if not self._users[link]:
                del self._users[link]
