"""Weights on their way to the device: into host memory, and through a CUDA driver that is played by host memory."""

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from serving.core.stages import Loader
from serving.live import worker_stages
from serving.live.cuda_driver import PIN_UNIT, CudaDevice, CudaError, CudaMemory
from serving.live.errors import LiveError
from serving.live.part import Part
from serving.live.shared_region import SharedRegion, region_name
from serving.live.worker_stages import Device, HostDevice, HostMemory, Weights

PART = Part.of("tiny", range(1), 1, "float32", [("a", (1000,)), ("b", (7,)), ("c", (3000,)), ("d", (100,))])
BYTES = bytes(i * 31 % 251 for i in range(PART.size))


@contextmanager
def region(received: int = PART.size) -> Iterator[SharedRegion]:
    """A region with all bytes in it, so many of them verified."""
    made = SharedRegion.create(region_name(f"test{os.getpid()}", "stages"), PART.size)
    try:
        made.data[:] = BYTES
        made.received = received
        yield made
    finally:
        made.unlink()
        made.close()


def weights(source: SharedRegion, device: Device | None = None) -> Weights:
    """The part in the region, for a device."""
    return Weights(PART, source, device or HostDevice(), threading.Event())


def tensor_bytes(content: bytes) -> list[bytes]:
    """Content by tensor; what lies between them does not matter."""
    return [content[entry.offset : entry.offset + entry.num_bytes] for entry in PART.tensors]


def test_tensors_get_into_host_memory_in_pieces_and_the_region_is_closed() -> None:
    with region() as source:
        loaded = weights(source)
        loaded.load(0, 1, Loader.DIRECT)
        loaded.load(1, 3, Loader.DIRECT)
        memory = loaded._memory
        assert isinstance(memory, HostMemory)
        with pytest.raises(LiveError, match="1 tensors are not loaded, the first is d"):
            loaded.tensors()
        loaded.load(3, 4, Loader.DIRECT)
        assert tensor_bytes(memory._map[: PART.size]) == tensor_bytes(BYTES)
        with pytest.raises(LiveError, match="or they are loaded all"):
            loaded.load(0, 1, Loader.DIRECT)


def test_a_load_waits_for_the_bytes_that_it_needs() -> None:
    with region(received=PART.tensors[1].offset) as source:
        loaded = weights(source)
        loaded.load(0, 1, Loader.DIRECT)
        waiting = threading.Thread(target=loaded.load, args=(1, 3, Loader.DIRECT))
        waiting.start()
        time.sleep(0.05)
        assert waiting.is_alive()
        source.received = PART.tensors[2].offset + PART.tensors[2].num_bytes
        waiting.join(5)
        assert not waiting.is_alive()


def test_a_load_of_bytes_that_stop_coming_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_stages, "ARRIVAL_LIMIT", 0.02)
    with region(received=100) as source, pytest.raises(LiveError, match="100 of 4000 bytes of tiny arrived"):
        weights(source).load(0, 1, Loader.DIRECT)


@pytest.mark.parametrize("span", [(0, 0), (2, 1), (-1, 1), (0, 5)])
def test_tensors_that_are_not_in_the_part_are_refused(span: tuple[int, int]) -> None:
    with region() as source, pytest.raises(LiveError, match="no tensors"):
        weights(source).load(*span, Loader.DIRECT)


def test_loaders_are_not_mixed_and_the_engines_needs_the_libraries() -> None:
    with region() as source:
        loaded = weights(source)
        with pytest.raises(LiveError, match="needs the libraries first"):
            loaded.load(0, 1, Loader.ENGINE)
        with pytest.raises(LiveError, match="loaded by the loader"):
            loaded.load(1, 2, Loader.DIRECT)


class HostDriver:
    """libcuda with host memory as the device: what it needs to be told is checked as the real one would."""

    def __init__(self, pins: bool = True, size: int = 1 << 20) -> None:
        self.memory = ctypes.create_string_buffer(size)
        self.pinned: dict[int, int] = {}
        self.copies = 0
        self._pins = pins

    def __getattr__(self, name: str) -> Any:
        """Calls of which nothing is to be seen."""
        return lambda *_: 0

    def cuGetErrorString(self, _code: int, text: Any) -> int:
        text._obj.value = b"it says no"
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        address._obj.value = ctypes.addressof(self.memory)
        return 2 if size.value > len(self.memory) else 0

    def cuMemHostRegister_v2(self, start: Any, size: Any, _flags: int) -> int:
        end = start.value + size.value
        if not self._pins or any(start.value < stop and first < end for first, stop in self.pinned.items()):
            return 712
        self.pinned[start.value] = end
        return 0

    def cuMemHostUnregister(self, start: Any) -> int:
        return 0 if self.pinned.pop(start.value, None) else 713

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, _stream: Any) -> int:
        within = [first <= source.value and source.value + size.value <= end for first, end in self.pinned.items()]
        if self._pins and not any(within):
            return 1
        self.copies += 1
        ctypes.memmove(target.value, source.value, size.value)
        return 0


def test_tensors_get_into_a_gpus_memory_from_pages_that_are_pinned_once() -> None:
    driver = HostDriver()
    with region() as source:
        loaded = weights(source, CudaDevice(0, driver))
        for first in range(4):
            loaded.load(first, first + 1, Loader.DIRECT)
            assert driver.pinned or first == 3
        assert tensor_bytes(driver.memory[: PART.size]) == tensor_bytes(BYTES)
        assert driver.pinned == {}
        assert driver.copies > 4  # at least one crosses from pinned pages into others
    assert PART.size > 3 * PIN_UNIT


def test_memory_that_cannot_be_pinned_is_copied_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    driver = HostDriver(pins=False)
    with region() as source:
        loaded = weights(source, CudaDevice(0, driver))
        loaded.load(0, 2, Loader.DIRECT)
        loaded.load(2, 4, Loader.DIRECT)
    assert tensor_bytes(driver.memory[: PART.size]) == tensor_bytes(BYTES)
    assert capsys.readouterr().err.count("not pinned") == 1


def test_a_gpu_without_room_is_named_with_the_bytes() -> None:
    device = CudaDevice(1, HostDriver())
    with pytest.raises(CudaError, match=r"2,000,000 bytes on cuda:1\): it says no \(CUDA error 2\)"):
        device.allocate(2_000_000)
    memory = device.allocate(1000)
    assert isinstance(memory, CudaMemory)
    assert memory.__cuda_array_interface__["shape"] == (1000,)
