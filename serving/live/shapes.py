"""Shapes of checkpoints that can be made: for models known by name, ``config.json`` as Hugging Face writes it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from serving.core.model import ModelSpec
from serving.cost.models import MODELS
from serving.live.config import DTYPES, ModelConfig
from serving.live.errors import LiveError
from serving.live.tokenizer_files import BOS, BYTE_TOKENS, EOS


def _gated(slug: str, layers: int, widths: tuple[int, int, int], heads: tuple[int, int], source: str) -> ModelSpec:
    """A Llama or Qwen2: hidden, FFN and vocabulary widths; heads and KV heads."""
    return ModelSpec(
        slug=slug, hidden=widths[0], num_layers=layers, num_heads=heads[0], num_kv_heads=heads[1], ffn=widths[1],
        vocab=widths[2], tied=_family(slug) == "qwen2" or slug.startswith("smollm2"), gated=True, source=source,
    )  # fmt: skip


def _family(slug: str) -> str:
    return next((family for family in ("qwen2", "opt", "falcon") if slug.startswith(family)), "llama")


SHAPES: dict[str, ModelSpec] = MODELS | {
    spec.slug: spec
    for spec in (
        _gated("qwen2-0.5b", 24, (896, 4864, 151936), (14, 2), "config.json of Qwen/Qwen2-0.5B-Instruct"),
        _gated("smollm2-135m", 30, (576, 1536, 49152), (9, 3), "config.json of HuggingFaceTB/SmolLM2-135M-Instruct"),
        _gated("llama-100m", 8, (768, 2048, 32000), (12, 12), "ours: 106 million parameters, for benchmarks"),
        _gated("llama-tiny", 2, (64, 128, 512), (4, 2), "ours, for tests"),
        _gated("qwen2-tiny", 2, (64, 128, 512), (4, 2), "ours, for tests"),
        ModelSpec(
            slug="opt-tiny", hidden=64, num_layers=2, num_heads=4, num_kv_heads=4, ffn=256, vocab=512, tied=True,
            learned_positions=258, bias=True, source="ours, for tests",
        ),
        ModelSpec(
            slug="falcon-tiny", hidden=64, num_layers=2, num_heads=4, num_kv_heads=1, ffn=256, vocab=512, tied=True,
            source="ours, for tests",
        ),
    )
}  # fmt: skip
"""What ``like`` may name."""

_ROPE = {"llama3": 500000.0, "qwen2-0": 1000000.0, "smollm2": 100000.0}
_POSITIONS = {"llama2": 4096, "llama3": 8192, "qwen2-0": 32768, "smollm2": 8192}
_EPS = {"qwen2": 1e-6}
"""By the start of the slug, from the same config.json as the shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What differs from the named shape; None: as it is there."""

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn: int | None = None
    vocab: int | None = None
    positions: int | None = None


def config_table(like: str, changes: Changes, dtype: str) -> dict[str, Any]:
    """A ``config.json`` for a model like the named one; LiveError when the changes do not fit together."""
    if like not in SHAPES:
        raise LiveError(f"no shape {like!r}. Known: {', '.join(SHAPES)}")
    if dtype not in DTYPES:
        raise LiveError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    spec = SHAPES[like]
    shape = _Shape.of(spec, changes)
    table = {
        **_FAMILY[_family(like)](spec, shape),
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "dtype": dtype,
        "torch_dtype": dtype,  # what transformers before version 5 reads
    }
    ModelConfig.parse(table, f"like {like}")
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A shape with all its numbers, which fit together."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    positions: int

    @classmethod
    def of(cls, spec: ModelSpec, changes: Changes) -> "_Shape":
        """The named shape with the changes."""
        named = {
            "layers": spec.num_layers, "hidden": spec.hidden, "heads": spec.num_heads,
            "kv_heads": spec.num_kv_heads, "ffn": spec.ffn, "vocab": spec.vocab,
            "positions": spec.learned_positions - 2 if spec.learned_positions else _of(_POSITIONS, spec.slug, 2048),
        }  # fmt: skip
        asked = {name: value for name, value in asdict(changes).items() if value is not None}
        if spec.num_kv_heads == spec.num_heads and "heads" in asked:
            named["kv_heads"] = asked["heads"]  # full attention stays full
        shape = cls(**{**named, **asked})
        shape._check(spec)
        return shape

    def _check(self, spec: ModelSpec) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise LiveError(f"like {spec.slug}: {name.replace('_', '-')} is {value}, expected 1 or more")
        if self.hidden % (2 * self.heads):
            raise LiveError(
                f"like {spec.slug}: hidden size {self.hidden} over {self.heads} heads does not give heads of an even "
                "width; change --hidden or --heads"
            )
        if self.heads % self.kv_heads:
            raise LiveError(f"like {spec.slug}: {self.heads} heads cannot share {self.kv_heads} KV heads; --kv-heads")
        if _family(spec.slug) == "opt" and self.kv_heads != self.heads:
            raise LiveError(f"like {spec.slug}: OPT has as many KV heads as heads, {self.heads}; leave out --kv-heads")
        if _family(spec.slug) == "falcon" and self.kv_heads not in (1, self.heads):
            raise LiveError(f"like {spec.slug}: Falcon's attention has 1 KV head or {self.heads}; change --kv-heads")
        if self.vocab < BYTE_TOKENS:
            raise LiveError(f"like {spec.slug}: the byte tokenizer has {BYTE_TOKENS} tokens; --vocab has to hold them")


def _of(table: Mapping[str, Any], slug: str, default: Any) -> Any:
    return next((value for start, value in table.items() if slug.startswith(start)), default)


def _llama(spec: ModelSpec, shape: _Shape) -> dict[str, Any]:
    is_qwen = _family(spec.slug) == "qwen2"
    return {
        "architectures": ["Qwen2ForCausalLM" if is_qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if is_qwen else "llama",
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": _of(_EPS, spec.slug, 1e-5),
        "rope_theta": _of(_ROPE, spec.slug, 10000.0),
        "hidden_act": "silu",
    }


def _opt(spec: ModelSpec, shape: _Shape) -> dict[str, Any]:
    del spec  # all OPTs of this layout have the same rest
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "ffn_dim": shape.ffn,
        "max_position_embeddings": shape.positions,
        "word_embed_proj_dim": shape.hidden,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "pad_token_id": 1,
    }


def _falcon(spec: ModelSpec, shape: _Shape) -> dict[str, Any]:
    del spec  # all Falcons of this layout have the same rest
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "ffn_hidden_size": shape.ffn,
        "max_position_embeddings": shape.positions,
        "layer_norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "multi_query": shape.kv_heads == 1,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
    }


_FAMILY = {"llama": _llama, "qwen2": _llama, "opt": _opt, "falcon": _falcon}
