"""What ``aebench serve`` makes of its flags, and how it refuses wrong ones."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the live extra: make test-live")
pytest.importorskip("starlette", reason="needs the live extra: make test-live")

from aebench.cli import Commands
from aebench.cli_serve import serve
from aebench.errors import UsageError
from aebench.machine import Accelerator
from aebench.service import room
from aebench.service.deployment import Serving, _prefix, engine_of
from serving.cost.profile import StepTable
from serving.live.fleet import WorkerOptions
from serving.policies import SYSTEMS
from serving.records import Record, RequestRecord
from serving.serve import build_control, simulated_backend
from serving.units import GB, MB
from tests.build import make_sequence
from tests.live.served import tiny_model

STEPS = StepTable(prefill=((1, 0.01),), decode=((1, 0.01),), context=0.0, pairs=0.0, hop=0.0, slowdown=(((1, 1.0),),))
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
        (["--kv-gb", "1e6"], "lower --kv-gb"),
        (["--kv-gb", "1e6", "--system", "llumnix"], "lower --kv-gb"),
        (["--kv-gb", "1e6", "--system", "hydraserve"], "lower --kv-gb"),
        (["--log-path", "/dev/null/logs"], "/dev/null/logs: Not a directory. Choose another folder with --log-path"),
        (["--log-path", "/proc/logs"], "Choose another folder with --log-path"),
        (["--log-path", "/proc"], "Choose another folder with --log-path"),
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


@pytest.mark.parametrize("system", [name for name in SYSTEMS if not name.endswith("cached_model")])
@pytest.mark.parametrize(("device", "kv_memory", "num_instances"), [("cpu", 6 * GB, 1), ("cuda", 60 * GB, 5)])
def test_what_is_not_refused_answers_a_request(
    monkeypatch: pytest.MonkeyPatch, system: str, device: str, kv_memory: float, num_instances: int
) -> None:
    monkeypatch.setattr(room, "host_memory", lambda: 8 * GB)
    monkeypatch.setattr(room, "accelerators", lambda: [Accelerator("H200", "143771 MiB")])
    told = serving(
        system=system, num_instances=num_instances, kv_memory=kv_memory, workers=WorkerOptions(device=device)
    )
    assert is_answered(told)


def is_answered(told: Serving) -> bool:
    """Whether the first request is answered within a minute of virtual time."""
    setup = engine_of(told)[0].setup.served
    clock, backend = simulated_backend(setup.testbed, 0, STEPS)
    records: list[Record] = []
    control = build_control(setup, backend, records.append)
    control.start()
    control.arrive(replace(make_sequence(10, 2).request, model="tiny"))
    clock.run(60.0)
    return any(isinstance(record, RequestRecord) and record.finished_at is not None for record in records)


@pytest.mark.parametrize("num_instances", [1, 2, 3, 5])
@pytest.mark.parametrize("knobs", [{"small_model": 1.0}, {"sizing": "fixed"}, {"sizing": "adaptive"}])
def test_groups_have_no_more_stages_than_there_are_servers(num_instances: int, knobs: dict[str, Any]) -> None:
    told = serving(system="hydraserve", num_instances=num_instances, knobs=knobs)
    assert is_answered(told)
    if "sizing" not in knobs:  # a number that is asked for is not changed
        with pytest.raises(UsageError, match=rf"stages need as many --replicas, got {num_instances}"):
            engine_of(replace(told, knobs={**knobs, "max_pipeline_size": num_instances + 1}))


@pytest.mark.parametrize(
    ("changes", "ram", "fits"),
    [
        ({"kv_memory": 9 * GB}, 10 * GB, True),
        ({"kv_memory": 9.9 * GB}, 10 * GB, False),  # with 5 % to spare, and weights
        ({"kv_memory": 9 * GB, "system": "hydraserve"}, 10.5 * GB, True),  # 9.5 GB, in whole ones
        ({"kv_memory": 9 * GB, "system": "hydraserve"}, 9.9 * GB, False),
        ({"kv_memory": 9 * GB, "num_stages": 2}, 10 * GB, True),  # half of it in each
        ({"kv_memory": 11 * GB, "num_stages": 2}, 10 * GB, False),
        ({"kv_memory": 9 * GB, "num_instances": 4}, 10 * GB, True),  # an instance at a time is looked at
    ],
)
def test_an_instance_has_to_fit_this_machine(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], ram: float, fits: bool
) -> None:
    monkeypatch.setattr(room, "host_memory", lambda: ram)
    if fits:
        engine_of(serving(**changes))
    else:
        with pytest.raises(UsageError, match=rf"one instance of tiny takes .* GB.*{ram / GB:.1f} GB.*lower --kv-gb"):
            engine_of(serving(**changes))


def test_weights_that_do_not_fit_are_not_the_caches_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "host_memory", lambda: 0.1 * MB)
    with pytest.raises(UsageError) as refusal:
        engine_of(serving(kv_memory=20_000))
    assert "--kv-gb" not in str(refusal.value) and "weights" in str(refusal.value)


@pytest.mark.parametrize("system", ["fixed_instances", "llumnix", "hydraserve", "serverless_vllm"])
def test_kv_on_a_gpu_takes_its_memory_and_not_the_hosts(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(room, "host_memory", lambda: 16 * GB)
    monkeypatch.setattr(room, "accelerators", lambda: [Accelerator("H200", "143771 MiB")])
    on_gpu = serving(system=system, kv_memory=120 * GB, workers=WorkerOptions(device="cuda"))
    engine, _ = engine_of(on_gpu)
    kind = engine.setup.testbed.servers[0][0]
    assert kind.gpu_memory > 120 * GB > 16 * GB
    with pytest.raises(UsageError, match=r"takes 15\d\.\d GB of --device cuda, which has 150\.8 GB: lower --kv-gb"):
        engine_of(replace(on_gpu, kv_memory=151 * GB))


def test_stages_of_an_instance_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "accelerators", lambda: [Accelerator("A10", "23028 MiB")] * 2)

    def told(num_stages: int, kv_memory: float) -> Serving:
        workers = WorkerOptions(device="cuda", num_devices=2)
        return serving(num_stages=num_stages, kv_memory=kv_memory, workers=workers)

    for num_stages, kv_memory in ((1, 20 * GB), (2, 40 * GB), (4, 40 * GB)):
        engine_of(told(num_stages, kv_memory))
    for num_stages, kv_memory in ((1, 40 * GB), (2, 60 * GB), (4, 60 * GB)):
        with pytest.raises(UsageError, match="lower --kv-gb"):
            engine_of(told(num_stages, kv_memory))


def test_a_driver_that_does_not_tell_a_gpus_memory_is_no_reason_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "accelerators", lambda: [Accelerator("GB10", "[N/A]")])
    engine_of(serving(kv_memory=500 * GB, workers=WorkerOptions(device="cuda")))


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
