"""Attention over paged KV against plain attention over the same tokens; the arrays of a step; rotary positions."""

from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")

from serving.live import attention  # noqa: E402
from serving.live.attention import attention_batch, paged_attention  # noqa: E402
from serving.live.cpu import kernels  # noqa: E402
from serving.live.cpu.build import build  # noqa: E402
from serving.live.kv import KvCache  # noqa: E402

HEAD_SIZE = 8
unhurried = settings(deadline=None)
"""The first example also pays for what torch sets up once."""


@dataclass(frozen=True)
class Case:
    """A step over random block tables."""

    num_tokens: list[int]
    num_computed: list[int]
    tables: list[list[int]]
    block_size: int
    num_heads: int
    num_kv_heads: int
    seed: int

    @property
    def contexts(self) -> list[int]:
        return [rows + before for rows, before in zip(self.num_tokens, self.num_computed, strict=True)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block_size = draw(st.sampled_from([1, 3, 4, 16]))
    sizes = st.tuples(st.one_of(st.just(1), st.integers(1, 20)), st.one_of(st.just(0), st.integers(0, 200)))
    sequences = draw(st.lists(sizes, min_size=1, max_size=7))
    spare = draw(st.integers(0, 2))
    counts = [-(-(rows + before) // block_size) + spare for rows, before in sequences]
    free = draw(st.randoms(use_true_random=False)).sample(range(sum(counts) + 3), sum(counts))
    ends = np.cumsum([0, *counts]).tolist()
    kv_heads, per_head = draw(st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 3)]))
    return Case(
        num_tokens=[rows for rows, _ in sequences],
        num_computed=[before for _, before in sequences],
        tables=[free[start:stop] for start, stop in pairwise(ends)],
        block_size=block_size,
        num_heads=kv_heads * per_head,
        num_kv_heads=kv_heads,
        seed=draw(st.integers(0, 99)),
    )


@dataclass
class Worked:
    """A case with random queries, keys and values; the cache is filled row by row through the block tables."""

    case: Case

    def __post_init__(self) -> None:
        case, make = self.case, torch.Generator().manual_seed(self.case.seed)
        shape = (max(map(max, case.tables)) + 1, case.block_size, case.num_kv_heads, HEAD_SIZE)
        # what other sequences left in the pool must not reach these, not even as 0 * NaN
        self.kv = KvCache(*([torch.full(shape, float("nan")) for _ in range(2)] for _ in range(2)))
        self.query = torch.randn(sum(case.num_tokens), case.num_heads, HEAD_SIZE, generator=make)
        self.keys = [torch.randn(n, case.num_kv_heads, HEAD_SIZE, generator=make) for n in case.contexts]
        self.values = [torch.randn(n, case.num_kv_heads, HEAD_SIZE, generator=make) for n in case.contexts]
        for table, keys, values in zip(case.tables, self.keys, self.values, strict=True):
            for token in range(len(keys)):
                place = table[token // case.block_size], token % case.block_size
                self.kv.keys[1][place], self.kv.values[1][place] = keys[token], values[token]

    def expected(self) -> Any:
        """Attention as one writes it down."""
        out, row = [], 0
        for count, before, keys, values in zip(
            self.case.num_tokens, self.case.num_computed, self.keys, self.values, strict=True
        ):
            group = self.case.num_heads // self.case.num_kv_heads
            k, v = (part.repeat_interleave(group, 1) for part in (keys, values))
            scores = torch.einsum("qhd,khd->hqk", self.query[row : row + count], k) / HEAD_SIZE**0.5
            seen = torch.arange(len(keys)) <= torch.arange(before, before + count)[:, None]
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            out.append(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
            row += count
        return torch.cat(out)

    def batch(self) -> attention.AttentionBatch:
        case = self.case
        return attention_batch(case.num_tokens, case.num_computed, case.tables, case.block_size, "cpu")


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "torch"])
@given(case=cases())
@unhurried
def test_paged_attention_is_attention(compiled: bool, case: Case) -> None:
    if compiled and (reason := build()):
        pytest.skip(reason)
    worked = Worked(case)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(kernels, "_kernels", lambda: None)
        ours = paged_attention(worked.query, worked.kv, 1, worked.batch())
    torch.testing.assert_close(ours, worked.expected(), atol=1e-5, rtol=1e-5)


@unhurried
@given(cases())
def test_the_arrays_of_a_step(case: Case) -> None:
    batch = attention_batch(case.num_tokens, case.num_computed, case.tables, case.block_size, "cpu")
    positions, slots = [], []
    for count, before, table in zip(case.num_tokens, case.num_computed, case.tables, strict=True):
        for at in range(before, before + count):
            positions.append(at)
            slots.append(table[at // case.block_size] * case.block_size + at % case.block_size)
    assert batch.positions.tolist() == positions and batch.positions.dtype == torch.int64
    assert batch.slots.tolist() == slots and batch.slots.dtype == torch.int64
    assert batch.query_starts.tolist() == [0, *np.cumsum(case.num_tokens)]
    assert batch.context_lens.tolist() == case.contexts
    assert {batch.query_starts.dtype, batch.context_lens.dtype, batch.block_tables.dtype} == {torch.int32}
    needed = [-(-context // case.block_size) for context in case.contexts]
    assert batch.block_tables.shape == (len(needed), max(needed))
    for row, table, count in zip(batch.block_tables.tolist(), case.tables, needed, strict=True):
        assert row == table[:count] + [table[count - 1]] * (max(needed) - count)
    assert (batch.max_query, batch.max_context) == (max(case.num_tokens), max(case.contexts))
    assert batch.num_tokens == case.num_tokens


@unhurried
@given(cases())
def test_writing_fills_the_slots_of_a_step_and_no_others(case: Case) -> None:
    worked, batch = Worked(case), Worked(case).batch()
    before = worked.kv.keys[1].clone()
    rows = torch.randn(2, sum(case.num_tokens), case.num_kv_heads, HEAD_SIZE)
    worked.kv.write(1, batch.slots, rows[0], rows[1])
    flat_keys, flat_values = worked.kv.keys[1].flatten(0, 1), worked.kv.values[1].flatten(0, 1)
    assert torch.equal(flat_keys[batch.slots], rows[0]) and torch.equal(flat_values[batch.slots], rows[1])
    others = np.setdiff1d(np.arange(len(flat_keys)), batch.slots.numpy())
    assert torch.equal(flat_keys[others].nan_to_num(50), before.flatten(0, 1)[others].nan_to_num(50))
    assert worked.kv.keys[0].isnan().all()


def test_long_sequences_do_not_make_short_ones_long() -> None:
    contexts = [5, 30, 100, 900, 1000]
    tables = [list(range(-(-context // 4))) for context in contexts]
    batch = attention_batch([1] * 5, [context - 1 for context in contexts], tables, 4, "cpu")
    assert [group.rows.tolist() for group in batch.groups] == [[0, 1], [2], [3, 4]]
    assert [group.context for group in batch.groups] == [32, 100, 1000]


def test_a_poisoned_block_does_not_reach_the_next_sequence_that_has_it() -> None:
    """Two of unlike length decode together, so that one is padded over the freed block of a third."""
    case = Case([1, 1], [2, 8], [[7], [1, 2, 3]], 4, num_heads=4, num_kv_heads=2, seed=3)
    worked = Worked(case)
    together = paged_attention(worked.query, worked.kv, 1, worked.batch())
    alone = attention_batch([1], [2], [[7]], 4, "cpu")
    torch.testing.assert_close(together[:1], paged_attention(worked.query[:1], worked.kv, 1, alone))
    assert worked.kv.values[1][7, 3].isnan().all()  # the pool stays as it is


def test_sequences_of_one_length_need_no_mask() -> None:
    batch = attention_batch([1, 1], [9, 9], [[0, 1, 2], [5, 4, 3]], 4, "cpu")
    assert [(group.mask, group.context) for group in batch.groups] == [(None, 10)]


def naive_kernels(seen: list[int]) -> ModuleType:
    """What a GPU's module offers, computed on the CPU."""

    def decode_attention(query: Any, pages: Any, scale: float, cut: int) -> Any:
        seen.append(cut)
        out = []
        for row, table, context in zip(query, pages.block_tables, pages.context_lens.tolist(), strict=True):
            group = query.shape[1] // pages.keys.shape[2]
            k, v = (
                part[table.long()].flatten(0, 1)[:context].repeat_interleave(group, 1)
                for part in (pages.keys, pages.values)
            )
            out.append(torch.einsum("hk,khd->hd", (torch.einsum("hd,khd->hk", row, k) * scale).softmax(-1), v))
        return torch.stack(out)

    def tiling(_sequences: int, _heads: int, _kv_heads: int, max_context: int) -> int:
        return max_context

    return SimpleNamespace(PagedKv=SimpleNamespace, tiling=tiling, decode_attention=decode_attention)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("num_tokens", "longest"), [([1, 1, 1], [11]), ([1, 5, 1], [9]), ([4, 3, 2], [])], ids=["decode", "both", "prefill"]
)
def test_a_kernel_gets_the_decoding_sequences(
    monkeypatch: pytest.MonkeyPatch, num_tokens: list[int], longest: list[int]
) -> None:
    tables = [[7, 2, 9, 0], [1, 8, 3, 5], [4, 6, 10, 11]]
    case = Case(num_tokens, [3, 10, 8], tables, 4, num_heads=4, num_kv_heads=2, seed=1)
    worked, seen = Worked(case), list[int]()
    monkeypatch.setattr(kernels, "_kernels", lambda: None)
    monkeypatch.setattr(attention, "_gpu_kernels", lambda *_: naive_kernels(seen))
    ours = paged_attention(worked.query, worked.kv, 1, worked.batch())
    torch.testing.assert_close(ours, worked.expected(), atol=1e-5, rtol=1e-5)
    assert seen == longest
