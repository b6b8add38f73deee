# mypy: ignore-errors
# Triton kernels are a language of their own: their parameters are pointers and compile-time constants.
"""What stands between a decode step's matrix products, fused, as Triton kernels: norms, rotary positions, gate, upload.

They round as the unfused operations do wherever a value is visible in the model's type: the residual stream, a normed
row before its weight, an activated gate.
"""

import triton
import triton.language as tl


@triton.jit
def add_rms_norm(
    residual, x, weight, out, epsilon, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    """A row: residual += x (if ADD), out = RMSNorm(residual) * weight. WIDTH is HIDDEN's next power of two."""
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    columns = tl.arange(0, WIDTH)
    inside = columns < HIDDEN
    kind = residual.dtype.element_ty
    values = tl.load(residual + row + columns, mask=inside, other=0.0)
    if ADD:
        added = values.to(tl.float32) + tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
        values = added.to(kind)
        tl.store(residual + row + columns, values, mask=inside)
    values = values.to(tl.float32)
    variance = tl.sum(values * values, 0) / HIDDEN
    normed = (values * (1.0 / tl.sqrt(variance + epsilon))).to(kind).to(tl.float32)
    scaled = normed * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + columns, scaled.to(kind), mask=inside)


@triton.jit
def rotate_and_store(
    qkv, cosines, sines, positions, slots, keys, values,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """TILE heads of a row q|k|v: rotates q in place, writes rotated k and v into the row's KV slot."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * TILE + tl.arange(0, TILE)
    columns = tl.arange(0, HALF)
    place = tl.load(positions + row) * HALF
    slot = tl.load(slots + row)
    cosine = tl.load(cosines + place + columns)[None, :]
    sine = tl.load(sines + place + columns)[None, :]
    width = (NUM_HEADS + 2 * NUM_KV_HEADS) * 2 * HALF
    cells = qkv + row * width + heads[:, None] * (2 * HALF) + columns[None, :]
    inside = (heads < NUM_HEADS + 2 * NUM_KV_HEADS)[:, None]
    first = tl.load(cells, mask=inside, other=0.0)
    second = tl.load(cells + HALF, mask=inside, other=0.0)
    low, high = first.to(tl.float32), second.to(tl.float32)
    turned_low = (low * cosine - high * sine).to(first.dtype)
    turned_high = (high * cosine + low * sine).to(first.dtype)
    is_query = (heads < NUM_HEADS)[:, None]
    tl.store(cells, turned_low, mask=is_query)
    tl.store(cells + HALF, turned_high, mask=is_query)
    key_head = heads - NUM_HEADS
    key_cells = (slot * NUM_KV_HEADS + key_head)[:, None] * (2 * HALF) + columns[None, :]
    is_key = ((key_head >= 0) & (key_head < NUM_KV_HEADS))[:, None]
    tl.store(keys + key_cells, turned_low, mask=is_key)
    tl.store(keys + key_cells + HALF, turned_high, mask=is_key)
    value_head = key_head - NUM_KV_HEADS
    value_cells = (slot * NUM_KV_HEADS + value_head)[:, None] * (2 * HALF) + columns[None, :]
    is_value = ((value_head >= 0) & (value_head < NUM_KV_HEADS))[:, None]
    tl.store(values + value_cells, first, mask=is_value)
    tl.store(values + value_cells + HALF, second, mask=is_value)


@triton.jit
def gate(gate_up, out, FFN: tl.constexpr, TILE: tl.constexpr):
    """TILE columns of a row: out = silu(gate) * up, for a row gate|up."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = columns < FFN
    kind = out.dtype.element_ty
    x = tl.load(gate_up + row * 2 * FFN + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * FFN + FFN + columns, mask=inside, other=0.0).to(tl.float32)
    activated = (x / (1.0 + tl.exp(-x))).to(kind).to(tl.float32)
    tl.store(out + row * FFN + columns, (activated * up).to(kind), mask=inside)


@triton.jit(do_not_specialize=["num_real", "table_width", "table_stride", "padding_slot"])
def unpack(
    packed, ids, positions, slots, lens, tables, num_real, table_width, table_stride, padding_slot,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Spreads one sequence of a packed step (ids, positions, dense block tables) over a graph's inputs.

    Rows from ``num_real`` on are padding: an empty context, and a KV slot that is nobody's."""
    row = tl.program_id(0)
    real = row < num_real
    position = tl.load(packed + num_real + row, mask=real, other=0)
    table = packed + 2 * num_real + row * table_width
    block = tl.load(table + position // BLOCK, mask=real, other=0).to(tl.int64)
    tl.store(ids + row, tl.load(packed + row, mask=real, other=0).to(tl.int64))
    tl.store(positions + row, position.to(tl.int64))
    tl.store(slots + row, tl.where(real, block * BLOCK + position % BLOCK, padding_slot))
    tl.store(lens + row, tl.where(real, position + 1, 0))
    for at in range(0, table_width, TILE):
        columns = at + tl.arange(0, TILE)
        inside = (columns < table_width) & real
        tl.store(tables + row.to(tl.int64) * table_stride + columns, tl.load(table + columns, mask=inside), mask=inside)


@triton.jit
def multiply_row(
    x, weight, bias, out, num_outputs,
    COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """OUTPUTS elements of x W^T + b for one row x: streams those rows of W once, sums in float32."""
    rows = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    columns = tl.arange(0, TILE)
    real = rows < num_outputs
    starts = weight + rows.to(tl.int64)[:, None] * COLUMNS
    sums = tl.zeros([OUTPUTS, TILE], tl.float32)
    for at in tl.range(0, COLUMNS - COLUMNS % TILE, TILE, loop_unroll_factor=4):
        part = tl.load(starts + (at + columns)[None, :], mask=real[:, None], other=0.0)
        sums += part.to(tl.float32) * tl.load(x + at + columns).to(tl.float32)[None, :]
    if COLUMNS % TILE > 0:
        rest = COLUMNS - COLUMNS % TILE + columns
        inside = rest < COLUMNS
        part = tl.load(starts + rest[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        sums += part.to(tl.float32) * tl.load(x + rest, mask=inside, other=0.0).to(tl.float32)[None, :]
    result = tl.sum(sums, 1)
    if BIAS:
        result += tl.load(bias + rows, mask=real, other=0.0).to(tl.float32)
    tl.store(out + rows, result.to(out.dtype.element_ty), mask=real)
