"""The files of one point: JSON lines while it runs, replaced by one Parquet file when it is sealed.

How they are written so that a crash, a full disk or a second run leaves nothing half-written. What is in
them is ``aebench.log_format``; the folder of a run they lie in is ``aebench.logs``.
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

from aebench.errors import LogError
from aebench.log_format import (
    NO_MATTER,
    Header,
    Only,
    encode,
    read_lines,
    read_parquet,
    read_parquet_header,
    write_parquet,
)
from aebench.point import Point
from aebench.ticks import Ticks
from serving.records import Record

_FLUSH_SECONDS = 1.0
_FLUSH_RECORDS = 1000
_HINTS = {
    errno.ENOSPC: "Free some space and run again with --resume",
    errno.ENOENT: "Create the folder, or choose another with --log-path",
}
"""Of a run, whose files are in the log folder."""


class DiskError(LogError):
    """A path that the file system refused something, and why."""

    def __init__(self, path: Path, reason: str, hint: str) -> None:
        super().__init__(f"{path}: {reason}. {hint}")
        self.path = path
        self.reason = reason
        self.hint = hint

    def __reduce__(self) -> tuple[type["DiskError"], tuple[Path, str, str]]:
        return type(self), (self.path, self.reason, self.hint)


def disk_error(path: Path, error: OSError, flag: str | None = None) -> DiskError:
    """What the file system refused, to which path, and what to do about it: ``flag`` says where else to write, None
    being a run that can be resumed."""
    another = f"Choose another folder with {flag or '--log-path'}"
    hint = _HINTS.get(error.errno or 0, another) if flag is None else another
    return DiskError(path, error.strerror or str(error), hint)


@contextmanager
def placed_by(flag: str) -> Iterator[None]:
    """Names the flag that decides where the block writes, in what the block says of the disk."""
    try:
        yield
    except DiskError as error:
        raise DiskError(error.path, error.reason, f"Choose another folder with {flag}") from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends well, and leaves no trace otherwise."""
    temporary = path.parent / f".{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PointWriter:
    """The file of a running point; ``write`` appends, ``seal`` ends it, leaving the block leaves the lines.

    What an earlier run left of the point is removed first. The lines are read back through the writer's own
    file handle, so that a successor which has begun the same point anew can never be sealed by it.
    """

    def __init__(self, folder: Path, point: Point) -> None:
        self._header = Header.of(point)
        self._ticks = Ticks.of(point.spec.get("measure", {}))
        self._time_digits = None if self._ticks is None else self._ticks.digits
        self._sealed = sealed_path(folder, point)
        self._lines = lines_path(folder, point)
        try:
            self._sealed.unlink(missing_ok=True)
            self._lines.unlink(missing_ok=True)
            self._file = self._lines.open("x+b", buffering=1 << 20)
        except OSError as error:
            raise disk_error(self._lines, error) from error
        self._append(self._header.encode())
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._discard()
            raise disk_error(self._lines, error) from error
        if exception is not None and issubclass(exception, LogError):
            self._discard()

    def write(self, record: Record) -> None:
        """Appends one record, its times as exact as wanted; on disk within a second of the next one, or of the end."""
        self._append(encode(record, self._time_digits))
        self._pending += 1
        if self._pending >= _FLUSH_RECORDS or time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
            self._flush()

    def seal(self) -> None:
        """Turns the lines into the point's Parquet file, durably, and removes them."""
        self._flush()
        self._file.seek(0)
        self._file.readline()
        with replacing(self._sealed) as target:
            write_parquet(self._file, self._header, target, self._ticks)
        self._discard()

    def _append(self, line: bytes) -> None:
        try:
            self._file.write(line + b"\n")
        except OSError as error:
            raise disk_error(self._lines, error) from error

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise disk_error(self._lines, error) from error
        self._pending = 0
        self._flushed_at = time.monotonic()

    def _discard(self) -> None:
        with suppress(OSError):
            self._lines.unlink(missing_ok=True)


def file_stem(point: Point) -> str:
    """Name of the point's files without suffix."""
    stem = point.name or "point"
    if "/" in stem or "\0" in stem:
        raise LogError(f"point {stem!r} cannot be a file name: its grid values may not contain '/'")
    return stem


def lines_path(folder: Path, point: Point) -> Path:
    """Where the JSON lines of the point are while it runs."""
    return folder / f"{file_stem(point)}.jsonl"


def sealed_path(folder: Path, point: Point) -> Path:
    """Where the point is once it is sealed."""
    return folder / f"{file_stem(point)}.parquet"


def sealed_digest(folder: Path, point: Point) -> str | None:
    """The digest under which the point was sealed; None: it was not."""
    path = sealed_path(folder, point)
    return read_parquet_header(path).digest if path.exists() else None


def read_point(folder: Path, point: Point, wanted: Sequence[type[Record]], only: Only = NO_MATTER) -> list[Record]:
    """The point's records of the wanted types, sealed or as far as they are written."""
    sealed, lines = sealed_path(folder, point), lines_path(folder, point)
    if sealed.exists():
        return read_parquet(sealed, wanted, only)
    if lines.exists():
        return read_lines(lines, wanted, only)
    raise LogError(f"{folder}: nothing of point {file_stem(point)}. Run the experiment again with --resume")
