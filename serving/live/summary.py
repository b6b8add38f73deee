"""What a checkpoint is, as text: architecture, parameters, bytes, and its parts per number of stages."""

import math
from collections.abc import Iterator
from pathlib import Path

from serving.live.checkpoint import Checkpoint
from serving.live.errors import LiveError
from serving.live.layout import layout
from serving.live.split import stage_parts
from serving.units import GB, MB

STAGES = (1, 2, 3, 4, 8)
"""Numbers of stages that are listed, as far as the model can be cut so."""


def summary(folder: Path) -> str:
    """Several lines about a checkpoint; LiveError when it is not whole."""
    checkpoint = Checkpoint.open(folder)
    return "\n".join((*_lines(checkpoint), *_stages(checkpoint)))


def in_units(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / GB:.2f} GB" if size >= GB else f"{size / MB:.2f} MB"


def _lines(checkpoint: Checkpoint) -> Iterator[str]:
    config, layers = checkpoint.config, checkpoint.layers
    parameters = sum(math.prod(shape) for _, shape in layout(config, layers))
    size = checkpoint.part(layers, checkpoint.folder.name).size
    held = "" if len(layers) == config.num_layers else f", {layers.start}..{layers.stop} of them here"
    yield f"{checkpoint.folder}: {config.family}, {config.num_layers} layers{held}"
    yield (
        f"  hidden {config.hidden}, {config.num_heads} heads of {config.head_size}, {config.num_kv_heads} KV heads, "
        f"FFN {config.ffn}, vocabulary {config.vocab}, context {config.max_positions}"
    )
    yield (
        f"  {parameters / 1e6:,.1f} million parameters, {in_units(size)} of {config.dtype}"
        f"{', head tied to the embedding' if config.tied else ''}"
        f"{', all layers in the bytes of one' if checkpoint.shared_layers else ''}"
    )


def _stages(checkpoint: Checkpoint) -> Iterator[str]:
    if len(checkpoint.layers) != checkpoint.config.num_layers:
        return
    yield "  stages   layers and size of each"
    for num_stages in STAGES:
        try:
            parts = stage_parts(checkpoint, num_stages, checkpoint.folder.name)
        except LiveError:  # fewer layers than stages
            return
        cells = (f"{part.layers.start}..{part.layers.stop}: {in_units(part.size)}" for part in parts)
        yield f"  {num_stages:>6}   {'   '.join(cells)}"
