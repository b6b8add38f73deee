"""Testbed: the machines of an experiment as a spec, and the Inventory built from it."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from serving.core.hardware import GPU, HostCache, Inventory, Link, Memory, Server, StorageServer
from serving.cost.engine import EngineCosts
from serving.cost.startup import StartupCosts
from serving.units import Bytes, BytesPerSecond


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKind:
    """A type of GPU server."""

    name: str
    gpu: str
    num_gpus: int
    gpu_memory: Bytes
    dram: Bytes
    nic_rate: BytesPerSecond
    """Nominal."""
    fetch_rate: BytesPerSecond
    """What a fetch into host memory gets of the NIC at most."""
    pcie_rate: BytesPerSecond
    """Pinned host memory to GPU."""
    startup: StartupCosts
    cache: Bytes = 0.0
    """Host memory set aside for weights that stay; 0: none."""
    engine: EngineCosts | None = None
    """What is known of the engine beyond the GPU's data sheet; None: nothing."""


Assignment = Literal["largest", "best_fit"]
"""Which storage server a server fetches from: the one with the most bandwidth left, or the one with the least that is
enough (HydraServe sheet, section 2.3: LARGEST=1 and without)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Testbed:
    """Counts of machines; servers take storage servers in turn, so that NICs add up on both sides."""

    __test__ = False  # not a test class, whatever its name looks like to pytest

    servers: tuple[tuple[ServerKind, int], ...]
    num_stores: int
    store_nic_rate: BytesPerSecond
    exclusive: bool
    """Whether GPUs are lent whole; see ``isolation``."""
    assignment: Assignment = "largest"

    @property
    def startup(self) -> dict[str, StartupCosts]:
        """Start-up costs by server kind."""
        return {kind.name: kind.startup for kind, _ in self.servers}

    @property
    def engines(self) -> dict[str, EngineCosts]:
        """What is known of engines, by server kind."""
        return {kind.name: kind.engine for kind, _ in self.servers if kind.engine is not None}


def isolation(exclusive: bool) -> str:
    """What lending whole GPUs, or slices of them, is called."""
    return "exclusive" if exclusive else "shared"


def build_inventory(testbed: Testbed) -> Inventory:
    """Machines with all their memory free."""
    stores = tuple(
        StorageServer(f"store{i}", testbed.store_nic_rate, Link(f"store{i}/up", testbed.store_nic_rate))
        for i in range(testbed.num_stores)
    )
    left = {store: store.nic_rate for store in stores}
    servers = []
    for kind, count in testbed.servers:
        for i in range(count):
            chosen = assign_stores(kind.nic_rate, left, testbed.assignment)
            servers.append(_server(kind, f"{kind.name}-{i}", chosen, testbed.exclusive))
    return Inventory(tuple(servers), stores)


def assign_stores(
    nic_rate: BytesPerSecond, left: dict[StorageServer, BytesPerSecond], assignment: Assignment
) -> tuple[StorageServer, ...]:
    """The storage servers that a server with this NIC fetches from, whose bandwidth left is then less. A server wider
    than any of them takes equal shares from as many as make up its width (sheet, section 2.3: halves from two)."""
    widest = max(store.nic_rate for store in left)
    num_shares = 1 if widest == inf else min(ceil(nic_rate / widest), len(left))
    share = nic_rate / num_shares
    chosen: list[StorageServer] = []
    for _ in range(num_shares):
        free = {store: rate for store, rate in left.items() if store not in chosen}
        store = _store_for(share, free, assignment)
        left[store] -= share if share < inf else 0.0
        chosen.append(store)
    return tuple(chosen)


def _store_for(
    rate: BytesPerSecond, left: dict[StorageServer, BytesPerSecond], assignment: Assignment
) -> StorageServer:
    """The store of the rule; where none has enough left, the one with the most."""
    enough = [store for store in left if left[store] >= rate]
    if assignment == "best_fit" and enough:
        return min(enough, key=lambda store: left[store])
    return max(left, key=lambda store: left[store])


def _server(kind: ServerKind, name: str, stores: tuple[StorageServer, ...], exclusive: bool) -> Server:
    gpus = tuple(
        GPU(
            name=f"{name}/gpu{i}",
            kind=kind.gpu,
            memory=Memory(f"{name}/gpu{i}", kind.gpu_memory),
            pcie=Link(f"{name}/gpu{i}/pcie", kind.pcie_rate),
        )
        for i in range(kind.num_gpus)
    )
    return Server(
        name=name,
        kind=kind.name,
        gpus=gpus,
        nic_rate=kind.nic_rate,
        downlink=Link(f"{name}/down", kind.fetch_rate),
        uplink=Link(f"{name}/up", kind.nic_rate),
        host_memory=Memory(f"{name}/dram", kind.dram - kind.cache),
        stores=stores,
        cache=HostCache(f"{name}/cache", kind.cache) if kind.cache else None,
        exclusive=exclusive,
    )
