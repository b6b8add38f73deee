"""Processors: the cores of a machine of which servers are parts, in virtual time."""

from serving.core.clock import Clock, Signal
from serving.core.hardware import Link
from serving.sim.fair_share import FairShare, SimTransfer
from serving.units import Bytes, BytesPerSecond, Seconds


class Processors:
    """The cores of a machine, which whatever computes or copies on it shares; nobody has more than one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._shared = FairShare(clock)
        self._hosts: dict[float, Link] = {}

    def compute(self, duration: Seconds, cores: float) -> SimTransfer:
        """Something that takes so long with a core of its own."""
        return self._shared.move(duration, self._path(cores))

    def copy(self, size: Bytes, rate: BytesPerSecond, cores: float) -> "Copying":
        """Bytes that a core copies at a rate."""
        return Copying(self._shared.move(size / rate, self._path(cores)), rate)

    def _path(self, cores: float) -> tuple[Link, Link]:
        host = self._hosts.setdefault(cores, Link("host cores", cores))
        return Link("a core", 1.0), host


class Copying:
    """A Transfer by a processor: its seconds of a core, seen as bytes."""

    def __init__(self, computing: SimTransfer, rate: BytesPerSecond) -> None:
        self._computing = computing
        self._rate = rate
        self.done = computing.done

    def reached(self, num_bytes: Bytes) -> Signal:
        """Fires when so many bytes are copied."""
        return self._computing.reached(num_bytes / self._rate)

    def cancel(self) -> None:
        """The rest is not copied."""
        self._computing.cancel()

    def release(self) -> None:
        """Nothing is kept in host memory for it."""
