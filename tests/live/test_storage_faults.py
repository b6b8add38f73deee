"""A storage server that dies, stalls or sends garbage: the fetch recovers or says why, and nothing is left behind."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from serving.live import fetch as fetching_module
from serving.live.arrivals import PagesAhead
from serving.live.errors import LiveError
from serving.live.fetch import Cancelled, Fetch, FetchEvents
from serving.live.frames import recv_frame, send_frame
from serving.live.part_stream import PartStream
from serving.live.shared_region import RegionError, SharedRegion, region_name
from serving.live.storage import little_endian
from tests.live.fetching import (
    Address,
    bytes_of,
    describe,
    fresh_run_id,
    make_small,
    order,
    promise,
    regions,
    storage_script,
    stream_of,
)

pytestmark = pytest.mark.faults

Script = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> PartStream:
    return stream_of(make_small(tmp_path_factory.mktemp("models")))


@pytest.fixture(autouse=True)
def run_id() -> Iterator[str]:
    before = threading.active_count()
    run_id = fresh_run_id()
    yield run_id
    assert regions(run_id) == []
    assert threading.active_count() == before


def run_fetch(store: Address, run_id: str, stall_timeout: float = 5.0) -> tuple[bytes, list[int]]:
    """What arrived, and the progress that was told."""
    told: list[int] = []
    region_bytes = []
    target = order(store, run_id)
    Fetch(target, FetchEvents(described=lambda _: None, progress=told.append), stall_timeout).run()
    with SharedRegion.open(target.region) as region:
        assert region.received == region.size
        region_bytes.append(bytes(region.data))
        region.unlink()
    return region_bytes[0], told


def serve_from(stream: PartStream, first: int, last: int | None, connection: socket.socket) -> None:
    """Serve bytes as asked, which must be from ``first`` on, and end after ``last``."""
    describe(connection, stream)
    offset, length = promise(connection)
    assert offset == first
    connection.sendall(bytes_of(stream)[offset : offset + length if last is None else last])
    if last is None:
        assert connection.recv(1) == b""


def failure(scripts: list[Script], run_id: str, stall_timeout: float = 5.0) -> str:
    with storage_script(*scripts) as store, pytest.raises(LiveError) as caught:
        run_fetch(store, run_id, stall_timeout)
    return str(caught.value).replace(f"{store[0]}:{store[1]}", "HOST")


def test_a_good_server_is_fetched_from(stream: PartStream, run_id: str) -> None:
    with storage_script(partial(serve_from, stream, 0, None)) as store:
        got, told = run_fetch(store, run_id)
    assert got == bytes_of(stream)
    assert told[-1] == stream.part.size


@pytest.mark.parametrize("cut", [1, 1_000_000, 3_333_333])
def test_a_server_that_dies_and_is_back_goes_on_where_it_was(stream: PartStream, run_id: str, cut: int) -> None:
    scripts = [partial(serve_from, stream, 0, cut), partial(serve_from, stream, cut, None)]
    with storage_script(*scripts) as store:
        got, told = run_fetch(store, run_id)
    assert got == bytes_of(stream)
    assert told == sorted(set(told))


def test_a_server_that_dies_for_good_is_named_with_what_came(stream: PartStream, run_id: str) -> None:
    error = failure([partial(serve_from, stream, 0, 1_000_000)], run_id)
    size = f"{stream.part.size:,}"
    assert error.startswith("no connection to storage server HOST")
    assert error.endswith(f": 1,000,000 of {size} bytes of small, layers 0..4, have arrived")


def test_a_server_that_dies_twice_is_given_up(stream: PartStream, run_id: str) -> None:
    scripts = [partial(serve_from, stream, 0, 1_000_000), partial(serve_from, stream, 1_000_000, 2_000_000)]
    error = failure([*scripts, partial(serve_from, stream, 2_000_000, None)], run_id)
    assert error.startswith("storage server HOST went away: 2,000,000 of")


def test_a_server_that_comes_back_with_other_weights_is_refused(stream: PartStream, run_id: str) -> None:
    def other(connection: socket.socket) -> None:
        recv_frame(connection)
        sums = bytearray(little_endian(stream.checksums))
        sums[0] ^= 1
        send_frame(connection, {"ok": True, "part": stream.part.to_json()}, sums)

    error = failure([partial(serve_from, stream, 0, 1_000_000), other], run_id)
    assert error.startswith("storage server HOST came back with other weights: 1,000,000 of")


@pytest.mark.parametrize("sent", [None, 0, 700_000])
def test_a_server_that_stalls_is_given_up_after_the_timeout(stream: PartStream, run_id: str, sent: int | None) -> None:
    ended = threading.Event()

    def stall(connection: socket.socket) -> None:
        if sent is not None:
            describe(connection, stream)
            promise(connection)
            connection.sendall(bytes_of(stream)[:sent])
        ended.wait(10)

    began = time.monotonic()
    with storage_script(stall) as store:
        with pytest.raises(LiveError) as caught:
            run_fetch(store, run_id, 0.3)
        ended.set()
    assert 0.3 <= time.monotonic() - began < 5
    assert "sent nothing for 0.3 s: " in str(caught.value)
    assert (f"{sent:,} of" if sent is not None else "no bytes") in str(caught.value)


@pytest.mark.parametrize("at", [0, 300_000, -1])
def test_a_flipped_bit_is_found_and_named_and_never_counted(stream: PartStream, run_id: str, at: int) -> None:
    damaged = bytearray(bytes_of(stream))
    damaged[at] ^= 1
    counted: list[int] = []

    def flip(connection: socket.socket) -> None:
        describe(connection, stream)
        promise(connection)
        connection.sendall(damaged)
        connection.recv(1)

    with storage_script(flip) as store, pytest.raises(LiveError, match="wrong checksum") as caught:
        Fetch(order(store, run_id), FetchEvents(described=lambda _: None, progress=counted.append), 5.0).run()
    assert "sent garbage (bytes " in str(caught.value)
    assert max(counted, default=0) <= at % len(damaged)


def answer(header: dict[str, object], payload: bytes = b"") -> Script:
    def script(connection: socket.socket) -> None:
        recv_frame(connection)
        send_frame(connection, header, payload)
        connection.recv(1)

    return script


def raw(text: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        recv_frame(connection)
        connection.sendall(text)
        connection.recv(1)

    return script


def test_a_description_that_is_none_is_garbage(stream: PartStream, run_id: str) -> None:
    table = stream.part.to_json()
    sums = little_endian(stream.checksums)
    scripts = [
        raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        answer({"ok": True}),
        answer({"ok": True, "part": {**table, "size": 10}}, sums),
        answer({"ok": True, "part": {**table, "model": "other"}}, sums),
        answer({"ok": True, "part": table}, sums[:-4]),
    ]
    for script in scripts:
        assert failure([script], run_id).startswith("storage server HOST sent garbage (")


def test_a_refusal_is_passed_on(run_id: str) -> None:
    assert failure([answer({"ok": False, "error": "no such model"})], run_id) == "storage server HOST: no such model"


def test_other_lengths_than_asked_for_are_garbage(stream: PartStream, run_id: str) -> None:
    def short(connection: socket.socket) -> None:
        describe(connection, stream)
        answer({"ok": True, "length": 10})(connection)

    def long(connection: socket.socket) -> None:
        describe(connection, stream)
        promise(connection)
        connection.sendall(bytes_of(stream) + b"more")
        connection.recv(1)

    assert "sent garbage (10 bytes, " in failure([short], run_id)
    assert "sent garbage (more bytes than asked for)" in failure([long], run_id)


def test_nobody_listening_is_said(run_id: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = listener.getsockname()
    with pytest.raises(LiveError, match=r"no connection to storage server .*no bytes of small"):
        run_fetch(store, run_id)


def test_a_cancelled_fetch_ends_at_once_wherever_it_is(stream: PartStream, run_id: str) -> None:
    ended = threading.Event()

    def slow(connection: socket.socket) -> None:
        describe(connection, stream)
        promise(connection)
        connection.sendall(bytes_of(stream)[:600_000])
        ended.wait(10)

    with storage_script(slow) as store:
        fetch = Fetch(order(store, run_id), FetchEvents(described=lambda _: None, progress=lambda _: fetch.cancel()))
        began = time.monotonic()
        with pytest.raises(Cancelled):
            fetch.run()
        ended.set()
    assert time.monotonic() - began < 5


def test_memory_that_runs_out_under_way_is_said(
    stream: PartStream, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(region: SharedRegion, _: int, stop: int) -> None:
        if stop > 2_500_000:
            raise RegionError(f"{region.name} is full")

    monkeypatch.setattr(SharedRegion, "reserve", full)
    with storage_script(partial(serve_from, stream, 0, None)) as store, pytest.raises(RegionError, match="is full"):
        run_fetch(store, run_id)


def test_memory_is_not_taken_much_further_than_the_bytes_are(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.live.arrivals.PAGES", 1000)
    monkeypatch.setattr("serving.live.arrivals.AHEAD", 4000)
    taken: list[int] = []
    monkeypatch.setattr(SharedRegion, "reserve", lambda *bounds: taken.append(bounds[-1]))
    with SharedRegion.create(region_name(run_id, 0), 100_000) as region:
        region.unlink()
        pages = PagesAhead(region)
        pages.wait(10_000)
        until = time.monotonic() + 60
        while taken[-1] < 14_000 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        pages.stop()
    assert taken == list(range(1000, 15_000, 1000))


def test_the_timeout_of_a_connection_is_five_seconds() -> None:
    assert fetching_module.CONNECT_TIMEOUT == 5.0
