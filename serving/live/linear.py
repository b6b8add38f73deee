"""Linear layers, packed for the CPU where that is faster, and matrices fused over adjacent memory."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from serving.live.cpu.kernels import kernels_for

Activation = Literal["none", "relu", "gelu"]
"""What follows a linear layer at once."""

PACKED_ROWS = 512
"""Rows for which oneDNN lays out a packed matrix. Measured with 1 to 512 rows: a layout for many rows is also the
fastest one for few, one for few rows (up to 128) takes 1.5 times as long with a single row."""


class Linear:
    """``x W^T + b`` and what follows it. On a CPU the matrix is copied once into the layout of our kernels, or, where
    there are none, of oneDNN: that takes its bytes again and a tenth of a second per 400 MB, and makes steps two to
    three times as fast as plain storage."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none", pack: bool = True
    ) -> None:
        self.bias = bias
        self.activation = activation
        self.weight = weight
        self._kernels = kernels_for(weight) if pack else None
        self._matrix = None if self._kernels is None else self._kernels.pack(weight)
        self._one_dnn: Tensor | None = None
        if pack and self._kernels is None and can_pack(weight):
            self._one_dnn = self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        """Of x [T, columns], [T, rows]."""
        if self._one_dnn is not None:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self._one_dnn, self.bias, self.activation, [], "none" if self.activation == "gelu" else ""
            )
            return result
        if self._kernels is not None and self._matrix is not None:
            y = self._kernels.multiply(x, self._matrix, self.bias)
        else:
            y = functional.linear(x, self.weight, self.bias)
        if self.activation == "relu":
            return y.relu_()
        return functional.gelu(y) if self.activation == "gelu" else y

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual + x W^T + b``; may overwrite ``residual``. For layers without activation."""
        if self._one_dnn is not None:
            result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._one_dnn, self.bias, "add")
            return result
        if self._kernels is not None and self._matrix is not None:
            return self._kernels.multiply(x, self._matrix, self.bias, onto=residual.contiguous())
        if self.bias is None:
            return residual.addmm_(x, self.weight.t())
        return residual.add_(functional.linear(x, self.weight, self.bias))


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN can take this matrix: float32, or bfloat16 on a processor that computes with it."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def fuse(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors one after another along the first dimension: a view when they lie so in one storage, else a copy."""
    first = tensors[0]
    storage = first.untyped_storage()
    offset = first.storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == storage.data_ptr() and tensor.dtype == first.dtype
        if not (same and tensor.storage_offset() == offset and tensor.is_contiguous()):
            return torch.cat(list(tensors))
        offset += tensor.numel()
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    return first.as_strided(shape, first.stride(), first.storage_offset())
