"""What live points need is seen to before any runs, and what their checkpoints are like is in their specs."""

import json
import shutil
import struct
from pathlib import Path

import pytest

from aebench import live_point, machine
from aebench.catalog import Catalog
from aebench.errors import UsageError
from aebench.execute import deployments, model_specs, setup
from aebench.live_point import prepared
from aebench.point import Point
from aebench.workloads import evicting
from aebench.world import World
from serving.live.config import DTYPES, ModelConfig
from serving.live.layout import layout
from tests.aebench.checkout import Checkout, make_checkout

SMALL = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
STORED = {"float32": "F32", "bfloat16": "BF16"}


def write_checkpoint(folder: Path, dtype: str = "float32", layers: int = 4) -> None:
    """A checkpoint of zeros."""
    folder.mkdir(parents=True)
    table = {**SMALL, "num_hidden_layers": layers, "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(table))
    header, end = {}, 0
    for name, shape in layout(ModelConfig.parse(table, "test"), range(layers)):
        size = DTYPES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": STORED[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of models, and a machine that lacks nothing else."""
    monkeypatch.setenv("AEBENCH_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(machine, "absent_packages", lambda *_: [])
    live_point._mark.cache_clear()
    live_point._checkpoint.cache_clear()
    return tmp_path / "models"


def live_points(device: str = "cpu") -> list[Point]:
    return Catalog().experiment("hydraserve/cold_start", world=World("live", device)).points([0])


def test_a_missing_checkpoint_says_what_to_type(models: Path) -> None:
    with pytest.raises(
        UsageError, match=f"no checkpoint smollm2-135m under {models}. Run: aebench model import {models}"
    ):
        prepared(live_points(), "cpu")


def test_a_model_without_a_package_is_made_at_random(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "accelerators", lambda: ["one"])
    monkeypatch.setattr(machine.metadata, "version", lambda _: "2.13.0")
    with pytest.raises(UsageError, match=f"aebench model make {models}/llama2-7b --like llama2-7b --share-layers"):
        prepared(live_points("cuda"), "cuda")


def test_missing_packages_come_first_with_the_command_that_installs_them(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del models
    monkeypatch.setattr(machine, "absent_packages", lambda *_: ["torch"])
    with pytest.raises(UsageError, match=r"needs torch, not installed here. Run: pip install 'aebench\[live\]'"):
        prepared(live_points(), "cpu")


def test_cuda_without_a_device_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del models
    monkeypatch.setattr(machine, "accelerators", list)
    with pytest.raises(UsageError, match="--device cuda: nvidia-smi shows no CUDA device"):
        prepared(live_points("cuda"), "cuda")


def test_a_torch_that_knows_no_cuda_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del models
    monkeypatch.setattr(machine, "accelerators", lambda: ["one"])
    monkeypatch.setattr(machine.metadata, "version", lambda _: "2.13.0+cpu")
    with pytest.raises(UsageError, match=r"torch 2.13.0\+cpu is built for the CPU only. Expected a CUDA build"):
        prepared(live_points("cuda"), "cuda")


def test_workers_are_dealt_out_over_every_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "accelerators", lambda: ["one", "two"])
    assert (machine.num_devices("cuda"), machine.num_devices("cpu")) == (2, 1)


def test_a_service_without_its_packages_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "absent_packages", lambda names: list(names))
    with pytest.raises(UsageError, match=r"aebench serve needs starlette, uvicorn, not installed here"):
        machine.check_service("aebench serve")


def test_weights_of_another_type_than_declared_are_refused(models: Path) -> None:
    write_checkpoint(models / "smollm2-135m", "bfloat16")
    with pytest.raises(UsageError, match=r"declared as float32, checkpoint .* has bfloat16. .* --dtype float32"):
        prepared(live_points(), "cpu")


def test_another_checkpoint_makes_other_points(models: Path) -> None:
    write_checkpoint(models / "smollm2-135m")
    first = prepared(live_points(), "cpu")[0].digest
    assert prepared(live_points(), "cpu")[0].digest == first
    shutil.rmtree(models / "smollm2-135m")
    write_checkpoint(models / "smollm2-135m", layers=5)
    live_point._mark.cache_clear()
    live_point._checkpoint.cache_clear()
    assert prepared(live_points(), "cpu")[0].digest != first


def test_sizes_of_live_points_are_those_of_the_checkpoint(models: Path) -> None:
    write_checkpoint(models / "smollm2-135m")
    spec = prepared(live_points(), "cpu")[1].spec
    found = model_specs(spec)
    assert [model.num_layers for model in found.values()] == [4, 4]
    assert [deployment.spec.hidden for deployment in setup(spec, 0).deployments] == [16, 16]
    assert evicting(spec, deployments(spec)) == ["smollm2-135m-twin"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which nothing may run."""
    return make_checkout(tmp_path_factory.mktemp("live"))


def test_a_run_without_its_checkpoint_is_one_message_and_writes_nothing(models: Path, checkout: Checkout) -> None:
    del models
    said = checkout.refusal(checkout.run("figure7", "--backend", "live"))
    assert said.startswith("Error: --backend live: no checkpoint smollm2-135m under ")
    assert not checkout.logs.exists()


def test_a_checkpoint_of_the_users_is_made_in_a_known_shape_and_the_declared_type(models: Path) -> None:
    settings = [f"deployments.{name}.checkpoint=mine" for name in ("smollm2-135m", "smollm2-135m-twin")]
    world = World("live", "cpu")
    points = Catalog().experiment("hydraserve/cold_start", settings=settings, world=world).points([0])
    said = f"Run: aebench model make {models}/mine --like smollm2-135m --share-layers --dtype float32"
    with pytest.raises(UsageError, match=said):
        prepared(points, "cpu")


def test_a_sequence_longer_than_its_checkpoint_has_positions_for_is_refused(models: Path) -> None:
    write_checkpoint(models / "smollm2-135m")
    settings = ["grid.seq_len=256,512", "grid.method=migration"]
    points = Catalog().experiment("llumnix/migration", settings=settings, world=World("live", "cpu")).points([0])
    said = (
        "llumnix/migration with architecture=smollm2-135m, method=migration, seq_len=256 has sequences of 296 tokens, "
        "checkpoint smollm2-135m has positions for 64"
    )
    with pytest.raises(UsageError, match=said):
        prepared(points, "cpu")
    limit = ["workload.prompt.tokens=32", "workload.output.tokens=32", "grid.seq_len=40", "workload.num_requests=1"]
    limit = [*limit, "when.seq_len.40.measure.drop_largest=0", "grid.method=migration"]
    fits = Catalog().experiment("llumnix/migration", settings=limit, world=World("live", "cpu")).points([0])
    assert len(prepared(fits, "cpu")) == 1
