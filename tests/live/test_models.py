"""The forward pass against transformers: every family, cut into stages, in whatever steps its tokens are computed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from serving.live.config import ModelConfig
from serving.live.errors import LiveError
from serving.live.layout import layout, stage_tensor_names

torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")
transformers = pytest.importorskip("transformers", reason="needs the live extra: make test-live")

from serving.live.attention import attention_batch  # noqa: E402
from serving.live.cpu import kernels  # noqa: E402
from serving.live.cpu.build import build  # noqa: E402
from serving.live.kv import KvCache  # noqa: E402
from serving.live.linear import Linear, fuse  # noqa: E402
from serving.live.model import StageModel  # noqa: E402

VOCAB, HIDDEN, LAYERS, HEADS, POSITIONS = 97, 64, 4, 4, 128
BLOCK_SIZE, NUM_BLOCKS = 4, 64
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
COMMON = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
LLAMA = {**COMMON, "intermediate_size": 96, "max_position_embeddings": POSITIONS}
OPT = {**COMMON, "ffn_dim": 96, "max_position_embeddings": POSITIONS, "word_embed_proj_dim": HIDDEN}
FALCON = {**COMMON, "max_position_embeddings": POSITIONS}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama-gqa": ("llama", {**LLAMA, "num_key_value_heads": 2}),
    "llama-tied": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama-bias": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {**LLAMA, "head_dim": 32, "num_key_value_heads": 1}),
    "llama3-rope": ("llama", {**LLAMA, "num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "opt": ("opt", OPT),
    "opt-plain": ("opt", {**OPT, "enable_bias": False, "tie_word_embeddings": False}),
    "falcon": ("falcon", FALCON),
    "falcon-multi-head": ("falcon", {**FALCON, "multi_query": False}),
    "falcon-new": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-new-one-norm": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
}
CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "opt": "OPT", "falcon": "Falcon"}
SPLITS = [[4], [1, 3], [2, 2], [1, 2, 1], [1, 1, 1, 1]]
FALCON_OFF = {"alibi": False, "bias": False, "parallel_attn": True}


@dataclass(frozen=True)
class Reference:
    """A random model of transformers, and what it is for us."""

    model: Any
    config: ModelConfig
    tensors: dict[str, Any]

    def logits(self, ids: list[int]) -> Any:
        """float32 [len(ids), vocab]"""
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float()


_references: dict[str, Reference] = {}


def reference(name: str, dtype: str = "float32") -> Reference:
    """Weights are larger than models start with, so that all layers matter, norms and biases are not trivial."""
    key = f"{name} {dtype}"
    if key not in _references:
        family, table = CONFIGS[name]
        torch.manual_seed(5)
        settings = {**(FALCON_OFF if family == "falcon" else {}), **table}
        theirs = getattr(transformers, CLASSES[family] + "Config")(**settings)
        model = getattr(transformers, CLASSES[family] + "ForCausalLM")(theirs).eval()
        for parameter in model.parameters():
            with torch.no_grad():
                parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
        model = model.to(getattr(torch, dtype))
        config = ModelConfig.parse({**theirs.to_dict(), "dtype": dtype}, name)
        _references[key] = Reference(model, config, dict(model.state_dict()))
    return _references[key]


class Pipeline:
    """Our model in stages, each with its own KV cache; blocks are handed out in shuffled order."""

    def __init__(self, made: Reference, counts: list[int], pack: bool = True) -> None:
        ends = np.cumsum(counts).tolist()
        ranges = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self.stages = []
        for layers in ranges:
            tensors = {name: made.tensors[name] for name in stage_tensor_names(made.config, layers)}
            self.stages.append(StageModel(made.config, layers, tensors, pack))
        some = next(iter(made.tensors.values()))
        self.kvs = [
            KvCache.allocate(made.config, layers, NUM_BLOCKS, BLOCK_SIZE, some.dtype, "cpu") for layers in ranges
        ]
        self._free = np.random.default_rng(3).permutation(NUM_BLOCKS).tolist()
        self.tables: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}

    def step(self, chunks: dict[str, list[int]]) -> dict[str, Any]:
        """Logits [len(chunk), vocab] of each sequence, after the tokens that it computes now."""
        computed = [self.computed.get(name, 0) for name in chunks]
        for (name, chunk), before in zip(chunks.items(), computed, strict=True):
            table = self.tables.setdefault(name, [])
            while len(table) * BLOCK_SIZE < before + len(chunk):
                table.append(self._free.pop())
            self.computed[name] = before + len(chunk)
        counts = [len(chunk) for chunk in chunks.values()]
        batch = attention_batch(counts, computed, [self.tables[name] for name in chunks], BLOCK_SIZE, "cpu")
        x = torch.tensor([token for chunk in chunks.values() for token in chunk])
        for stage, kv in zip(self.stages, self.kvs, strict=True):
            x = stage.forward(x, batch, kv)
        return dict(zip(chunks, self.stages[-1].logits(x).split(counts), strict=True))


def tokens(seed: int, count: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, VOCAB, count).tolist()
    return ids


def close(ours: Any, theirs: Any, tolerance: float = 1e-4) -> bool:
    assert theirs.abs().max() > 0.5  # the comparison means something
    return bool(((ours - theirs).abs() <= tolerance * theirs.abs().clamp(min=1)).all())


@pytest.mark.parametrize("counts", SPLITS, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_whole_prompt_and_single_steps(name: str, counts: list[int]) -> None:
    made, pipeline, ids = reference(name), Pipeline(reference(name), counts), tokens(1, 21)
    theirs = made.logits(ids)
    assert close(pipeline.step({"a": ids[:15]})["a"], theirs[:15])
    for at in range(15, 21):
        assert close(pipeline.step({"a": [ids[at]]})["a"], theirs[at : at + 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_sequences_share_steps_in_chunks_of_any_size(name: str) -> None:
    made, pipeline = reference(name), Pipeline(reference(name), [2, 2])
    ids = {sequence: tokens(seed, 60 if sequence == "c" else 30) for seed, sequence in enumerate("abcd")}
    theirs = {sequence: made.logits(ids[sequence]) for sequence in ids}
    cursor = dict.fromkeys(ids, 0)
    steps = [{"a": 7, "b": 1}, {"b": 5, "a": 1, "c": 40}, {"c": 1, "d": 12, "b": 9, "a": 1}, dict.fromkeys("dcba", 1)]
    steps += [{"a": 2, "d": 3}, dict.fromkeys("bcd", 1), {"c": 6, "b": 1, "d": 1}]
    for step in steps:
        chunks = {sequence: ids[sequence][cursor[sequence] :][:count] for sequence, count in step.items()}
        ours = pipeline.step(chunks)
        for sequence, count in step.items():
            assert close(ours[sequence], theirs[sequence][cursor[sequence] :][:count])
            cursor[sequence] += count


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", ["llama-bias", "llama-wide-heads", "qwen2", "opt", "falcon", "falcon-multi-head"])
def test_with_compiled_kernels_and_without(name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled and (reason := build()):
        pytest.skip(reason)
    if not compiled:
        monkeypatch.setattr(kernels, "_kernels", lambda: None)
    made, pipeline, ids = reference(name), Pipeline(reference(name), [1, 3]), tokens(3, 24)
    theirs = made.logits(ids)
    assert close(pipeline.step({"a": ids[:19], "b": ids[:1]})["a"], theirs[:19])
    for at in range(1, 5):
        both = pipeline.step({"b": [ids[at]], "a": [ids[18 + at]]})
        assert close(both["a"], theirs[18 + at : 19 + at]) and close(both["b"], theirs[at : at + 1])


@pytest.mark.parametrize("name", ["llama-gqa", "opt", "falcon", "falcon-new"])
def test_plain_matrices_give_what_packed_ones_do(name: str) -> None:
    ids = tokens(2, 11)
    assert close(Pipeline(reference(name), [4], pack=False).step({"a": ids})["a"], reference(name).logits(ids))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("name", ["llama-gqa", "opt", "falcon-new"])
def test_bfloat16_follows_float32_as_closely_as_transformers_does(name: str, pack: bool) -> None:
    half, ids = reference(name, "bfloat16"), tokens(2, 24)
    exact = Reference(None, half.config, {key: value.float() for key, value in half.tensors.items()})
    truth = Pipeline(exact, [4]).step({"a": ids})["a"]
    ours = (Pipeline(half, [2, 2], pack).step({"a": ids})["a"] - truth).abs().mean()
    assert ours <= 1.25 * (half.logits(ids) - truth).abs().mean()


def test_a_later_stage_leaves_its_input_as_it_is() -> None:
    made = reference("llama")
    layers = range(2, 4)
    model = StageModel(made.config, layers, made.tensors, pack=False)
    kv = KvCache.allocate(made.config, layers, 4, BLOCK_SIZE, torch.float32, "cpu")
    hidden = torch.randn(3, HIDDEN)
    before = hidden.clone()
    model.forward(hidden, attention_batch([3], [0], [[1]], BLOCK_SIZE, "cpu"), kv)
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("counts", SPLITS, ids=str)
def test_the_layout_names_what_transformers_stores(name: str, counts: list[int]) -> None:
    made = reference(name)
    ends = np.cumsum(counts).tolist()
    stages = [layout(made.config, range(end - count, end)) for end, count in zip(ends, counts, strict=True)]
    found = {tensor: shape for stage in stages for tensor, shape in stage}
    stored = {tensor: tuple(value.shape) for tensor, value in made.tensors.items()}
    if made.config.tied and len(counts) == 1:
        del stored["lm_head.weight"]
    assert found == stored
    assert sum(map(len, stages)) == len(found)  # no tensor in two stages


def test_fused_projections_are_adjacent_in_the_layout() -> None:
    names = stage_tensor_names(reference("llama-bias").config, range(1, 2))
    assert [name.split(".", 3)[3] for name in names[1:7]] == [
        *(f"self_attn.{part}_proj.weight" for part in "qkv"),
        *(f"self_attn.{part}_proj.bias" for part in "qkv"),
    ]
    assert names.index("model.layers.1.mlp.up_proj.weight") == names.index("model.layers.1.mlp.gate_proj.weight") + 1


@pytest.mark.parametrize("layers", [range(0), range(3, 5), range(-1, 2), range(0, 4, 2)])
def test_layers_that_the_model_has_not(layers: range) -> None:
    with pytest.raises(LiveError, match="not a part of a model of 4 layers"):
        layout(reference("llama").config, layers)


def test_tensors_that_do_not_fit() -> None:
    made = reference("llama")
    tensors = dict(made.tensors)
    tensors["model.norm.weight"] = torch.ones(HIDDEN + 1)
    with pytest.raises(LiveError, match=r"tensor model\.norm\.weight has shape \[65\], its config says \[64\]"):
        StageModel(made.config, range(4), tensors)
    del tensors["model.norm.weight"]
    with pytest.raises(LiveError, match=r"tensor model\.norm\.weight is missing"):
        StageModel(made.config, range(4), tensors)


def test_only_the_stages_at_the_ends_embed_and_score() -> None:
    made = reference("llama")
    middle = StageModel(made.config, range(1, 3), made.tensors)
    with pytest.raises(LiveError, match=r"layers 1\.\.3: only the last stage"):
        middle.logits(torch.zeros(1, HIDDEN))
    with pytest.raises(LiveError, match=r"layers 1\.\.3: only the first stage"):
        middle.embed(torch.zeros(1, dtype=torch.int64), attention_batch([1], [0], [[0]], BLOCK_SIZE, "cpu"))


def test_adjacent_matrices_fuse_without_a_copy() -> None:
    memory = torch.arange(60.0)
    a, b, c = memory[4:16].view(3, 4), memory[16:24].view(2, 4), memory[28:36].view(2, 4)
    view = fuse([a, b])
    assert view.data_ptr() == a.data_ptr() and torch.equal(view, torch.cat([a, b]))
    apart = fuse([a, b, c])
    assert apart.data_ptr() != a.data_ptr() and torch.equal(apart, torch.cat([a, b, c]))
    assert torch.equal(fuse([b, a]), torch.cat([b, a]))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_a_linear_layer(pack: bool, bias: bool, activation: Any) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 40, bias=bias)
    ours = Linear(plain.weight.detach(), plain.bias.detach() if bias else None, activation, pack)
    for rows in (1, 7):
        x, residual = torch.randn(rows, 24), torch.randn(rows, 40)
        with torch.inference_mode():
            expected = plain(x)
            if activation == "none":
                torch.testing.assert_close(ours.add_to(residual.clone(), x), residual + expected)
            else:
                expected = getattr(torch.nn.functional, activation)(expected)
            torch.testing.assert_close(ours(x), expected)
