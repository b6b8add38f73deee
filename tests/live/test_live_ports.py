"""The live ports against real processes, and what happens when one of those dies."""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.core.clock import FlowBody, SimClock, spawn
from serving.core.cluster import Cluster
from serving.core.hardware import Server
from serving.core.instance import Instance, Phase
from serving.core.ports import System
from serving.core.worker import Worker
from serving.live.arrival import Arrival, Inflow
from serving.live.checkpoint import Checkpoint
from serving.live.errors import LiveError
from serving.live.fleet import WorkerOptions
from serving.live.recording import Recording
from serving.live.replay import replay
from serving.live.setup import LiveRun, LiveSetup, running, serve_live, whole_run
from serving.live.transport import stop_of
from serving.policies import configured
from serving.records import DecisionRecord, Record, RequestRecord
from serving.testbed import build_inventory
from serving.units import MB
from serving.workload.clients import Send
from tests.build import make_instance
from tests.live.served import fixed, left_over, live_setup, request, small_testbed, tiny_model

pytest.importorskip("torch", reason="needs the live extra: make test-live")


def test_an_arrival_fires_marks_in_order_and_its_end_once() -> None:
    clock = SimClock()
    arrival = Arrival(clock, 100)
    early, late, beyond = arrival.reached(10), arrival.reached(60), arrival.reached(1000)
    arrival.advance(59)
    assert (early.fired, late.fired, beyond.fired) == (True, False, False)
    arrival.advance(30)  # news may overtake each other
    assert arrival.received == 59
    assert arrival.reached(40).fired
    arrival.finish()
    arrival.finish()
    assert late.fired and beyond.fired and arrival.done.fired


@pytest.mark.parametrize("end", [Arrival.cancel, Arrival.fail, Arrival.release])
def test_nothing_fires_after_an_arrival_was_given_up(end: Callable[[Arrival], None]) -> None:
    calls: list[str] = []
    arrival = Arrival(SimClock(), 100, lambda: calls.append("cancel"), lambda: calls.append("release"))
    mark = arrival.reached(50)
    end(arrival)
    arrival.advance(100)
    arrival.finish()
    assert not mark.fired and not arrival.done.fired
    arrival.release()
    arrival.release()
    assert calls.count("release") == 1
    assert calls.count("cancel") == (end is not Arrival.fail)


def test_a_complete_arrival_is_released_without_being_cancelled() -> None:
    calls: list[str] = []
    arrival = Arrival(SimClock(), 100, lambda: calls.append("cancel"), lambda: calls.append("release"))
    arrival.finish()
    arrival.cancel()
    arrival.release()
    assert calls == ["release"]


def test_a_fetch_that_fails_takes_all_who_read_it_and_the_cache_entry_with_it() -> None:
    cluster, server, instances = readers_of_one_cache()
    freed: list[bool] = []
    inflow = Inflow(instances[0], 0, server, Arrival(cluster.clock, 100, on_release=lambda: freed.append(True)), 0)
    assert server.cache is not None
    entry = server.cache.open("llama2-7b", 100)
    entry.fill(inflow.arrival)
    lost: list[Instance] = []
    inflow.fail(cluster, "stalled", lambda instance, _: lost.append(instance))
    assert lost == instances[:2]  # the third is ready, the fourth elsewhere
    assert freed == [True]
    assert server.cache.used == 0


def readers_of_one_cache() -> tuple[Cluster, Server, list[Instance]]:
    """Two instances that start on a server with a cache, one that serves there, one that starts elsewhere."""
    inventory = build_inventory(small_testbed(2, cache=1 * MB))
    cluster = Cluster(clock=SimClock(), inventory=inventory, deployments={})
    here, elsewhere = cluster.servers
    places = [(here, Phase.STARTING), (here, Phase.STARTING), (here, Phase.READY), (elsewhere, Phase.STARTING)]
    for server, phase in places:
        cluster.instances.append(replace(make_instance().instance, workers=(worker_on(server),), phase=phase))
    return cluster, here, cluster.instances


def worker_on(server: Server, tensors: tuple[float, ...] = (1.0,)) -> Worker:
    return Worker(
        rank=0,
        server=server,
        gpu=server.gpus[0],
        memory=1 * MB,
        layers=range(4),
        tensors=tensors,
        from_cache=False,
    )


def test_loads_are_of_whole_tensors() -> None:
    sizes = Checkpoint.open(tiny_model()).spec("tiny").stage_tensors(range(4))
    worker = worker_on(build_inventory(small_testbed(1)).servers[0], sizes)
    assert stop_of(worker, 0, sum(sizes)) == len(sizes)
    assert stop_of(worker, 3, sizes[3] + sizes[4]) == 5
    for first, size in ((3, sizes[3] - 1), (3, 0.0), (len(sizes), 64.0)):
        with pytest.raises(ValueError, match=f"no tensors from number {first} on"):
            stop_of(worker, first, size)


def slow(system: System, **fields: Any) -> LiveSetup:
    """Fetches take a second: time to disturb them."""
    testbed = small_testbed(1, exclusive=system.exclusive_gpus, fetch_rate=0.8 * MB, **fields)
    return live_setup(system, testbed, workers=WorkerOptions(max_blocks=64))


def one_request(send: Send) -> FlowBody:
    """A client that wants one answer."""
    yield send(request(0))


def disturbed(setup: LiveSetup, disturb: Callable[[LiveRun], object], at_received: int) -> list[Record]:
    """The records of a run in which something happens when a fetch has brought so many bytes; its replay agrees."""
    records, recording = list[Record](), Recording()
    with running(setup, records.append, recording) as run:

        def watch() -> None:
            fetches = [fetch for fetch in run.transport.fetches if fetch.arrival.received >= at_received]
            if fetches:
                disturb(run)
            else:
                run.clock.call_later(0.01, watch)

        watch()
        whole = spawn(run.clock, whole_run(run.clock, run.control, one_request))
        run.control.start()
        run.clock.run(until=lambda: whole.done.fired)
    assert left_over() == []
    decisions = [record for record in records if isinstance(record, DecisionRecord)]
    assert replay(setup, recording, one_request) == decisions
    return records


def losses(records: list[Record]) -> list[str]:
    return [record.detail for record in records if isinstance(record, DecisionRecord) and record.action == "lose"]


def answered(records: list[Record]) -> list[bool]:
    return [record.finished_at is not None for record in records if isinstance(record, RequestRecord)]


def test_a_storage_server_that_dies_mid_fetch_is_named_to_the_client() -> None:
    def kill(run: LiveRun) -> None:
        for store in run.stores:
            os.kill(store.process.pid, signal.SIGKILL)

    records = disturbed(slow(fixed()), kill, at_received=100_000)
    assert answered(records) == [False]
    assert len(losses(records)) == 3
    for reason in losses(records):
        assert re.search(r"storage server 127\.0\.0\.1:\d+.* of tiny, layers 0\.\.4, have arrived", reason), reason


def test_a_prefetcher_that_dies_mid_fetch_is_replaced() -> None:
    def kill(run: LiveRun) -> None:
        for link in run.transport.prefetchers:
            os.kill(link.process.live.pid, signal.SIGKILL)

    records = disturbed(slow(fixed()), kill, at_received=100_000)
    assert answered(records) == [True]
    assert [re.sub(r"\d+", "N", reason) for reason in losses(records)] == [
        "prefetcher of small-N (process N) was killed by SIGKILL"
    ]


def test_a_failed_fetch_into_the_cache_is_fetched_again() -> None:
    def kill(run: LiveRun) -> None:
        for link in run.transport.prefetchers:
            os.kill(link.process.live.pid, signal.SIGKILL)

    system = configured("serverlessllm", {"interval": 0.1})
    records = disturbed(slow(system, cache=1.2 * MB), kill, at_received=100_000)
    assert answered(records) == [True]
    assert len(losses(records)) == 1
    launches = [record for record in records if isinstance(record, DecisionRecord) and record.action == "launch"]
    assert [launch.from_cache for launch in launches] == [False, False]


def test_an_interrupt_leaves_nothing_behind() -> None:
    def interrupted(send: Send) -> FlowBody:
        send(request(0))
        yield 0.3  # mid start
        raise KeyboardInterrupt

    records: list[Record] = []
    with pytest.raises(KeyboardInterrupt):
        serve_live(slow(fixed()), interrupted, records.append)
    assert answered(records) == [False]
    assert left_over() == []


def test_a_slice_without_room_for_kv_blocks_is_said_to_the_client() -> None:
    setup = live_setup(fixed(), small_testbed(1, exclusive=True, gpu_memory=0.85 * MB))
    records: list[Record] = []
    serve_live(setup, one_request, records.append)
    assert answered(records) == [False]
    assert "leave no KV block in a slice" in losses(records)[0]


def test_a_model_without_its_checkpoint_is_refused_before_anything_starts(tmp_path: Path) -> None:
    setup = live_setup(fixed(), small_testbed(1, exclusive=True))
    for checkpoints, message in (({}, "deployed without a checkpoint"), ({"tiny": tmp_path}, "no config.json")):
        with pytest.raises(LiveError, match=message):
            serve_live(replace(setup, checkpoints=checkpoints), one_request, [].append)
    other = replace(setup.deployments[0], spec=Checkpoint.open(tiny_model(2)).spec("tiny"))
    with pytest.raises(LiveError, match="deployed with other sizes than its checkpoint"):
        serve_live(replace(setup, deployments=(other,)), one_request, [].append)
    assert left_over() == []
