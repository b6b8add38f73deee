"""What a worker does before it has torch: a device, its memory, and the weights on their way there."""

import ctypes
import mmap
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from serving.core.stages import Loader
from serving.live.cuda_driver import CudaDevice
from serving.live.errors import LiveError
from serving.live.part import Part, TensorEntry
from serving.live.shared_region import SharedRegion
from serving.units import Seconds, ms

ARRIVAL_LIMIT: Seconds = 10.0
"""How long a load waits for the next byte of a region."""
LOOK: Seconds = 1 * ms
"""How often it looks."""


class DeviceMemory(Protocol):
    """Room for a part on the device."""

    def copy_in(self, offset: int, source: int, length: int) -> None:
        """Copy from an address of this process; returns when the bytes are there."""
        ...

    def release_source(self) -> None:
        """No more bytes come from the addresses that were copied from."""
        ...

    def adopt(self) -> Any:
        """The memory as a torch tensor of bytes; imports torch."""
        ...


class Device(Protocol):
    """Where a worker computes."""

    name: str
    """As torch calls it: ``cpu``, ``cuda:0``."""

    def allocate(self, size: int, *, background: bool = False) -> DeviceMemory:
        """Memory of so many bytes; ``background``: what is copied into it lets steps go first."""
        ...


class HostDevice:
    """The CPU."""

    name = "cpu"

    def allocate(self, size: int, *, background: bool = False) -> "HostMemory":
        """Private memory of this process; copies into it are the loading thread's, and steps another's."""
        del background
        return HostMemory(size)


class HostMemory:
    """Anonymous memory of the process, in huge pages where the system has them."""

    def __init__(self, size: int) -> None:
        """All zeros."""
        self._map = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._address = address_of(memoryview(self._map))

    def copy_in(self, offset: int, source: int, length: int) -> None:
        """Copy from an address; other threads run on meanwhile."""
        ctypes.memmove(self._address + offset, source, length)

    def release_source(self) -> None:
        """Nothing is held of it."""

    def adopt(self) -> Any:
        """The memory as a torch tensor of bytes."""
        import torch

        return torch.frombuffer(self._map, dtype=torch.uint8)


def open_device(name: str) -> Device:
    """The device of that name, ``cpu`` or ``cuda:N``; opens its context, for the calling thread first of all."""
    kind, _, index = name.partition(":")
    if name == "cpu":
        return HostDevice()
    if kind != "cuda" or not (index or "0").isdigit():
        raise LiveError(f"no device {name!r}; expected cpu or cuda:N")
    return CudaDevice(int(index or "0"))


def address_of(view: memoryview) -> int:
    """Where the bytes of a writable view lie."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class Weights:
    """The part of a worker: its bytes in a shared region, the device memory they go to, and which are there.

    ``load`` is for one thread; ``tensors`` comes after all loads.
    """

    def __init__(self, part: Part, region: SharedRegion, device: Device, libraries: threading.Event) -> None:
        """Takes the region over: it is closed when all tensors are loaded. ``libraries`` is set once torch is there."""
        if region.size < part.size:
            raise LiveError(f"region {region.name} has {region.size} bytes, the part of {part.model} {part.size}")
        self.part = part
        self.device = device
        self._libraries = libraries
        self._region: SharedRegion | None = region
        self._missing = dict.fromkeys(range(len(part.tensors)))
        self._memory: DeviceMemory | None = None
        self._tensor: Any = None
        self._loader: Loader | None = None

    def load(self, first: int, stop: int, loader: Loader) -> None:
        """Bring tensors ``first`` to ``stop`` (exclusive) to the device; waits until their bytes have arrived."""
        entries = self.part.tensors[first:stop]
        if not 0 <= first < stop <= len(self.part.tensors) or self._region is None:
            raise LiveError(f"load: no tensors {first} to {stop} of {len(self.part.tensors)}, or they are loaded all")
        if (self._loader or loader) is not loader:
            raise LiveError(f"load: this part is loaded by the loader {self._loader}, not {loader}")
        self._loader = loader
        self._wait(self._region, entries[-1].offset + entries[-1].num_bytes)
        copy: Callable[[SharedRegion, tuple[TensorEntry, ...]], None] = (
            self._load_by_tensor if loader is Loader.ENGINE else self._load_direct
        )
        copy(self._region, entries)
        for index in range(first, stop):
            self._missing.pop(index, None)
        if not self._missing:
            self._close_region()

    def tensors(self) -> dict[str, Any]:
        """The torch tensors by name: views of one piece of device memory, laid out like the part."""
        if self._missing:
            name = self.part.tensors[min(self._missing)].name
            raise LiveError(f"{len(self._missing)} tensors are not loaded, the first is {name}")
        if self._memory is not None and self._tensor is None:
            self._tensor = self._memory.adopt()
        return {entry.name: _view(self._tensor, entry) for entry in self.part.tensors}

    def _load_direct(self, region: SharedRegion, entries: tuple[TensorEntry, ...]) -> None:
        if self._memory is None:
            self._memory = self.device.allocate(self.part.size, background=self._loader is Loader.BACKGROUND)
        start, end = entries[0].offset, entries[-1].offset + entries[-1].num_bytes
        self._memory.copy_in(start, address_of(region.data) + start, end - start)

    def _load_by_tensor(self, region: SharedRegion, entries: tuple[TensorEntry, ...]) -> None:
        """As engines do: build each tensor on the CPU, then copy it into the model's parameter."""
        if not self._libraries.is_set():
            raise LiveError("load: the engine's loader needs the libraries first")
        import torch

        if self._tensor is None:
            self._tensor = torch.empty(self.part.size, dtype=torch.uint8, device=self.device.name)
        source = torch.frombuffer(region.data, dtype=torch.uint8)
        for entry in entries:
            built = _view(source, entry).clone()
            _view(self._tensor, entry).copy_(built)
        if self._tensor.is_cuda:
            torch.cuda.synchronize(self._tensor.device)

    def _wait(self, region: SharedRegion, end: int) -> None:
        received, heard_at = region.received, time.monotonic()
        while received < end:
            time.sleep(LOOK)
            last, received = received, region.received
            if received > last:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > ARRIVAL_LIMIT:
                raise LiveError(
                    f"load: {received} of {end} bytes of {self.part.model} arrived in region {region.name}, "
                    f"none for {ARRIVAL_LIMIT:g} s"
                )

    def _close_region(self) -> None:
        if self._memory is not None:
            self._memory.release_source()
        if self._region is not None:
            self._region.close()
            self._region = None


def _view(raw: Any, entry: TensorEntry) -> Any:
    """A tensor of the part within all of its bytes."""
    import torch

    flat = raw[entry.offset : entry.offset + entry.num_bytes]
    return flat.view(getattr(torch, entry.dtype)).view(entry.shape)
