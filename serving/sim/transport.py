"""SimTransport: the Transport port in virtual time."""

from collections.abc import Mapping

from serving.core.clock import Clock
from serving.core.hardware import Link, Server
from serving.core.stages import Loader
from serving.core.worker import Worker
from serving.cost.engine import ROOFLINE, EngineCosts
from serving.cost.startup import StartupCosts
from serving.sim.fair_share import FairShare, SimTransfer
from serving.sim.kv_copy import KvCopies, KvCopy
from serving.sim.processors import Copying, Processors
from serving.sim.striped import Striped
from serving.units import Bytes

SHRINK = 1.25
"""A piece of a load is the 1 - 1 / SHRINK-th part of what is left."""


class SimTransport:
    """The Transport port: weights travel storage server, server NIC, host memory, PCIe."""

    def __init__(
        self,
        clock: Clock,
        startup: dict[str, StartupCosts],
        processors: "Processors | None" = None,
        engines: Mapping[str, EngineCosts] | None = None,
    ) -> None:
        self.links = FairShare(clock)
        self.copies = KvCopies(clock, self.links)
        self._engines = engines or {}
        self._clock = clock
        self._startup = startup
        self._processors = processors
        self._loaders: dict[Worker, Link] = {}

    def fetch(self, worker: Worker) -> "SimTransfer | Striped":
        """The worker's weights, from its server's storage servers into host memory."""
        server: Server = worker.server
        size = worker.weights / len(server.stores)
        stripes = tuple(self.links.move(size, (store.uplink, server.downlink)) for store in server.stores)
        return stripes[0] if len(stripes) == 1 else Striped(self._clock, stripes)

    def pieces(self, worker: Worker) -> tuple[Bytes, ...]:
        """Whole tensors, fewer and fewer of them towards the end: a copy that is faster than the fetch by ``SHRINK`` or
        more then ends when one of tensor after tensor does, after a tenth of the events."""
        left = list(worker.tensors)
        pieces: list[Bytes] = []
        while left:
            count = max(1, int(len(left) * (1 - 1 / SHRINK)))
            pieces.append(sum(left[:count]))
            del left[:count]
        return tuple(pieces)

    def move_kv(
        self, source: Worker, target: Worker, blocks: list[int], into: list[int], size: Bytes
    ) -> "SimTransfer | KvCopy":
        """Over host memory and, between servers, their NICs."""
        del blocks, into  # their number is in the size
        path: tuple[Link, ...] = (source.gpu.pcie, source.server.uplink, target.server.downlink, target.gpu.pcie)
        costs = self._engines.get(source.server.kind, ROOFLINE)
        if costs.copy_rate is None:
            return self.links.move(size, path)
        if source.server is target.server:
            path = (source.gpu.pcie, target.gpu.pcie)
        sending = self.copies.engine(source, "out", costs.copy_rate)
        into_rate = self._engines.get(target.server.kind, ROOFLINE).copy_rate or costs.copy_rate
        receiving = self.copies.engine(target, "in", into_rate)
        return self.copies.start((source, target), (sending, *path, receiving), size, costs.copy_delay(source))

    def load(self, worker: Worker, size: Bytes, loader: Loader) -> "SimTransfer | Copying":
        """Some weights, from host memory to the GPU; the engine's own loader is a narrower pipe. Where servers are
        parts of one machine, its cores do the copying."""
        cores = self._startup[worker.server.kind].host_cores
        if self._processors is not None and cores is not None:
            rate = worker.gpu.pcie.capacity
            if loader is Loader.ENGINE:
                rate = min(rate, self._startup[worker.server.kind].engine_load_rate)
            return self._processors.copy(size, rate, cores)
        path = [worker.gpu.pcie]
        if loader is Loader.ENGINE:
            rate = self._startup[worker.server.kind].engine_load_rate
            path.append(self._loaders.setdefault(worker, Link(f"{worker.gpu.name}/engine-loader", rate)))
        return self.links.move(size, path)
