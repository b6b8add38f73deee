"""GgufFile: metadata and tensors of a llama.cpp weight file (GGUF 2 or 3, little-endian), mapped into memory.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Sizes in it are read as hostile: nothing is
taken from beyond the end of the file.
"""

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from serving.live.errors import LiveError
from serving.live.gguf_blocks import BLOCKS, dequantise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """A tensor as the file describes it."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in PyTorch; the file has them the other way round."""
    block_type: int
    """A key of ``BLOCKS``."""
    start: int
    """First byte, from the start of the file."""
    num_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """A GGUF file whose header holds together."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    _mapped: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file and read its header; LiveError says what is absent, truncated or not supported."""
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise LiveError(f"{path}: not readable as a GGUF file ({error})") from error
        reader = _Reader(path, mapped)
        num_tensors, num_keys = reader.counts()
        metadata = dict(reader.key_value() for _ in range(num_keys))
        described = [reader.tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise LiveError(f"{path}, general.alignment: {alignment!r}, expected a count of bytes")
        data = -(-reader.position // alignment) * alignment
        tensors = {name: _placed(path, name, parts, data, len(mapped)) for name, *parts in described}
        return cls(path, metadata, tensors, mapped)

    def get(self, key: str, kind: type[Value]) -> Value:
        """A metadata value of a type; LiveError when the file has none."""
        value = self.metadata.get(key)
        if not isinstance(value, kind):
            raise LiveError(
                f"{self.path}, {key}: expected {kind.__name__}, got {value if value is None else type(value)}"
            )
        return value

    def values(self, name: str) -> "NDArray[np.float32]":
        """A tensor as float32, in its shape; LiveError when it is missing or its values are not finite."""
        import numpy as np

        tensor = self.tensors.get(name)
        if tensor is None:
            raise LiveError(f"{self.path}: tensor {name} is missing")
        raw = memoryview(self._mapped)[tensor.start : tensor.start + tensor.num_bytes]
        values = dequantise(raw, tensor.block_type).reshape(tensor.shape)
        if not np.isfinite(values).all():
            raise LiveError(f"{self.path}, {name}: has values that are not finite; the file is damaged, fetch it again")
        return values


def _placed(path: Path, name: str, parts: list[Any], data: int, size: int) -> GgufTensor:
    shape, block_type, offset = parts
    if block_type not in BLOCKS:
        known = ", ".join(block.name for block in BLOCKS.values())
        raise LiveError(f"{path}, {name}: GGML type {block_type} is not supported, only {known}")
    block = BLOCKS[block_type]
    if shape[-1] % block.num_values:
        raise LiveError(f"{path}, {name}: rows of {shape[-1]} values are no whole {block.name} blocks")
    num_bytes = math.prod(shape) // block.num_values * block.num_bytes
    if data + offset + num_bytes > size:
        raise LiveError(f"{path}, {name}: ends after the file's {size} bytes; truncated, fetch it again")
    return GgufTensor(name=name, shape=shape, block_type=block_type, start=data + offset, num_bytes=num_bytes)


@dataclass(slots=True, eq=False)
class _Reader:
    """A place in the header, which moves on with each value read."""

    path: Path
    mapped: mmap.mmap
    position: int = field(default=0)

    def counts(self) -> tuple[int, int]:
        """Numbers of tensors and of metadata keys, after the magic and the version."""
        if self.take(4) != MAGIC:
            raise LiveError(f"{self.path}: not a GGUF file, it does not start with {MAGIC.decode()}")
        version = self.number("I")
        if version not in VERSIONS:
            raise LiveError(f"{self.path}: GGUF version {version}, expected {' or '.join(map(str, VERSIONS))}")
        return self.number("Q"), self.number("Q")

    def key_value(self) -> tuple[str, Any]:
        """One entry of the metadata."""
        return self.string(), self.value(self.number("I"))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, block type, and offset in the data."""
        name = self.string()
        dimensions = self.number("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise LiveError(f"{self.path}, {name}: {dimensions} dimensions; the header is damaged, fetch it again")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def value(self, kind: int) -> Any:
        """A scalar, a string, or a list of either."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        return self.number(self.format(kind))

    def array(self) -> list[Any]:
        """A list of values of one type."""
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        width = struct.calcsize("<" + self.format(kind))
        return list(struct.unpack(f"<{count}{self.format(kind)}", self.take(count * width)))

    def format(self, kind: int) -> str:
        """What ``struct`` calls a scalar type."""
        if kind not in _SCALARS:
            raise LiveError(f"{self.path}: metadata of type {kind}, which is not known; the header may be damaged")
        return _SCALARS[kind]

    def string(self) -> str:
        """Text; bytes that are no UTF-8 become replacement characters."""
        return self.take(self.number("Q")).decode(errors="replace")

    def number(self, kind: str) -> Any:
        """A scalar."""
        layout = "<" + kind
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def take(self, count: int) -> bytes:
        """The next bytes."""
        taken = self.mapped[self.position : self.position + count] if count <= len(self.mapped) else b""
        if len(taken) < count:
            raise LiveError(
                f"{self.path}: its header ends early, at byte {len(self.mapped)}; truncated, fetch it again"
            )
        self.position += count
        return taken
