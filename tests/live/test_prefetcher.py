import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.live.errors import LiveError
from serving.live.fetch import Cancelled, Fetch, FetchEvents, FetchOrder
from serving.live.frames import send_frame
from serving.live.part import Part
from serving.live.processes import PrefetcherProcess, start_prefetcher, start_storage
from serving.live.shared_region import SharedRegion, region_name, sweep
from serving.units import MB
from tests.live.fetching import MODEL, bytes_of, command, events_until, fresh_run_id, make_small, regions, stream_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[tuple[str, int]]:
    storage = start_storage({MODEL: folder}, link_rate=40 * MB, link_rates={"fast": 4000 * MB})
    yield storage.address
    storage.stop()
    assert storage.process.returncode == 0


@pytest.fixture
def prefetcher() -> Iterator[PrefetcherProcess]:
    process = start_prefetcher("server0", fresh_run_id())
    yield process
    process.stop()
    assert process.process.returncode == 0, process.live.log.tail()
    assert process.live.log.tail() == ""
    assert regions(process.run_id) == []


def region_of(prefetcher: PrefetcherProcess, serial: int = 0) -> str:
    return region_name(prefetcher.run_id, serial)


def test_a_part_arrives_verified_and_its_progress_is_told(
    folder: Path, store: tuple[str, int], prefetcher: PrefetcherProcess
) -> None:
    expected = stream_of(folder)
    send_frame(prefetcher.socket, command(store, region_of(prefetcher)))
    described, *progress, done = events_until(prefetcher.socket, 0, "done", "failed")
    assert Part.from_json(described["part"]) == expected.part
    received = [event["received"] for event in progress]
    assert done == {"event": "done", "id": 0}
    assert received == sorted(set(received))
    assert received[-1] == expected.part.size
    assert len(received) >= 4  # 11 MB at 40 MB/s, told every 10 ms at best
    with SharedRegion.open(region_of(prefetcher)) as region:
        assert region.received == region.size == expected.part.size
        assert bytes(region.data) == bytes_of(expected)
    send_frame(prefetcher.socket, {"op": "free", "region": region_of(prefetcher)})


def test_what_a_consumer_sees_as_received_is_there_while_the_fetch_goes_on(
    folder: Path, store: tuple[str, int], prefetcher: PrefetcherProcess
) -> None:
    expected = bytes_of(stream_of(folder))
    send_frame(prefetcher.socket, command(store, region_of(prefetcher)))
    events_until(prefetcher.socket, 0, "described")
    with SharedRegion.open(region_of(prefetcher)) as region:
        seen = set()
        while region.received < region.size:
            received = region.received
            assert received >= max(seen, default=0)
            if received not in seen:
                assert bytes(region.data[:received]) == expected[:received]
            seen.add(received)
    assert len(seen) > 4


def test_several_fetches_run_at_once(folder: Path, store: tuple[str, int], prefetcher: PrefetcherProcess) -> None:
    for serial, layers in enumerate((range(2), range(2, 4), range(1, 3))):
        send_frame(prefetcher.socket, command(store, region_of(prefetcher, serial), serial, layers))
    left = {0, 1, 2}
    order = []
    while left:
        event = events_until_any(prefetcher.socket)
        order.append((event["event"], event["id"]))
        assert event["event"] != "failed"
        if event["event"] == "done":
            left.discard(event["id"])
    described = [index for index, (kind, _) in enumerate(order) if kind == "described"]
    assert max(described) < order.index(next(item for item in order if item[0] == "done"))
    for serial, layers in enumerate((range(2), range(2, 4), range(1, 3))):
        with SharedRegion.open(region_of(prefetcher, serial)) as region:
            assert bytes(region.data) == bytes_of(stream_of(folder, layers))


def events_until_any(control: socket.socket) -> dict[str, object]:
    from serving.live.frames import recv_frame

    control.settimeout(20)
    return recv_frame(control)[0]


@pytest.mark.parametrize("how", ["cancel", "free"])
def test_a_fetch_that_is_ended_leaves_no_region_and_no_event(
    store: tuple[str, int], prefetcher: PrefetcherProcess, how: str
) -> None:
    send_frame(prefetcher.socket, command(store, region_of(prefetcher)))
    events_until(prefetcher.socket, 0, "progress")
    end = {"op": "cancel", "id": 0} if how == "cancel" else {"op": "free", "region": region_of(prefetcher)}
    send_frame(prefetcher.socket, end)
    send_frame(prefetcher.socket, {**command(store, region_of(prefetcher, 1), 1), "link": "fast"})
    seen = []
    while not seen or seen[-1] != ("done", 1):
        event = events_until_any(prefetcher.socket)
        seen.append((event["event"], event["id"]))
    assert {kind for kind, fetch_id in seen if fetch_id == 0} <= {"progress"}
    assert regions(prefetcher.run_id) == [region_of(prefetcher, 1)]
    assert seen.index(("described", 1)) > max((i for i, (_, key) in enumerate(seen) if key == 0), default=-1)


def test_a_region_that_is_freed_can_be_filled_again(store: tuple[str, int], prefetcher: PrefetcherProcess) -> None:
    for serial in (0, 1):
        send_frame(prefetcher.socket, {**command(store, region_of(prefetcher), serial), "link": "fast"})
        assert events_until(prefetcher.socket, serial, "done", "failed")[-1]["event"] == "done"
        send_frame(prefetcher.socket, {"op": "free", "region": region_of(prefetcher)})


@pytest.mark.parametrize("wrong", [{"layers": [0, 99]}, {"model": "absent"}, {"region": "../x"}, {"store": []}])
def test_an_order_that_cannot_be_met_fails_and_says_why(
    store: tuple[str, int], prefetcher: PrefetcherProcess, wrong: dict[str, object]
) -> None:
    send_frame(prefetcher.socket, {**command(store, region_of(prefetcher)), **wrong})
    (event,) = events_until(prefetcher.socket, 0, "failed")
    expected = {"layers": "no layers 0..99", "model": "no model 'absent'", "region": "no name of a region", "store": ""}
    assert expected[next(iter(wrong))] in event["error"]


@pytest.mark.parametrize("how", ["exit", "close"])
def test_no_region_outlives_the_prefetcher(store: tuple[str, int], how: str) -> None:
    prefetcher = start_prefetcher("server0", fresh_run_id())
    try:
        send_frame(prefetcher.socket, {**command(store, region_of(prefetcher)), "link": "fast"})
        events_until(prefetcher.socket, 0, "done")
        send_frame(prefetcher.socket, command(store, region_of(prefetcher, 1), 1))
        events_until(prefetcher.socket, 1, "progress")
        assert len(regions(prefetcher.run_id)) == 2
        if how == "exit":
            send_frame(prefetcher.socket, {"op": "exit"})
        else:
            prefetcher.socket.close()
        prefetcher.process.wait(10)
        assert regions(prefetcher.run_id) == []
    finally:
        prefetcher.stop()


def test_a_killed_prefetcher_leaves_regions_to_the_sweep(store: tuple[str, int]) -> None:
    prefetcher = start_prefetcher("server0", fresh_run_id())
    send_frame(prefetcher.socket, command(store, region_of(prefetcher)))
    events_until(prefetcher.socket, 0, "progress")
    os.kill(prefetcher.process.pid, signal.SIGKILL)
    prefetcher.process.wait(10)
    assert (
        prefetcher.live.obituary() == f"prefetcher of server0 (process {prefetcher.process.pid}) was killed by SIGKILL"
    )
    assert regions(prefetcher.run_id) == [region_of(prefetcher)]
    prefetcher.stop()
    assert regions(prefetcher.run_id) == []
    assert sweep(prefetcher.run_id) == []


def test_an_interrupt_from_the_terminal_is_left_to_control(
    store: tuple[str, int], prefetcher: PrefetcherProcess
) -> None:
    send_frame(prefetcher.socket, {**command(store, region_of(prefetcher)), "link": "fast"})
    events_until(prefetcher.socket, 0, "done")
    os.kill(prefetcher.process.pid, signal.SIGINT)
    send_frame(prefetcher.socket, {**command(store, region_of(prefetcher, 1), 1), "link": "fast"})
    assert events_until(prefetcher.socket, 1, "done")


def test_stopping_leaves_no_thread_and_no_process(folder: Path) -> None:
    before = threading.active_count()
    storage = start_storage({MODEL: folder})
    storage.stop()
    storage.stop()
    assert storage.process.returncode == 0
    assert threading.active_count() == before
    socket.create_server(storage.address).close()


def test_a_storage_server_that_cannot_open_a_checkpoint_says_why(tmp_path: Path) -> None:
    with pytest.raises(LiveError, match=r"config\.json"):
        start_storage({"x": tmp_path})


def test_a_fetch_that_is_still_connecting_can_be_cancelled() -> None:
    order = FetchOrder(link="a", model=MODEL, layers=range(4), region="aebench-none-0", store=("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as callers:
        for _ in range(4):  # nobody accepts: the last of them, and all who come later, get no answer
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        events = FetchEvents(described=lambda _: None, progress=lambda _: None)
        fetch = Fetch(replace(order, store=full.getsockname()), events)
        threading.Timer(0.2, fetch.cancel).start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            fetch.run()
        assert 0.1 < time.monotonic() - began < 2
