"""Kernels: the compiled operations of a forward pass on float32 tensors of the CPU."""

import ctypes
import sys
from collections.abc import Sequence
from ctypes import c_float, c_int, c_long, c_void_p
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from serving.live.cpu.build import compiled_library
from serving.live.rope import Turn

_SIGNATURES = {
    "panel_width": (),
    "bind": (c_void_p, c_int),
    "pack": (c_void_p, c_long, c_long, c_void_p, c_int),
    "multiply": (c_void_p, c_long, c_void_p, c_void_p, c_void_p, c_long, c_long, c_int, c_int),
    "norm": (c_void_p, c_void_p, c_float, c_void_p, c_long, c_long, c_int),
    "gate": (c_void_p, c_void_p, c_long, c_long, c_int),
    "rotate_and_store": (*(c_void_p,) * 6, *(c_long,) * 4, c_int),
    "attend": (c_void_p, c_long, *(c_void_p,) * 3, c_long, *(c_void_p,) * 2, *(c_long,) * 5, c_int),
}
"""Of the C++ functions."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A matrix [outputs, inputs] in the kernels' layout."""

    panels: Tensor
    outputs: int
    inputs: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paged:
    """One layer's KV pools, [num_blocks, block_size, num_kv_heads, head_size], and where each row's sequence is."""

    keys: Tensor
    values: Tensor
    block_tables: Tensor
    """int32 [B, most blocks]"""
    context_lens: Tensor
    """int32 [B]"""


class Kernels:
    """The library. Tensors are float32, rows contiguous; threads are as many as PyTorch uses."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, types in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, None
        library.panel_width.restype = c_long
        self._library = library
        self._panel_width = int(library.panel_width())

    def bind(self, cores: Sequence[int]) -> None:
        """See ``bind_threads``."""
        self._library.bind((c_int * len(cores))(*cores), len(cores))

    def pack(self, weight: Tensor) -> PackedMatrix:
        """A copy of a matrix [outputs, inputs]."""
        outputs, inputs = weight.shape
        weight = weight.contiguous()
        panels = torch.empty(-(-outputs // self._panel_width) * self._panel_width * inputs)
        self._library.pack(weight.data_ptr(), outputs, inputs, panels.data_ptr(), torch.get_num_threads())
        return PackedMatrix(panels, outputs, inputs)

    def multiply(self, x: Tensor, matrix: PackedMatrix, bias: Tensor | None, onto: Tensor | None = None) -> Tensor:
        """``x W^T + b``, [rows, outputs]; added to ``onto``, in place, if that is given."""
        x, rows = x.contiguous(), x.shape[0]
        y = torch.empty(rows, matrix.outputs) if onto is None else onto
        self._library.multiply(
            x.data_ptr(), rows, matrix.panels.data_ptr(), None if bias is None else bias.data_ptr(),
            y.data_ptr(), matrix.inputs, matrix.outputs, onto is not None, torch.get_num_threads(),
        )  # fmt: skip
        return y

    def norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """RMSNorm of rows [T, hidden]."""
        x = x.contiguous()
        out = torch.empty_like(x)
        self._library.norm(x.data_ptr(), weight.data_ptr(), epsilon, out.data_ptr(), *x.shape, torch.get_num_threads())
        return out

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up [T, ffn] of rows gate|up [T, 2 ffn]."""
        rows, width = gate_up.shape
        out = torch.empty(rows, width // 2)
        self._library.gate(gate_up.data_ptr(), out.data_ptr(), rows, width // 2, torch.get_num_threads())
        return out

    def rotate_and_store(
        self, qkv: Tensor, num_heads: int, turn: Turn | None, slots: Tensor, pools: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Queries [T, num_heads, head_size], turned in place in rows q|k|v; keys and values go to their slots in the
        pools. Without a ``turn`` positions are learned."""
        num_kv_heads, size = pools[0].shape[2:]
        cosines, sines = (None, None) if turn is None else (turn.cos.data_ptr(), turn.sin.data_ptr())
        self._library.rotate_and_store(
            qkv.data_ptr(), cosines, sines, slots.data_ptr(), pools[0].data_ptr(), pools[1].data_ptr(),
            qkv.shape[0], num_heads, num_kv_heads, size, torch.get_num_threads(),
        )  # fmt: skip
        return qkv[:, : num_heads * size].view(-1, num_heads, size)

    def attend(self, query: Tensor, paged: Paged) -> Tensor:
        """Attention of query [B, num_heads, head_size], whose rows may lie apart, each of them the latest token of its
        sequence; contiguous, of the same shape."""
        rows, num_heads, size = query.shape
        out = torch.empty(rows, num_heads, size)
        _, block_size, num_kv_heads, _ = paged.keys.shape
        self._library.attend(
            query.data_ptr(), query.stride(0), paged.keys.data_ptr(), paged.values.data_ptr(),
            paged.block_tables.data_ptr(), paged.block_tables.stride(0), paged.context_lens.data_ptr(), out.data_ptr(),
            rows, num_heads, num_kv_heads, size, block_size, torch.get_num_threads(),
        )  # fmt: skip
        return out


def kernels_for(tensor: Tensor) -> Kernels | None:
    """The kernels, where they are compiled and the tensor is one that they take. It costs a microsecond."""
    return _kernels() if tensor.dtype == torch.float32 and tensor.device.type == "cpu" else None


def bind_threads(cores: Sequence[int]) -> None:
    """Where kernels are compiled: keep the calling thread, and those that compute with it, on these cores, one each.
    Left to the system, two of them share a core for milliseconds after a wait, while the others wait for both."""
    if kernels := _kernels():
        kernels.bind(cores)


@cache
def _kernels() -> Kernels | None:
    try:
        path = compiled_library()
        return Kernels(ctypes.CDLL(str(path))) if path else None  # its OpenMP is that which PyTorch has loaded
    except (OSError, AttributeError) as error:
        print(f"the compiled CPU kernels cannot be used: {error}", file=sys.stderr, flush=True)
        return None
