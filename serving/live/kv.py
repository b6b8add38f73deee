"""KvCache: the keys and values of every token of every sequence, in blocks, for the layers of one stage."""

from dataclasses import dataclass, field
from math import prod
from typing import Self

import numpy as np
import torch
from torch import Tensor

from serving.live.config import ModelConfig


@dataclass(slots=True, eq=False)
class KvCache:
    """The KV pool of a stage: per layer, keys and values of shape [num_blocks, block_size, num_kv_heads, head_size].

    A token's slot is ``block * block_size + offset``; which blocks a sequence has, its block table says.
    """

    keys: list[Tensor]
    values: list[Tensor]
    _gathered: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        layers: range,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Self:
        """A pool for these layers; it starts as zeros."""
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_size)
        pools = [_zeros(shape, dtype, device) for _ in range(2 * len(layers))]
        return cls(pools[: len(layers)], pools[len(layers) :])

    def around(self, before: int, behind: int) -> "KvCache":
        """A pool with as many blocks, for so many layers more on either side; those that are here are shared with it,
        the others start as zeros."""
        like = self.keys[0]
        pools = [_zeros(tuple(like.shape), like.dtype, like.device) for _ in range(2 * (before + behind))]
        keys, values = pools[: before + behind], pools[before + behind :]
        return KvCache([*keys[:before], *self.keys, *keys[before:]], [*values[:before], *self.values, *values[before:]])

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return self.keys[0].shape[0]

    @property
    def block_size(self) -> int:
        """Tokens that a block holds."""
        return self.keys[0].shape[1]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores tokens' keys and values, both [T, num_kv_heads, head_size], in their slots (int64 [T])."""
        for pool, rows in ((self.keys[layer], keys), (self.values[layer], values)):
            pool.view(-1, *pool.shape[2:]).index_put_((slots,), rows)

    def gather(self, layer: int, blocks: Tensor, unseen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of the blocks (int64 [n]) in that order, [n, block_size, num_kv_heads, head_size], in
        memory that the next call uses again. Tokens ``unseen`` (int64 indices into the n * block_size) are zeros: what
        another sequence left there may be a NaN, which a mask lets through."""
        parts = self._select("keys", self.keys[layer], blocks), self._select("values", self.values[layer], blocks)
        if unseen is not None:
            for part in parts:
                part.view(-1, part.shape[2] * part.shape[3]).index_fill_(0, unseen, 0)
        return parts

    def _select(self, name: str, pool: Tensor, blocks: Tensor) -> Tensor:
        """Fresh memory for every layer would cost more in page faults than the copy itself."""
        size = blocks.numel() * pool[0].numel()
        buffer = self._gathered.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._gathered[name] = torch.empty(size + size // 2, dtype=pool.dtype, device=pool.device)
        rows = buffer[:size].view(blocks.numel(), -1)
        torch.index_select(pool.view(pool.shape[0], -1), 0, blocks, out=rows)
        return rows.view(-1, *pool.shape[1:])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros; on the CPU such that memory is taken only when a block is first written (``torch.zeros`` writes all)."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
