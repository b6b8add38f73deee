"""The service on real sockets: clients that leave, readers that stall, signals, ports."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the live extra: make test-live")
pytest.importorskip("uvicorn", reason="needs the live extra: make test-live")
httpx = pytest.importorskip("httpx", reason="needs the live extra: make test-live")

from aebench.service.limits import Limits  # noqa: E402
from aebench.service.server import Listener, Listening, bind, url_of  # noqa: E402
from aebench.service.service import Service  # noqa: E402
from tests.live.fake_engine import FakeEngine, tiny  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
COMPLETION = {"model": "tiny", "prompt": "ab", "max_tokens": 4, "seed": 0}
ENDLESS = {**COMPLETION, "max_tokens": 1_000_000, "stream": True}


@dataclass
class Served:
    """A server on a thread."""

    engine: FakeEngine
    service: Service
    url: str
    port: int

    def post(self, body: object) -> socket.socket:
        """A connection that has sent a request and read nothing."""
        client = socket.create_connection(("127.0.0.1", self.port))
        client.sendall(request_bytes(body))
        return client


def request_bytes(body: object) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return head.encode() + b"\r\n\r\n" + content


@contextmanager
def served(step_time: float = 0.0, width: int = 1, limits: Limits | None = None) -> Iterator[Served]:
    engine = FakeEngine(step_time=step_time, width=width)
    service = Service(engine, [tiny(max_context=2_000_000)], limits=limits)
    listening = Listening(port=0, drain_timeout=0.2)
    bound = bind(listening)
    listener = Listener(service, listening)
    ready = threading.Event()
    url, port = url_of(bound), bound.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(listener.serve(bound, ready.set)))
    thread.start()
    try:
        assert ready.wait(10)
        yield Served(engine, service, url, port)
    finally:
        listener.stop()
        thread.join(10)
        engine.close()
        assert not thread.is_alive()


def until(true: Callable[[], bool], timeout: float = 5.0) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + timeout
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def test_many_clients_stream_at_once() -> None:
    def ask(seed: int) -> str:
        body = {**COMPLETION, "stream": True, "max_tokens": 20, "seed": seed}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            return "".join(answer.iter_text())

    with served(step_time=0.002) as server, ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(64)))
        assert until(lambda: not server.service.generations)
    assert all(answer.count("data: ") == 21 and answer.endswith("data: [DONE]\n\n") for answer in answers)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_has_its_sequences_aborted_and_others_go_on(stream: bool) -> None:
    with served(step_time=0.005) as server:
        client = server.post({**ENDLESS, "stream": stream, "n": 2})
        assert until(lambda: len(server.engine.running) == 2)
        with httpx.stream("POST", f"{server.url}/v1/completions", json={**ENDLESS, "max_tokens": 40}) as other:
            client.close()
            assert until(lambda: server.engine.aborted == [0, 1])
            assert "".join(other.iter_text()).endswith("data: [DONE]\n\n")
        assert until(lambda: not server.service.generations)
        metrics = httpx.get(f"{server.url}/metrics").text
    assert 'aebench_sequences_finished_total{reason="abort"} 2\n' in metrics


def test_a_client_that_leaves_before_its_body_is_whole_costs_nothing() -> None:
    with served() as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(request_bytes(COMPLETION)[:-5])
        client.close()
        assert httpx.post(f"{server.url}/v1/completions", json=COMPLETION).status_code == 200
        assert len(server.engine.submitted) == 1


@pytest.mark.parametrize("limits", [Limits(stall_timeout=0.3), Limits(pending_outputs=50, stall_timeout=2.0)])
def test_a_reader_that_stalls_is_aborted_and_hung_up_on(limits: Limits) -> None:
    with served(step_time=0.001, width=20_000, limits=limits) as server:
        stalled = server.post(ENDLESS)
        assert until(lambda: server.engine.aborted == [0], 8.0)
        assert httpx.post(f"{server.url}/v1/completions", json=COMPLETION).status_code == 200
        assert until(lambda: not server.service.generations)
        with pytest.raises(ConnectionResetError):
            while stalled.recv(1 << 20):
                pass
        stalled.close()


def test_a_body_or_a_head_that_does_not_come_is_given_up() -> None:
    limits = Limits(body_timeout=0.2, header_timeout=0.4)
    with served(limits=limits) as server:
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(request_bytes(COMPLETION)[:-5])
        assert half.recv(65536).startswith(b"HTTP/1.1 408 ")
        silent = socket.create_connection(("127.0.0.1", server.port))
        silent.sendall(b"POST / HT")
        silent.settimeout(5)
        assert silent.recv(1) == b""
        half.close()
        silent.close()


def test_connections_are_kept_alive_and_no_http_is_answered_400() -> None:
    with served() as server, httpx.Client() as client:
        for _ in range(3):
            answer = client.post(f"{server.url}/v1/completions", json=COMPLETION)
            assert answer.status_code == 200 and "connection" not in answer.headers
        wrong = socket.create_connection(("127.0.0.1", server.port))
        wrong.sendall(b"\x16\x03\x01\x00\xff\x00\r\n\r\n")
        assert wrong.recv(65536).startswith(b"HTTP/1.1 400 ")
        wrong.close()


def test_an_engine_that_fails_ends_the_server() -> None:
    engine = FakeEngine()
    listening = Listening(port=0)
    engine.failure = "the policy raised"
    code = asyncio.run(Listener(Service(engine, [tiny()]), listening).serve(bind(listening), lambda: None))
    engine.close()
    assert code == 2


@contextmanager
def process(step_time: float, drain_timeout: float) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    command = [sys.executable, "-m", "tests.live.serve_fake", "0", str(step_time), str(drain_timeout)]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        yield started, started.stdout.readline().strip()
    finally:
        started.kill()
        started.wait()
        if started.stdout is not None:
            started.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish_and_ends_with_0(number: signal.Signals) -> None:
    with process(0.02, 10.0) as (server, url), ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, f"{url}/v1/completions", json={**COMPLETION, "max_tokens": 40})
        assert until(lambda: 'sequences_running{model="tiny"} 1' in httpx.get(f"{url}/metrics").text)
        server.send_signal(number)
        assert until(lambda: httpx.get(f"{url}/health").json() == {"status": "draining"})
        assert httpx.post(f"{url}/v1/completions", json=COMPLETION).status_code == 503
        assert running.result().json()["usage"]["completion_tokens"] == 40
        assert server.wait(10) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with process(0.05, 60.0) as (server, url), ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, f"{url}/v1/completions", json={**COMPLETION, "max_tokens": 60})
        assert until(lambda: 'sequences_running{model="tiny"} 1' in httpx.get(f"{url}/metrics").text)
        server.send_signal(signal.SIGTERM)
        assert until(lambda: httpx.get(f"{url}/health").json() == {"status": "draining"})
        server.send_signal(signal.SIGTERM)
        assert server.wait(2) == 128 + signal.SIGTERM
        assert running.exception() is not None or running.result().status_code == 503


def test_a_port_in_use_is_one_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "tests.live.serve_fake", str(port), "0", "1"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == f"Error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another: --port\n"
