"""Hardware: links, memories, GPUs, servers, storage servers. Accounts that raise when over-committed."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serving.units import Bytes, BytesPerSecond

if TYPE_CHECKING:
    from serving.core.ports import Transfer


class OverCommit(RuntimeError):
    """More memory claimed than there is, or given back than was claimed."""


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One direction of a wire; transfers across it share ``capacity`` fairly."""

    name: str
    capacity: BytesPerSecond

    def __post_init__(self) -> None:
        if not self.capacity > 0:
            raise ValueError(f"link {self.name} needs a capacity above 0, got {self.capacity}")


class Memory:
    """A memory with an account per owner (a living thing, compared by identity)."""

    def __init__(self, name: str, capacity: Bytes) -> None:
        self.name = name
        self.capacity = capacity
        self._claims: dict[object, Bytes] = {}

    @property
    def used(self) -> Bytes:
        """Bytes claimed."""
        return sum(self._claims.values())

    @property
    def free(self) -> Bytes:
        """Bytes not claimed."""
        return self.capacity - self.used

    def claim(self, owner: object, size: Bytes) -> None:
        """Book bytes for an owner that holds none here yet."""
        if owner in self._claims:
            raise OverCommit(f"{self.name}: {owner!r} holds memory already")
        if not 0 <= size <= self.free:
            raise OverCommit(f"{self.name}: {size:.0f} bytes asked, {self.free:.0f} of {self.capacity:.0f} free")
        self._claims[owner] = size

    def release(self, owner: object) -> Bytes:
        """Give an owner's bytes back and say how many they were."""
        if owner not in self._claims:
            raise OverCommit(f"{self.name}: {owner!r} holds nothing here")
        return self._claims.pop(owner)


@dataclass(slots=True, eq=False)
class CacheEntry:
    """A model's weights in host memory."""

    model: str
    size: Bytes
    complete: bool = False
    num_readers: int = 0
    transfer: "Transfer | None" = None
    """The fetch that fills it, once one is under way."""

    def fill(self, transfer: "Transfer") -> None:
        """Be complete once the transfer is, whatever becomes of who started it."""
        self.transfer = transfer
        transfer.done.wait(self._filled)

    def free(self) -> None:
        """Let go of the bytes."""
        if self.transfer is not None:
            self.transfer.release()

    def _filled(self, value: object) -> None:
        del value  # of the signal
        self.complete = True


class HostCache:
    """Weights kept in a server's host memory, least recently used out first; entries being read stay."""

    def __init__(self, name: str, capacity: Bytes) -> None:
        self.name = name
        self.capacity = capacity
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()

    @property
    def used(self) -> Bytes:
        """Bytes held, complete or not."""
        return sum(entry.size for entry in self._entries.values())

    def has(self, name: str) -> bool:
        """Whether there is an entry of that name, complete or not."""
        return name in self._entries

    def holds(self, model: str) -> bool:
        """Whether all of the model's weights are here."""
        entry = self._entries.get(model)
        return entry is not None and entry.complete

    def can_open(self, model: str, size: Bytes) -> bool:
        """Whether an entry is here or could be made beside those that are being read."""
        busy = sum(entry.size for entry in self._entries.values() if entry.num_readers)
        return model in self._entries or size <= self.capacity - busy

    def open(self, model: str, size: Bytes) -> CacheEntry:
        """Start reading an entry, making it (and room for it) if it is not here; raises if none can be made."""
        entry = self._entries.get(model)
        if entry is None:
            self._make_room(model, size)
            entry = self._entries[model] = CacheEntry(model, size)
        self._entries.move_to_end(model)
        entry.num_readers += 1
        return entry

    def close(self, entry: CacheEntry) -> None:
        """Stop reading an entry."""
        if entry.num_readers < 1:
            raise OverCommit(f"{self.name}: {entry.model} closed more often than opened")
        entry.num_readers -= 1

    def can_reserve(self, size: Bytes) -> bool:
        """Whether there is room, or could be made, for bytes that do not stay."""
        return size <= self.capacity - sum(entry.size for entry in self._entries.values() if entry.num_readers)

    def reserve(self, owner: str, size: Bytes) -> None:
        """Set room aside for bytes that do not stay, which somebody reads until they are dropped."""
        if owner in self._entries:
            raise OverCommit(f"{self.name}: {owner} holds memory already")
        self.open(owner, size)

    def drop(self, owner: str) -> None:
        """Give the room of bytes that did not stay back."""
        del self._entries[owner]

    def _make_room(self, model: str, size: Bytes) -> None:
        evictable = [entry for entry in self._entries.values() if entry.num_readers == 0]
        room = self.capacity - self.used
        if size > room + sum(entry.size for entry in evictable):
            raise OverCommit(f"{self.name}: no room for {size:.0f} bytes of {model}, capacity {self.capacity:.0f}")
        for entry in evictable:
            if size <= room:
                break
            self._drop(entry)
            room += entry.size

    def discard(self, model: str) -> None:
        """Forget a model whose bytes will never all arrive; who reads the entry closes it all the same."""
        entry = self._entries.get(model)
        if entry is not None and not entry.complete:
            self._drop(entry)

    def forget(self, model: str) -> None:
        """Forget a model whose bytes are gone, though they may all have arrived; who reads the entry closes it all the
        same."""
        entry = self._entries.get(model)
        if entry is not None:
            self._drop(entry)

    def _drop(self, entry: CacheEntry) -> None:
        del self._entries[entry.model]
        entry.free()


@dataclass(slots=True, eq=False)
class GPU:
    """A device: its kind, its memory (in slices), its PCIe link from host memory."""

    name: str
    kind: str
    memory: Memory
    pcie: Link


@dataclass(slots=True, eq=False)
class StorageServer:
    """Holds every model in DRAM and serves byte ranges over its NIC."""

    name: str
    nic_rate: BytesPerSecond
    uplink: Link


@dataclass(slots=True, eq=False)
class Server:
    """A machine with GPUs."""

    name: str
    kind: str
    gpus: tuple[GPU, ...]
    nic_rate: BytesPerSecond
    """Nominal rate, which policies plan with; ``downlink`` has what transfers get."""
    downlink: Link
    uplink: Link
    host_memory: Memory
    stores: tuple[StorageServer, ...]
    """Where this server fetches weights from, an equal share from each."""
    cache: HostCache | None = None
    exclusive: bool = False
    """Exclusive servers lend whole GPUs, shared ones slices."""

    def claim_buffer(self, owner: str, size: Bytes) -> None:
        """Room in host memory for weights on their way to a GPU: of the region that is set aside for weights, where
        that has any."""
        if self.cache is not None and self.cache.can_reserve(size):
            self.cache.reserve(owner, size)
        else:
            self.host_memory.claim(owner, size)

    def release_buffer(self, owner: str) -> None:
        """They are there."""
        if self.cache is not None and self.cache.has(owner):
            self.cache.drop(owner)
        else:
            self.host_memory.release(owner)

    @property
    def store(self) -> StorageServer:
        """The first of its storage servers, for whoever fetches from one."""
        return self.stores[0]


@dataclass(slots=True, eq=False)
class Inventory:
    """The machines of a testbed."""

    servers: tuple[Server, ...]
    stores: tuple[StorageServer, ...] = field(default=())
