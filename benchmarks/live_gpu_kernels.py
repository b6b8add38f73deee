"""The GPU kernels alone: right (against float32 on the same values) and how near to the memory's speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from serving.live.gpu.attention_triton import PagedKv, Tiling, decode_attention, tiling
from serving.live.gpu.row_operations import Heads, RowCut, RowSlots, TurnTable, gated, norm, rotate, row_times

BLOCK = 16
HEADS = ((32, 32, 128), (32, 8, 128), (28, 4, 128), (12, 12, 64), (71, 1, 64))
"""Query heads, KV heads, head size: Llama-2-7B, Llama-3-8B, Qwen2-7B, a small one, Falcon-7B."""
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest relative error that is rounding."""
LINEARS = {"q|k|v": (12288, 4096), "output": (4096, 4096), "gate|up": (22016, 4096), "down": (4096, 11008)}
"""Of Llama-2-7B."""


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of what is expected; NaN stays NaN."""
    return float((out.double() - expected.double()).norm() / expected.double().norm())


def pools(num_blocks: int, heads: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random keys and values."""
    shape = (num_blocks, BLOCK, heads[1], heads[2])
    return torch.randn(shape, device="cuda").to(dtype), torch.randn(shape, device="cuda").to(dtype)


def paged(lengths: Sequence[int], heads: tuple[int, int, int], dtype: torch.dtype) -> PagedKv:
    """Sequences of these lengths in shuffled blocks; blocks that nobody has are NaN."""
    width = -(-max(lengths) // BLOCK)
    num_blocks = len(lengths) * width + 1
    keys, values = pools(num_blocks, heads, dtype)
    keys[-1] = values[-1] = float("nan")
    tables = torch.randperm(num_blocks - 1, device="cuda").to(torch.int32).view(len(lengths), width)
    for row, length in enumerate(lengths):
        tables[row, -(-length // BLOCK) :] = num_blocks - 1
    lens = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    return PagedKv(keys=keys, values=values, block_tables=tables, context_lens=lens)


def dense_attention(query: Tensor, kv: PagedKv, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """SDPA, sequence by sequence, in a type of its own."""
    rows = []
    for sequence, length in enumerate(lengths):
        blocks = kv.block_tables[sequence, : -(-length // BLOCK)].long()
        keys, values = (pool[blocks].flatten(0, 1)[:length].to(dtype) for pool in (kv.keys, kv.values))
        group = query.shape[1] // keys.shape[1]
        keys, values = (part.repeat_interleave(group, 1).transpose(0, 1) for part in (keys, values))
        rows.append(functional.scaled_dot_product_attention(query[sequence, :, None].to(dtype), keys, values)[:, 0])
    return torch.stack(rows)


def check_attention() -> list[str]:
    """A line per shape and type: our error, and that of SDPA in the same type; ends when ours is above its limit."""
    lines = []
    lengths = [1, 15, 16, 17, 128, 129, 255, 700, 2049, 4096]
    for heads in HEADS:
        for dtype, limit in LIMITS.items():
            kv = paged(lengths, heads, dtype)
            fused = torch.randn(len(lengths), (heads[0] + 2 * heads[1]) * heads[2], device="cuda").to(dtype)
            query = fused[:, : heads[0] * heads[2]].view(len(lengths), heads[0], heads[2])
            expected = dense_attention(query, kv, lengths, torch.float64)
            errors = []
            for num_slices in (1, 4, 32):
                cut = Tiling(tile=32, num_warps=8 if heads[0] // heads[1] > 64 else 4, num_slices=num_slices)
                poison = torch.full((len(lengths), heads[0], heads[2]), float("nan"), device="cuda", dtype=dtype)
                del poison  # the output gets this memory
                errors.append(relative_error(decode_attention(query, kv, heads[2] ** -0.5, cut), expected))
            if not max(errors) < limit:
                raise SystemExit(
                    f"attention {heads} {dtype}: relative errors {errors} for 1, 4, 32 slices, limit {limit}"
                )
            sdpa = relative_error(dense_attention(query, kv, lengths, dtype), expected)
            lines.append(f"attention {heads!s:<14} {str(dtype)[6:]:<9} error {max(errors):.1e}   SDPA {sdpa:.1e}")
    return lines


def check_rows() -> list[str]:
    """The kernels between the matrix products, against their definitions in float32."""
    found = {}
    dtype, hidden, num_rows = torch.bfloat16, 4096, 7
    residual, x, weight = (torch.randn(n, hidden, device="cuda").to(dtype) for n in (num_rows, num_rows, 1))
    total = (residual.float() + x.float()).to(dtype)
    expected = functional.rms_norm(total.float(), (hidden,), weight[0].float(), 1e-5)
    added = residual.clone()
    found["norm"] = relative_error(norm(added, x, weight[0], 1e-5), expected)
    found["residual"] = relative_error(added, total)
    gate_up = torch.randn(num_rows, 2 * 11008, device="cuda").to(dtype)
    first, second = gate_up.float().chunk(2, -1)
    found["gate"] = relative_error(gated(gate_up), functional.silu(first) * second)
    found["rotate"] = max(_rotate_errors(num_rows, dtype))
    row = torch.randn(1, 11008, device="cuda").to(dtype)
    for outputs, columns in (*LINEARS.values(), (4097, 96)):
        matrix = (torch.randn(outputs, columns, device="cuda") * 0.02).to(dtype)
        bias = torch.randn(outputs, device="cuda").to(dtype)
        expected = functional.linear(row[:, :columns].double(), matrix.double(), bias.double())
        out = row_times(row[:, :columns].contiguous(), matrix, bias, RowCut())
        found[f"row x {outputs}x{columns}"] = relative_error(out, expected)
    wrong = {name: error for name, error in found.items() if not error < 1e-2}
    if wrong:
        raise SystemExit(f"relative errors above 1e-2: {wrong}")
    return ["  ".join(f"{name} {error:.1e}" for name, error in found.items())]


def _rotate_errors(num_rows: int, dtype: torch.dtype) -> list[float]:
    heads = Heads(num_heads=32, num_kv_heads=8, head_size=128)
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, 128, 2, device="cuda").float() / 128))
    keys, values = (torch.zeros(10, BLOCK, 8, 128, device="cuda", dtype=dtype) for _ in range(2))
    positions = torch.arange(num_rows, device="cuda") * 500
    slots = torch.randperm(10 * BLOCK, device="cuda")[:num_rows]
    qkv = torch.randn(num_rows, heads.num_all * 128, device="cuda").to(dtype)
    source = qkv.clone().view(num_rows, heads.num_all, 128).float()
    query = rotate(
        qkv, heads, TurnTable.of(frequencies, 4096), RowSlots(positions=positions, slots=slots), (keys, values)
    )
    angles = (positions[:, None].float() * frequencies).repeat(1, 2)[:, None]
    low, high = source.chunk(2, -1)
    turned = source * angles.cos() + torch.cat((-high, low), -1) * angles.sin()
    return [
        relative_error(query, turned[:, :32]),
        relative_error(keys.view(-1, 8, 128)[slots], turned[:, 32:40]),
        relative_error(values.view(-1, 8, 128)[slots], source[:, 40:]),
    ]


@dataclass(frozen=True, slots=True)
class Speed:
    """Something that moves bytes."""

    name: str
    seconds: float
    num_bytes: float

    def __str__(self) -> str:
        return f"{self.name:<52} {self.seconds * 1e6:>9.1f} us {self.num_bytes / self.seconds / 1e12:>7.2f} TB/s"


def replay_time(work: Callable[[int], object], calls: int, repeats: int = 20) -> float:
    """Median seconds of one call, ``calls`` of which are recorded as a graph and replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in range(calls):
            work(call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in range(calls):
            work(call)
    times = []
    for _ in range(repeats + 3):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return median(times[3:]) / calls


def time_attention(batch_size: int, context: int, heads: tuple[int, int, int]) -> list[Speed]:
    """The default cut and others, over several layers' pools so that the cache holds none."""
    dtype = torch.bfloat16
    bytes_moved = 2 * batch_size * context * heads[1] * heads[2] * 2
    layers = [paged([context] * batch_size, heads, dtype) for _ in range(max(2, min(100, int(4e8 / bytes_moved))))]
    query = torch.randn(batch_size, heads[0], heads[2], device="cuda").to(dtype)
    default = tiling(batch_size, heads[0], heads[1], 4096)
    cuts = [default]
    for tile, num_warps in ((16, 4), (32, 2), (32, 4), (64, 4), (64, 8)):
        cuts.append(Tiling(tile=tile, num_warps=num_warps, num_slices=default.num_slices))
    for num_slices in {max(1, default.num_slices // 2), min(32, default.num_slices * 2)} - {default.num_slices}:
        cuts.append(Tiling(tile=default.tile, num_warps=default.num_warps, num_slices=num_slices))
    speeds = []
    for index, cut in enumerate(cuts):

        def attend(layer: int, cut: Tiling = cut) -> Tensor:
            return decode_attention(query, layers[layer % len(layers)], heads[2] ** -0.5, cut)

        label = "default " if index == 0 else ""
        name = f"attention B{batch_size} C{context} {heads} {label}{cut.tile}/{cut.num_warps}/{cut.num_slices}"
        speeds.append(Speed(name, replay_time(attend, len(layers)), bytes_moved))
    return speeds


def time_linears() -> list[Speed]:
    """A row times each matrix of a layer: cuBLAS, and our kernel in several cuts."""
    speeds = []
    cuts = [RowCut(), RowCut(num_outputs=8), RowCut(num_outputs=2), RowCut(tile=512), RowCut(num_outputs=8, tile=512)]
    cuts += [RowCut(num_outputs=1, tile=2048), RowCut(num_outputs=4, tile=2048, num_warps=8)]
    for name, (outputs, columns) in LINEARS.items():
        matrices = [torch.randn(outputs, columns, device="cuda").to(torch.bfloat16) for _ in range(8)]
        row = torch.randn(1, columns, device="cuda").to(torch.bfloat16)
        seconds = replay_time(lambda call: functional.linear(row, matrices[call % 8]), 16)  # noqa: B023
        speeds.append(Speed(f"row x {name} cuBLAS", seconds, 2 * outputs * columns))
        for cut in cuts:
            seconds = replay_time(lambda call: row_times(row, matrices[call % 8], None, cut), 16)  # noqa: B023
            label = f"row x {name} ours {cut.num_outputs}/{cut.tile}/{cut.num_warps}"
            speeds.append(Speed(label, seconds, 2 * outputs * columns))
    return speeds


def time_copy() -> Speed:
    """What the memory does, by a large copy, bytes read plus bytes written."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    return Speed("copy of 4 GiB", replay_time(lambda _: target.copy_(source), 2), 2 * source.numel() * 4)
