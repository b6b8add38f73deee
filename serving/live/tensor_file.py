"""TensorFile: one safetensors file, mapped into memory; its header is checked before a byte of a tensor is handed out.

The format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header that gives
each tensor's dtype, shape and byte range, then the bytes. Read here without the safetensors package, so that processes
that only move bytes need not import it.
"""

import json
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from serving.live.config import DTYPES
from serving.live.errors import LiveError

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""What safetensors calls our dtypes."""
MAX_HEADER = 100_000_000
"""Bytes; the limit of the format's own reader."""
HEADER_ALIGNMENT = 64
"""Bytes; the data start at a multiple, so that tensors are as well aligned in the file as in a part."""

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "F64": 64}
_BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, **{code: 8 * DTYPES[name] for name, code in CODES.items()}}
_NAMES = {code: name for name, code in CODES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor as a file's header states it."""

    name: str
    dtype: str
    """A key of ``DTYPES``, or the file's own word for what is none of them (``I64``)."""
    shape: tuple[int, ...]
    start: int
    """First byte, from the start of the file."""
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class TensorFile:
    """A safetensors file whose header holds together; the mapping lives as long as a view of it."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    _mapped: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file; LiveError says what about it is absent, truncated or not safetensors."""
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < 8:
                    raise LiveError(f"{path}: {size} bytes, a safetensors file has at least 8; fetch it again")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise LiveError(f"{path}: no such file; the checkpoint is not complete") from error
        except OSError as error:
            raise LiveError(f"{path}: not readable ({error.strerror})") from error
        return cls(path, read_header(mapped, path), mapped)

    def bytes_of(self, name: str) -> memoryview:
        """The bytes of a tensor, read-only."""
        tensor = self.tensors[name]
        return memoryview(self._mapped)[tensor.start : tensor.stop]


def read_header(mapped: mmap.mmap, path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; LiveError when header and file do not fit together."""
    (length,) = struct.unpack("<Q", mapped[:8])
    if not 2 <= length <= min(MAX_HEADER, len(mapped) - 8):
        raise LiveError(f"{path}: its header claims {length} bytes of {len(mapped)}; truncated, or not safetensors")
    try:
        table = json.loads(mapped[8 : 8 + length].decode())
    except (ValueError, RecursionError) as error:
        raise LiveError(f"{path}: its header is not JSON ({error}); the file is damaged, fetch it again") from error
    if not isinstance(table, dict):
        raise LiveError(f"{path}: its header is a JSON {type(table).__name__}, expected an object")
    table.pop("__metadata__", None)
    tensors = [_stored(name, entry, 8 + length, path) for name, entry in table.items()]
    _check_ranges(tensors, 8 + length, len(mapped), path)
    return {tensor.name: tensor for tensor in tensors}


def _stored(name: str, entry: Any, data: int, path: Path) -> StoredTensor:
    try:
        code, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(value) is int and value >= 0 for value in (*shape, start, stop)):
            raise ValueError("a length or offset is not a count")
    except (KeyError, TypeError, ValueError) as error:
        raise LiveError(f"{path}, {name}: header entry is broken ({error!r}); the file is damaged") from error
    if code in _BITS and 8 * (stop - start) != _BITS[code] * math.prod(shape):
        expected = _BITS[code] * math.prod(shape) // 8
        raise LiveError(f"{path}, {name}: {stop - start} bytes, {code} {list(shape)} takes {expected}")
    dtype = _NAMES.get(code, code)
    return StoredTensor(name=name, dtype=dtype, shape=shape, start=data + start, stop=data + stop)


def _check_ranges(tensors: Iterable[StoredTensor], data: int, size: int, path: Path) -> None:
    """Tensors cover the file after its header exactly: none over another, nothing missing at the end."""
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop))
    for tensor in ordered:
        if tensor.stop > size:
            raise LiveError(f"{path}, {tensor.name}: ends at byte {tensor.stop} of {size}; truncated, fetch it again")
    end = data
    for tensor in ordered:
        if tensor.start != end:
            raise LiveError(
                f"{path}, {tensor.name}: starts at byte {tensor.start}, the tensor before it ends at {end}; "
                "the file is damaged, fetch it again"
            )
        end = tensor.stop
    if end != size:
        raise LiveError(f"{path}: {size - end} bytes after the last tensor, expected none; the file is damaged")


def header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The start of a file that holds tensors of these names, dtypes and shapes, in this order without gaps."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for the format
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * DTYPES[dtype]
        table[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
