"""Random checkpoints: what decides the weights, what is written where, and what is refused before anything is."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.live import make
from serving.live.checkpoint import Checkpoint
from serving.live.errors import LiveError
from serving.live.make import make_checkpoint
from serving.live.new_folder import new_folder
from serving.live.rounding import narrow
from serving.live.shapes import SHAPES, Changes, config_table
from tests.live.checkpoints import make_tiny


def values(checkpoint: Checkpoint, name: str) -> np.ndarray:
    part = checkpoint.part(checkpoint.layers, "m")
    (entry,) = (entry for entry in part.tensors if entry.name == name)
    return np.frombuffer(checkpoint.bytes_of(entry), np.float32).reshape(entry.shape)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first, second, other = (make_tiny(tmp_path / name, seed=seed) for name, seed in (("a", 7), ("b", 7), ("c", 8)))
    names = sorted(path.name for path in first.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_known_values_stay_what_they_are(tmp_path: Path) -> None:
    """Published runs name a seed; its weights may not change with a version."""
    checkpoint = Checkpoint.open(make_tiny(tmp_path / "m", seed=3))
    found = values(checkpoint, "model.layers.1.self_attn.q_proj.weight")[0, :3]
    assert found.tolist() == pytest.approx(KNOWN, rel=1e-6)


KNOWN = [0.01477863546460867, -0.010439721867442131, 0.037993039935827255]


def test_weights_are_normal_and_norms_are_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_tiny(tmp_path / "m", "opt-tiny"))
    embedding = values(checkpoint, "model.decoder.embed_tokens.weight")
    assert embedding.std() == pytest.approx(0.02, rel=0.02) and abs(embedding.mean()) < 4e-4
    assert (values(checkpoint, "model.decoder.layers.1.final_layer_norm.weight") == 1).all()
    for name in ("self_attn.q_proj.bias", "final_layer_norm.bias", "fc1.bias"):
        bias = values(checkpoint, f"model.decoder.layers.1.{name}")
        assert 0.01 < bias.std() < 0.03
    first, second = (values(checkpoint, f"model.decoder.layers.{layer}.fc1.weight") for layer in (0, 1))
    assert (first != second).any()


def test_chunks_and_threads_leave_no_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "CHUNK", 1000)  # no divisor of any tensor's size
    checkpoint = Checkpoint.open(make_tiny(tmp_path / "m"))
    embedding = values(checkpoint, "model.embed_tokens.weight").reshape(-1)
    chunks = [embedding[start : start + 1000] for start in range(0, len(embedding), 1000)]
    assert len({chunk.tobytes() for chunk in chunks}) == len(chunks)
    assert all(0.01 < chunk.std() < 0.03 for chunk in chunks)


def test_large_checkpoints_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Checkpoint.open(make_tiny(tmp_path / "whole"))
    monkeypatch.setattr(make, "SHARD", 200_000)
    folder = make_tiny(tmp_path / "cut")
    files = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in files] == [f"model-0000{place}-of-00003.safetensors" for place in (1, 2, 3)]
    assert all(path.stat().st_size < 210_000 for path in files)
    cut = Checkpoint.open(folder)
    part = cut.part(range(2), "m")
    assert cut.buffers(part) == whole.buffers(part)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": part.size}


def test_shared_layers_are_written_once(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "m", layers=32, share_layers=True)
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 420_000
    assert Checkpoint.open(folder).part(range(32), "m").size > 4_000_000


@settings(deadline=None)
@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126),
        min_size=1,
    )
)
def test_bfloat16_is_rounded_to_the_nearest_even(numbers: list[float]) -> None:
    torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")
    exact = np.array(numbers, np.float32)
    expected = torch.from_numpy(exact.copy()).to(torch.bfloat16).view(torch.int16).numpy()
    assert (narrow(exact, "bfloat16").view(np.int16) == expected).all()


@pytest.mark.parametrize("like", ["llama-tiny", "qwen2-tiny", "opt-tiny", "falcon-tiny"])
def test_transformers_loads_what_is_made(like: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")
    transformers = pytest.importorskip("transformers", reason="needs the live extra: make test-live")
    folder = make_tiny(tmp_path / "m", like, "bfloat16")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.bfloat16
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Grüße, 世界"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|im_start|>user\nGrüße, 世界<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt)["input_ids"]
    assert max(ids) < 260 and ids[0] == 2
    assert tokenizer.decode(ids) == prompt
    assert tokenizer.decode([300, 4 + ord("!"), 511]) == " 300! 511"
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (model.config.eos_token_id, 0) == (3, 0)
    with torch.inference_mode():
        assert model(torch.tensor([ids])).logits.isfinite().all()


def test_every_shape_makes_a_config_of_its_size() -> None:
    from serving.live.config import ModelConfig
    from serving.live.layout import layout

    found = {}
    for like in SHAPES:
        config = ModelConfig.parse(config_table(like, Changes(), "bfloat16"), like)
        found[like] = round(sum(np.prod(s) for _, s in layout(config, range(config.num_layers))) / 1e6, 1)
    assert found["llama2-7b"] == 6738.4
    assert found["llama3-8b"] == 8030.3
    assert found["falcon-7b"] == 6921.7
    assert found["opt-6.7b"] == 6658.5
    assert found["qwen2-0.5b"] == 494.0
    assert found["smollm2-135m"] == 134.5
    assert found["llama-100m"] == 105.8


@pytest.mark.parametrize(
    ("like", "changes", "said"),
    [
        ("llama9", {}, "no shape 'llama9'. Known: opt-2.7b, "),
        ("llama2-7b", {"hidden": 100}, "hidden size 100 over 32 heads does not give heads of an even width"),
        ("llama3-8b", {"heads": 4}, "4 heads cannot share 8 KV heads"),
        ("opt-tiny", {"kv_heads": 2}, "OPT has as many KV heads as heads, 4"),
        ("falcon-tiny", {"kv_heads": 2}, "Falcon's attention has 1 KV head or 4"),
        ("llama-tiny", {"vocab": 259}, "the byte tokenizer has 260 tokens"),
        ("llama-tiny", {"layers": 0}, "layers is 0, expected 1 or more"),
    ],
)
def test_shapes_that_cannot_be_are_refused(like: str, changes: dict[str, int], said: str) -> None:
    with pytest.raises(LiveError) as caught:
        config_table(like, Changes(**changes), "float32")
    assert said in str(caught.value)


def test_full_attention_stays_full_with_other_heads() -> None:
    table = config_table("llama2-7b", Changes(hidden=512, heads=8), "float32")
    assert (table["num_attention_heads"], table["num_key_value_heads"]) == (8, 8)


@contextmanager
def refused(said: str) -> Iterator[None]:
    with pytest.raises(LiveError) as caught:
        yield
    assert said in str(caught.value)


def test_what_is_there_is_replaced_only_by_force_and_only_a_checkpoint(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "m", seed=1)
    before = (folder / "model.safetensors").read_bytes()
    with refused("exists and is not empty; choose another name, or replace it with --force"):
        make_tiny(folder, seed=2)
    assert (folder / "model.safetensors").read_bytes() == before
    make_tiny(folder, seed=2, force=True)
    assert (folder / "model.safetensors").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with refused("holds no checkpoint, so --force does not replace it"):
        make_tiny(tmp_path / "mine", force=True)
    with refused("is a file"):
        make_tiny(tmp_path / "mine" / "thesis.txt", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "mine"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    Checkpoint.open(make_tiny(tmp_path / "m"))


def test_a_full_disk_is_seen_before_writing(tmp_path: Path) -> None:
    with refused("GB are free there"), new_folder(tmp_path / "m", 10**18):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with refused("not written (No space left on device); nothing was left behind"):
        make_tiny(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_make_leaves_nothing(tmp_path: Path) -> None:
    program = (  # whoever started the tests in the background may have had this signal ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from tests.live.checkpoints import make_tiny\n"
        f"make_tiny(Path({str(tmp_path / 'm')!r}), 'llama-100m', layers=400)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while not any(path.stat().st_size > 10_000_000 for path in tmp_path.glob(".m.*.partial/*.safetensors")):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.iterdir()) == []


def test_made_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("m: cannot be written (File exists: "):
        make_checkpoint(tmp_path / "file" / "m", config_table("llama-tiny", Changes(), "float32"), seed=0)
