"""Cold starts: stages wait for what their graph says, loads follow fetches, memory is held meanwhile."""

from dataclasses import dataclass, field, replace
from statistics import fmean

import pytest

from serving.core.clock import SimClock, spawn
from serving.core.cluster import Cluster
from serving.core.ports import Backend
from serving.core.stages import Loader, Stage, StageGraph, Work
from serving.core.worker import Worker
from serving.mechanisms.coldstart import ColdStart
from serving.records import StageRecord
from serving.sim.executor import SimExecutor
from serving.sim.provisioner import SimProvisioner
from serving.sim.transport import SimTransport
from serving.testbed import Testbed
from serving.units import GB, Gbps, Seconds
from tests.build import A10, STARTUP, make_cluster, make_instance, make_testbed, make_workers, with_cache

FETCH = Stage(name="fetch", work=Work.FETCH)
STREAMED = (FETCH, Stage(name="load", work=Work.LOAD, streams="fetch"))
SERIAL = (FETCH, Stage(name="load", work=Work.LOAD, after=("fetch",)))


@dataclass(slots=True)
class Started:
    """A cold start that has run: per (rank, stage) its start and end, and when all was ready."""

    spans: dict[tuple[int, str], tuple[Seconds, Seconds]] = field(default_factory=dict)
    num_bytes: dict[str, float] = field(default_factory=dict)
    ready_at: Seconds = 0.0


def make_backend(clock: SimClock, *, jitter: float, container: Seconds) -> Backend:
    costs = {"a10x1": replace(STARTUP, jitter=jitter, container=container), "slow": replace(STARTUP, container=3.0)}
    return Backend(
        clock=clock,
        executor=SimExecutor(clock, costs),
        transport=SimTransport(clock, costs),
        provisioner=SimProvisioner(clock, costs, seed=0),
    )


def start(
    workers: tuple[Worker, ...],
    stages: tuple[Stage, ...],
    *,
    at: Seconds = 0.0,
    keep: bool = False,
    jitter: float = 0.0,
    container: float = 1.0,
) -> Started:
    clock = SimClock()
    backend = make_backend(clock, jitter=jitter, container=container)
    started = Started()

    def note(record: StageRecord) -> None:
        started.spans[record.rank, record.stage] = (record.started_at, record.ended_at)
        started.num_bytes[record.stage] = record.num_bytes

    def ready(_: object) -> None:
        started.ready_at = clock.now

    cold = ColdStart(
        instance=make_instance(workers=workers).instance,
        graph=StageGraph(stages=stages),
        backend=backend,
        record=note,
        keep_in_host_memory=keep,
    )
    clock.call_at(at, lambda: spawn(clock, cold.run()).done.wait(ready))
    clock.run()
    return started


def cached_cluster() -> Cluster:
    return make_cluster(testbed=make_testbed(kind=with_cache(A10, 16.0)))


def test_a_stage_starts_when_all_that_it_waits_for_has_ended() -> None:
    # container 1 s; libraries (2 s) and context (0.5 s) beside each other after it; engine (0.25 s) after both
    started = start(
        make_workers(make_cluster()),
        (
            Stage(name="container"),
            Stage(name="libraries", after=("container",)),
            Stage(name="context", after=("container",)),
            Stage(name="engine", after=("libraries", "context")),
        ),
    )
    assert started.spans == {
        (0, "container"): (0, 1),
        (0, "libraries"): (1, 3),
        (0, "context"): (1, 1.5),
        (0, "engine"): (3, 3.25),
    }
    assert started.ready_at == 3.25


def test_an_unstreamed_load_begins_at_the_end_of_the_fetch() -> None:
    # 13.4768 GB at 2 GB/s = 6.7384 s, then at 8 GB/s 1.6846 s more
    started = start(make_workers(make_cluster()), SERIAL)
    assert started.spans[0, "load"] == pytest.approx((6.7384, 8.4230), rel=1e-4)
    assert started.num_bytes["fetch"] == pytest.approx(13.4768 * GB, rel=1e-5)


def test_a_streamed_load_ends_one_tensor_after_the_fetch() -> None:
    # the last tensor is the head, 32000 x 4096 x 2 B = 262.1 MB: 32.77 ms at 8 GB/s
    started = start(make_workers(make_cluster()), STREAMED)
    assert started.spans[0, "load"] == pytest.approx((0.0, 6.7384 + 0.03277), rel=1e-5)


def test_a_streamed_load_that_begins_after_the_fetch_runs_at_pcie_speed() -> None:
    # the loader is there after 10 s, when the fetch has long ended (6.7 s)
    load = Stage(name="load", work=Work.LOAD, after=("container",), streams="fetch")
    started = start(make_workers(make_cluster()), (FETCH, Stage(name="container"), load), container=10.0)
    assert started.spans[0, "load"] == pytest.approx((10.0, 10.0 + 1.6846), rel=1e-5)


def test_the_engines_loader_is_the_slower_of_itself_and_pcie() -> None:
    load = Stage(name="load", work=Work.LOAD, after=("fetch",), loader=Loader.ENGINE)
    started = start(make_workers(make_cluster()), (FETCH, load))
    assert started.ready_at == pytest.approx(6.7384 + 13.4768, rel=1e-5)  # 1 GB/s


def test_a_wait_for_a_loop_is_somewhere_within_its_period() -> None:
    polls = tuple(Stage(name=f"poll {i}", work=Work.POLL, period=2.0) for i in range(200))
    spans = start(make_workers(make_cluster()), polls, at=5.25).spans.values()
    waits = [ended_at - started_at for started_at, ended_at in spans]
    assert all(0.0 <= wait < 2.0 for wait in waits)
    assert fmean(waits) == pytest.approx(1.0, abs=0.15)  # four standard errors of 200 uniform draws


def test_a_fetch_that_a_loop_takes_up_begins_within_its_period() -> None:
    # 6.7384 s of fetch, 0 to 2 s before it
    fetch = replace(FETCH, period=2.0)
    started_at, ended_at = start(make_workers(make_cluster()), (fetch,)).spans[0, "fetch"]
    assert started_at == 0.0
    assert 6.7384 < ended_at < 8.7385


def test_a_group_is_ready_when_its_slowest_worker_is() -> None:
    testbed = Testbed(
        servers=((A10, 1), (replace(A10, name="slow"), 1)), num_stores=1, store_nic_rate=64 * Gbps, exclusive=False
    )
    workers = make_workers(make_cluster(testbed=testbed), 2)
    started = start(workers, (Stage(name="container"), Stage(name="context", after=("container",))))
    assert started.spans[0, "context"] == (1.0, 1.5)
    assert started.spans[1, "context"] == (3.0, 3.5)
    assert started.ready_at == 3.5


def test_workers_of_a_group_fetch_their_parts_beside_each_other() -> None:
    # 4 stages of 8 layers; the ends hold 8 x 404.8 + 262.1 MB = 3.5003 GB: 1.7501 s at 2 GB/s each
    started = start(make_workers(make_cluster(), 4), STREAMED)
    assert started.spans[0, "fetch"][1] == pytest.approx(1.7501, rel=1e-4)
    assert started.spans[1, "fetch"][1] == pytest.approx(3.2381 / 2, rel=1e-4)


def fill_cache(worker: Worker) -> None:
    """Have all of the worker's weights in its server's cache, read by nobody."""
    cache = worker.server.cache
    assert cache is not None
    entry = cache.open("llama2-7b", worker.weights)
    entry.complete = True
    cache.close(entry)


def test_weights_from_the_cache_are_not_fetched_and_nobody_waits_for_the_loop() -> None:
    cluster = cached_cluster()
    (worker,) = make_workers(cluster)
    fill_cache(worker)
    worker.from_cache = True
    stages = tuple(replace(s, period=1.0) if s.work is Work.FETCH else s for s in STREAMED)
    started = start((worker,), stages, at=0.5, keep=True)
    assert started.spans[0, "fetch"] == (0.5, 0.5)
    assert started.spans[0, "load"] == pytest.approx((0.5, 0.5 + 1.6846), rel=1e-4)
    assert started.num_bytes["fetch"] == 0


def test_weights_that_were_evicted_since_the_decision_are_fetched_after_all() -> None:
    (worker,) = make_workers(cached_cluster())
    worker.from_cache = True
    started = start((worker,), STREAMED, keep=True)
    assert started.spans[0, "fetch"] == pytest.approx((0.0, 6.7384), rel=1e-4)
    assert worker.server.cache is not None
    assert worker.server.cache.holds("llama2-7b")


def test_a_start_joins_a_fetch_that_is_bringing_the_same_weights() -> None:
    cluster = make_cluster(testbed=make_testbed(1, with_cache(replace(A10, num_gpus=2), 16.0)))
    workers = make_workers(cluster), make_workers(cluster)
    clock = SimClock()
    backend = make_backend(clock, jitter=0.0, container=1.0)
    records: list[StageRecord] = []
    for at, group in zip((0.0, 3.0), workers, strict=True):
        cold = ColdStart(
            instance=make_instance(workers=group).instance,
            graph=StageGraph(stages=STREAMED),
            backend=backend,
            record=records.append,
            keep_in_host_memory=True,
        )
        clock.call_at(at, lambda cold=cold: spawn(clock, cold.run()))
    clock.run()
    fetches = [(r.started_at, r.ended_at, r.num_bytes) for r in records if r.stage == "fetch"]
    # one fetch of 13.4768 GB at 2 GB/s, which the second start waits for from 3 s on
    assert fetches[0] == pytest.approx((0.0, 6.7384, 13.4768 * GB), rel=1e-4)
    assert fetches[1] == pytest.approx((3.0, 6.7384, 0.0), rel=1e-4)


def test_a_cancelled_start_stops_its_stages_and_gives_host_memory_back() -> None:
    clock = SimClock()
    backend = make_backend(clock, jitter=0.0, container=1.0)
    workers = make_workers(make_cluster(), 4)
    records: list[StageRecord] = []
    cold = ColdStart(
        instance=make_instance(workers=workers).instance,
        graph=StageGraph(stages=(Stage(name="container"), Stage(name="libraries", after=("container",)), *STREAMED)),
        backend=backend,
        record=records.append,
        keep_in_host_memory=False,
    )
    flow = spawn(clock, cold.run())
    clock.call_at(1.5, flow.cancel)
    clock.run()
    assert [record.stage for record in records] == ["container"] * 4
    assert all(worker.server.host_memory.used == 0 for worker in workers)
    assert clock.now <= 3.0  # a timer that was booked fires for nobody
    assert isinstance(backend.transport, SimTransport)
    carried = backend.transport.links.carried
    assert [carried[worker.server.downlink] for worker in workers] == pytest.approx([1.5 * 2 * GB] * 4)  # of 3.2 to 3.5


def test_weights_take_host_memory_only_while_they_are_loaded() -> None:
    cluster = make_cluster()
    (worker,) = make_workers(cluster)
    worker.server.host_memory.claim("tenant", 188 * GB - worker.weights - 1)
    start((worker,), STREAMED)
    assert worker.server.host_memory.used == 188 * GB - worker.weights - 1


def test_weights_that_do_not_fit_host_memory_end_the_run() -> None:
    (worker,) = make_workers(make_cluster())
    worker.server.host_memory.claim("tenant", 188 * GB - worker.weights + 1)
    with pytest.raises(RuntimeError, match="a10x1-0/dram"):
        start((worker,), STREAMED)


def test_kept_weights_are_complete_in_the_cache_and_can_be_evicted_again() -> None:
    cluster = cached_cluster()
    (worker,) = make_workers(cluster)
    cache = worker.server.cache
    assert cache is not None
    start((worker,), STREAMED, keep=True)
    assert cache.holds("llama2-7b")
    assert worker.server.host_memory.used == 0
    cache.open("another", 16.0 * GB)
    assert not cache.holds("llama2-7b")


def test_jitter_changes_the_timed_stages_and_repeats_with_the_seed() -> None:
    stages = (Stage(name="container"), *STREAMED)
    first, second = (start(make_workers(make_cluster()), stages, jitter=0.1) for _ in range(2))
    assert first.spans == second.spans
    assert first.spans[0, "container"][1] != 1.0
    assert first.spans[0, "container"][1] == pytest.approx(1.0, rel=0.5)
    assert first.spans[0, "fetch"] == pytest.approx((0.0, 6.7384), rel=1e-4)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((Stage(name="load", after=("fetch",)), FETCH), "'load' waits for 'fetch', which does not come before it"),
        ((Stage(name="load", work=Work.LOAD, streams="fetch"),), "'load' waits for 'fetch'"),
        ((FETCH, FETCH), "'fetch' is in the graph twice"),
    ],
)
def test_a_graph_out_of_order_is_refused(stages: tuple[Stage, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageGraph(stages=stages)


def test_servers_share_the_uplink_of_their_storage_server() -> None:
    # one store of 3 GB/s for two servers of 2 GB/s each: 2 x 13.4768 GB take 8.9845 s instead of 6.7384
    testbed = Testbed(servers=((A10, 2),), num_stores=1, store_nic_rate=24 * Gbps, exclusive=False)
    cluster = make_cluster(testbed=testbed)
    (first,), (second,) = make_workers(cluster), make_workers(cluster)
    second.server, second.gpu = cluster.servers[1], cluster.servers[1].gpus[0]
    second.rank = 1
    started = start((first, second), STREAMED)
    assert started.spans[0, "fetch"][1] == pytest.approx(2 * 13.4768 / 3, rel=1e-4)
    assert started.spans[1, "fetch"][1] == pytest.approx(2 * 13.4768 / 3, rel=1e-4)
