"""ModelConfig: what a checkpoint's ``config.json`` says of its architecture, validated; one type for all families."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

from serving.live.errors import LiveError

Family = Literal["llama", "qwen2", "opt", "falcon"]
FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "opt", "falcon")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Weight types by name, and their bytes a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's stretched rotary frequencies (``rope_type = "llama3"``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer of one of four families."""

    family: Family
    vocab: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn: int
    max_positions: int
    """Longest context it was built for."""
    norm_eps: float
    tied: bool
    """The output head is the token embedding."""
    dtype: str
    """Type of the stored weights, a key of ``DTYPES``."""
    attention_bias: bool
    """q, k, v have biases (Qwen2, OPT; Llama when its config says so)."""
    output_bias: bool
    """The attention's output projection has a bias."""
    mlp_bias: bool
    rope_theta: float | None
    """None: learned positions (OPT)."""
    rope_scaling: RopeScaling | None = None
    num_norms: int = 2
    """Norms of a layer; Falcon's parallel blocks have one, its new architecture two."""
    new_decoder_architecture: bool = False
    """Falcon-40B and later: q, k, v interleaved per KV group."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer: of ``config.json``, then what ``generation_config.json`` adds (chat models' turns)."""
    bos_token_id: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The config in a checkpoint folder; LiveError names the key that is missing or not supported."""
        path = folder / "config.json"
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LiveError(f"{folder}: not a checkpoint, it has no config.json") from error
        except (OSError, ValueError) as error:
            raise LiveError(f"{path}: not readable as JSON ({error})") from error
        if not isinstance(table, dict):
            raise LiveError(f"{path}: expected a JSON object, got {type(table).__name__}")
        config = cls.parse(table, str(path))
        others = _eos_ids(_generation_config(folder))
        return replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *others))))

    @classmethod
    def parse(cls, table: dict[str, Any], where: str) -> Self:
        """The config that a Hugging Face table states."""
        family = table.get("model_type")
        if family not in FAMILIES:
            raise LiveError(f"{where}, model_type: expected one of {', '.join(FAMILIES)}, got {family!r}")
        try:
            config = cls(**_common(table), **_OF_FAMILY[cast(Family, family)](table))
        except KeyError as error:
            raise LiveError(f"{where}: key {error.args[0]!r} is missing") from error
        except (TypeError, ValueError) as error:
            raise LiveError(f"{where}: {error}") from error
        config._check(where)
        return config

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; ``from_json`` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> Self:
        """What ``to_json`` wrote."""
        scaling = table["rope_scaling"]
        parsed = None if scaling is None else RopeScaling(**scaling)
        return cls(**{**table, "rope_scaling": parsed, "eos_token_ids": tuple(table["eos_token_ids"])})

    def _check(self, where: str) -> None:
        for name in ("vocab", "hidden", "num_layers", "num_heads", "num_kv_heads", "head_size", "ffn", "max_positions"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise LiveError(f"{where}: {name} is {value!r}, expected a whole number above 0")
        if self.num_heads % self.num_kv_heads:
            raise LiveError(f"{where}: {self.num_heads} heads cannot share {self.num_kv_heads} KV heads")
        if self.dtype not in DTYPES:
            raise LiveError(f"{where}, dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")


def _generation_config(folder: Path) -> dict[str, Any]:
    """What the checkpoint's authors generate with; nothing where they do not say, or not as an object."""
    try:
        table = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _eos_ids(table: dict[str, Any]) -> tuple[int, ...]:
    eos = table.get("eos_token_id")
    return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)


def _common(table: dict[str, Any]) -> dict[str, Any]:
    return {
        "family": table["model_type"],
        "vocab": table["vocab_size"],
        "hidden": table["hidden_size"],
        "num_layers": table["num_hidden_layers"],
        "num_heads": table["num_attention_heads"],
        "dtype": table.get("dtype") or table.get("torch_dtype") or "float32",
        "eos_token_ids": _eos_ids(table),
        "bos_token_id": table.get("bos_token_id"),
    }


def _llama(table: dict[str, Any]) -> dict[str, Any]:
    if table.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {table['hidden_act']!r}, expected 'silu'")
    if table["model_type"] == "qwen2" and table.get("use_sliding_window"):
        raise ValueError("use_sliding_window is true, only full attention is supported")
    theta, scaling = _rope(table)
    is_qwen = table["model_type"] == "qwen2"
    bias = bool(table.get("attention_bias", False))
    return {
        "num_kv_heads": table.get("num_key_value_heads") or table["num_attention_heads"],
        "head_size": table.get("head_dim") or table["hidden_size"] // table["num_attention_heads"],
        "ffn": table["intermediate_size"],
        "max_positions": table["max_position_embeddings"],
        "norm_eps": table.get("rms_norm_eps", 1e-6),
        "tied": bool(table.get("tie_word_embeddings", False)),
        "attention_bias": is_qwen or bias,
        "output_bias": bias and not is_qwen,
        "mlp_bias": bool(table.get("mlp_bias", False)),
        "rope_theta": theta,
        "rope_scaling": scaling,
    }


def _opt(table: dict[str, Any]) -> dict[str, Any]:
    hidden = table["hidden_size"]
    if not table.get("do_layer_norm_before", True) or table.get("word_embed_proj_dim", hidden) != hidden:
        raise ValueError("OPT-350M's post-norm layout (do_layer_norm_before, word_embed_proj_dim) is not supported")
    if table.get("activation_function", "relu") != "relu":
        raise ValueError(f"activation_function is {table['activation_function']!r}, expected 'relu'")
    bias = bool(table.get("enable_bias", True))
    return {
        "num_kv_heads": table["num_attention_heads"],
        "head_size": hidden // table["num_attention_heads"],
        "ffn": table["ffn_dim"],
        "max_positions": table["max_position_embeddings"],
        "norm_eps": 1e-5,
        "tied": bool(table.get("tie_word_embeddings", True)),
        "attention_bias": bias,
        "output_bias": bias,
        "mlp_bias": bias,
        "rope_theta": None,
    }


def _falcon(table: dict[str, Any]) -> dict[str, Any]:
    if table.get("alibi") or not table.get("parallel_attn", True) or table.get("bias"):
        raise ValueError("Falcon with alibi, biases or sequential blocks (Falcon-RW) is not supported")
    new = bool(table.get("new_decoder_architecture", False))
    multi_query = bool(table.get("multi_query", True))
    heads = table["num_attention_heads"]
    kv_heads = (table.get("num_kv_heads") or heads) if new else (1 if multi_query else heads)
    num_norms = table.get("num_ln_in_parallel_attn") or (2 if new else 1)
    theta, scaling = _rope(table)
    return {
        "num_kv_heads": kv_heads,
        "head_size": table["hidden_size"] // heads,
        "ffn": table.get("ffn_hidden_size") or 4 * table["hidden_size"],
        "max_positions": table.get("max_position_embeddings", 2048),
        "norm_eps": table.get("layer_norm_epsilon", 1e-5),
        "tied": bool(table.get("tie_word_embeddings", True)),
        "attention_bias": False,
        "output_bias": False,
        "mlp_bias": False,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "num_norms": num_norms,
        "new_decoder_architecture": new,
    }


_OF_FAMILY = {"llama": _llama, "qwen2": _llama, "opt": _opt, "falcon": _falcon}


def _rope(table: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, in the old keys (``rope_theta``, ``rope_scaling``) or the new one (``rope_parameters``)."""
    rope = {**(table.get("rope_scaling") or {}), **(table.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta", table.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r} is not supported, only 'default' and 'llama3'")
    scaling = RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]),
    )
    return theta, scaling
