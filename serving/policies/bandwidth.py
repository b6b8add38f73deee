"""Bandwidth: what HydraServe's controller believes about each server's NIC.

**Paper**: HydraServe, sheet section 3.2 (network-contention-aware bandwidth). Only book-keeping of claims:
the controller does not see the transfers themselves.
"""

from dataclasses import dataclass, field

from serving.core.clock import Clock
from serving.core.cluster import Cluster
from serving.core.hardware import Server
from serving.core.worker import Worker
from serving.units import Bytes, BytesPerSecond, Seconds, ms

REST_SLO: Seconds = 1 * ms
"""Time that a background fetch is claimed with: so little that the server is closed until it has ended (sheet, 3.2)."""


@dataclass(slots=True, eq=False)
class Claim:
    """A fetch that was planned: what is believed to be left of it, and of its time.

    One believed to be over stays in the book, without a share, until its owner releases it: else a release would take
    a later claim of the same owner for it.
    """

    owner: object
    remaining: Bytes
    time_left: Seconds


@dataclass(slots=True, eq=False)
class Nic:
    """Claims on one server's NIC; all running ones get an equal part of it."""

    rate: BytesPerSecond
    claims: list[Claim] = field(default_factory=list)
    advanced_at: Seconds = 0.0
    is_taken: bool = False
    """Somebody moves KV and has it alone."""

    @property
    def running(self) -> list[Claim]:
        """Claims that are not believed to be over."""
        return [claim for claim in self.claims if claim.remaining > 1.0]

    def available(self, now: Seconds) -> BytesPerSecond:
        """Rate that one more fetch would get, or 0 when it would push a running one past its SLO."""
        if self.is_taken:
            return 0.0
        self._advance(now)
        running = self.running
        share = self.rate / (len(running) + 1)
        if any(claim.time_left * share < claim.remaining for claim in running):
            return 0.0
        return share

    def is_idle(self, now: Seconds) -> bool:
        """Whether no fetch is believed to run, and nobody has it alone."""
        self._advance(now)
        return not self.running and not self.is_taken

    def claim(self, now: Seconds, owner: object, size: Bytes, slo: Seconds) -> None:
        """Book a fetch of ``size`` bytes that should end within ``slo``."""
        self._advance(now)
        self.claims.append(Claim(owner, size, slo))

    def release(self, now: Seconds, owner: object) -> None:
        """The owner's oldest fetch has ended (or was believed to have, already)."""
        self._advance(now)
        mine = next((claim for claim in self.claims if claim.owner == owner), None)
        if mine is not None:
            self.claims.remove(mine)

    def _advance(self, now: Seconds) -> None:
        """Let time pass: claims run at an equal share, which grows whenever one is believed to end."""
        elapsed = now - self.advanced_at
        self.advanced_at = now
        while (running := self.running) and elapsed > 0:
            share = self.rate / len(running)
            until_next = min(claim.remaining for claim in running) / share
            step = min(elapsed, until_next)
            for claim in running:
                claim.remaining -= share * step
                claim.time_left -= step
            elapsed -= step


class Bandwidth:
    """The NICs of a cluster; the Network of its consolidations."""

    def __init__(self, *, minds_contention: bool = True) -> None:
        """Without minding contention every fetch is expected to have the NIC for itself, and nothing waits for it."""
        self._minds_contention = minds_contention
        self._nics: dict[Server, Nic] = {}

    def nic(self, server: Server) -> Nic:
        """The book of one server."""
        if server not in self._nics:
            self._nics[server] = Nic(server.nic_rate)
        return self._nics[server]

    def ranked(self, cluster: Cluster) -> list[tuple[Server, BytesPerSecond]]:
        """Servers that are open for a fetch with the rate it would get, best first, ties in server order."""
        if not self._minds_contention:
            rates = [(server, server.nic_rate) for server in cluster.servers]
        else:
            rates = [(server, self.nic(server).available(cluster.now)) for server in cluster.servers]
        return sorted((pair for pair in rates if pair[1] > 0), key=lambda pair: -pair[1])

    def release(self, now: Seconds, owner: object) -> None:
        """Drop an owner's oldest claim on every server."""
        for nic in self._nics.values():
            nic.release(now, owner)

    def network(self, cluster: Cluster) -> "BackgroundNetwork":
        """What consolidations ask."""
        return BackgroundNetwork(self, cluster.clock, self._minds_contention)


@dataclass(frozen=True, slots=True)
class BackgroundNetwork:
    """The Network of HydraServe's consolidations: a background fetch closes its server to new fetches until it has
    ended, and KV moves only between servers that fetch nothing (sheet, section 3.2)."""

    bandwidth: Bandwidth
    clock: Clock
    minds_contention: bool

    def open_for_rest(self, worker: Worker, size: Bytes) -> bool:
        """Whether one more fetch would hurt none of those that run; it is then claimed with hardly any time."""
        nic = self.bandwidth.nic(worker.server)
        if self.minds_contention and not nic.available(self.clock.now):
            return False
        nic.claim(self.clock.now, (worker.process, "rest"), size, REST_SLO)
        return True

    def close_rest(self, worker: Worker) -> None:
        """The claim goes."""
        self.bandwidth.nic(worker.server).release(self.clock.now, (worker.process, "rest"))

    def take_alone(self, servers: tuple[Server, ...]) -> bool:
        """Whether all are idle; they are then closed."""
        nics = [self.bandwidth.nic(server) for server in servers]
        if self.minds_contention and not all(nic.is_idle(self.clock.now) for nic in nics):
            return False
        for nic in nics:
            nic.is_taken = self.minds_contention
        return True

    def give_back(self, servers: tuple[Server, ...]) -> None:
        """They are open again."""
        for server in servers:
            self.bandwidth.nic(server).is_taken = False
