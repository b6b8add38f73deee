"""BlockPool: the KV blocks of one instance; blocks are conserved or it raises."""

from collections import deque
from math import ceil

from serving.core.request import Sequence
from serving.units import Tokens


class BlockPoolError(RuntimeError):
    """Blocks taken that are not free, or given back that are not held."""


class BlockPool:
    """Free list of block ids; a sequence's blocks are in its ``block_table``.

    Ask (``can_extend``) before taking (``extend``): taking what is not there raises.
    """

    def __init__(self, num_blocks: int, block_size: Tokens) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and a block size >= 1, got {num_blocks} and {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free: deque[int] = deque(range(num_blocks))
        self._holder: list[Sequence | None] = [None] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    def blocks_for(self, num_tokens: Tokens) -> int:
        """Blocks that hold so many tokens."""
        return ceil(num_tokens / self.block_size)

    def can_extend(self, sequence: Sequence, num_tokens: Tokens, reserve: int = 0) -> bool:
        """Whether the sequence can grow to ``num_tokens`` and leave ``reserve`` blocks free."""
        missing = self.blocks_for(num_tokens) - len(sequence.block_table)
        return missing <= len(self._free) - reserve

    def extend(self, sequence: Sequence, num_tokens: Tokens) -> None:
        """Give the sequence blocks for ``num_tokens`` tokens in all."""
        missing = self.blocks_for(num_tokens) - len(sequence.block_table)
        if missing > len(self._free):
            raise BlockPoolError(
                f"sequence {sequence.request.request_id} needs {missing} more blocks, {len(self._free)} are free"
            )
        for _ in range(missing):
            block = self._free.popleft()
            self._holder[block] = sequence
            sequence.block_table.append(block)
        sequence.capacity = len(sequence.block_table) * self.block_size

    def grow(self, num_blocks: int) -> None:
        """Have so many blocks in all; fewer than there are changes nothing."""
        for block in range(self.num_blocks, num_blocks):
            self._free.append(block)
            self._holder.append(None)
        self.num_blocks = max(self.num_blocks, num_blocks)

    def free(self, sequence: Sequence) -> None:
        """Take all blocks of the sequence back."""
        for block in sequence.block_table:
            if self._holder[block] is not sequence:
                raise BlockPoolError(
                    f"sequence {sequence.request.request_id} gives back block {block}, which it does not hold"
                )
            self._holder[block] = None
        self._free.extendleft(reversed(sequence.block_table))  # memory that was touched before is used again first
        sequence.block_table.clear()
        sequence.capacity = 0
