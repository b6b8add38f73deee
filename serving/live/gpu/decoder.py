"""One decode step as work for the GPU alone, fit to be recorded: nothing in it depends on values or on the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import numpy as np
from torch import Tensor
from torch.nn import functional

from serving.live.attention import AttentionBatch
from serving.live.attention_plan import HostBatch
from serving.live.errors import LiveError
from serving.live.families import Layer, LlamaLayer
from serving.live.gpu.attention_triton import PagedKv, decode_attention, tiling
from serving.live.gpu.row_operations import Heads, RowSlots, TurnTable, gated, linear, norm, rotate
from serving.live.kv import KvCache
from serving.live.linear import Linear
from serving.live.model import StageModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodeRows:
    """B sequences with one new row each; the tensors are on the GPU and keep their addresses."""

    ids: Tensor
    """int64 [B]"""
    places: RowSlots
    block_tables: Tensor
    """int32 [B, blocks of the longest context that may come]"""
    context_lens: Tensor
    """int32 [B], with the new row; 0 for padding."""
    query_starts: Tensor
    """int32 [B + 1]: 0, 1, ... B."""
    max_context: int
    """The longest that may come, not that of one step."""


class Decoder(Protocol):
    """A whole model's layers."""

    def forward(self, step: DecodeRows, kv: KvCache) -> Tensor:
        """Residual [B, hidden] after the last layer; the rows' keys and values are in ``kv`` then."""
        ...


def decoder_of(model: StageModel) -> Decoder:
    """The fastest one for that model."""
    return FusedDecoder(model, model.blocks) if _are_llama(model.blocks) else PlainDecoder(model)


class PlainDecoder:
    """The model's own forward pass, for architectures without kernels of their own."""

    def __init__(self, model: StageModel) -> None:
        self._model = model

    def forward(self, step: DecodeRows, kv: KvCache) -> Tensor:
        """Its host-side part is empty: with one row a sequence, attention asks for none of it."""
        nothing = np.zeros(0, np.int64)
        host = HostBatch(num_tokens=nothing, contexts=nothing, tables=nothing, block_size=kv.block_size)
        batch = AttentionBatch(
            positions=step.places.positions,
            slots=step.places.slots,
            query_starts=step.query_starts,
            context_lens=step.context_lens,
            block_tables=step.block_tables,
            max_query=1,
            max_context=step.max_context,
            num_tokens=[1] * len(step.ids),
            host=host,
        )
        return self._model.forward(step.ids, batch, kv)


class FusedDecoder:
    """Llama and Qwen2 in ten kernels a layer, at most."""

    def __init__(self, model: StageModel, layers: Sequence[LlamaLayer]) -> None:
        """Of a model that has the first layer; the tensors stay the model's."""
        if model.embedding is None or model.rotary is None:
            raise LiveError("decode steps are fused for models that embed tokens and have rotary positions")
        config = model.config
        self._embedding = model.embedding
        self._layers = layers
        self._epsilon = config.norm_eps
        self._heads = Heads(num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_size=config.head_size)
        self._turns = TurnTable.of(model.rotary.frequencies, config.max_positions)

    def forward(self, step: DecodeRows, kv: KvCache) -> Tensor:
        """What a layer adds to the residual is added by the norm that follows."""
        residual = functional.embedding(step.ids, self._embedding)
        x: Tensor | None = None
        for layer, keys, values in zip(self._layers, kv.keys, kv.values, strict=True):
            normed = norm(residual, x, layer.input_norm.weight, self._epsilon)
            attended = self._attend(_apply(layer.qkv, normed), step, (keys, values))
            normed = norm(residual, _apply(layer.output, attended), layer.post_norm.weight, self._epsilon)
            x = _apply(layer.down, gated(_apply(layer.gate_up, normed)))
        return residual if x is None else residual + x

    def _attend(self, qkv: Tensor, step: DecodeRows, pools: tuple[Tensor, Tensor]) -> Tensor:
        heads = self._heads
        queries = rotate(qkv, heads, self._turns, step.places, pools)
        paged = PagedKv(keys=pools[0], values=pools[1], block_tables=step.block_tables, context_lens=step.context_lens)
        cut = tiling(qkv.shape[0], heads.num_heads, heads.num_kv_heads, step.max_context)
        return decode_attention(queries, paged, heads.head_size**-0.5, cut).flatten(1)


def _apply(layer: Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def _are_llama(layers: Sequence[Layer]) -> TypeGuard[Sequence[LlamaLayer]]:
    return all(isinstance(layer, LlamaLayer) for layer in layers)
