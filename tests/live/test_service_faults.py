"""The service over the real engine: what its clients hear of faults, and that it goes on; nothing is leaked."""

import asyncio
import json
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the live extra: make test-live")
pytest.importorskip("starlette", reason="needs the live extra: make test-live")
pytest.importorskip("uvicorn", reason="needs the live extra: make test-live")
httpx = pytest.importorskip("httpx", reason="needs the live extra: make test-live")

from aebench.service.limits import Limits  # noqa: E402
from aebench.service.served_model import ServedModel  # noqa: E402
from aebench.service.server import Listener, Listening, bind, url_of  # noqa: E402
from aebench.service.service import Service  # noqa: E402
from serving.live import transport  # noqa: E402
from serving.live.engine import Engine  # noqa: E402
from serving.live.processes import start_prefetcher  # noqa: E402
from serving.live.setup import LiveRun, LiveSetup  # noqa: E402
from serving.units import MB  # noqa: E402
from tests.live.checkpoints import make_tiny  # noqa: E402
from tests.live.test_engine import WAIT, serving, until  # noqa: E402
from tests.live.test_faults import kill, nothing_is_left, on, setup_of  # noqa: E402, F401
from tests.live.test_service_fuzz import FIELDS, GOOD, ODD, RAW, check  # noqa: E402

pytestmark = pytest.mark.faults

SHORT = {"model": "tiny", "prompt": "ab", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
PATIENCE = 20.0
"""Seconds."""
LONG = {**SHORT, "max_tokens": 1500}


@dataclass(frozen=True)
class Served:
    """A real engine behind a real socket."""

    engine: Engine
    service: Service
    url: str
    port: int

    @property
    def run(self) -> LiveRun:
        assert self.engine._run is not None
        return self.engine._run

    def ask(self, body: dict[str, Any], path: str = "/v1/completions") -> Any:
        return httpx.post(f"{self.url}{path}", json=body, timeout=WAIT)

    def post(self, body: dict[str, Any]) -> socket.socket:
        """A connection that has sent a request and read nothing."""
        content = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", self.port))
        client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return client

    def idle(self) -> None:
        """Wait until nothing of any request is left."""
        until(self.engine, lambda s: s.kv_blocks_used == s.running == s.waiting == s.held == 0)
        wait_for(lambda: not self.service.generations)


def wait_for(true: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up, "it did not come true"
        time.sleep(0.01)


@contextmanager
def served(setup: LiveSetup, limits: Limits | None = None, on_demand: bool = False) -> Iterator[Served]:
    with serving(setup) as engine:
        model = ServedModel(name="tiny", vocab=512, max_context=2000, tokenizer=engine.tokenizers["tiny"])
        service = Service(engine, [model], limits=limits, starts_on_demand=on_demand)
        listening = Listening(port=0, drain_timeout=0.2)
        bound = bind(listening)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener = Listener(service, listening)
        ready = threading.Event()
        url, port = url_of(bound), bound.getsockname()[1]
        thread = threading.Thread(target=lambda: asyncio.run(listener.serve(bound, ready.set)))
        thread.start()
        try:
            assert ready.wait(WAIT)
            yield Served(engine, service, url, port)
        finally:
            listener.stop()
            thread.join(WAIT)
            assert not thread.is_alive()


def events(text: str) -> list[Any]:
    """The data of a stream, without its end."""
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]


def test_a_request_that_loses_three_workers_is_told_why_and_the_service_goes_on() -> None:
    with served(setup_of()) as server, ThreadPoolExecutor(2) as pool:
        before = server.ask(SHORT).json()["choices"]
        whole, stream = (pool.submit(server.ask, {**LONG, "stream": stream}) for stream in (False, True))
        for losses in range(3):
            until(server.engine, lambda stats: stats.running == 2)
            kill(server.engine, 0, 0)
            until(server.engine, lambda stats, seen=losses: stats.losses > seen)  # type: ignore[misc]
        answer, told = whole.result(), stream.result()
        assert answer.status_code == 503 and "Retry-After" in answer.headers
        # a stream that has begun ends with the error; one that lost its workers before the first token is a 503 as well
        assert told.status_code in (200, 503)
        last = events(told.text)[-1] if told.status_code == 200 else told.json()
        for error in (answer.json()["error"], last["error"]):
            assert "was killed by SIGKILL" in error["message"] and error["type"] == "service_unavailable_error"
        until(server.engine, lambda stats: stats.instances_ready == 1)
        assert answered_again(server) == before
        server.idle()


def answered_again(server: Served) -> Any:
    """The choices of a short request that is sent again for as long as a client would be told to try again."""
    until = time.monotonic() + WAIT
    while (answer := server.ask(SHORT)).status_code == 503 and time.monotonic() < until:
        assert "Retry-After" in answer.headers
        time.sleep(0.2)
    return answer.json()["choices"]


def stop_store(run: LiveRun, model: Path) -> None:
    del model
    os.kill(run.stores[0].process.pid, signal.SIGSTOP)


def go_on(run: LiveRun, model: Path) -> None:
    del model
    os.kill(run.stores[0].process.pid, signal.SIGCONT)


def kill_store(run: LiveRun, model: Path) -> None:
    del model
    os.kill(run.stores[0].process.pid, signal.SIGKILL)


def nothing(run: LiveRun, model: Path) -> None:
    """It mends itself."""
    del run, model


def flip(run: LiveRun, model: Path) -> None:
    """Other bits at the end of the file: the storage server serves what is there now."""
    del run
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-200_000, os.SEEK_END)
        flipped = bytes(255 - byte for byte in file.read(1000))
        file.seek(-200_000, os.SEEK_END)
        file.write(flipped)


@pytest.mark.parametrize(
    ("disturb", "mend", "said"),
    [
        (stop_store, go_on, r"storage server 127.0.0.1:\d+ sent nothing for 0.4 s: .* bytes of tiny, layers 0..4"),
        (kill_store, nothing, r"storage server 127.0.0.1:\d+.* bytes of tiny, layers 0..4, have arrived"),
        (flip, flip, r"storage server 127.0.0.1:\d+ sent garbage \(bytes [\d,]+ to [\d,]+ .*: [\d,]+ of [\d,]+ bytes"),
    ],
    ids=["stalls", "dies", "garbage"],
)
def test_a_storage_server_that_fails_mid_fetch_is_named_and_when_it_is_back_requests_are_served(
    disturb: Callable[[LiveRun, Path], object],
    mend: Callable[[LiveRun, Path], object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_tiny(tmp_path / "tiny", layers=4)
    monkeypatch.setattr(transport, "start_prefetcher", partial(start_prefetcher, stall_timeout=0.4))
    setup = on(setup_of(rate=1.6 * MB), model)
    with served(setup, on_demand=True) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.ask, SHORT)
        wait_for(lambda: any(fetch.arrival.received > 50_000 for fetch in server.run.transport.fetches))
        disturb(server.run, model)
        answer = asked.result()
        assert answer.status_code == 503, answer.text
        assert re.search(said, answer.json()["error"]["message"]), answer.text
        assert server.engine.stats().of("tiny").losses >= 3
        mend(server.run, model)
        wait_for(lambda: server.ask(SHORT).status_code == 200)
        server.idle()


def test_a_service_whose_starts_failed_tries_again_when_it_is_asked() -> None:
    """With fixed instances too, which are not started for ever."""
    with served(setup_of()) as server:
        server.run.stores[0].process.kill()
        wait_for(lambda: server.run.stores[0].process.poll() is not None)
        kill(server.engine, 0, 0)
        until(server.engine, lambda stats: stats.losses >= 3)
        answers = []
        wait_for(lambda: answers.append(server.ask(SHORT)) or answers[-1].status_code == 200)
        assert {answer.status_code for answer in answers} <= {200, 503}
        server.idle()


@pytest.fixture(scope="module", params=[1, 2], ids=["one stage", "two stages"])
def server(request: pytest.FixtureRequest) -> Iterator[Served]:
    """One instance with two seats, for tests that leave it idle."""
    with served(setup_of(1, request.param, max_sequences=2), Limits(stall_timeout=0.4)) as started:
        yield started


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_while_they_are_served_or_queued_leave_nothing(server: Served, stream: bool) -> None:
    clients = [server.post({**LONG, "stream": stream}) for _ in range(4)]
    stats = until(server.engine, lambda stats: stats.running == 2 and stats.held + stats.waiting == 2)
    assert stats.kv_blocks_used > 0
    for client in reversed(clients):  # the queued ones first
        client.close()
    server.idle()
    assert server.ask(SHORT).status_code == 200


def test_a_queued_client_that_leaves_does_not_disturb_those_that_are_served(server: Served) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.ask, {**SHORT, "max_tokens": 200}) for _ in range(2)]
        until(server.engine, lambda stats: stats.running == 2)
        server.post(LONG).close()
        assert [answer.result().json()["usage"]["completion_tokens"] for answer in asked] == [200, 200]
    server.idle()


def test_a_reader_that_stalls_is_hung_up_on_and_its_blocks_are_free(server: Served) -> None:
    stalled = server.post({**LONG, "stream": True, "logprobs": 5})
    until(server.engine, lambda stats: stats.kv_blocks_used > 0)
    server.idle()
    assert dict(server.engine.stats().of("tiny").finished)["abort"] > 0
    with pytest.raises(ConnectionResetError):
        while stalled.recv(1 << 20):
            pass
    stalled.close()
    assert server.ask(SHORT).status_code == 200


def fuzz() -> Iterator[tuple[str, bytes]]:
    """A few hundred bodies: every odd value once, spread over the fields; bytes that are no body; mangled bodies."""
    draw = random.Random("0/real fuzz")
    fields = [(path, name) for path in GOOD for name in FIELDS[path].model_fields]
    for index in range(6 * len(ODD)):
        path, name = fields[index % len(fields)]
        yield path, json.dumps({**GOOD[path], name: ODD[index % len(ODD)]}).encode()
    for path in GOOD:
        yield from ((path, body) for body in RAW)
    for _ in range(100):
        path = draw.choice(list(GOOD))
        body = bytearray(json.dumps(GOOD[path]).encode())
        place = draw.randrange(len(body))
        body[place : place + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
        yield path, bytes(body)


def test_malformed_bodies_are_answered_or_refused_and_leave_nothing(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(server.service.models["tiny"], max_context=40)  # some bodies ask for all that fits
    monkeypatch.setitem(server.service.models, "tiny", small)
    bodies = list(fuzz())
    assert len(bodies) > 400
    with httpx.Client(timeout=WAIT) as client:
        told = [
            check(client.post(server.url + path, content=body, headers={"Content-Type": "application/json"}))
            for path, body in bodies
        ]
    assert 20 < sum(told) < len(told) / 2
    server.idle()
    assert server.engine.stats().failure is None
    assert server.ask(SHORT).status_code == 200
