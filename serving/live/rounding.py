"""Rounding float32 values to a checkpoint's dtype; numpy has no bfloat16, so its bits are made by hand."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def narrow(values: "NDArray[np.float32]", dtype: str) -> "NDArray[Any]":
    """Finite values in a dtype of ``DTYPES``, to the nearest, ties to even; bfloat16 as its bits in uint16."""
    import numpy as np

    if dtype == "float32":
        return np.ascontiguousarray(values)
    if dtype == "float16":
        return np.ascontiguousarray(values.astype(np.float16))
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits
    odd >>= np.uint32(16)
    return odd.astype(np.uint16)
