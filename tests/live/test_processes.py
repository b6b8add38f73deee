"""The protection of a live run against its own processes' deaths, and what is kept of their output."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.live import frames, processes
from serving.live.errors import LiveError
from serving.live.processes import LOG_FILE_LIMIT, TAIL_LIMIT, LiveProcess, StorageProcess, spawn_module
from serving.live.store_link import OnSpawn, StoreLink
from tests.live.fetching import MODEL, fresh_run_id, make_small, regions
from tests.live.served import left_over

CONTROL = """
import sys
from pathlib import Path
from serving.live.frames import recv_frame, send_frame
from serving.live.processes import start_prefetcher, start_storage
model, folder, run_id = sys.argv[1:]
storage = start_storage({model: Path(folder)}, link_rate=1e6)
prefetcher = start_prefetcher("server0", run_id)
order = {"op": "fetch", "id": 0, "store": list(storage.address), "link": "a", "model": model, "layers": [0, 4]}
send_frame(prefetcher.socket, {**order, "region": f"aebench-{run_id}-0"})
recv_frame(prefetcher.socket)
print(storage.process.pid, prefetcher.process.pid, storage.address[1], flush=True)
recv_frame(prefetcher.socket)
sys.stdin.read()
"""


def wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until, "a child outlived the control process"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_children_and_regions_go_when_control_is_killed(tmp_path: Path) -> None:
    run_id = fresh_run_id()
    control = subprocess.Popen(
        [sys.executable, "-c", CONTROL, MODEL, str(make_small(tmp_path)), run_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert control.stdin is not None and control.stdout is not None
    with control.stdin, control.stdout:
        *pids, port = (int(word) for word in control.stdout.readline().split())
        assert all(alive(pid) for pid in pids)
        assert len(regions(run_id)) == 1
        control.send_signal(signal.SIGKILL)
        control.wait(10)
        wait_until_gone(pids)
    assert regions(run_id) == []
    socket.create_server(("127.0.0.1", port)).close()


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_output_is_kept_to_its_end_here_and_from_its_start_in_a_capped_file(on_path: Path) -> None:
    (on_path / "loud.py").write_text("print('first')\nfor n in range(100_000): print(f'line {n:6}')\nprint('last')\n")
    live = spawn_module("loud", "loud child", log_path=on_path / "log")
    live.process.wait(60)
    live.stop()
    written = (on_path / "log").read_bytes()
    assert len(written) == LOG_FILE_LIMIT
    assert written.startswith(b"first\nline      0\n")
    assert live.log.tail().endswith("line  99999\nlast")
    assert len(live.log.tail()) <= TAIL_LIMIT


def test_a_child_that_fails_is_described_by_its_last_line(on_path: Path) -> None:
    (on_path / "broken.py").write_text("import os\nraise RuntimeError(os.environ['WHY'])\n")
    live = spawn_module("broken", "worker 3.0", env={"WHY": "no luck"})
    live.process.wait(60)
    live.stop()
    assert live.obituary() == f"worker 3.0 (process {live.pid}) ended with exit code 1: RuntimeError: no luck"


def test_a_child_that_does_not_listen_is_killed_whatever_it_does_about_signals(on_path: Path) -> None:
    (on_path / "deaf.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n"
    (on_path / "stubborn.py").write_text(stubborn + "time.sleep(600)\n")
    for module in ("deaf", "stubborn"):
        live = spawn_module(module, module)
        until = time.monotonic() + 60
        while live.log.tail() != "up" and time.monotonic() < until:
            time.sleep(0.01)
        live.stop(grace=0.2)
        assert live.process.returncode == -signal.SIGKILL
        assert not live.running


def test_a_child_has_a_process_group_of_its_own_and_imports_nothing_from_the_working_directory(
    on_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "json.py").write_text("raise SystemExit('json of the working directory')\n")
    (on_path / "child.py").write_text(
        "import os, serving.live.frames as f; print(os.getpgrp() == os.getpid(), f.__file__)"
    )
    monkeypatch.chdir(elsewhere)
    live = spawn_module("child", "child")
    live.process.wait(60)
    live.stop()
    assert live.log.tail() == f"True {frames.__file__}"


@pytest.mark.parametrize("broken", ["socket.socketpair", "subprocess.Popen", "threading.Thread"])
def test_a_system_without_room_for_a_child_is_one_message_and_leaves_nothing(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise RuntimeError("can't start new thread") if "Thread" in broken else OSError(24, "Too many open files")

    before = len(list(Path("/proc/self/fd").iterdir())), left_over()
    module, name = broken.split(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(processes, module), name, full)
        with pytest.raises(LiveError, match=r"worker 1\.0: cannot start .*(Too many open files|new thread)"):
            spawn_module("serving.live.worker", "worker 1.0")
    assert (len(list(Path("/proc/self/fd").iterdir())), left_over()) == before


def test_closing_does_not_wait_for_a_storage_server_that_reads_its_checkpoints(on_path: Path) -> None:
    (on_path / "reading.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    starts: list[LiveProcess] = []

    def start(on_spawn: OnSpawn) -> StorageProcess:
        live = spawn_module("reading", "storage server")
        starts.append(live)
        if len(starts) > 1:
            on_spawn(live)
            live.process.wait(60)
            live.stop()
            raise LiveError("it did not start")
        return StorageProcess(live=live, address=("127.0.0.1", 1))

    link = StoreLink(start)
    starts[0].process.kill()
    until = time.monotonic() + 60
    while len(starts) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    began = time.monotonic()
    link.close()
    assert time.monotonic() - began < 5
    assert len(starts) == 2 and not any(live.running for live in starts)
