"""CUDA through its driver library alone: a context, device memory and copies before torch is there.

While the interpreter imports torch, a side thread gets the device's primary context (the one that torch will use),
allocates the part's memory in it and copies tensors as they arrive; then torch adopts the memory.
"""

import ctypes
import sys
from typing import Any

from serving.live.errors import LiveError

LIBRARY = "libcuda.so.1"
STREAM_NON_BLOCKING = 1
REGISTER_PORTABLE = 1
PIN_UNIT = 4096
"""Bytes; host memory is pinned by whole pages."""


class CudaError(LiveError):
    """The driver refused a call."""


class CudaDevice:
    """One GPU with its primary context, current in the thread that opened it; any thread may use it after ``enter``."""

    def __init__(self, index: int, library: Any = None) -> None:
        """Open GPU ``index``; ``library`` stands in for the driver's."""
        self.name = f"cuda:{index}"
        self._library = library or _load_library()
        self._call("cuInit", 0)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.enter()

    def enter(self) -> None:
        """Make its context the calling thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int, *, background: bool = False) -> "CudaMemory":
        """Device memory of ``size`` bytes; CudaError when there is not so much. ``background``: copies into it have the
        lowest priority."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size), of=f"{size:,} bytes on {self.name}")
        return CudaMemory(self, address.value, size, self._lowest_priority() if background else 0)

    def _lowest_priority(self) -> int:
        lowest, highest = ctypes.c_int(), ctypes.c_int()
        self._call("cuCtxGetStreamPriorityRange", ctypes.byref(lowest), ctypes.byref(highest))
        return lowest.value

    def _call(self, name: str, *args: Any, of: str = "") -> None:
        code = getattr(self._library, name)(*args)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            reason = (text.value or b"unknown error").decode()
            raise CudaError(f"{name}{f' ({of})' if of else ''}: {reason} (CUDA error {code})")


class CudaMemory:
    """A piece of a GPU's memory, filled from host memory that is pinned as it is needed."""

    def __init__(self, device: CudaDevice, address: int, size: int, priority: int = 0) -> None:
        """For ``CudaDevice.allocate``."""
        self.size = size
        self._device = device
        self._address = address
        self._stream = ctypes.c_void_p()
        self._pinned: list[int] = []
        self._pinned_end = 0
        self._can_pin = True
        device._call("cuStreamCreateWithPriority", ctypes.byref(self._stream), STREAM_NON_BLOCKING, priority)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """For torch.as_tensor: all of it, as bytes."""
        return {"shape": (self.size,), "typestr": "|u1", "data": (self._address, False), "strides": None, "version": 3}

    def copy_in(self, offset: int, source: int, length: int) -> None:
        """Copy from a host address and wait; successive calls go upwards through one source."""
        self._device.enter()
        first_unpinned = self._pin(source, source + length)
        # a copy must not cross from one pinned range into another
        edges = [edge for edge in (first_unpinned,) if source < edge < source + length]
        for start, stop in zip([source, *edges], [*edges, source + length], strict=True):
            target = ctypes.c_uint64(self._address + offset + start - source)
            size = ctypes.c_size_t(stop - start)
            self._device._call("cuMemcpyHtoDAsync_v2", target, ctypes.c_void_p(start), size, self._stream)
        self._device._call("cuStreamSynchronize", self._stream)

    def release_source(self) -> None:
        """Unpin the host memory, all of which has been copied."""
        self._device.enter()
        for start in self._pinned:
            self._device._call("cuMemHostUnregister", ctypes.c_void_p(start))
        self._pinned.clear()
        self._pinned_end = 0

    def adopt(self) -> Any:
        """All of it as a torch tensor of bytes that keeps this object alive."""
        import torch

        return torch.as_tensor(self, device=self._device.name)

    def _pin(self, start: int, stop: int) -> int:
        """Pin what of a range is not yet; returns where the newly pinned pages begin."""
        first = max(start // PIN_UNIT * PIN_UNIT, self._pinned_end)
        end = -(-stop // PIN_UNIT) * PIN_UNIT
        if not self._can_pin or end <= first:
            return first
        size = ctypes.c_size_t(end - first)
        try:
            self._device._call("cuMemHostRegister_v2", ctypes.c_void_p(first), size, REGISTER_PORTABLE)
        except CudaError as error:
            self._can_pin = False  # a copy from pageable memory is slower, but right
            print(f"weights are copied from memory that is not pinned: {error}", file=sys.stderr, flush=True)
            return first
        self._pinned.append(first)
        self._pinned_end = end
        return first


def _load_library() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise CudaError(f"no CUDA driver on this machine ({error}); use --device cpu") from error
