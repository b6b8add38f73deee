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


def test_knobs_reach_the_system_and_its_scheduler() -> None:
    knobs = {"migrate_threshold": 40.0, "max_sequences": 5, "batching": {"chunked_prefill": True}}
    told = serving(system="llumnix", num_instances=3, knobs=knobs)
    engine, _ = engine_of(told)
    config = engine.setup.system.config
    assert (config.num_instances, config.migrate_threshold, config.max_sequences) == (3, 40.0, 5)
    assert config.batching.chunked_prefill and config.batching.watermark == 0.01
    assert engine.setup.testbed.servers[0][1] == 3 and not told.starts_on_demand


@pytest.mark.parametrize("system", ["llumnix", "llumnix-base", "infaas++", "round-robin", "fixed_instances"])
def test_systems_that_keep_instances_have_the_memory_that_was_asked_for(system: str) -> None:
    told = serving(system=system, kv_memory=20_000)
    expected = engine_of(serving(kv_memory=20_000))
    engine, model = engine_of(told)
    assert model.max_context == expected[1].max_context
    assert engine.setup.testbed == expected[0].setup.testbed


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
        (["--system", "llumnix", "--stages", "2"], "llumnix decides itself on stages: leave them out"),
        (["--system", "hydraserve", "--max-sequences", "2"], "hydraserve decides itself on max_sequences"),
        (["--set", "policy.num_instances=3"], "--set policy.num_instances: expected --replicas instead"),
        (["--set", "interval=3"], "--set interval=3: expected policy.KEY=VALUE, for example"),
        (["--set", "policy.intervall=3"], "unknown knob of fixed_instances 'intervall'. Did you mean interval?"),
        (["--set", "policy.interval=soon"], "--set, policy.interval: expected a number, got 'soon'"),
        (["--set", "policy.batching=1"], "--set, policy.batching: expected a table, got 1"),
        (["--set", "policy.num_stages=a=b"], "expected --stages instead"),
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
