# mypy: ignore-errors
# Triton kernels are a language of their own: their parameters are pointers and compile-time constants.
"""Decode attention over a paged KV cache as Triton kernels: one new row a sequence, the context split over programs.

A program attends with the query heads of one KV head to one slice of one sequence's context (grid: sequence, KV head,
slice) and leaves a normalised partial output and the base-2 logarithm of its weight; ``combine`` merges the slices.
With a single slice it writes the output itself. Scores are in float32 and in powers of two: ``scale`` has log2(e) in.
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1.0e30)
"""Logarithm of the weight of nothing: finite, so that differences of two of them are not NaN."""


@triton.jit
def _slice(lens, sequence, SLICES: tl.constexpr, TILE: tl.constexpr):
    """First and last token of this program's slice; whole tiles, and empty for the last programs of a short context."""
    length = tl.load(lens + sequence)
    span = tl.cdiv(tl.cdiv(length, SLICES), TILE) * TILE
    start = tl.minimum(tl.program_id(2) * span, length)
    return start, tl.minimum(start + span, length)


@triton.jit(do_not_specialize=["table_stride"])
def attend_one_head(
    q, keys, values, tables, lens, out, partial, weights, scale, q_stride, table_stride,
    BLOCK: tl.constexpr, HEAD: tl.constexpr, TILE: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """One query head a KV head (multi-head attention), without matrix units.

    Each row of a tile keeps its own running maximum, sum and output, so the loop has no reduction across warps; the
    rows are merged once at the end."""
    sequence, head, num_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    start, stop = _slice(lens, sequence, SLICES, TILE)
    rows, columns = tl.arange(0, TILE), tl.arange(0, HEAD)
    query = tl.load(q + sequence.to(tl.int64) * q_stride + head * HEAD + columns).to(tl.float32) * scale
    table = tables + sequence.to(tl.int64) * table_stride
    top = tl.full([TILE], NOTHING, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE, HEAD], tl.float32)
    block = tl.load(table + (start + rows) // BLOCK, mask=start + rows < stop, other=0)
    for at in range(start, stop, TILE):
        tokens = at + rows
        valid = tokens < stop
        places = ((block.to(tl.int64) * BLOCK + tokens % BLOCK) * num_heads + head) * HEAD
        cells = places[:, None] + columns[None, :]
        key = tl.load(keys + cells, mask=valid[:, None], other=0.0)
        value = tl.load(values + cells, mask=valid[:, None], other=0.0)
        block = tl.load(table + (tokens + TILE) // BLOCK, mask=tokens + TILE < stop, other=0)
        scores = tl.where(valid, tl.sum(key.to(tl.float32) * query[None, :], 1), NOTHING)
        higher = tl.maximum(top, scores)
        shrink = tl.exp2(top - higher)
        weight = tl.where(valid, tl.exp2(scores - higher), 0.0)
        total = total * shrink + weight
        sums = sums * shrink[:, None] + weight[:, None] * value.to(tl.float32)
        top = higher
    highest = tl.max(top, 0)
    share = tl.exp2(top - highest)
    weight_sum = tl.sum(total * share, 0)
    result = tl.sum(sums * share[:, None], 0) / tl.where(weight_sum > 0.0, weight_sum, 1.0)
    place = sequence.to(tl.int64) * num_heads + head
    if SLICES == 1:
        tl.store(out + place * HEAD + columns, result.to(out.dtype.element_ty))
    else:
        place = place * SLICES + tl.program_id(2)
        tl.store(partial + place * HEAD + columns, result)
        tl.store(weights + place, highest + tl.log2(tl.maximum(weight_sum, 1.0e-30)))


@triton.jit(do_not_specialize=["table_stride"])
def attend_head_group(
    q, keys, values, tables, lens, out, partial, weights, scale, q_stride, table_stride,
    BLOCK: tl.constexpr, HEAD: tl.constexpr, TILE: tl.constexpr, SLICES: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """GROUP query heads that share a KV head, padded to ROWS for the matrix units (grouped- or multi-query)."""
    sequence, kv_head, num_kv_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    start, stop = _slice(lens, sequence, SLICES, TILE)
    rows, columns, members = tl.arange(0, TILE), tl.arange(0, HEAD), tl.arange(0, ROWS)
    heads = kv_head * GROUP + members
    real = members < GROUP
    query_cells = sequence.to(tl.int64) * q_stride + heads[:, None] * HEAD + columns[None, :]
    query = tl.load(q + query_cells, mask=real[:, None], other=0.0)
    table = tables + sequence.to(tl.int64) * table_stride
    top = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, HEAD], tl.float32)
    for at in range(start, stop, TILE):
        tokens = at + rows
        valid = tokens < stop
        block = tl.load(table + tokens // BLOCK, mask=valid, other=0)
        places = ((block.to(tl.int64) * BLOCK + tokens % BLOCK) * num_kv_heads + kv_head) * HEAD
        cells = places[:, None] + columns[None, :]
        key = tl.load(keys + cells, mask=valid[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(valid[None, :], scores, NOTHING)
        higher = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - higher)
        weight = tl.where(valid[None, :], tl.exp2(scores - higher[:, None]), 0.0)
        total = total * shrink + tl.sum(weight, 1)
        value = tl.load(values + cells, mask=valid[:, None], other=0.0)
        sums = sums * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = higher
    result = sums / tl.where(total > 0.0, total, 1.0)[:, None]
    place = (sequence.to(tl.int64) * num_kv_heads + kv_head) * GROUP + members
    if SLICES == 1:
        cells = place[:, None] * HEAD + columns[None, :]
        tl.store(out + cells, result.to(out.dtype.element_ty), mask=real[:, None])
    else:
        place = place * SLICES + tl.program_id(2)
        tl.store(partial + place[:, None] * HEAD + columns[None, :], result, mask=real[:, None])
        tl.store(weights + place, top + tl.log2(tl.maximum(total, 1.0e-30)), mask=real)


@triton.jit
def combine(partial, weights, out, HEAD: tl.constexpr, SLICES: tl.constexpr):
    """The output of one head of one sequence from its slices."""
    place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    slices, columns = tl.arange(0, SLICES), tl.arange(0, HEAD)
    logs = tl.load(weights + place * SLICES + slices)
    shares = tl.exp2(logs - tl.max(logs, 0))
    parts = tl.load(partial + (place * SLICES + slices)[:, None] * HEAD + columns[None, :])
    result = tl.sum(parts * shares[:, None], 0) / tl.sum(shares, 0)
    tl.store(out + place * HEAD + columns, result.to(out.dtype.element_ty))
