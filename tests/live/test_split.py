"""Pipeline parts on disk: together they are the checkpoint, and each is a checkpoint of its layers."""

import json
from pathlib import Path

import pytest

from serving.live.checkpoint import Checkpoint
from serving.live.config import FAMILIES
from serving.live.errors import LiveError
from serving.live.split import split_checkpoint
from serving.live.summary import summary
from tests.live.checkpoints import edit_json, make_tiny


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_stages_have_the_bytes_of_the_parts(family: str, num_stages: int, tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "m", f"{family}-tiny", layers=24)
    whole = Checkpoint.open(source)
    stages = split_checkpoint(source, num_stages, tmp_path / "out")
    assert [stage.folder.name for stage in stages] == [f"stage{i}-of-{num_stages}" for i in range(num_stages)]
    assert [stage.part.layers for stage in stages] == list(whole.spec("m").split(num_stages))
    for stage in stages:
        held = Checkpoint.open(stage.folder)
        assert held.layers == stage.part.layers
        assert held.part(held.layers, "m") == stage.part
        assert held.buffers(stage.part) == whole.buffers(stage.part)
        assert held.config == whole.config


def test_a_stage_is_a_safetensors_file_in_canonical_order_with_its_tokenizer(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="needs the live extra: make test-live")
    source = make_tiny(tmp_path / "m", layers=4)
    _, last = split_checkpoint(source, 2, tmp_path / "out")
    with safetensors.safe_open(last.folder / "model.safetensors", "np") as file:
        assert list(file.offset_keys()) == [entry.name for entry in last.part.tensors]
    assert json.loads((last.folder / "config.json").read_text())["pipeline"] == {"layers": [2, 4]}
    assert (last.folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_shared_layers_become_their_own_bytes(tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "m", layers=4, share_layers=True)
    whole = Checkpoint.open(source)
    for stage in split_checkpoint(source, 2, tmp_path / "out"):
        held = Checkpoint.open(stage.folder)
        assert not held.shared_layers
        assert held.buffers(stage.part) == whole.buffers(stage.part)


def test_a_stage_does_not_hand_out_layers_that_it_lacks(tmp_path: Path) -> None:
    _, last = split_checkpoint(make_tiny(tmp_path / "m", layers=4), 2, tmp_path / "out")
    held = Checkpoint.open(last.folder)
    with pytest.raises(LiveError, match=r"holds layers 2\.\.4 of a pipeline, asked for 1\.\.3"):
        held.part(range(1, 3), "m")
    edit_json(last.folder / "config.json", lambda table: table.pop("pipeline"))
    with pytest.raises(LiveError, match=r"tensor model\.embed_tokens\.weight is missing"):
        Checkpoint.open(last.folder)


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "m", layers=4)
    with pytest.raises(LiveError, match="m has 4 layers and cannot make 5 stages"):
        split_checkpoint(source, 5, tmp_path / "out")
    stage, _ = split_checkpoint(source, 2, tmp_path / "out")
    with pytest.raises(LiveError, match=r"is a pipeline part \(layers 0\.\.2 of 4\); split the whole checkpoint"):
        split_checkpoint(stage.folder, 2, tmp_path / "again")
    for out in (source, tmp_path):
        with pytest.raises(LiveError, match="holds the checkpoint that is to be split"):
            split_checkpoint(source, 2, out, force=True)
    with pytest.raises(LiveError, match="exists and is not empty"):
        split_checkpoint(source, 2, tmp_path / "out")
    split_checkpoint(source, 4, tmp_path / "out", force=True)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_summary_says_what_a_checkpoint_is(tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "m", layers=4, share_layers=True)
    assert summary(source).replace(str(source), "F").splitlines() == [
        "F: llama, 4 layers",
        "  hidden 64, 4 heads of 16, 2 KV heads, FFN 128, vocabulary 512, context 2048",
        "  0.2 million parameters, 0.85 MB of float32, all layers in the bytes of one",
        "  stages   layers and size of each",
        "       1   0..4: 0.85 MB",
        "       2   0..2: 0.43 MB   2..4: 0.43 MB",
        "       3   0..1: 0.28 MB   1..3: 0.30 MB   3..4: 0.28 MB",
        "       4   0..1: 0.28 MB   1..2: 0.15 MB   2..3: 0.15 MB   3..4: 0.28 MB",
    ]
    stage, _ = split_checkpoint(source, 2, tmp_path / "out")
    assert summary(stage.folder).splitlines()[0] == f"{stage.folder}: llama, 4 layers, 0..2 of them here"
