"""BlockPool: the KV blocks of one instance; blocks are conserved or it raises."""

from collections import deque
from dataclasses import dataclass, field

from serving.core.request import Sequence
from serving.units import Tokens


class BlockPoolError(RuntimeError):
    """Blocks taken that are not free, or given back that are not held."""


@dataclass(slots=True, eq=False)
class Reservation:
    """Blocks of a pool that are kept for a sequence which still has its own in another."""

    request_id: int
    blocks: list[int] = field(default_factory=list)


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
        self._holder: list[Sequence | Reservation | None] = [None] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds, and that are reserved for none."""
        return len(self._free)

    def blocks_for(self, num_tokens: Tokens) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def can_ever_hold(self, sequence: "Sequence") -> bool:
        """Whether it is large enough for all tokens that the sequence may have, were it alone."""
        return sequence.final_tokens <= self.num_blocks * self.block_size

    def can_extend(self, sequence: Sequence, num_tokens: Tokens, reserve: int = 0) -> bool:
        """Whether the sequence can grow to ``num_tokens`` and leave ``reserve`` blocks free."""
        missing = self.blocks_for(num_tokens) - len(sequence.block_table)
        return missing <= len(self._free) - reserve

    def extend(self, sequence: Sequence, num_tokens: Tokens) -> None:
        """Give the sequence blocks for ``num_tokens`` tokens in all."""
        free, holder, table = self._free, self._holder, sequence.block_table
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > len(free):
            raise BlockPoolError(
                f"sequence {sequence.request.request_id} needs {missing} more blocks, {len(free)} are free"
            )
        for _ in range(missing):
            block = free.popleft()
            holder[block] = sequence
            table.append(block)
        sequence.capacity = len(table) * self.block_size

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

    def can_reserve(self, num_blocks: int, keep_free: int) -> bool:
        """Whether so many blocks can be reserved and leave ``keep_free`` free."""
        return num_blocks <= len(self._free) - keep_free

    def reserve(self, reservation: Reservation, num_blocks: int) -> None:
        """Add so many free blocks to a reservation."""
        if num_blocks > len(self._free):
            raise BlockPoolError(
                f"sequence {reservation.request_id} is to get {num_blocks} blocks, {len(self._free)} are free"
            )
        for _ in range(num_blocks):
            block = self._free.popleft()
            self._holder[block] = reservation
            reservation.blocks.append(block)

    def release(self, reservation: Reservation) -> None:
        """Take all blocks of a reservation back."""
        self._check(reservation)
        for block in reservation.blocks:
            self._holder[block] = None
        self._free.extendleft(reversed(reservation.blocks))
        reservation.blocks.clear()

    def hand(self, reservation: Reservation, sequence: Sequence) -> None:
        """Give what was reserved to its sequence, which holds no blocks elsewhere any more."""
        self._check(reservation)
        if sequence.block_table or sequence.request.request_id != reservation.request_id:
            raise BlockPoolError(
                f"sequence {sequence.request.request_id} cannot get the blocks that are reserved for "
                f"{reservation.request_id}: it is another, or holds {len(sequence.block_table)}"
            )
        for block in reservation.blocks:
            self._holder[block] = sequence
        sequence.block_table.extend(reservation.blocks)
        sequence.capacity = len(sequence.block_table) * self.block_size
        reservation.blocks.clear()

    def _check(self, reservation: Reservation) -> None:
        if any(self._holder[block] is not reservation for block in reservation.blocks):
            raise BlockPoolError(f"blocks reserved for sequence {reservation.request_id} are not in this pool")
