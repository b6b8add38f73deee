"""Part: the byte stream of one pipeline stage, tensor by tensor in the order in which a forward pass needs them."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from serving.live.config import DTYPES
from serving.live.errors import LiveError

ALIGNMENT = 64
"""Bytes; every tensor of a part starts at a multiple, so that any kernel can read it where it lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies in a part."""

    name: str
    dtype: str
    """A key of ``DTYPES``."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the part."""
    num_bytes: int
    """Bytes of its values, without the padding that follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The tensors of a stage's layers, each at a multiple of ``ALIGNMENT`` with zeros between."""

    model: str
    layers: range
    """Layers of the stage; the stop is exclusive."""
    num_layers: int
    """Layers of the whole model."""
    tensors: tuple[TensorEntry, ...]
    size: int
    """Bytes from the start of the first tensor to the end of the last."""

    @classmethod
    def of(
        cls, model: str, layers: range, num_layers: int, dtype: str, tensors: Iterable[tuple[str, tuple[int, ...]]]
    ) -> Self:
        """The part that holds tensors of these names and shapes, in this order."""
        entries: list[TensorEntry] = []
        end = 0
        for name, shape in tensors:
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            num_bytes = math.prod(shape) * DTYPES[dtype]
            entries.append(TensorEntry(name=name, dtype=dtype, shape=shape, offset=offset, num_bytes=num_bytes))
            end = offset + num_bytes
        return cls(model=model, layers=layers, num_layers=num_layers, tensors=tuple(entries), size=end)

    def spans(self) -> tuple[int, ...]:
        """Bytes of each tensor with the padding that follows it; they add up to ``size``."""
        starts = [entry.offset for entry in self.tensors] + [self.size]
        return tuple(stop - start for start, stop in itertools.pairwise(starts))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; ``from_json`` reads it back."""
        return {
            "model": self.model,
            "layers": [self.layers.start, self.layers.stop],
            "num_layers": self.num_layers,
            "tensors": [asdict(entry) for entry in self.tensors],
            "size": self.size,
        }

    @classmethod
    def from_json(cls, table: Any) -> Self:
        """What ``to_json`` wrote, perhaps in another process; LiveError says what does not hold together."""
        try:
            start, stop = (_count(value) for value in table["layers"])
            part = cls(
                model=str(table["model"]),
                layers=range(start, stop),
                num_layers=_count(table["num_layers"]),
                tensors=tuple(_entry(entry) for entry in table["tensors"]),
                size=_count(table["size"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LiveError(
                f"description of a part: {type(error).__name__} {error}; expected Part.to_json's"
            ) from error
        part._check()
        return part

    def _check(self) -> None:
        where = f"part {self.model}[{self.layers.start}:{self.layers.stop}]"
        if not 0 <= self.layers.start < self.layers.stop <= self.num_layers:
            raise LiveError(f"{where}: expected layers within 0..{self.num_layers}")
        end = 0
        for entry in self.tensors:
            _check_entry(entry, where)
            if entry.offset < end:
                raise LiveError(f"{where}, {entry.name}: starts at {entry.offset}, inside the tensor before it")
            end = entry.offset + entry.num_bytes
        if end != self.size:
            raise LiveError(f"{where}: its tensors end at byte {end}, it claims {self.size} bytes")


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _entry(table: dict[str, Any]) -> TensorEntry:
    return TensorEntry(
        name=str(table["name"]),
        dtype=str(table["dtype"]),
        shape=tuple(_count(length) for length in table["shape"]),
        offset=_count(table["offset"]),
        num_bytes=_count(table["num_bytes"]),
    )


def _check_entry(entry: TensorEntry, where: str) -> None:
    if entry.dtype not in DTYPES:
        raise LiveError(f"{where}, {entry.name}: dtype {entry.dtype!r}, expected one of {', '.join(DTYPES)}")
    expected = math.prod(entry.shape) * DTYPES[entry.dtype]
    if entry.num_bytes != expected:
        raise LiveError(f"{where}, {entry.name}: {entry.num_bytes} bytes, its shape and dtype make {expected}")
    if entry.offset % ALIGNMENT:
        raise LiveError(f"{where}, {entry.name}: starts at {entry.offset}, expected a multiple of {ALIGNMENT}")
