"""Pipeline parts on disk: a checkpoint cut into a folder a stage, each readable as a checkpoint of its layers."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from serving.live.checkpoint import CONFIG, PIPELINE, SINGLE, Checkpoint, read_json
from serving.live.errors import LiveError
from serving.live.make import write_json
from serving.live.new_folder import new_folder
from serving.live.part import Part
from serving.live.tensor_file import header

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Copied into each part, where the checkpoint has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFolder:
    """What was written for one stage."""

    folder: Path
    part: Part


def split_checkpoint(source: Path, num_stages: int, out: Path, force: bool = False) -> list[StageFolder]:
    """Write ``out/stage{i}-of-{N}``, a folder a stage, with the layers that policies would give it. LiveError when the
    model cannot make so many stages, or is a part itself."""
    if source.resolve().is_relative_to(out.resolve()):
        raise LiveError(f"{out}: holds the checkpoint that is to be split; choose another folder")
    checkpoint = Checkpoint.open(source)
    parts = stage_parts(checkpoint, num_stages, source.name)
    names = [f"stage{stage}-of-{num_stages}" for stage in range(num_stages)]
    with new_folder(out, sum(part.size for part in parts), force) as folder:
        for name, part in zip(names, parts, strict=True):
            (folder / name).mkdir()
            _write_stage(checkpoint, part, folder / name)
    return [StageFolder(folder=out / name, part=part) for name, part in zip(names, parts, strict=True)]


def stage_parts(checkpoint: Checkpoint, num_stages: int, model: str) -> list[Part]:
    """The parts of a pipeline of so many stages."""
    if len(checkpoint.layers) != checkpoint.config.num_layers:
        held = f"{checkpoint.layers.start}..{checkpoint.layers.stop} of {checkpoint.config.num_layers}"
        raise LiveError(f"{checkpoint.folder}: is a pipeline part (layers {held}); split the whole checkpoint")
    try:
        ranges = checkpoint.spec(model).split(num_stages)
    except ValueError as error:
        raise LiveError(f"{checkpoint.folder}: {error}") from error
    return [checkpoint.part(layers, model) for layers in ranges]


def _write_stage(checkpoint: Checkpoint, part: Part, folder: Path) -> None:
    with (folder / SINGLE).open("wb") as file:
        file.write(header((entry.name, entry.dtype, entry.shape) for entry in part.tensors))
        for buffer in checkpoint.buffers(part):
            file.write(buffer)
    table = read_json(checkpoint.folder / CONFIG)
    write_json(folder / CONFIG, {**table, PIPELINE: {"layers": [part.layers.start, part.layers.stop]}})
    for name in TOKENIZER_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
