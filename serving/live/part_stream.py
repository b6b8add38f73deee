"""PartStream: the bytes of a part where they lie in memory, and checksums of them in units.

A unit is a stretch of one tensor; the zeros between tensors belong to none. Sender and receiver cut a part alike.
"""

import bisect
import itertools
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence

from serving.live.errors import LiveError
from serving.live.part import ALIGNMENT, Part
from serving.units import KiB

UNIT = int(256 * KiB)
"""Bytes of the longest unit: what a receiver holds back until it is whole. CRC-32 takes it at 6 GB/s (zlib)."""

_ZEROS = memoryview(bytes(ALIGNMENT))


def unit_bounds(part: Part) -> Iterator[tuple[int, int]]:
    """Start and stop of each unit, in bytes from the start of the part."""
    for entry in part.tensors:
        stop = entry.offset + entry.num_bytes
        for start in range(entry.offset, stop, UNIT):
            yield start, min(start + UNIT, stop)


def checksums(tensor: memoryview) -> "array[int]":
    """CRC-32 of each unit of a tensor's bytes; reads all of them once."""
    return array("I", (zlib.crc32(tensor[start : start + UNIT]) for start in range(0, tensor.nbytes, UNIT)))


class PartStream:
    """The bytes of a part as a sequence of views, with zeros between the tensors where the part has a gap."""

    def __init__(self, part: Part, tensors: Sequence[memoryview], sums: Iterable["array[int]"]) -> None:
        """``tensors`` are the bytes of the part's tensors in order, ``sums`` what ``checksums`` says of each."""
        self.part = part
        self.checksums = array("I", itertools.chain.from_iterable(sums))
        self._views: list[memoryview] = []
        self._starts: list[int] = []
        end = 0
        for entry, tensor in zip(part.tensors, tensors, strict=True):
            if tensor.nbytes != entry.num_bytes:
                raise LiveError(f"{part.model}, {entry.name}: {tensor.nbytes} bytes, the part says {entry.num_bytes}")
            self._add(end, _ZEROS[: entry.offset - end])
            self._add(entry.offset, tensor)
            end = entry.offset + entry.num_bytes

    def cut(self, start: int, stop: int) -> list[memoryview]:
        """Views of the bytes from start to stop."""
        found = []
        index = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            base, view = self._starts[index], self._views[index]
            piece = view[start - base : stop - base]
            found.append(piece)
            start += piece.nbytes
            index += 1
        return found

    def _add(self, start: int, view: memoryview) -> None:
        if view.nbytes:
            self._starts.append(start)
            self._views.append(view.cast("B"))
