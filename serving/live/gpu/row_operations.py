"""What stands between the matrix products of a decode step, as calls: one kernel each, on contiguous rows."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.nn import functional

from serving.live.gpu.row_kernels import add_rms_norm, gate, multiply_row, rotate_and_store

GATE_TILE = 1024
HEADS_TILE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The heads in a row q|k|v."""

    num_heads: int
    num_kv_heads: int
    head_size: int

    @property
    def num_all(self) -> int:
        """Heads of q, k and v."""
        return self.num_heads + 2 * self.num_kv_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSlots:
    """Where the rows of a step stand: in their sequences, and in the KV cache."""

    positions: Tensor
    """int64 [B]"""
    slots: Tensor
    """int64 [B], block * block_size + offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTable:
    """Cosines and sines of every position, both float32 [max_positions, head_size / 2]."""

    cosines: Tensor
    sines: Tensor

    @classmethod
    def of(cls, frequencies: Tensor, max_positions: int) -> "TurnTable":
        """For rotary frequencies in radians a position, [head_size / 2]."""
        positions = torch.arange(max_positions, dtype=torch.float32, device=frequencies.device)
        angles = positions[:, None] * frequencies[None, :].float()
        return cls(cosines=angles.cos(), sines=angles.sin())


def norm(residual: Tensor, x: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm of ``residual``, to which ``x`` is added first, in place."""
    num_rows, hidden = residual.shape
    out = torch.empty_like(residual)
    width = triton.next_power_of_2(hidden)
    add_rms_norm[(num_rows,)](
        residual, residual if x is None else x, weight, out, epsilon,
        HIDDEN=hidden, WIDTH=width, ADD=x is not None, num_warps=8 if width > 1024 else 4,
    )  # fmt: skip
    return out


def rotate(qkv: Tensor, heads: Heads, turns: TurnTable, rows: RowSlots, pools: tuple[Tensor, Tensor]) -> Tensor:
    """Queries [B, num_heads, head_size], rotated in place in rows q|k|v; keys and values go to their KV ``pools``."""
    grid = (qkv.shape[0], triton.cdiv(heads.num_all, HEADS_TILE))
    rotate_and_store[grid](
        qkv, turns.cosines, turns.sines, rows.positions, rows.slots, *pools,
        NUM_HEADS=heads.num_heads, NUM_KV_HEADS=heads.num_kv_heads, HALF=heads.head_size // 2, TILE=HEADS_TILE,
        num_warps=4,
    )  # fmt: skip
    return qkv[:, : heads.num_heads * heads.head_size].view(-1, heads.num_heads, heads.head_size)


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up [B, ffn] of rows gate|up [B, 2 ffn]."""
    num_rows, width = gate_up.shape
    out = torch.empty((num_rows, width // 2), dtype=gate_up.dtype, device=gate_up.device)
    gate[(num_rows, triton.cdiv(width // 2, GATE_TILE))](gate_up, out, FFN=width // 2, TILE=GATE_TILE, num_warps=4)
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b``. A single row is read along the weight's rows at memory speed; more go to cuBLAS."""
    if x.shape[0] == 1 and weight.is_contiguous():
        return row_times(x, weight, bias, RowCut())
    return functional.linear(x, weight, bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCut:
    """How a matrix is cut for its product with one row; the defaults are the best measured on an H200."""

    num_outputs: int = 2
    """Rows of the matrix a program."""
    tile: int = 1024
    """Columns of one iteration."""
    num_warps: int = 4


def row_times(x: Tensor, weight: Tensor, bias: Tensor | None, cut: RowCut) -> Tensor:
    """``x W^T + b`` for x [1, columns]."""
    num_outputs, columns = weight.shape
    out = torch.empty((1, num_outputs), dtype=x.dtype, device=x.device)
    multiply_row[(triton.cdiv(num_outputs, cut.num_outputs),)](
        x, weight, weight if bias is None else bias, out, num_outputs,
        COLUMNS=columns, OUTPUTS=cut.num_outputs, TILE=cut.tile, BIAS=bias is not None, num_warps=cut.num_warps,
    )  # fmt: skip
    return out
