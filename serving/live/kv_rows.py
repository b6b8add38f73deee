"""Rows: the bytes of some KV blocks in some layers, which another process with the same layers can take.

Bytes are in the order of layers, keys before values, blocks as they are given. On the CPU they go from the blocks to
the socket and from there into the blocks, with nothing in between, and no thread of torch's is used beside those of the
steps. On a GPU the keys and values of several layers are gathered into one piece, which is copied over pinned memory on
a stream of its own, one piece while another is on the socket.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.units import MiB

Views = Sequence[memoryview]
GROUP_SIZE = 32 * MiB
"""Of a piece, unless one tensor's blocks are more."""


@dataclass(frozen=True, slots=True)
class HostRows:
    """Of blocks in the memory of this process."""

    pools: list[Tensor]
    """Keys, then values, of layer after layer: [num_blocks, ...], each block in one piece."""
    blocks: list[int]

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        return sum(pool[0].nbytes for pool in self.pools) * len(self.blocks)

    def give(self, send: Callable[[Views], object]) -> None:
        """Hand out the bytes, tensor by tensor."""
        runs = list(_runs(self.blocks))
        for pool in self.pools:
            size, memory = pool[0].nbytes, _raw(pool)
            send([memory[run.start * size : run.stop * size] for run in runs])

    def take(self, fill: Callable[[Views], object]) -> None:
        """Have the blocks filled."""
        self.give(fill)


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """Of blocks in the memory of a GPU."""

    pools: list[Tensor]
    blocks: list[int]
    staging: "Staging"

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        return sum(pool[0].nbytes for pool in self.pools) * len(self.blocks)

    def give(self, send: Callable[[Views], object]) -> None:
        """Hand out the bytes, some layers at a time; the next ones are on their way to the host meanwhile."""
        ready: tuple[torch.cuda.Event, Tensor] | None = None
        with torch.inference_mode(), torch.cuda.stream(self.staging.stream):
            try:
                index = self._index()
                for number, pools in enumerate(self._groups()):
                    staged = self.staging.room(number, self._shape(pools), pools[0].dtype)
                    staged.copy_(torch.stack([pool[index] for pool in pools]), non_blocking=True)
                    copied = self.staging.mark()
                    if ready is not None:
                        _send_when_copied(ready, send)
                    ready = copied, staged
                if ready is not None:
                    _send_when_copied(ready, send)
            finally:
                self.staging.stream.synchronize()  # the next move uses its memory

    def take(self, fill: Callable[[Views], object]) -> None:
        """Have the host's memory filled with some layers at a time, and the blocks from there; all that was begun is
        done when this returns or raises."""
        copied: dict[int, torch.cuda.Event] = {}
        with torch.inference_mode(), torch.cuda.stream(self.staging.stream):
            try:
                index = self._index()
                for number, pools in enumerate(self._groups()):
                    staged = self.staging.room(number, self._shape(pools), pools[0].dtype)
                    if number - 2 in copied:
                        copied.pop(number - 2).synchronize()  # which was in the same memory
                    fill([_raw(staged)])
                    for pool, arrived in zip(pools, staged.to(pools[0].device, non_blocking=True), strict=True):
                        pool.index_copy_(0, index, arrived)
                    copied[number] = self.staging.mark()
            finally:
                self.staging.stream.synchronize()

    def _groups(self) -> Iterator[list[Tensor]]:
        """Keys and values in turn, as many at a time as fit in the staging memory: a wait for the GPU for each group,
        which beside another process that computes on it is milliseconds."""
        size = max(1, int(GROUP_SIZE // (self.num_bytes / len(self.pools))))
        for start in range(0, len(self.pools), size):
            yield self.pools[start : start + size]

    def _index(self) -> Tensor:
        return torch.tensor(self.blocks, dtype=torch.int64, device=self.pools[0].device)

    def _shape(self, pools: list[Tensor]) -> tuple[int, ...]:
        return len(pools), len(self.blocks), *pools[0].shape[1:]


class Staging:
    """Pinned host memory for two pieces at once, and a stream; kept from one move to the next."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pinned = [torch.empty(0, dtype=torch.uint8)] * 2

    def mark(self) -> torch.cuda.Event:
        """Happens when what was begun so far is done."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def room(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a piece, which the next but one uses again."""
        size = torch.Size(shape).numel() * dtype.itemsize
        if self._pinned[number % 2].numel() < size:
            self._pinned[number % 2] = torch.empty(max(size, int(GROUP_SIZE)), dtype=torch.uint8, pin_memory=True)
        return self._pinned[number % 2][:size].view(dtype).view(shape)


def rows_of(pools: list[Tensor], blocks: list[int], staging: Staging | None) -> HostRows | DeviceRows:
    """Where the blocks are: on a GPU there is staging."""
    return HostRows(pools, blocks) if staging is None else DeviceRows(pools, blocks, staging)


def _send_when_copied(ready: tuple[torch.cuda.Event, Tensor], send: Callable[[Views], object]) -> None:
    copied, staged = ready
    copied.synchronize()
    send([_raw(staged)])


def _runs(blocks: list[int]) -> Iterator[range]:
    """Neighbours that follow each other are one piece."""
    start = 0
    for at in range(1, len(blocks) + 1):
        if at == len(blocks) or blocks[at] != blocks[at - 1] + 1:
            yield range(blocks[start], blocks[at - 1] + 1)
            start = at


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in host memory, writable."""
    return tensor.view(torch.uint8).view(-1).numpy().data
