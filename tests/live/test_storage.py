import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aebench.cli_storage import storage as storage_command
from serving.live.errors import LiveError
from serving.live.frames import recv_frame, recv_into, send_frame
from serving.live.part import Part
from serving.live.part_stream import unit_bounds
from serving.live.storage import LinkRates, StorageServer, open_library
from serving.units import MB
from tests.live.fetching import LAYERS, MODEL, Address, bytes_of, make_small, stream_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("models"))


@contextlib.contextmanager
def serving(folder: Path, rates: LinkRates | None = None, hold: bool = True) -> Iterator[Address]:
    server = StorageServer(open_library({MODEL: folder}, hold=hold), rates or LinkRates())
    try:
        yield server.address
    finally:
        server.close()


def ask(connection: socket.socket, **request: Any) -> tuple[dict[str, Any], bytes]:
    send_frame(connection, {"model": MODEL, "layers": [0, 4], "link": "a", **request})
    return recv_frame(connection)


def read(store: Address, offset: int, length: int, **request: Any) -> bytes:
    with socket.create_connection(store, 10) as connection:
        header, _ = ask(connection, op="read", offset=offset, length=length, **request)
        assert header == {"ok": True, "length": length}
        got = bytearray(length)
        recv_into(connection, memoryview(got))
        return bytes(got)


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("layers", [LAYERS, range(2), range(2, 4)])
def test_a_part_is_described_with_a_checksum_of_each_unit(folder: Path, layers: range, hold: bool) -> None:
    expected = stream_of(folder, layers)
    with serving(folder, hold=hold) as store, socket.create_connection(store, 10) as connection:
        header, sums = ask(connection, op="describe", layers=[layers.start, layers.stop])
    assert Part.from_json(header["part"]) == expected.part
    assert sums == expected.checksums.tobytes()
    assert len(sums) == 4 * len(list(unit_bounds(expected.part)))


def test_any_range_of_a_part_is_its_bytes_zeros_between_tensors_included(folder: Path) -> None:
    whole = bytes_of(stream_of(folder))
    size = len(whole)
    gap = next(
        first.offset + first.num_bytes
        for first, second in zip(stream_of(folder).part.tensors, stream_of(folder).part.tensors[1:], strict=False)
        if first.offset + first.num_bytes < second.offset
    )
    with serving(folder) as store:
        for start, stop in ((0, size), (0, 1), (size - 1, size), (gap - 3, gap + 80), (1_000_001, 2_345_678)):
            assert read(store, start, stop - start) == whole[start:stop]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"op": "describe", "model": "other"}, "has no model 'other', it has small"),
        ({"op": "describe", "model": 3}, "model is '3', expected a name"),
        ({"op": "describe", "layers": [0, 5]}, "no layers 0..5, expected a range within 0..4"),
        ({"op": "describe", "layers": [2, 2]}, "no layers 2..2"),
        ({"op": "describe", "layers": [0, True]}, "layers is [0, True], expected [start, stop]"),
        ({"op": "describe", "layers": "all"}, "layers is all, expected [start, stop]"),
        ({"op": "delete"}, "op is 'delete', expected 'describe' or 'read'"),
        ({"op": "read", "offset": 0, "length": 0}, "no 0 bytes at 0"),
        ({"op": "read", "offset": -1, "length": 1}, "no 1 bytes at -1"),
        ({"op": "read", "offset": 0, "length": 10**12}, "no 1000000000000 bytes at 0"),
        ({"op": "read", "offset": 0.5, "length": 1}, "no 1 bytes at 0.5"),
        ({"op": "read", "offset": 0, "length": 1, "link": None}, "link is 'None', expected a name"),
    ],
)
def test_a_wrong_request_is_answered_and_the_next_one_served(
    folder: Path, request_: dict[str, Any], error: str
) -> None:
    with serving(folder) as store, socket.create_connection(store, 10) as connection:
        header, _ = ask(connection, **request_)
        assert header["ok"] is False
        assert error in header["error"]
        assert ask(connection, op="describe")[0]["ok"] is True


def test_what_is_no_frame_is_answered_and_hung_up_on(folder: Path) -> None:
    with serving(folder) as store, socket.create_connection(store, 10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert "not a frame" in recv_frame(connection)[0]["error"]
        with pytest.raises((EOFError, ConnectionResetError)):
            recv_frame(connection)


def seconds_to_read(store: Address, length: int, **request: Any) -> float:
    began = time.monotonic()
    read(store, 0, length, **request)
    return time.monotonic() - began


def test_a_link_takes_the_time_that_its_rate_says(folder: Path) -> None:
    with serving(folder, LinkRates(link=20 * MB, links={"slow": 5 * MB})) as store:
        took = [seconds_to_read(store, 5_000_000, link="a") for _ in range(3)]
        slow = seconds_to_read(store, 1_000_000, link="slow")
    assert min(took) >= 0.25 * 0.979
    assert min(took) <= 0.25 * 1.3  # a busy machine may be late; it is never early
    assert slow >= 0.2 * 0.975


def test_streams_of_one_link_share_its_rate_and_two_links_share_the_servers(folder: Path) -> None:
    rates = LinkRates(server=24 * MB, link=16 * MB)
    took: dict[int, float] = {}

    def go(index: int, link: str) -> None:
        took[index] = seconds_to_read(store, 2_000_000, link=link)

    with serving(folder, rates) as store:
        for links, least in (("aa", 4 / 16), ("ab", 4 / 24)):
            threads = [threading.Thread(target=go, args=(index, link)) for index, link in enumerate(links)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert max(took.values()) >= least * 0.96
            assert min(took.values()) >= least * 0.6  # in turns, not one after the other


def test_a_client_that_leaves_does_not_disturb_the_others(folder: Path) -> None:
    with serving(folder, LinkRates(link=20 * MB)) as store:
        for _ in range(5):
            with socket.create_connection(store, 10) as connection:
                ask(connection, op="read", offset=0, length=5_000_000)
        assert read(store, 0, 1000, link="b") == bytes_of(stream_of(folder))[:1000]


def test_after_closing_the_port_is_free_and_no_thread_is_left(folder: Path) -> None:
    before = threading.active_count()  # or fewer, when what other tests closed has ended
    with serving(folder) as store:
        connection = socket.create_connection(store, 10)
        ask(connection, op="describe")
    with connection, pytest.raises((EOFError, ConnectionResetError)):
        recv_frame(connection)
    socket.create_server(store).close()
    until = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_taken_port_is_said(folder: Path) -> None:
    with serving(folder) as (host, port), pytest.raises(LiveError, match=f"cannot listen on {host}:{port}"):
        StorageServer(open_library({MODEL: folder}, hold=False), LinkRates(), host, port)


def test_the_command_says_what_is_wrong_with_its_folders(folder: Path, tmp_path: Path) -> None:
    twice = CliRunner().invoke(storage_command, [str(folder), str(folder)])
    assert "would both be served as 'small'" in str(twice.exception)
    absent = CliRunner().invoke(storage_command, [str(tmp_path)])
    assert "config.json" in str(absent.exception)
    assert CliRunner().invoke(storage_command, [str(folder), "--link-gbps", "0"]).exit_code == 2


def test_a_server_that_has_no_room_for_a_connection_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = open_library({MODEL: make_small(tmp_path)})
    server = StorageServer(library, LinkRates())
    listener = server._listener
    failures = [OSError(errno.EMFILE, "Too many open files"), ConnectionAbortedError()]

    class Full:
        """The listener, which fails at first."""

        def accept(self) -> object:
            if failures:
                raise failures.pop()
            return listener.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(listener, name)

    monkeypatch.setattr(server, "_listener", Full())
    try:
        for _ in range(4):
            with socket.create_connection(server.address, 5) as connection:
                connection.settimeout(5)
                send_frame(connection, {"op": "describe", "model": MODEL, "layers": [0, 4]})
                assert recv_frame(connection)[0]["ok"]
        assert failures == []
    finally:
        server.close()
