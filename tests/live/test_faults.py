"""Processes that are killed and checkpoints that are damaged: answers stay the same, or one message says why not."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the live extra: make test-live")

from aebench import live_point
from serving.live import processes
from serving.live.engine import Engine
from serving.live.errors import LiveError
from serving.live.fleet import WorkerOptions
from serving.live.output import Output
from serving.live.setup import LiveSetup
from serving.live.store_link import StoreLink
from serving.units import MB
from tests.aebench.checkout import Checkout, make_checkout
from tests.live.checkpoints import edit_header, edit_json, make_tiny
from tests.live.served import fixed, left_over, live_setup, small_testbed
from tests.live.test_engine import PROMPTS, WAIT, answers, ask, serving, until
from tests.live.test_processes import alive, wait_until_gone

pytestmark = pytest.mark.faults

LENGTH = 100
"""Output tokens: long enough to be in the middle of."""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process, region, socket file or listening port outlives a test, but for those of the module's fixtures."""
    before = {*left_over(), *listening()}
    yield
    assert {*left_over(), *listening()} <= before


def listening() -> set[str]:
    """Inodes of the sockets that listen on a port, of any process that this one may look into."""
    mine = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            mine.add(os.readlink(link))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine}


def setup_of(num_instances: int = 1, num_stages: int = 1, rate: float = 200 * MB, **changes: Any) -> LiveSetup:
    testbed = small_testbed(num_instances * num_stages, exclusive=True, fetch_rate=rate)
    return live_setup(fixed(num_instances, num_stages, **changes), testbed, workers=WorkerOptions(max_blocks=128))


def kill(engine: Engine, index: int, rank: int) -> int:
    """Kill a worker of a ready instance; the instance's id."""
    run = engine._run
    assert run is not None
    instance = run.control.cluster.instances[index]
    link = run.fleet.link(instance.workers[rank])
    assert link is not None
    os.kill(link.live.pid, signal.SIGKILL)
    return instance.instance_id


@pytest.mark.parametrize(("num_instances", "num_stages", "rank"), [(2, 1, 0), (1, 2, 0)])
def test_requests_of_a_killed_worker_go_on_elsewhere_and_say_the_same(
    num_instances: int, num_stages: int, rank: int
) -> None:
    with serving(setup_of(num_instances, num_stages)) as engine:
        until(engine, lambda stats: stats.instances_ready == num_instances)
        undisturbed = answers(engine, PROMPTS, max_tokens=LENGTH)
        asked = [ask(engine, prompt, max_tokens=LENGTH)[1] for prompt in PROMPTS]
        assert all(heard.started.wait(WAIT) for heard in asked)
        assert not any(heard.ended.is_set() for heard in asked)
        kill(engine, 0, rank)
        assert {heard.last.finish_reason for heard in asked} == {"length"}
        assert [heard.ids for heard in asked] == undisturbed
        stats = until(engine, lambda stats: stats.instances_ready == num_instances)
        assert (stats.losses, stats.kv_blocks_used) == (1, 0)
        assert (stats.cold_starts, stats.consolidations) == (num_instances + 1, 0)


def test_a_worker_that_stops_answering_is_aborted_with_its_engine() -> None:
    """One that is stopped, not dead: ``close`` ends it all the same."""
    with serving(setup_of()) as engine:
        heard = ask(engine, PROMPTS[0], max_tokens=LENGTH)[1]
        assert heard.started.wait(WAIT)
        run = engine._run
        assert run is not None
        os.kill(run.fleet.links(run.control.cluster.instances[0])[0].live.pid, signal.SIGSTOP)
        engine.close()
        assert heard.last.finish_reason == "error"


CONTROL = """
import sys
from tests.live.test_faults import control
control(sys.argv[1])
"""


def control(moment: str) -> None:
    """A control process: prints its children, where it fetches from, and that it is time; then goes on for ever."""
    setup = setup_of(rate=0.2 * MB) if moment == "fetching" else setup_of(1, 2)
    engine = Engine(setup)
    engine.start()
    run = engine._run
    assert run is not None
    ready = {
        "fetching": lambda: any(fetch.arrival.received > 0 for fetch in run.transport.fetches),
        "ready": lambda: engine.stats().of("tiny").instances_ready == 1,
        "serving": lambda: engine.stats().of("tiny").output_tokens > 2,
    }
    if moment == "serving":
        engine.submit([1, 2, 3], model="tiny", max_tokens=1900, ignore_eos=True, on_output=quiet)
    while not ready[moment]():
        time.sleep(0.01)
    print(*(store.address[1] for store in run.stores), flush=True)
    sys.stdin.read()


def quiet(output: Output) -> None:
    """Nobody listens."""


def children_of(pid: int) -> list[int]:
    """All of a process's children, whichever thread started them."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


@pytest.mark.parametrize("moment", ["fetching", "ready", "serving"])
def test_nothing_outlives_a_control_process_that_is_killed(moment: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROL, moment], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    with process, process.stdin, process.stdout:
        ports = [int(port) for port in process.stdout.readline().split()]
        children = children_of(process.pid)
        files = [name for name in left_over(process.pid) if not name.startswith("process ")]
        assert ports and all(map(alive, children)) and len(children) >= 3
        assert files  # a region, or the sockets at which workers take KV
        process.kill()
    wait_until_gone(children)
    assert [path.name for path in (*Path("/dev/shm").glob("aebench-*"), *Path("/tmp").glob("aebench-*"))
            if f"-{process.pid}." in path.name] == []  # fmt: skip
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()


def test_a_prefetcher_that_dies_while_all_is_well_is_replaced_when_it_is_needed() -> None:
    with serving(setup_of()) as engine:
        expected = answers(engine, PROMPTS[:2])
        run = engine._run
        assert run is not None
        os.kill(run.transport.prefetchers[0].process.live.pid, signal.SIGKILL)
        assert answers(engine, PROMPTS[:2]) == expected
        kill(engine, 0, 0)
        assert answers(engine, PROMPTS[:2]) == expected
        assert engine.stats().of("tiny").losses <= 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint to be spoilt."""
    return make_tiny(tmp_path / "tiny", layers=4)


def on(setup: LiveSetup, folder: Path) -> LiveSetup:
    """The setup with the weights of a folder."""
    return replace(setup, checkpoints={"tiny": folder})


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)


def replace_by_another_model(folder: Path) -> None:
    other = make_tiny(folder.parent / "other", layers=2)
    for name in ("config.json", "model.safetensors"):
        copyfile(other / name, folder / "new")
        os.replace(folder / "new", folder / name)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, r"model\.safetensors.*ends at byte"),
        (replace_by_another_model, "tiny: deployed with other sizes than its checkpoint"),
    ],
)
def test_a_checkpoint_that_is_spoilt_while_it_is_served_is_refused(
    spoil: Callable[[Path], object], said: str, model: Path
) -> None:
    """What is loaded serves on; what would have to be loaded from it again is not."""
    with serving(on(setup_of(), model)) as engine:
        expected = answers(engine, PROMPTS[:2])
        whole = copytree(model, model.parent / "whole")
        spoil(model)
        run = engine._run
        assert run is not None
        before = where(run.stores[0])
        for store in run.stores:
            with suppress(ProcessLookupError):
                os.kill(store.process.pid, signal.SIGKILL)
        assert answers(engine, PROMPTS[:2]) == expected
        killed = "was killed by SIGKILL"
        while killed in (now := where(run.stores[0])) or now == before:
            time.sleep(0.01)
        kill(engine, 0, 0)
        until(engine, lambda stats: stats.instances_ready == 0)
        last = ask(engine, PROMPTS[0])[1].last
        assert last.finish_reason == "error"
        assert re.search(said, str(last.error)), last.error
        for name in ("config.json", "model.safetensors"):
            copyfile(whole / name, model / "new")
            os.replace(model / "new", model / name)
        found: list[list[int]] = []
        give_up = time.monotonic() + WAIT
        while not found:
            assert time.monotonic() < give_up
            heard = ask(engine, PROMPTS[0])[1]
            found = [heard.ids] if heard.last.finish_reason == "length" else []
        assert found == expected[:1]


def where(store: StoreLink) -> str:
    """Where it listens, or why nowhere."""
    try:
        return str(store.address)
    except LiveError as error:
        return str(error)


def other_shape(table: dict[str, Any]) -> None:
    table["model.norm.weight"]["shape"] = [8, 8]


def other_dtype(table: dict[str, Any]) -> None:
    table["model.norm.weight"]["dtype"] = "I32"


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (truncate, "model.safetensors, "),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 5000), "model.safetensors"),
    (lambda folder: edit_header(folder / "model.safetensors", other_dtype), "model.safetensors, model.norm.weight"),
    (lambda folder: edit_header(folder / "model.safetensors", other_shape), "model.safetensors, model.norm.weight"),
    (
        lambda folder: edit_header(folder / "model.safetensors", lambda table: table.pop("lm_head.weight")),
        "model.safetensors: 131072 bytes",
    ),
    (
        lambda folder: edit_json(folder / "config.json", lambda table: table.update(hidden_size=128)),
        "model.safetensors",
    ),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no such file"),
]
NAMES = ["truncated", "garbage", "dtype", "shape", "missing tensor", "other config", "no config", "no weights"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.mark.parametrize(("spoil", "said"), SPOILT, ids=NAMES)
def test_a_damaged_checkpoint_is_one_message_before_anything_starts(
    spoil: Callable[[Path], object],
    said: str,
    tmp_path: Path,
    checkout: Checkout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_tiny(tmp_path / "smollm2-135m")
    spoil(folder)
    monkeypatch.setenv("AEBENCH_MODELS", str(tmp_path))
    monkeypatch.setattr(processes.subprocess, "Popen", partial(pytest.fail, "a process was started"))
    live_point._mark.cache_clear()
    live_point._checkpoint.cache_clear()
    serve = checkout.refusal(checkout.aebench("serve", "--model", str(folder), "--port", "0"))
    run = checkout.refusal(checkout.run("figure7", "--backend", "live"))
    for message in (serve, run):
        assert message.startswith("Error: ") and said in message and str(folder) in message
        assert "Traceback" not in message and "\n" not in message
    assert not checkout.logs.exists()
