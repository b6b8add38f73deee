"""Attention of one new row a sequence over the paged KV cache: picks kernel, tiles and slices for the shape at hand."""

from dataclasses import dataclass
from functools import cache
from math import log2

import torch
import triton
from torch import Tensor

from serving.live.gpu.attention_kernels import attend_head_group, attend_one_head, combine

LOG2_E = 1.4426950408889634
HEAD_SIZES = (16, 32, 64, 128, 256)
"""Powers of two that a tile can hold."""
MAX_SLICES = 32
MAX_GROUP = 128
"""Query heads a KV head: Falcon-7B has 71."""
PROGRAMS_PER_PROCESSOR = 8
"""Programs that keep a multiprocessor's loads in flight; more slices than that only add partial outputs to merge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a context is cut."""

    tile: int
    """Tokens of one iteration."""
    num_warps: int
    num_slices: int
    """Programs that share one sequence and KV head; a power of two."""


def supports(num_heads: int, num_kv_heads: int, head_size: int) -> bool:
    """Whether the kernels can hold such heads."""
    return head_size in HEAD_SIZES and num_heads // num_kv_heads <= MAX_GROUP


def tiling(batch_size: int, num_heads: int, num_kv_heads: int, max_context: int) -> Tiling:
    """Slices enough to fill the GPU at that batch size, and not more than there are tiles in the longest context.

    Tiles and warps are the best of those measured on an H200 (``benchmarks/live_gpu.py --parts kernels``).
    """
    group = num_heads // num_kv_heads
    tile = 32 if group == 1 else 64
    wanted = _num_processors() * PROGRAMS_PER_PROCESSOR / (batch_size * num_kv_heads)
    filling = 2 ** max(0, round(log2(wanted)))
    useful = triton.next_power_of_2(triton.cdiv(max_context, tile))
    num_warps = 2 if group == 1 else 4 if group <= 64 else 8
    return Tiling(tile=tile, num_warps=num_warps, num_slices=min(filling, useful, MAX_SLICES))


@cache
def _num_processors() -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedKv:
    """One layer's KV cache, and where in it each sequence of a batch is."""

    keys: Tensor
    """[num_blocks, block_size, num_kv_heads, head_size], contiguous; values too."""
    values: Tensor
    block_tables: Tensor
    """int32 [B, at least the blocks of the longest context]"""
    context_lens: Tensor
    """int32 [B]; 0: no output but zeros."""


def decode_attention(q: Tensor, kv: PagedKv, scale: float, cut: Tiling) -> Tensor:
    """Output [B, num_heads, head_size] for queries of that shape, whose rows may be apart (a slice of q|k|v)."""
    batch_size, num_heads, head_size = q.shape
    _, block_size, num_kv_heads, _ = kv.keys.shape
    out = torch.empty((batch_size, num_heads, head_size), dtype=q.dtype, device=q.device)
    partial = weights = out
    if cut.num_slices > 1:
        shape = (batch_size, num_heads, cut.num_slices)
        partial = torch.empty((*shape, head_size), dtype=torch.float32, device=q.device)
        weights = torch.empty(shape, dtype=torch.float32, device=q.device)
    group = num_heads // num_kv_heads
    common = {
        "BLOCK": block_size,
        "HEAD": head_size,
        "TILE": cut.tile,
        "SLICES": cut.num_slices,
        "num_warps": cut.num_warps,
    }
    strides = (q.stride(0), kv.block_tables.stride(0))
    operands = (q, kv.keys, kv.values, kv.block_tables, kv.context_lens, out, partial, weights, scale * LOG2_E)
    grid = (batch_size, num_kv_heads, cut.num_slices)
    if group == 1:
        attend_one_head[grid](*operands, *strides, **common)
    else:
        rows = max(16, triton.next_power_of_2(group))
        attend_head_group[grid](*operands, *strides, **common, GROUP=group, ROWS=rows)
    if cut.num_slices > 1:
        combine[(batch_size, num_heads)](partial, weights, out, HEAD=head_size, SLICES=cut.num_slices, num_warps=4)
    return out
