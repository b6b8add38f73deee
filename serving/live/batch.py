"""StepBatch: one step as the arrays that go to a worker; StepSample: the tokens that come back. No torch here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from serving.core.request import Sampling
from serving.live.errors import LiveError

Header = dict[str, Any]
"""The JSON part of a frame."""
Payload = bytes | bytearray | memoryview
Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]
Bytes8 = NDArray[np.uint8]
GREEDY = Sampling()
"""How a sequence is sampled that says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledRows:
    """How each sequence of a batch draws its token; temperature 0 is greedy."""

    temperature: Float32s
    top_p: Float32s
    seeds: Int64s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepBatch:
    """What one forward pass computes: B sequences, T rows, in batch order. Arrays may be read-only views of a frame."""

    ids: Int64s
    """[T] token ids, those of the first sequence first."""
    num_tokens: Int32s
    """[B] rows of each sequence."""
    num_computed: Int32s
    """[B] tokens whose KV is in the cache already."""
    block_tables: Int32s
    """All sequences' KV blocks, one table after the other."""
    num_blocks: Int32s
    """[B] length of each table."""
    wants: Bytes8
    """[B] 1 where the last row yields a token; 0 for a chunk that ends before its sequence does."""
    sampled: SampledRows | None = None
    """None: all greedy."""
    logprobs: Int32s | None = None
    """[B] alternatives whose log probabilities are wanted, -1 for sequences that want none; None when all want none."""

    @classmethod
    def of(
        cls,
        ids: Iterable[Sequence[int]],
        num_computed: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        wants: Sequence[bool],
        sampling: Sequence[Sampling | None],
    ) -> Self:
        """A batch from lists with one entry a sequence; ``ids`` are the tokens that each computes now."""
        ids = list(ids)
        return cls(
            ids=np.array(list(chain.from_iterable(ids)), np.int64),
            num_tokens=np.array(list(map(len, ids)), np.int32),
            num_computed=np.array(num_computed, np.int32),
            block_tables=np.array(list(chain.from_iterable(block_tables)), np.int32),
            num_blocks=np.array(list(map(len, block_tables)), np.int32),
            wants=np.array(wants, np.uint8),
            sampled=_sampled(sampling),
            logprobs=_logprobs(sampling),
        )

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.num_tokens)

    @property
    def is_decode(self) -> bool:
        """Every sequence computes one token and yields one."""
        return len(self.ids) == len(self.num_tokens) and bool(self.wants.all())

    def tables(self) -> list[list[int]]:
        """The block tables apart."""
        flat, tables, start = self.block_tables.tolist(), [], 0
        for count in self.num_blocks.tolist():
            tables.append(flat[start : start + count])
            start += count
        return tables

    def encode(self) -> tuple[Header, list[memoryview]]:
        """As header and buffers of a frame; ``decode`` reads them back."""
        header = {
            "rows": len(self.ids),
            "sequences": len(self.num_tokens),
            "blocks": len(self.block_tables),
            "sampled": self.sampled is not None,
            "logprobs": self.logprobs is not None,
        }
        arrays: list[NDArray[Any]] = [self.ids]
        if self.sampled is not None:
            arrays += [self.sampled.seeds, self.sampled.temperature, self.sampled.top_p]
        arrays += [self.num_tokens, self.num_computed, self.num_blocks, self.block_tables]
        if self.logprobs is not None:
            arrays.append(self.logprobs)
        return header, [_raw(array) for array in [*arrays, self.wants]]

    @classmethod
    def decode(cls, header: Header, payload: Payload) -> Self:
        """What ``encode`` wrote; LiveError on sizes that do not fit each other or a token count that cannot be."""
        cut = _Cut(payload)
        num_sequences = _size(header, "sequences")
        ids = cut.take(_size(header, "rows"), np.int64)
        sampled = None
        if header.get("sampled"):
            seeds = cut.take(num_sequences, np.int64)
            temperature = cut.take(num_sequences, np.float32)
            sampled = SampledRows(seeds=seeds, temperature=temperature, top_p=cut.take(num_sequences, np.float32))
        batch = cls(
            ids=ids,
            sampled=sampled,
            num_tokens=cut.take(num_sequences, np.int32),
            num_computed=cut.take(num_sequences, np.int32),
            num_blocks=cut.take(num_sequences, np.int32),
            block_tables=cut.take(_size(header, "blocks"), np.int32),
            logprobs=cut.take(num_sequences, np.int32) if header.get("logprobs") else None,
            wants=cut.take(num_sequences, np.uint8),
        )
        cut.end()
        batch._check()
        return batch

    def _check(self) -> None:
        if not self.num_sequences or self.num_tokens.min() < 1 or self.num_tokens.sum() != len(self.ids):
            raise LiveError(f"step: {len(self.ids)} token ids do not fit the row counts {self.num_tokens.tolist()[:8]}")
        if self.num_computed.min() < 0 or self.num_blocks.sum() != len(self.block_tables):
            raise LiveError(f"step: {len(self.block_tables)} KV blocks do not fit {int(self.num_blocks.sum())} counted")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLogprobs:
    """Log probabilities beside N sampled tokens, with the K likeliest alternatives of each, likeliest first."""

    chosen: Float32s
    """[N] of the sampled token, before temperature and top-p."""
    top_ids: Int64s
    """[N, K]"""
    top: Float32s
    """[N, K]"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepSample:
    """The result of a step: one token for each sequence that wanted one, in batch order."""

    ids: Int64s
    """[N]"""
    logprobs: TokenLogprobs | None = None
    """None when no sequence asked; K is the most that one asked for."""

    def encode(self) -> tuple[Header, list[memoryview]]:
        """As header and buffers of a frame; ``decode`` reads them back."""
        if self.logprobs is None:
            return {"tokens": len(self.ids)}, [_raw(self.ids)]
        header = {"tokens": len(self.ids), "top": self.logprobs.top_ids.shape[1]}
        arrays = (self.ids, self.logprobs.top_ids, self.logprobs.chosen, self.logprobs.top)
        return header, [_raw(array) for array in arrays]

    @classmethod
    def decode(cls, header: Header, payload: Payload) -> Self:
        """What ``encode`` wrote."""
        cut = _Cut(payload)
        num_tokens = _size(header, "tokens")
        ids = cut.take(num_tokens, np.int64)
        logprobs = None
        if "top" in header:
            top = _size(header, "top")
            top_ids = cut.take(num_tokens * top, np.int64).reshape(num_tokens, top)
            chosen = cut.take(num_tokens, np.float32)
            values = cut.take(num_tokens * top, np.float32).reshape(num_tokens, top)
            logprobs = TokenLogprobs(chosen=chosen, top_ids=top_ids, top=values)
        cut.end()
        return cls(ids=ids, logprobs=logprobs)


class _Cut:
    """Takes arrays off the front of a payload, without copying."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        self._at = 0

    def take(self, count: int, dtype: type[Any]) -> NDArray[Any]:
        size = count * np.dtype(dtype).itemsize
        if self._at + size > len(self._payload):
            raise LiveError(f"step frame: payload has {len(self._payload)} bytes, its header counts more")
        array = np.frombuffer(self._payload, dtype, count, self._at)
        self._at += size
        return array

    def end(self) -> None:
        if self._at != len(self._payload):
            raise LiveError(f"step frame: payload has {len(self._payload)} bytes, its header counts {self._at}")


def _raw(array: NDArray[Any]) -> memoryview:
    """The bytes of an array. A memoryview with a zero in its shape refuses a cast."""
    return np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")


def _size(header: Header, key: str) -> int:
    value = header.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LiveError(f"step frame: {key} is {value!r}, expected a count")
    return value


def _sampled(sampling: Sequence[Sampling | None]) -> SampledRows | None:
    if all(choice is None or choice.temperature == 0 for choice in sampling):
        return None
    choices = [choice or GREEDY for choice in sampling]
    if not all(
        isfinite(choice.temperature) and choice.temperature >= 0 and 0 < choice.top_p <= 1 for choice in choices
    ):
        raise LiveError("step: temperature must be a number from 0 up and top_p above 0 and at most 1")
    return SampledRows(
        temperature=np.array([choice.temperature for choice in choices], np.float32),
        top_p=np.array([choice.top_p for choice in choices], np.float32),
        seeds=np.array([(choice.seed + 2**63) % 2**64 - 2**63 for choice in choices], np.int64),
    )


def _logprobs(sampling: Sequence[Sampling | None]) -> Int32s | None:
    wanted = [None if choice is None else choice.logprobs for choice in sampling]
    if all(count is None for count in wanted):
        return None
    return np.array([-1 if count is None else count for count in wanted], np.int32)
