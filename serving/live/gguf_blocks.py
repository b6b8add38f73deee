"""Block formats of GGML: values of a row in blocks that share a scale, and what they were before, as float32.

After ``dequantize_row_*`` in https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c. In a block of
32, the low halves of its bytes are the first 16 values and the high halves the last 16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockType:
    """One format."""

    name: str
    num_values: int
    num_bytes: int
    dequantise: "Callable[[NDArray[np.uint8]], NDArray[np.float32]]"
    """Blocks, one a row, to their values, one block a row."""


def dequantise(raw: memoryview, block_type: int) -> "NDArray[np.float32]":
    """The values of whole blocks, in one dimension."""
    import numpy as np

    block = BLOCKS[block_type]
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, block.num_bytes)
    with np.errstate(invalid="ignore", over="ignore"):  # who reads a damaged file looks at the values
        return np.ascontiguousarray(block.dequantise(blocks), np.float32).reshape(-1)


def _cast(blocks: "NDArray[np.uint8]", start: int, stop: int, dtype: str) -> "NDArray[np.float32]":
    """Columns of bytes as float32, read as little-endian values of a dtype."""
    import numpy as np

    values: NDArray[Any] = np.ascontiguousarray(blocks[:, start:stop]).view(dtype)
    return values.astype(np.float32)


def _halves(packed: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """Low halves of bytes, then high ones."""
    import numpy as np

    return np.concatenate((packed & 0x0F, packed >> 4), axis=1, dtype=np.float32)


def _fifth_bits(blocks: "NDArray[np.uint8]", start: int) -> "NDArray[np.float32]":
    """A bit for each of 32 values, worth 16."""
    import numpy as np

    bits = np.unpackbits(np.ascontiguousarray(blocks[:, start : start + 4]), axis=1, bitorder="little")
    return bits * np.float32(16)


def _f32(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    return _cast(blocks, 0, 4, "<f4")


def _f16(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    return _cast(blocks, 0, 2, "<f2")


def _bf16(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    import numpy as np

    bits = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def _q4_0(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    return _cast(blocks, 0, 2, "<f2") * (_halves(blocks[:, 2:18]) - 8)


def _q4_1(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    return _cast(blocks, 0, 2, "<f2") * _halves(blocks[:, 4:20]) + _cast(blocks, 2, 4, "<f2")


def _q5_0(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    values = _halves(blocks[:, 6:22]) + _fifth_bits(blocks, 2)
    return _cast(blocks, 0, 2, "<f2") * (values - 16)


def _q5_1(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    values = _halves(blocks[:, 8:24]) + _fifth_bits(blocks, 4)
    return _cast(blocks, 0, 2, "<f2") * values + _cast(blocks, 2, 4, "<f2")


def _q8_0(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    return _cast(blocks, 0, 2, "<f2") * _cast(blocks, 2, 34, "i1")


def _q6_k(blocks: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    """256 values of 6 bits: 128 bytes of low fours, 64 of high twos, 16 scales of 8 bits, one fp16 scale; in two halves
    of 128 values, each four runs of 32."""
    import numpy as np

    count = len(blocks)
    packed = blocks[:, :128].reshape(count, 2, 2, 32)
    low = np.concatenate((packed & 0x0F, packed >> 4), axis=2, dtype=np.float32)  # [blocks, halves, 4 runs, 32]
    pairs = blocks[:, 128:192].reshape(count, 2, 1, 32)
    high = pairs >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    values = (low + high * np.float32(16) - 32).reshape(count, 16, 16)
    scales = _cast(blocks, 208, 210, "<f2") * _cast(blocks, 192, 208, "i1")
    scaled: NDArray[np.float32] = values * scales[:, :, None]
    return scaled.reshape(count, 256)


BLOCKS = {
    0: BlockType(name="F32", num_values=1, num_bytes=4, dequantise=_f32),
    1: BlockType(name="F16", num_values=1, num_bytes=2, dequantise=_f16),
    2: BlockType(name="Q4_0", num_values=32, num_bytes=18, dequantise=_q4_0),
    3: BlockType(name="Q4_1", num_values=32, num_bytes=20, dequantise=_q4_1),
    6: BlockType(name="Q5_0", num_values=32, num_bytes=22, dequantise=_q5_0),
    7: BlockType(name="Q5_1", num_values=32, num_bytes=24, dequantise=_q5_1),
    8: BlockType(name="Q8_0", num_values=32, num_bytes=34, dequantise=_q8_0),
    14: BlockType(name="Q6_K", num_values=256, num_bytes=210, dequantise=_q6_k),
    30: BlockType(name="BF16", num_values=1, num_bytes=2, dequantise=_bf16),
}
"""By GGML's number."""
