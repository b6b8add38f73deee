"""SharedRegion: a file in shared memory that one process fills and others map.

    0      number of verified bytes, u64 in the machine's byte order; grows from 0 to ``size``
    4096   the bytes

Named ``aebench-<run id>-<serial>``, so that ``sweep(run_id)`` finds what a killed process left.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import re
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from serving.live.errors import LiveError

HEADER = 4096
"""Bytes before the data: one page, so that the data can be registered with a GPU driver by itself."""
PREFIX = "aebench"
_NAME = re.compile(PREFIX + r"-[A-Za-z0-9][A-Za-z0-9_.-]*")
_SHARED_MEMORY = Path("/dev/shm")
_MADV_POPULATE_WRITE = 23
"""Linux 5.14: map pages for writing, without touching what is in them."""


class RegionError(LiveError):
    """A region that cannot be made or mapped."""


def regions_folder() -> Path:
    """Where regions are files: shared memory where the system shows it, else the folder for temporary files."""
    usable = _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK)
    return _SHARED_MEMORY if usable else Path(tempfile.gettempdir())


def check_name(name: str) -> str:
    """The name; RegionError when it is none that a region may have."""
    if not _NAME.fullmatch(name):
        raise RegionError(f"{name!r} is no name of a region, expected {PREFIX}-<run id>-<serial>")
    return name


def region_name(run_id: str, serial: int | str) -> str:
    """The name of a region of a run."""
    return f"{PREFIX}-{run_id}-{serial}"


def sweep(run_id: str) -> list[str]:
    """Unlink every region of a run, and of its parts (``<run id>.<part>``); returns the names of those there were."""
    folder = regions_folder()
    found = sorted([*folder.glob(f"{PREFIX}-{run_id}-*"), *folder.glob(f"{PREFIX}-{run_id}.*-*")])
    for path in found:
        path.unlink(missing_ok=True)
    return [path.name for path in found]


def exists(name: str) -> bool:
    """Whether there is a region of this name."""
    return _path(name).exists()


def unlink(name: str) -> None:
    """Remove a region by name, if it is there; processes that have it mapped keep its bytes."""
    _path(name).unlink(missing_ok=True)


class SharedRegion:
    """One region, mapped. The creator writes, everybody else reads."""

    def __init__(self, name: str, file: int, size: int) -> None:
        """For ``create`` and ``open``; takes the file descriptor over."""
        self.name = name
        self.size = size
        self._file = file
        self._map = mmap.mmap(file, HEADER + size)
        self._view = memoryview(self._map)
        self._counter = self._view[:8].cast("Q")
        self.data: memoryview = self._view[HEADER : HEADER + size]
        """The bytes: ``size`` of them, writable, those below ``received`` verified."""

    @classmethod
    def create(cls, name: str, size: int) -> "SharedRegion":
        """A new region of ``size`` bytes, all zero and not backed by memory yet; see ``reserve``."""
        path = _path(name)
        stat = os.statvfs(path.parent)
        free = stat.f_bavail * stat.f_frsize
        if size + HEADER > free:
            raise RegionError(f"region {name} needs {size:,} bytes in {path.parent}, which has {free:,} free")
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise RegionError(f"region {name} exists already in {path.parent}") from None
        os.ftruncate(file, HEADER + size)
        return cls(name, file, size)

    @classmethod
    def open(cls, name: str) -> "SharedRegion":
        """Map a region that another process made."""
        path = _path(name)
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise RegionError(f"no region {name} in {path.parent}: it was freed, or its process died") from None
        size = os.fstat(file).st_size - HEADER
        if size < 0:
            os.close(file)
            raise RegionError(f"region {name} in {path.parent} is shorter than its header")
        return cls(name, file, size)

    @property
    def received(self) -> int:
        """Bytes from the start that have arrived and were verified."""
        return self._counter[0]

    @received.setter
    def received(self, value: int) -> None:
        self._counter[0] = value

    def reserve(self, start: int, stop: int) -> None:
        """Back a range of ``data`` by memory, so that writing to it cannot fail; RegionError when there is no more.

        Taking pages one by one, as they are written to, is several times slower.
        """
        if start >= stop or not hasattr(os, "posix_fallocate"):  # macOS has none; its file is no tmpfs
            return
        try:
            os.posix_fallocate(self._file, HEADER + start, stop - start)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            folder = regions_folder()
            raise RegionError(
                f"{folder} is full at byte {start:,} of the {self.size:,} of region {self.name}"
            ) from None

    def map_pages(self, start: int, stop: int) -> None:
        """Map a range of reserved ``data`` here at once, where the kernel can; ``mmap.madvise`` would keep the GIL."""
        if start < stop and sys.platform == "linux":
            libc = ctypes.CDLL(None)
            first = (HEADER + start) // mmap.PAGESIZE * mmap.PAGESIZE
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + first
            libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(HEADER + stop - first), _MADV_POPULATE_WRITE)

    def close(self) -> None:
        """Unmap it here. Views that others took of ``data`` keep the mapping until they go."""
        if self._file < 0:
            return
        os.close(self._file)
        self._file = -1
        with contextlib.suppress(BufferError):
            self.data.release()
            self._counter.release()
            self._view.release()
            self._map.close()

    def unlink(self) -> None:
        """Remove the name; the bytes go when nobody has them mapped."""
        unlink(self.name)

    def __enter__(self) -> "SharedRegion":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _path(name: str) -> Path:
    return regions_folder() / check_name(name)
