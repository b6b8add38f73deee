"""Checkpoint: a folder in Hugging Face layout, checked against its config, cut into the parts of pipeline stages."""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from serving.core.model import ModelSpec
from serving.live.config import DTYPES, ModelConfig
from serving.live.errors import LiveError
from serving.live.layout import HEAD, NAMES, POSITION_OFFSET, layout
from serving.live.part import Part, TensorEntry
from serving.live.tensor_file import StoredTensor, TensorFile
from serving.units import Bytes

MODELS_VARIABLE = "AEBENCH_MODELS"
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARED_LAYERS = "shared_layers"
"""Key of the index's metadata: every layer has the bytes of layer 0."""
PIPELINE = "pipeline"
"""Key of config.json in a pipeline part's folder: ``{"layers": [start, stop]}``, the layers that it holds."""

_LAYER = re.compile(r"(?<=\.)(layers|h)\.\d+(?=\.)")


def models_root() -> Path:
    """The folder of checkpoints: what ``AEBENCH_MODELS`` names, else ``models`` in the working directory."""
    return Path(os.environ.get(MODELS_VARIABLE) or "models")


def find(model: str) -> Path:
    """The folder of a checkpoint: a path to one, or the name of one under ``models_root()``."""
    for folder in (Path(model), models_root() / model):
        if (folder / CONFIG).is_file():
            return folder
    root = models_root()
    known = sorted(path.parent.name for path in root.glob(f"*/{CONFIG}"))
    close = difflib.get_close_matches(model, known, n=3) or known[:8]
    there = f"{root} has {', '.join(close)}" if close else f"{root} has none"
    raise LiveError(
        f"{model}: no checkpoint there or under {root} ({there}). "
        f"Make one: aebench model make {root / Path(model).name} --like llama-100m"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec(ModelSpec):
    """Sizes of a checkpoint's real tensors, for policies and cost; they add up to the bytes that are fetched."""

    config: ModelConfig

    @property
    def head_size(self) -> int:
        """Width of one attention head, which need not be hidden / heads."""
        return self.config.head_size

    def layer_tensors(self) -> tuple[Bytes, ...]:
        """Bytes of each of a decoder layer's tensors."""
        prefix = NAMES[self.config.family].layer.format(0)
        entries = _part(self.config, range(1), self.slug).tensors
        return tuple(float(entry.num_bytes) for entry in entries if entry.name.startswith(prefix))

    def stage_tensors(self, layers: range) -> tuple[Bytes, ...]:
        """Bytes of each tensor of the stage's part, with the padding that follows it."""
        return tuple(float(span) for span in _part(self.config, layers, self.slug).spans())


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Checkpoint:
    """Weights on disk whose every tensor is there, in the shape and dtype that the config implies."""

    folder: Path
    config: ModelConfig
    layers: range
    """Layers that the folder holds; all of them unless it is a pipeline part."""
    shared_layers: bool
    """Every layer has the bytes of layer 0."""
    _files: Mapping[str, TensorFile]
    """By name of tensor."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a folder's headers; LiveError names the file and tensor that is missing, damaged or not as expected."""
        config = ModelConfig.read(folder)
        layers = _held_layers(folder / CONFIG, config)
        files, shared = _files(folder)
        checkpoint = cls(folder=folder, config=config, layers=layers, shared_layers=shared, _files=files)
        for name, shape in layout(config, layers):
            checkpoint._check(name, shape)
        return checkpoint

    def part(self, layers: range, name: str) -> Part:
        """The byte stream of a stage of model ``name``; LiveError when the folder does not hold these layers."""
        part = _part(self.config, layers, name)
        if layers.start < self.layers.start or layers.stop > self.layers.stop:
            held = f"{self.layers.start}..{self.layers.stop}"
            raise LiveError(
                f"{self.folder}: holds layers {held} of a pipeline, asked for {layers.start}..{layers.stop}"
            )
        return part

    def buffers(self, part: Part) -> list[memoryview]:
        """The bytes of each tensor of a part, in its order, mapped from disk and read-only."""
        return [self.bytes_of(entry) for entry in part.tensors]

    def bytes_of(self, entry: TensorEntry) -> memoryview:
        """The bytes of one tensor, mapped from disk and read-only."""
        stored = self._name_on_disk(entry.name)
        return self._files[stored].bytes_of(stored)

    def spec(self, slug: str) -> CheckpointSpec:
        """What policies and cost know of the model, under the name it is deployed as."""
        config = self.config
        return CheckpointSpec(
            slug=slug,
            hidden=config.hidden,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            ffn=config.ffn,
            vocab=config.vocab,
            tied=config.tied,
            source=f"config.json of {self.folder.name}",
            gated=config.family in ("llama", "qwen2"),
            bytes_per_value=DTYPES[config.dtype],
            learned_positions=0 if config.rope_theta is not None else config.max_positions + POSITION_OFFSET,
            bias=config.output_bias and config.mlp_bias,
            config=config,
        )

    def _name_on_disk(self, name: str) -> str:
        """Where a tensor's bytes are: a tied head's in the embedding, a shared layer's in layer 0."""
        if name == HEAD and self.config.tied:
            embedding = NAMES[self.config.family].embedding + ".weight"
            return embedding if embedding in self._files else name
        return _LAYER.sub(r"\g<1>.0", name) if self.shared_layers else name

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        stored_name = self._name_on_disk(name)
        file = self._files.get(stored_name)
        if file is None:
            raise LiveError(f"{self.folder}: tensor {stored_name} is missing, its config.json implies it with {shape}")
        stored: StoredTensor = file.tensors[stored_name]
        where = f"{file.path}, {stored_name}"
        if stored.shape != shape:
            raise LiveError(f"{where}: shape {list(stored.shape)}, expected {list(shape)} by config.json")
        if stored.dtype != self.config.dtype:
            raise LiveError(f"{where}: dtype {stored.dtype}, expected {self.config.dtype} by config.json and for all")


@cache
def _part(config: ModelConfig, layers: range, model: str) -> Part:
    return Part.of(model, layers, config.num_layers, config.dtype, layout(config, layers))


def _held_layers(path: Path, config: ModelConfig) -> range:
    pipeline = read_json(path).get(PIPELINE)
    if pipeline is None:
        return range(config.num_layers)
    try:
        start, stop = pipeline["layers"]
        held = range(start, stop)
    except (KeyError, TypeError, ValueError) as error:
        raise LiveError(f'{path}, {PIPELINE}: expected {{"layers": [start, stop]}}, got {pipeline!r}') from error
    if not 0 <= start < stop <= config.num_layers:
        raise LiveError(f"{path}, {PIPELINE}: layers {start}..{stop} of {config.num_layers}; expected a part of them")
    return held


def _files(folder: Path) -> tuple[dict[str, TensorFile], bool]:
    """The file of each tensor, and whether layers are shared."""
    index = folder / INDEX
    if not index.is_file():
        single = TensorFile.open(folder / SINGLE)
        return dict.fromkeys(single.tensors, single), False
    table = read_json(index)
    weight_map, metadata = table.get("weight_map"), table.get("metadata") or {}
    if not isinstance(weight_map, dict) or not isinstance(metadata, dict):
        raise LiveError(f"{index}: expected an object 'weight_map' from tensor to file")
    shards = {name: TensorFile.open(folder / name) for name in _shard_names(weight_map.values(), index)}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard].tensors:
            raise LiveError(f"{folder / shard}: tensor {tensor} is missing, {INDEX} says it is there")
    return {tensor: shards[shard] for tensor, shard in weight_map.items()}, metadata.get(SHARED_LAYERS) is True


def _shard_names(values: Iterable[Any], index: Path) -> list[str]:
    names: list[str] = []
    for name in values:
        if not isinstance(name, str) or Path(name).name != name:
            raise LiveError(f"{index}, weight_map: {name!r} is not a file in this folder")
        names.append(name)
    return list(dict.fromkeys(names))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LiveError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(table, dict):
        raise LiveError(f"{path}: expected a JSON object, got {type(table).__name__}")
    return table
