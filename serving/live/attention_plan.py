"""How the sequences of a step attend without a kernel for paged KV: decoding ones in groups of like length, the others
one by one. Made on the host from what the host knows, once a step for all layers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

SHORT_BLOCKS = 8
"""Sequences of up to so many blocks are padded to each other's length, longer ones to the longest below the next power
of two: that bounds both what padding costs and how many groups there are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostBatch:
    """What the host knows of a step's B sequences."""

    num_tokens: Ints
    """[B] rows of each."""
    contexts: Ints
    """[B] tokens in the KV cache after the step."""
    tables: Ints
    """[B, most blocks] block tables; a shorter one repeats its last block."""
    block_size: int

    @property
    def starts(self) -> Ints:
        """First row of each sequence."""
        starts: Ints = self.num_tokens.cumsum() - self.num_tokens
        return starts

    @property
    def decoding(self) -> Ints:
        """The sequences with a single row."""
        return np.flatnonzero(self.num_tokens == 1)

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Decoding sequences that attend together, padded to one length."""

    rows: Tensor
    """Theirs in the step, int64."""
    blocks: Tensor
    """Their KV blocks, equally many each, int64."""
    context: int
    """Tokens of each that are looked at."""
    mask: Tensor | None
    """Which tokens each sees, bool [n, 1, 1, context]; None when all are equally long."""
    unseen: Tensor | None
    """The others, int64 indices into the n * context tokens; None without a mask."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefill:
    """A sequence with several rows."""

    rows: slice
    blocks: Tensor
    """Its KV blocks, int64."""
    context: int
    mask: Tensor | None
    """Which tokens each row sees, bool [rows, context]; None when the first row is the first token."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoding:
    """The decoding sequences of a step as a kernel for paged KV takes them."""

    rows: Tensor | None
    """Theirs in the step, int64; None when they are all there are."""
    block_tables: Tensor
    """int32 [n, most blocks]"""
    context_lens: Tensor
    """int32 [n]"""
    max_context: int


def decode_groups(host: HostBatch, device: torch.device) -> list[Group]:
    """The decoding sequences by length."""
    return [_group(host, chosen, device) for chosen in _by_length(host)]


def prefills(host: HostBatch, device: torch.device) -> list[Prefill]:
    """The sequences with several rows."""
    starts = host.starts
    return [
        _prefill(host, sequence, int(starts[sequence]), device)
        for sequence in np.flatnonzero(host.num_tokens > 1).tolist()
    ]


def _by_length(host: HostBatch) -> Iterator[Ints]:
    decoding = host.decoding
    num_blocks = np.maximum(-(-host.contexts[decoding] // host.block_size), SHORT_BLOCKS)
    classes = np.ceil(np.log2(num_blocks))
    for length in np.unique(classes):
        yield decoding[classes == length]


def _group(host: HostBatch, chosen: Ints, device: torch.device) -> Group:
    lengths = host.contexts[chosen]
    context = int(lengths.max())
    num_blocks = host.blocks(context)
    mask = unseen = None
    if (lengths != context).any():
        context = num_blocks * host.block_size  # whole blocks keep the mask's rows aligned for the kernels
        seen = np.arange(context) < lengths[:, None]
        mask = torch.from_numpy(seen).to(device)[:, None, None]
        unseen = torch.from_numpy(np.flatnonzero(~seen)).to(device)
    return Group(
        rows=torch.from_numpy(host.starts[chosen]).to(device),
        blocks=torch.from_numpy(host.tables[chosen, :num_blocks].reshape(-1)).to(device),
        context=context,
        mask=mask,
        unseen=unseen,
    )


def _prefill(host: HostBatch, sequence: int, start: int, device: torch.device) -> Prefill:
    count, context = int(host.num_tokens[sequence]), int(host.contexts[sequence])
    mask = None
    if context > count:
        tokens = torch.arange(context, device=device)
        mask = tokens <= tokens[context - count :, None]
    blocks = host.tables[sequence, : host.blocks(context)]
    return Prefill(
        rows=slice(start, start + count), blocks=torch.from_numpy(blocks).to(device), context=context, mask=mask
    )
