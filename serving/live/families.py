"""The decoder layers of the four families: what they have in common is attention over the paged KV cache; each adds its
norms, projections and the order of residuals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from serving.live.attention import AttentionBatch, paged_attention
from serving.live.config import ModelConfig
from serving.live.cpu.kernels import kernels_for
from serving.live.kv import KvCache
from serving.live.linear import Activation, Linear, fuse
from serving.live.rope import Turn, rotate


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of a stage share in one forward pass."""

    batch: AttentionBatch
    kv: KvCache
    turn: Turn | None
    """None: positions are learned."""


class Norm:
    """RMSNorm, or LayerNorm when it has a bias; statistics in float32."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, eps: float) -> None:
        self.weight = tensors[name + ".weight"]
        self.bias = tensors.get(name + ".bias")
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Of x [T, hidden]."""
        if self.bias is None:
            if kernels := kernels_for(x):
                return kernels.norm(x, self.weight, self.eps)
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Weights:
    """A layer's tensors by their name in the layer."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str, config: ModelConfig, pack: bool) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self._eps = config.norm_eps
        self._pack = pack

    def norm(self, name: str) -> Norm:
        """A norm."""
        return Norm(self._tensors, self._prefix + name, self._eps)

    def linear(self, *names: str, activation: Activation = "none") -> Linear:
        """A linear layer, of several matrices over the same input if there are several names."""
        weight = fuse([self._tensors[f"{self._prefix}{name}.weight"] for name in names])
        biases = [f"{self._prefix}{name}.bias" for name in names]
        bias = fuse([self._tensors[name] for name in biases]) if biases[0] in self._tensors else None
        return Linear(weight, bias, activation, self._pack)


class Heads:
    """How a row of the fused projection falls into query, key and value heads."""

    def __init__(self, config: ModelConfig) -> None:
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_size = config.head_size
        self.interleaved = config.family == "falcon" and config.num_kv_heads > 1

    def attend(self, qkv: Tensor, layer: int, step: Step) -> Tensor:
        """Stores keys and values of the fused rows q|k|v [T, ...], attends; [T, num_heads * head_size]."""
        if self.interleaved:
            qkv = self._apart(qkv)
        if kernels := kernels_for(qkv):
            pools = step.kv.keys[layer], step.kv.values[layer]
            query = kernels.rotate_and_store(qkv, self.num_heads, step.turn, step.batch.slots, pools)
            return paged_attention(query, step.kv, layer, step.batch)
        heads = qkv.view(qkv.shape[0], -1, self.head_size)
        turning, value = heads.tensor_split([self.num_heads + self.num_kv_heads], 1)
        query, key = (turning if step.turn is None else rotate(turning, step.turn)).tensor_split([self.num_heads], 1)
        step.kv.write(layer, step.batch.slots, key, value)
        return paged_attention(query, step.kv, layer, step.batch)

    def _apart(self, qkv: Tensor) -> Tensor:
        """Falcon with several KV heads has each with its queries: q..q k v, q..q k v. Multi-query is q|k|v as it is."""
        groups = qkv.view(qkv.shape[0], self.num_kv_heads, -1, self.head_size)
        per_head = groups.shape[2] - 2
        return torch.cat([part.flatten(1) for part in groups.split_with_sizes([per_head, 1, 1], 2)], 1)


class LlamaLayer:
    """Llama and Qwen2: RMSNorm, attention, RMSNorm, SwiGLU."""

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        self.heads = Heads(config)
        self.input_norm = weights.norm("input_layernorm")
        self.qkv = weights.linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.output = weights.linear("self_attn.o_proj")
        self.post_norm = weights.norm("post_attention_layernorm")
        self.gate_up = weights.linear("mlp.gate_proj", "mlp.up_proj")
        self.down = weights.linear("mlp.down_proj")

    def forward(self, x: Tensor, layer: int, step: Step) -> Tensor:
        """The next residual; may overwrite ``x``."""
        x = self.output.add_to(x, self.heads.attend(self.qkv(self.input_norm(x)), layer, step))
        return self.down.add_to(x, _gated(self.gate_up(self.post_norm(x))))


def _gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of rows gate|up."""
    if kernels := kernels_for(gate_up):
        return kernels.gate(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate).mul_(up)


class OptLayer:
    """OPT: LayerNorm, attention, LayerNorm, ReLU."""

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        self.heads = Heads(config)
        self.input_norm = weights.norm("self_attn_layer_norm")
        self.qkv = weights.linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.output = weights.linear("self_attn.out_proj")
        self.post_norm = weights.norm("final_layer_norm")
        self.up = weights.linear("fc1", activation="relu")
        self.down = weights.linear("fc2")

    def forward(self, x: Tensor, layer: int, step: Step) -> Tensor:
        """The next residual; may overwrite ``x``."""
        x = self.output.add_to(x, self.heads.attend(self.qkv(self.input_norm(x)), layer, step))
        return self.down.add_to(x, self.up(self.post_norm(x)))


class FalconLayer:
    """Falcon: attention and MLP side by side, after one LayerNorm or after one each."""

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        self.heads = Heads(config)
        has_two = config.num_norms == 2
        self.input_norm = weights.norm("ln_attn" if has_two else "input_layernorm")
        self.mlp_norm = weights.norm("ln_mlp") if has_two else None
        self.qkv = weights.linear("self_attention.query_key_value")
        self.output = weights.linear("self_attention.dense")
        self.up = weights.linear("mlp.dense_h_to_4h", activation="gelu")
        self.down = weights.linear("mlp.dense_4h_to_h")

    def forward(self, x: Tensor, layer: int, step: Step) -> Tensor:
        """The next residual; may overwrite ``x``."""
        normed = self.input_norm(x)
        inner = self.up(normed if self.mlp_norm is None else self.mlp_norm(x))
        x = self.output.add_to(x, self.heads.attend(self.qkv(normed), layer, step))
        return self.down.add_to(x, inner)


Layer = LlamaLayer | OptLayer | FalconLayer
LAYERS: dict[str, Callable[[Weights, ModelConfig], Layer]] = {
    "llama": LlamaLayer,
    "qwen2": LlamaLayer,
    "opt": OptLayer,
    "falcon": FalconLayer,
}
"""The layer of each family."""
