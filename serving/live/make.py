"""Random checkpoints: the shape of a real model, weights that only the seed and the tensors' names decide."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.live.checkpoint import CONFIG, INDEX, SHARED_LAYERS, SINGLE
from serving.live.config import DTYPES, ModelConfig
from serving.live.layout import NAMES, Shaped, layout
from serving.live.new_folder import new_folder
from serving.live.rounding import narrow
from serving.live.tensor_file import header
from serving.live.tokenizer_files import byte_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHARD = 2_000_000_000
"""Bytes of tensors in one file, unless a single tensor has more."""
SCALE = 0.02
"""Standard deviation of weights and biases, as transformers initialises them."""
CHUNK = 1 << 20
"""Values drawn at once; part of what the weights depend on."""


def make_checkpoint(
    out: Path, table: dict[str, Any], seed: int, share_layers: bool = False, force: bool = False
) -> int:
    """Write a random checkpoint with this ``config.json`` and a byte tokenizer, and say how many bytes of weights it
    has. With ``share_layers`` all layers lie in the bytes of layer 0, which only ``Checkpoint`` understands."""
    config = ModelConfig.parse(table, "config of the new checkpoint")
    tensors = _written(config, share_layers)
    shards = cut_shards(tensors, config.dtype)
    size = sum(math.prod(shape) for _, shape in tensors) * DTYPES[config.dtype]
    with new_folder(out, size, force) as folder, ThreadPoolExecutor(os.cpu_count()) as threads:
        names = [SINGLE] if len(shards) == 1 and not share_layers else shard_names(len(shards))
        for name, shard in zip(names, shards, strict=True):
            weights = RandomWeights(seed=seed, dtype=config.dtype, threads=threads)
            weights.write(folder / name, shard)
        if names != [SINGLE]:
            _write_index(folder, dict(zip(names, shards, strict=True)), size, share_layers)
        write_json(folder / CONFIG, table)
        byte_tokenizer(config.vocab, config.max_positions).write(folder)
    return size


def cut_shards(tensors: Iterable[Shaped], dtype: str) -> list[list[Shaped]]:
    """Tensors in their order, in as many files as keep each under ``SHARD`` bytes."""
    shards: list[list[Shaped]] = [[]]
    room = SHARD
    for name, shape in tensors:
        num_bytes = math.prod(shape) * DTYPES[dtype]
        if num_bytes > room and shards[-1]:
            shards.append([])
            room = SHARD
        shards[-1].append((name, shape))
        room -= num_bytes
    return shards


def shard_names(count: int) -> list[str]:
    """What Hugging Face calls the files of a checkpoint in several."""
    return [f"model-{place:05}-of-{count:05}.safetensors" for place in range(1, count + 1)]


def write_json(path: Path, table: dict[str, Any]) -> None:
    """A JSON file as people read it."""
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _write_index(folder: Path, shards: dict[str, list[Shaped]], size: int, share_layers: bool) -> None:
    metadata: dict[str, Any] = {"total_size": size}
    if share_layers:
        metadata[SHARED_LAYERS] = True
    weight_map = {tensor: name for name, shard in shards.items() for tensor, _ in shard}
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})


def _written(config: ModelConfig, share_layers: bool) -> list[Shaped]:
    """The tensors that have bytes of their own."""
    every = layout(config, range(config.num_layers))
    if not share_layers:
        return every
    later = tuple(NAMES[config.family].layer.format(layer) for layer in range(1, config.num_layers))
    return [(name, shape) for name, shape in every if not name.startswith(later)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWeights:
    """Normal weights: a stream of its own for each chunk of each tensor, so that threads may draw in any order."""

    seed: int
    dtype: str
    threads: ThreadPoolExecutor

    def write(self, path: Path, tensors: Sequence[Shaped]) -> None:
        """A safetensors file of these tensors."""
        start = header((name, self.dtype, shape) for name, shape in tensors)
        with path.open("wb") as file:
            file.write(start)
            file.flush()
            position = len(start)
            for name, shape in tensors:
                position = self._write_tensor(file.fileno(), position, name, math.prod(shape))
            os.fsync(file.fileno())

    def _write_tensor(self, fd: int, position: int, name: str, num_values: int) -> int:
        """Write the values of a tensor from a position of the file on; returns the position after them."""
        width = DTYPES[self.dtype]

        def write_chunk(chunk: int) -> None:
            count = min(CHUNK, num_values - chunk * CHUNK)
            values = narrow(self._values(name, chunk, count), self.dtype)
            _write_all(fd, values.data.cast("B"), position + chunk * CHUNK * width)

        for _ in self.threads.map(write_chunk, range(-(-num_values // CHUNK))):
            pass  # an error of a thread comes out here
        return position + num_values * width

    def _values(self, name: str, chunk: int, count: int) -> "NDArray[np.float32]":
        import numpy as np

        if name.endswith("weight") and _is_norm(name):
            return np.ones(count, np.float32)
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=16).digest()
        stream = np.random.Philox(key=int.from_bytes(digest, "little"), counter=chunk << 128)
        values = np.random.Generator(stream).standard_normal(count, np.float32)
        values *= np.float32(SCALE)
        return values


def _is_norm(name: str) -> bool:
    return any(part in name for part in ("norm.", "ln_"))


def _write_all(fd: int, buffer: memoryview, position: int) -> None:
    """``pwrite`` until all is written; one call writes at most 2 GiB, or less when a signal comes."""
    while buffer:
        count = os.pwrite(fd, buffer, position)
        buffer, position = buffer[count:], position + count
