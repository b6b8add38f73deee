"""What ``aebench serve`` makes of its flags, and how it refuses wrong ones."""

import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the live extra: make test-live")
pytest.importorskip("starlette", reason="needs the live extra: make test-live")

from aebench.cli import Commands
from aebench.cli_serve import serve
from aebench.service.deployment import Serving, _prefix, engine_of
from serving.live.fleet import WorkerOptions
from serving.units import MB
from tests.live.served import tiny_model

CLI = Commands("aebench", commands={"serve": serve})


def serving(**changes: Any) -> Serving:
    told: dict[str, Any] = {"name": "tiny", "knobs": {}, "kv_memory": 1 * MB, "workers": WorkerOptions()}
    return Serving(folder=tiny_model(), **{**told, **changes})


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_an_instance_holds_the_context_that_clients_are_told(num_stages: int) -> None:
    engine, model = engine_of(serving(num_stages=num_stages, kv_memory=20_000))
    spec = engine.setup.deployments[0].spec
    num_blocks = 20_000 // (spec.kv_bytes_per_layer * spec.num_layers * 16)
    assert 0 < num_blocks * 16 == model.max_context < engine.checkpoints["tiny"].config.max_positions
    assert engine.setup.testbed.servers[0][1] == num_stages


def test_kv_memory_is_counted_in_the_type_that_is_computed_in() -> None:
    contexts = {
        dtype: engine_of(serving(kv_memory=20_000, workers=WorkerOptions(dtype=dtype)))[1].max_context
        for dtype in ("float32", "bfloat16")
    }
    assert contexts["float32"] < contexts["bfloat16"]


def test_more_memory_than_positions_does_not_lengthen_the_context() -> None:
    engine, model = engine_of(serving(kv_memory=10 * MB))
    assert model.max_context == engine.checkpoints["tiny"].config.max_positions


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--system", "hydraserv"], "no system 'hydraserv'. Did you mean"),
        (["--system", "hydraserve", "--stages", "2"], "hydraserve decides itself on stages: leave them out"),
        (["--stages", "5"], "cannot make 5 stages; ask for fewer: --stages"),
        (["--kv-gb", "1e-9"], "raise --kv-gb"),
        (["--host", "no.such.host.invalid"], "give an address of this machine: --host"),
    ],
)
def test_wrong_flags_are_one_clear_error(words: list[str], said: str) -> None:
    result = CliRunner().invoke(CLI, ["serve", "--model", str(tiny_model()), "--port", "0", *words])
    assert result.exit_code == 2
    assert result.output.startswith("Error: ") and said in result.output and "Traceback" not in result.output


def test_a_folder_without_a_checkpoint_and_a_port_in_use_are_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(CLI, ["serve", "--model", str(tmp_path), "--port", "0"])
    assert result.exit_code == 2 and "not a checkpoint" in result.output
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["serve", "--model", str(tiny_model()), "--port", str(taken.getsockname()[1])]
        result = CliRunner().invoke(CLI, words)
    assert result.exit_code == 2 and "already in use; choose another: --port" in result.output


def test_texts_begin_with_what_the_tokenizer_puts_before_them(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the live extra: make test-live")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert _prefix(tmp_path, 0) == ()
    made.save(str(tmp_path / "tokenizer.json"))
    assert _prefix(tmp_path, 0) == (0,)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert _prefix(tmp_path, 0) == ()
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert _prefix(tmp_path, 5) == (5,)


def test_a_model_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model()
    monkeypatch.setenv("AEBENCH_MODELS", str(folder.parent))
    words = ["serve", "--model", folder.name, "--port", "0", "--kv-gb", "1e-9"]
    assert "raise --kv-gb" in CliRunner().invoke(CLI, words).output
