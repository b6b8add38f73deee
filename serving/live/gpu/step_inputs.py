"""StepInputs: the memory that recorded decode steps read their sequences from, filled by one copy a step."""

import numpy as np
import torch
import triton

from serving.live.batch import StepBatch
from serving.live.gpu.decoder import DecodeRows
from serving.live.gpu.row_kernels import unpack
from serving.live.gpu.row_operations import RowSlots
from serving.live.kv import KvCache

TILE = 128
"""Table columns that a program moves at a time."""


class StepInputs:
    """Room for ``max_rows`` sequences of up to ``max_context`` tokens, on the KV cache's device.

    A step is packed on the host (ids, positions, block tables, int32), goes over in one copy from pinned memory, and is
    spread there by a kernel. Who fills again has waited for the step before: the pinned memory is used again.
    """

    def __init__(self, kv: KvCache, max_rows: int, max_context: int) -> None:
        """The last block of ``kv`` is nobody's: padding rows write there."""
        device = kv.keys[0].device
        self._block_size = kv.block_size
        self._padding_slot = (kv.num_blocks - 1) * kv.block_size
        self._max_context = min(max_context, kv.num_blocks * kv.block_size)
        width = -(-self._max_context // kv.block_size)
        size = max_rows * (2 + width)
        self._pinned = torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._host = self._pinned.numpy()
        self._packed = torch.zeros(size, dtype=torch.int32, device=device)
        self._ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros_like(self._ids)
        self._slots = torch.zeros_like(self._ids)
        self._lens = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._tables = torch.zeros((max_rows, width), dtype=torch.int32, device=device)
        self._starts = torch.arange(max_rows + 1, dtype=torch.int32, device=device)

    def rows(self, num_rows: int) -> DecodeRows:
        """The first rows, as a recorded step reads them."""
        return DecodeRows(
            ids=self._ids[:num_rows],
            places=RowSlots(positions=self._positions[:num_rows], slots=self._slots[:num_rows]),
            block_tables=self._tables[:num_rows],
            context_lens=self._lens[:num_rows],
            query_starts=self._starts[: num_rows + 1],
            max_context=self._max_context,
        )

    def clear(self, num_rows: int) -> None:
        """Make these rows padding."""
        self._spread(num_rows, 0, 0)

    def fits(self, batch: StepBatch) -> bool:
        """Whether there is room for its sequences and their block tables."""
        max_rows, width = self._tables.shape
        return batch.num_sequences <= max_rows and int(batch.num_blocks.max()) <= width

    def fill(self, batch: StepBatch, num_rows: int) -> None:
        """Put a decode batch that fits into the first rows and padding into the others, up to ``num_rows``."""
        count, width = batch.num_sequences, int(batch.num_blocks.max())
        size = count * (2 + width)
        self._host[:count] = batch.ids
        self._host[count : 2 * count] = batch.num_computed
        table = self._host[2 * count : size].reshape(count, width)
        # what lies behind the end of a shorter table is never read
        table[np.arange(width) < batch.num_blocks[:, None]] = batch.block_tables
        self._packed[:size].copy_(self._pinned[:size], non_blocking=True)
        self._spread(num_rows, count, width)

    def _spread(self, num_rows: int, num_real: int, width: int) -> None:
        unpack[(num_rows,)](
            self._packed, self._ids, self._positions, self._slots, self._lens, self._tables,
            num_real, width, self._tables.stride(0), self._padding_slot,
            BLOCK=self._block_size, TILE=min(TILE, triton.next_power_of_2(self._tables.shape[1])), num_warps=4,
        )  # fmt: skip
