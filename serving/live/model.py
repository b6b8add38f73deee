"""StageModel: the forward pass of one pipeline stage, a slice of a model's layers over a paged KV cache."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from serving.live.attention import AttentionBatch
from serving.live.config import ModelConfig
from serving.live.errors import LiveError
from serving.live.families import LAYERS, Layer, Norm, Step, Weights
from serving.live.kv import KvCache
from serving.live.layout import HEAD, NAMES, POSITION_OFFSET, layout
from serving.live.linear import Linear
from serving.live.rope import Rotary


class StageModel:
    """Layers ``layers`` of a model, with the embedding if the first is among them and the output head if the last is.

    The same code runs on CPU and GPU and reads nothing back from the device.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: range,
        tensors: Mapping[str, Tensor],
        pack: bool = True,
        own: "StageModel | None" = None,
    ) -> None:
        """``tensors`` are those of ``layout(config, layers)``, by name, on one device; LiveError when one is missing or
        has another shape. ``pack`` lets a CPU keep copies of the matrices in a faster layout. What ``own`` has, a stage
        of fewer of these layers, is shared with it, and need not be among the tensors."""
        tensors = _checked(config, layers, tensors, own)
        names = NAMES[config.family]
        self.config = config
        self.layers = layers
        self.is_first = layers.start == 0
        self.is_last = layers.stop == config.num_layers
        some = next(iter(tensors.values()))
        self.dtype, self.device = some.dtype, some.device
        self.rotary = None if config.rope_theta is None else Rotary(config, some)
        self.embedding: Tensor | None = tensors.get(names.embedding + ".weight", None if own is None else own.embedding)
        positions = None if names.positions is None else tensors.get(names.positions + ".weight")
        self.position_embedding: Tensor | None = own.position_embedding if own and own.is_first else positions
        build = LAYERS[config.family]
        shared = dict(zip(own.layers, own.blocks, strict=True)) if own else {}
        self.blocks: list[Layer] = [
            shared.get(i) or build(Weights(tensors, names.layer.format(i), config, pack), config) for i in layers
        ]
        self.final_norm: Norm | None = None
        self.head: Linear | None = None
        head = tensors.get(HEAD, self.embedding)
        if own and own.is_last:
            self.final_norm, self.head = own.final_norm, own.head
        elif self.is_last and head is not None:
            self.final_norm = Norm(tensors, names.final_norm, config.norm_eps)
            self.head = Linear(head, pack=pack)

    @torch.inference_mode()
    def forward(self, x: Tensor, batch: AttentionBatch, kv: KvCache) -> Tensor:
        """Residual [T, hidden] after the last layer here, of token ids (int64 [T]) on the first stage and of the
        residual of the stage before, which stays as it is, on others. Writes the step's keys and values to ``kv``."""
        x = self.embed(x, batch) if self.is_first else x.clone()
        step = Step(batch, kv, None if self.rotary is None else self.rotary.turn(batch.positions))
        for index, block in enumerate(self.blocks):
            x = block.forward(x, index, step)
        return x

    def embed(self, ids: Tensor, batch: AttentionBatch) -> Tensor:
        """Residual [T, hidden] that goes into the first layer."""
        if self.embedding is None:
            raise LiveError(f"layers {self.layers.start}..{self.layers.stop}: only the first stage embeds tokens")
        x = functional.embedding(ids, self.embedding)
        if self.position_embedding is not None:
            x.add_(functional.embedding(batch.positions + POSITION_OFFSET, self.position_embedding))
        return x

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, float32 [R, vocab], for rows [R, hidden] that the last stage's ``forward`` gave."""
        if self.final_norm is None or self.head is None:
            raise LiveError(f"layers {self.layers.start}..{self.layers.stop}: only the last stage has an output head")
        return self.head(self.final_norm(hidden)).float()


def _checked(
    config: ModelConfig, layers: range, tensors: Mapping[str, Tensor], own: StageModel | None
) -> dict[str, Tensor]:
    """The stage's tensors among those given, but for what ``own`` has."""
    known = dict(layout(config, own.layers)) if own else {}
    shapes = {name: shape for name, shape in layout(config, layers) if name not in known}
    for name, shape in shapes.items():
        if name not in tensors:
            raise LiveError(f"layers {layers.start}..{layers.stop}: tensor {name} is missing")
        if tuple(tensors[name].shape) != shape:
            raise LiveError(f"tensor {name} has shape {list(tensors[name].shape)}, its config says {list(shape)}")
    return {name: tensors[name] for name in shapes}
