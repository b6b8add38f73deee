"""Checkpoint: what it hands out, and what it says of folders that are damaged or not as declared."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.live.checkpoint import Checkpoint, find, models_root
from serving.live.config import FAMILIES, ModelConfig
from serving.live.errors import LiveError
from serving.live.layout import layout
from tests.live.checkpoints import edit_header, edit_json, make_tiny

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers; tests only read it."""
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """The same, to be broken."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


def refused(folder: Path) -> str:
    with pytest.raises(LiveError) as caught:
        Checkpoint.open(folder)
    return str(caught.value).replace(str(folder), "F")


def test_bytes_are_those_that_safetensors_reads(tiny: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the live extra: make test-live")
    expected = safetensors.load_file(tiny / "model.safetensors")
    checkpoint = Checkpoint.open(tiny)
    part = checkpoint.part(range(2), "tiny")
    assert {entry.name for entry in part.tensors} == set(expected)
    for entry, buffer in zip(part.tensors, checkpoint.buffers(part), strict=True):
        assert entry.shape == expected[entry.name].shape
        assert bytes(buffer) == expected[entry.name].tobytes()
        assert buffer.readonly


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_two_parts_hold_every_layer_in_the_layout_s_order(family: str, cut: int, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_tiny(tmp_path / "m", f"{family}-tiny", layers=4))
    for layers in (range(cut), range(cut, 4)):
        part = checkpoint.part(layers, "m")
        assert [(entry.name, entry.shape) for entry in part.tensors] == layout(checkpoint.config, layers)
        assert [len(buffer) for buffer in checkpoint.buffers(part)] == [entry.num_bytes for entry in part.tensors]


def test_a_tied_head_of_a_later_stage_has_the_embedding_s_bytes(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_tiny(tmp_path / "m", "qwen2-tiny"))
    first, last = (checkpoint.part(layers, "m") for layers in (range(1), range(1, 2)))
    assert (first.tensors[0].name, last.tensors[-1].name) == ("model.embed_tokens.weight", "lm_head.weight")
    assert checkpoint.buffers(first)[0] == checkpoint.buffers(last)[-1]
    assert "lm_head.weight" not in [entry.name for entry in checkpoint.part(range(2), "m").tensors]


def test_spec_adds_up_to_the_part(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_tiny(tmp_path / "m", "opt-tiny", "bfloat16", layers=4))
    spec = checkpoint.spec("mine")
    assert (spec.slug, spec.bytes_per_value, spec.learned_positions) == ("mine", 2, 258)
    for layers in (range(4), range(2), range(2, 4)):
        assert spec.stage_bytes(layers) == checkpoint.part(layers, "mine").size
        assert len(spec.stage_tensors(layers)) == len(checkpoint.part(layers, "mine").tensors)
    assert spec.weight_bytes == checkpoint.part(range(4), "mine").size
    assert spec.layer_bytes == sum(e.num_bytes for e in checkpoint.part(range(1, 2), "m").tensors)
    assert [len(layers) for layers in spec.split(2)] == [2, 2]


def test_parts_of_layers_that_are_not_there_are_refused(tiny: Path) -> None:
    with pytest.raises(LiveError, match=r"layers 1\.\.3 are not a part of a model of 2 layers"):
        Checkpoint.open(tiny).part(range(1, 3), "tiny")


def test_layers_that_are_shared_have_the_same_bytes(tmp_path: Path) -> None:
    shared = Checkpoint.open(make_tiny(tmp_path / "shared", layers=3, share_layers=True))
    whole = Checkpoint.open(make_tiny(tmp_path / "whole", layers=3))
    assert shared.shared_layers and not whole.shared_layers
    first, last = (shared.buffers(shared.part(range(layer, layer + 1), "m")) for layer in (0, 2))
    assert first[1:] == last[:9]
    assert shared.part(range(3), "m") == whole.part(range(3), "m")
    assert whole.buffers(whole.part(range(1), "m")) == first


CONFIG_KEYS: list[tuple[str, Any, str]] = [
    (
        "intermediate_size",
        96,
        "F/model.safetensors, model.layers.0.mlp.gate_proj.weight: shape [128, 64], expected [96, 64]",
    ),
    ("dtype", "bfloat16", "F/model.safetensors, model.embed_tokens.weight: dtype float32, expected bfloat16"),
    ("num_hidden_layers", 3, "F: tensor model.layers.2.input_layernorm.weight is missing"),
    ("attention_bias", True, "F: tensor model.layers.0.self_attn.q_proj.bias is missing"),
    ("vocab_size", 513, "F/model.safetensors, model.embed_tokens.weight: shape [512, 64], expected [513, 64]"),
    ("pipeline", {"layers": [0, 3]}, "F/config.json, pipeline: layers 0..3 of 2; expected a part of them"),
    ("pipeline", {"layers": ["0", 3]}, 'F/config.json, pipeline: expected {"layers": [start, stop]}'),
    ("pipeline", "all", 'F/config.json, pipeline: expected {"layers": [start, stop]}'),
]


@pytest.mark.parametrize(("key", "value", "said"), CONFIG_KEYS)
def test_a_config_that_the_weights_contradict_names_the_tensor(copy: Path, key: str, value: Any, said: str) -> None:
    edit_json(copy / "config.json", lambda table: table.update({key: value}))
    assert refused(copy).startswith(said)


def drop(table: dict[str, Any]) -> None:
    """Without the last tensor of the file."""
    last = max((name for name in table if name != "__metadata__"), key=lambda name: table[name]["data_offsets"])
    del table[last]


HEADERS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (drop, "F/model.safetensors: 131072 bytes after the last tensor"),
    (lambda t: t.update({DOWN + "x": t.pop(DOWN)}), f"F: tensor {DOWN} is missing, its config.json implies it"),
    (lambda t: t[DOWN].update(shape=[128, 64]), f"F/model.safetensors, {DOWN}: shape [128, 64], expected [64, 128]"),
    (lambda t: t[DOWN].update(shape=[64, 127]), f"F/model.safetensors, {DOWN}: 32768 bytes, F32 [64, 127] takes 32512"),
    (lambda t: t[DOWN].update(dtype="I32"), f"F/model.safetensors, {DOWN}: dtype I32, expected float32"),
    (lambda t: t[DOWN].update(dtype="F64", shape=[64, 64]), f"F/model.safetensors, {DOWN}: shape [64, 64]"),
    (lambda t: t[DOWN].update(dtype="BF16", shape=[64, 256]), f"F/model.safetensors, {DOWN}: shape [64, 256]"),
    (lambda t: t[DOWN].update(data_offsets=[0, 32768]), "F/model.safetensors, model.embed_tokens.weight: starts at"),
    (lambda t: t[DOWN].update(data_offsets=[1 << 40, (1 << 40) + 32768]), f"F/model.safetensors, {DOWN}: ends at"),
    (lambda t: t[DOWN].update(data_offsets=7), f"F/model.safetensors, {DOWN}: header entry is broken"),
    (lambda t: t[DOWN].update(shape=[64.0, 128]), f"F/model.safetensors, {DOWN}: header entry is broken"),
    (lambda t: t[DOWN].pop("dtype"), f"F/model.safetensors, {DOWN}: header entry is broken"),
]


@pytest.mark.parametrize(("change", "said"), HEADERS, ids=range(len(HEADERS)))
def test_a_header_that_does_not_hold_together_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit_header(copy / "model.safetensors", change)
    assert refused(copy).startswith(said)


def test_one_tensor_of_another_dtype_is_named(copy: Path) -> None:
    """With its real number of bytes, as a file that was converted in part has it."""
    name = "model.norm.weight"

    def halve(table: dict[str, Any]) -> None:
        start, stop = table[name]["data_offsets"]
        table[name] |= {"dtype": "BF16", "data_offsets": [start, start + (stop - start) // 2]}
        table["rest"] = {"dtype": "BF16", "shape": [64], "data_offsets": [start + (stop - start) // 2, stop]}

    edit_header(copy / "model.safetensors", halve)
    assert refused(copy).startswith(f"F/model.safetensors, {name}: dtype bfloat16, expected float32")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda whole: whole[:-1], "F/model.safetensors, lm_head.weight: ends at byte"),
        (lambda whole: whole[: len(whole) // 2], "ends at byte"),
        (lambda whole: whole + b"\0", "F/model.safetensors: 1 bytes after the last tensor, expected none"),
        (lambda _: b"", "F/model.safetensors: 0 bytes, a safetensors file has at least 8"),
        (lambda whole: whole[:7], "F/model.safetensors: 7 bytes, a safetensors file has at least 8"),
        (lambda whole: whole[:100], "F/model.safetensors: its header claims"),
        (lambda whole: b"\xff" * 8 + whole[8:], "F/model.safetensors: its header claims 18446744073709551615 bytes"),
        (lambda whole: whole[:8] + b"x" + whole[9:], "F/model.safetensors: its header is not JSON"),
        (lambda whole: whole[:8] + b"\xff" + whole[9:], "F/model.safetensors: its header is not JSON"),
        (lambda _: (100_000).to_bytes(8, "little") + b"[" * 100_000, "F/model.safetensors: its header is not JSON"),
        (lambda _: b"\2" + bytes(7) + b"[]", "F/model.safetensors: its header is a JSON list, expected an object"),
    ],
)
def test_a_file_that_is_truncated_or_garbage_is_refused(
    copy: Path, content: Callable[[bytes], bytes], said: str
) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))
    assert said in refused(copy)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 255))
def test_a_damaged_header_is_refused_or_harmless(tiny: Path, tmp_path_factory: Any, place: int, flip: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    content = bytearray((tiny / "model.safetensors").read_bytes())
    content[place] ^= flip
    (folder / "model.safetensors").write_bytes(content)
    try:
        checkpoint = Checkpoint.open(folder)
    except LiveError:
        return
    part = checkpoint.part(range(2), "m")
    assert [len(buffer) for buffer in checkpoint.buffers(part)] == [entry.num_bytes for entry in part.tensors]


def test_what_is_missing_is_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert refused(copy) == "F/model.safetensors: no such file; the checkpoint is not complete"
    (copy / "config.json").unlink()
    assert refused(copy) == "F: not a checkpoint, it has no config.json"


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, "'../model.safetensors' is not a file in this folder"),
        ({"weight_map": {"a": ["model.safetensors"]}}, "is not a file in this folder"),
        ({"weight_map": []}, "expected an object 'weight_map'"),
        ({"weight_map": {"a": "model.safetensors"}}, "F/model.safetensors: tensor a is missing"),
        ({"weight_map": {"a": "model-2.safetensors"}}, "F/model-2.safetensors: no such file"),
        ([], "expected a JSON object, got list"),
    ],
)
def test_an_index_that_is_not_right_is_refused(copy: Path, index: Any, said: str) -> None:
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert said in refused(copy)


def test_names_are_found_under_the_models_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AEBENCH_MODELS", raising=False)
    assert models_root() == Path("models")
    monkeypatch.setenv("AEBENCH_MODELS", str(tiny.parent))
    assert find("tiny") == tiny
    assert find(str(tiny)) == tiny
    with pytest.raises(
        LiveError, match=r"tinny: no checkpoint there or under .* \(.* has tiny\)\. Make one: aebench model make"
    ):
        find("tinny")


def test_reading_needs_no_heavy_package(tiny: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from serving.live.checkpoint import Checkpoint\n"
        f"c = Checkpoint.open(Path({str(tiny)!r})); c.buffers(c.part(range(2), 'm')); c.spec('m').split(2)\n"
        "print([name for name in ('numpy', 'torch', 'safetensors', 'transformers') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


@pytest.mark.parametrize(
    ("written", "added"),
    [('{"eos_token_id": [2, 77, 78]}', (77, 78)), ('{"eos_token_id": 77}', (77,)), ("{}", ()), ("[1]", ()), ("{", ())],
)
def test_end_tokens_are_those_of_both_configs(copy: Path, written: str, added: tuple[int, ...]) -> None:
    edit_json(copy / "config.json", lambda table: table.update(eos_token_id=2))
    (copy / "generation_config.json").write_text(written)
    assert ModelConfig.read(copy).eos_token_ids == (2, *added)
