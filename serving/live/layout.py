"""Names and shapes of a pipeline stage's tensors, in the order in which a forward pass needs them; without torch.

Names are those of Hugging Face's checkpoints. The order is that of the byte stream of a part: what is fused at run
time (q, k, v; gate, up) is adjacent, so that one matrix over the stream's memory serves all of it.
"""

from dataclasses import dataclass

from serving.live.config import ModelConfig
from serving.live.errors import LiveError

POSITION_OFFSET = 2
"""OPT's position embedding keeps its first two rows for padding: position p is row p + 2."""

HEAD = "lm_head.weight"
"""The output head; a stage that holds the tied embedding has none of its own."""

Shaped = tuple[str, tuple[int, ...]]
"""A tensor's name and its shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What a family calls its tensors; a layer's names follow its prefix, as in ``model.layers.3.`` + ``q``."""

    layer: str
    """Format of a layer's prefix."""
    embedding: str
    final_norm: str
    positions: str | None = None


NAMES = {
    "llama": Names(layer="model.layers.{}.", embedding="model.embed_tokens", final_norm="model.norm"),
    "opt": Names(
        layer="model.decoder.layers.{}.",
        embedding="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        positions="model.decoder.embed_positions",
    ),
    "falcon": Names(layer="transformer.h.{}.", embedding="transformer.word_embeddings", final_norm="transformer.ln_f"),
}
NAMES["qwen2"] = NAMES["llama"]


def layout(config: ModelConfig, layers: range) -> list[Shaped]:
    """The tensors of a stage that holds ``layers``: embeddings if it has the first layer, its layers, final norm and
    output head if it has the last. LiveError when the model has no such layers."""
    if layers.step != 1 or not 0 <= layers.start < layers.stop <= config.num_layers:
        raise LiveError(f"layers {layers.start}..{layers.stop} are not a part of a model of {config.num_layers} layers")
    names = NAMES[config.family]
    tensors: list[Shaped] = []
    if layers.start == 0:
        tensors.append((names.embedding + ".weight", (config.vocab, config.hidden)))
        if names.positions is not None:
            rows = config.max_positions + POSITION_OFFSET
            tensors.append((names.positions + ".weight", (rows, config.hidden)))
    for layer in layers:
        prefix = names.layer.format(layer)
        tensors += [(prefix + name, shape) for name, shape in _LAYER[config.family](config)]
    if layers.stop == config.num_layers:
        tensors += _norm(config, names.final_norm)
        if not (config.tied and layers.start == 0):
            tensors.append((HEAD, (config.vocab, config.hidden)))
    return tensors


def stage_tensor_names(config: ModelConfig, layers: range) -> list[str]:
    """The names in ``layout``."""
    return [name for name, _ in layout(config, layers)]


def _linear(names: list[str], rows: list[int], columns: int, bias: bool) -> list[Shaped]:
    """Matrices that read the same input, all weights first, then all biases."""
    weights: list[Shaped] = [(f"{name}.weight", (count, columns)) for name, count in zip(names, rows, strict=True)]
    biases: list[Shaped] = [(f"{name}.bias", (count,)) for name, count in zip(names, rows, strict=True)]
    return weights + (biases if bias else [])


def _norm(config: ModelConfig, name: str) -> list[Shaped]:
    """Llama's norms have a weight, the others' a bias too."""
    parts = ["weight"] if config.family in ("llama", "qwen2") else ["weight", "bias"]
    return [(f"{name}.{part}", (config.hidden,)) for part in parts]


def _qkv(config: ModelConfig) -> list[Shaped]:
    query, kv = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    names = [f"self_attn.{name}_proj" for name in "qkv"]
    return _linear(names, [query, kv, kv], config.hidden, config.attention_bias)


def _llama(config: ModelConfig) -> list[Shaped]:
    hidden, ffn, query = config.hidden, config.ffn, config.num_heads * config.head_size
    return [
        *_norm(config, "input_layernorm"),
        *_qkv(config),
        *_linear(["self_attn.o_proj"], [hidden], query, config.output_bias),
        *_norm(config, "post_attention_layernorm"),
        *_linear(["mlp.gate_proj", "mlp.up_proj"], [ffn, ffn], hidden, config.mlp_bias),
        *_linear(["mlp.down_proj"], [hidden], ffn, config.mlp_bias),
    ]


def _opt(config: ModelConfig) -> list[Shaped]:
    hidden, ffn = config.hidden, config.ffn
    return [
        *_norm(config, "self_attn_layer_norm"),
        *_qkv(config),
        *_linear(["self_attn.out_proj"], [hidden], hidden, config.output_bias),
        *_norm(config, "final_layer_norm"),
        *_linear(["fc1"], [ffn], hidden, config.mlp_bias),
        *_linear(["fc2"], [hidden], ffn, config.mlp_bias),
    ]


def _falcon(config: ModelConfig) -> list[Shaped]:
    hidden, ffn = config.hidden, config.ffn
    fused = (config.num_heads + 2 * config.num_kv_heads) * config.head_size
    norms = ["ln_attn", "ln_mlp"] if config.num_norms == 2 else ["input_layernorm"]
    return [
        *(tensor for name in norms for tensor in _norm(config, name)),
        *_linear(["self_attention.query_key_value"], [fused], hidden, False),
        *_linear(["self_attention.dense"], [hidden], config.num_heads * config.head_size, False),
        *_linear(["mlp.dense_h_to_4h"], [ffn], hidden, False),
        *_linear(["mlp.dense_4h_to_h"], [hidden], ffn, False),
    ]


_LAYER = {"llama": _llama, "qwen2": _llama, "opt": _opt, "falcon": _falcon}
