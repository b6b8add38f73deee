"""AttentionBatch: which rows of a step belong to which sequence, and where their KV is; and attention over that."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from serving.live.attention_plan import Decoding, Group, HostBatch, Ints, Prefill, decode_groups, prefills
from serving.live.cpu.kernels import Kernels, Paged, kernels_for
from serving.live.kv import KvCache

DecodeKernel = Callable[[Tensor, KvCache, int, Decoding], Tensor]
"""Queries of decoding sequences [n, num_heads, head_size], and a layer of the KV cache; gives the same shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionBatch:
    """B sequences with T rows together, row by row in batch order. Tensors are on the device; what decides about shapes
    is on the host too, so that nothing waits for the device. Rows see all earlier tokens of their sequence: there is no
    mask for trees of drafts."""

    positions: Tensor
    """int64 [T]"""
    slots: Tensor
    """int64 [T]: where the row's keys and values go, block * block_size + offset."""
    query_starts: Tensor
    """int32 [B + 1]: first row of each sequence, then T."""
    context_lens: Tensor
    """int32 [B]: tokens in the KV cache after this step."""
    block_tables: Tensor
    """int32 [B, blocks of the longest context]; a shorter table repeats its last block."""
    max_query: int
    max_context: int
    num_tokens: list[int]
    """Rows of each sequence."""
    host: HostBatch

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.positions.device

    @cached_property
    def prefills(self) -> list[Prefill]:
        """The sequences with several rows."""
        return [] if self.max_query == 1 else prefills(self.host, self.device)

    @cached_property
    def decoding(self) -> Decoding | None:
        """The sequences with one row, for a kernel; None when there are none."""
        if self.max_query == 1:
            return Decoding(
                rows=None,
                block_tables=self.block_tables,
                context_lens=self.context_lens,
                max_context=self.max_context,
            )
        chosen = self.host.decoding
        if not len(chosen):
            return None
        index = torch.from_numpy(chosen).to(self.device)
        return Decoding(
            rows=self.query_starts[index].long(),
            block_tables=self.block_tables[index],
            context_lens=self.context_lens[index],
            max_context=int(self.host.contexts[chosen].max()),
        )

    @cached_property
    def groups(self) -> list[Group]:
        """The sequences with one row, by length."""
        return decode_groups(self.host, self.device)


def attention_batch(
    num_tokens: Sequence[int],
    num_computed: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    block_size: int,
    device: torch.device | str,
) -> AttentionBatch:
    """A step in which each sequence computes ``num_tokens`` (at least 1) after ``num_computed`` that are in its KV
    blocks. Tables may be longer than that needs, not shorter."""
    counts = np.asarray(num_tokens, dtype=np.int64)
    computed = np.asarray(num_computed, dtype=np.int64)
    contexts = counts + computed
    tables = _padded(block_tables, -(-contexts // block_size))
    ends = counts.cumsum()
    rows = np.arange(ends[-1])
    sequences = np.repeat(np.arange(len(counts)), counts)
    positions = rows + (computed - ends + counts)[sequences]
    slots = tables[sequences, positions // block_size] * block_size + positions % block_size
    longs, ints = _upload((positions, slots), (np.concatenate(([0], ends)), contexts, tables.reshape(-1)), device)
    return AttentionBatch(
        positions=longs[0],
        slots=longs[1],
        query_starts=ints[0],
        context_lens=ints[1],
        block_tables=ints[2].view(tables.shape),
        max_query=int(counts.max()),
        max_context=int(contexts.max()),
        num_tokens=counts.tolist(),
        host=HostBatch(num_tokens=counts, contexts=contexts, tables=tables, block_size=block_size),
    )


def paged_attention(query: Tensor, kv: KvCache, layer: int, batch: AttentionBatch) -> Tensor:
    """Causal attention of query [T, num_heads, head_size] over the KV cache, which holds this step's tokens already;
    [T, num_heads * head_size]. Heads are scaled by the root of their size, and share KV heads in order."""
    if decode := _decode_kernel(query, kv):
        out, decoding = torch.empty_like(query), batch.decoding
        if decoding is not None:
            result = decode(query if decoding.rows is None else query[decoding.rows], kv, layer, decoding)
            if decoding.rows is None:
                return result.flatten(1)
            out.index_copy_(0, decoding.rows, result)
    else:
        if len(batch.groups) == 1 and batch.max_query == 1:
            return _decode(query, kv, layer, batch.groups[0]).flatten(1)
        out = torch.empty_like(query)
        for group in batch.groups:
            out.index_copy_(0, group.rows, _decode(query[group.rows], kv, layer, group))
    for prefill in batch.prefills:
        out[prefill.rows] = _prefill(query[prefill.rows], kv, layer, prefill)
    return out.flatten(1)


def _decode(query: Tensor, kv: KvCache, layer: int, group: Group) -> Tensor:
    """[n, num_heads, head_size]. The heads that share a KV head stand where rows usually do, so no key is copied."""
    num_sequences, num_heads, head_size = query.shape
    gathered = kv.gather(layer, group.blocks, group.unseen)
    keys, values = (_by_head(part, num_sequences, group.context) for part in gathered)
    rows = query.reshape(num_sequences, keys.shape[1], -1, head_size)
    out = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=group.mask)
    return out.reshape(num_sequences, num_heads, head_size)


def _prefill(query: Tensor, kv: KvCache, layer: int, prefill: Prefill) -> Tensor:
    """[rows, num_heads, head_size]"""
    keys, values = (_by_head(part, 1, prefill.context) for part in kv.gather(layer, prefill.blocks))
    heads_a_key = query.shape[1] // keys.shape[1]
    if heads_a_key > 1:
        keys, values = (part.repeat_interleave(heads_a_key, 1) for part in (keys, values))
    rows = query.transpose(0, 1)[None]
    out = functional.scaled_dot_product_attention(
        rows, keys, values, attn_mask=prefill.mask, is_causal=prefill.mask is None
    )
    return out[0].transpose(0, 1)


def _by_head(blocks: Tensor, num_sequences: int, context: int) -> Tensor:
    """Gathered blocks as [num_sequences, num_kv_heads, context, head_size]."""
    return blocks.reshape(num_sequences, -1, *blocks.shape[2:])[:, :context].transpose(1, 2)


def _decode_kernel(query: Tensor, kv: KvCache) -> DecodeKernel | None:
    """What reads KV through block tables on this device; None where PyTorch's attention over gathered KV serves."""
    if on_cpu := kernels_for(query):
        return partial(_decode_on_cpu, on_cpu)
    if on_gpu := _gpu_kernels(query, kv):
        return partial(_decode_on_gpu, on_gpu)
    return None


def _decode_on_cpu(kernels: Kernels, query: Tensor, kv: KvCache, layer: int, decoding: Decoding) -> Tensor:
    """[n, num_heads, head_size]"""
    paged = Paged(
        keys=kv.keys[layer],
        values=kv.values[layer],
        block_tables=decoding.block_tables,
        context_lens=decoding.context_lens,
    )
    return kernels.attend(query, paged)


def _decode_on_gpu(kernels: ModuleType, query: Tensor, kv: KvCache, layer: int, decoding: Decoding) -> Tensor:
    """[n, num_heads, head_size]"""
    pages = kernels.PagedKv(
        keys=kv.keys[layer],
        values=kv.values[layer],
        block_tables=decoding.block_tables,
        context_lens=decoding.context_lens,
    )
    num_sequences, num_heads, head_size = query.shape
    cut = kernels.tiling(num_sequences, num_heads, pages.keys.shape[2], decoding.max_context)
    result: Tensor = kernels.decode_attention(query, pages, head_size**-0.5, cut)
    return result


def _gpu_kernels(query: Tensor, kv: KvCache) -> ModuleType | None:
    """Those for paged KV, where there are some for these heads."""
    if not query.is_cuda:
        return None
    kernels = _triton_kernels()
    fits = kernels is not None and kernels.supports(query.shape[1], kv.keys[0].shape[2], query.shape[2])
    return kernels if fits else None


@cache
def _triton_kernels() -> ModuleType | None:
    try:
        from serving.live.gpu import attention_triton
    except ImportError:
        return None
    return attention_triton


def _padded(tables: Sequence[Sequence[int]], needed: Ints) -> Ints:
    """The first ``needed`` blocks of each table; shorter ones repeat their last: what is read in vain is their own."""
    lengths = np.fromiter(map(len, tables), np.int64, len(tables))
    flat = np.fromiter(chain.from_iterable(tables), np.int64, int(lengths.sum()))
    columns = np.minimum(np.arange(needed.max()), needed[:, None] - 1)
    padded: Ints = flat[columns + (lengths.cumsum() - lengths)[:, None]]
    return padded


def _upload(
    longs: Sequence[Ints], ints: Sequence[Ints], device: torch.device | str
) -> tuple[list[Tensor], list[Tensor]]:
    """Arrays as int64 and int32 tensors on the device, in one copy."""
    packed = np.concatenate([*(part.view(np.int32) for part in longs), *(part.astype(np.int32) for part in ints)])
    tensor = torch.from_numpy(packed)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    split = 2 * sum(map(len, longs))
    return (
        list(tensor[:split].view(torch.int64).split_with_sizes([len(part) for part in longs])),
        list(tensor[split:].split_with_sizes([len(part) for part in ints])),
    )
