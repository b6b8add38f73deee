"""HydraServe's consolidation and host cache: when they are chosen, what they cost, by hand."""

from dataclasses import replace

import pytest

from serving.core.actions import Action, Consolidate, Launch
from serving.core.cluster import Cluster
from serving.core.instance import Instance
from serving.core.kv import BlockPool
from serving.policies import SYSTEMS
from serving.policies.hydraserve import HydraServe, HydraServeConfig
from serving.records import CONSOLIDATION_STAGES, DecisionRecord, PauseRecord, RequestRecord, StageRecord, WorkerRecord
from serving.testbed import Testbed
from serving.units import GB, Gbps
from tests.build import A10, V100, hold, make_cluster, make_deployment, make_requests, make_workers, run, sent

# TTFT SLO 7.5 s: one worker needs 13 GB / 2 GB/s + 2 s = 8.5 s, two need 5.25 s
TIGHT = make_deployment(ttft_slo=7.5)
ADAPTIVE = HydraServeConfig(sizing="adaptive")
ADAPTIVE_SYSTEM = replace(SYSTEMS["hydraserve"], config=ADAPTIVE)


def ready_group(cluster: Cluster, wholes: list[bool]) -> Instance:
    """A pipeline that serves, with room for the whole model where told."""
    workers = make_workers(cluster, len(wholes))
    for worker, whole in zip(workers, wholes, strict=True):
        worker.whole = whole
    instance = Instance(
        instance_id=0,
        model="llama2-7b",
        spec=cluster.deployments["llama2-7b"].spec,
        workers=workers,
        max_sequences=8 * len(wholes),
        max_step_tokens=256,
        clock=cluster.clock,
        scheduler=None,  # type: ignore[arg-type]
        executor=None,  # type: ignore[arg-type]
        on_finish=lambda _: None,
    )
    instance.open(BlockPool(16, 16))
    cluster.instances.append(instance)
    return instance


def consolidated(config: HydraServeConfig, wholes: list[bool]) -> list[Consolidate]:
    cluster = make_cluster()
    ready_group(cluster, wholes)
    return [action for action in HydraServe(config).on_interval(cluster) if isinstance(action, Consolidate)]


def launches(actions: list[Action]) -> list[Launch]:
    return [action for action in actions if isinstance(action, Launch)]


def test_a_group_with_a_low_memory_worker_consolidates_at_the_next_tick() -> None:
    (action,) = consolidated(ADAPTIVE, [True, False])
    assert (action.max_sequences, action.migrate) == (8, True)
    assert (action.network_poll, action.exclusive_poll) == (0.1, 0.05)


def test_a_group_of_whole_workers_consolidates_only_where_that_is_wanted() -> None:
    assert consolidated(ADAPTIVE, [True, True]) == []
    assert len(consolidated(replace(ADAPTIVE, consolidate_full=True), [True, True])) == 1


def test_nothing_consolidates_without_a_whole_worker_or_with_the_switch_off() -> None:
    assert consolidated(ADAPTIVE, [False, False, False, False]) == []
    assert consolidated(replace(ADAPTIVE, consolidate=False), [True, False]) == []


def test_a_group_is_told_once() -> None:
    cluster = make_cluster()
    ready_group(cluster, [True, False]).num_becoming = 1
    assert not [action for action in HydraServe(ADAPTIVE).on_interval(cluster) if isinstance(action, Consolidate)]


def test_a_cold_group_of_two_ends_as_one_worker_with_its_sequence() -> None:
    outcome = run(ADAPTIVE_SYSTEM, sent([(0.25, make_requests(1, 64, 400)[0])], linger=40.0), TIGHT)
    launch = next(r for r in outcome.records if isinstance(r, DecisionRecord) and r.action == "launch")
    assert [memory / GB for memory in launch.memory] == [22.0, 9.0]  # 18 GB leave 4, which are taken as well
    stages = {
        record.stage: (record.started_at, record.ended_at)
        for record in outcome.records
        if isinstance(record, StageRecord) and record.stage in CONSOLIDATION_STAGES
    }
    begun, ended = stages["consolidation"]
    assert begun % 1.0 == 0.0  # at a tick of the loop
    fetch = stages["background fetch"]
    rest = make_deployment().spec.stage_bytes(range(16, 32))
    assert fetch == (begun, pytest.approx(begun + rest / (2 * GB)))  # 16 Gb/s to itself
    (pause,) = [record for record in outcome.records if isinstance(record, PauseRecord)]
    (request,) = [record for record in outcome.records if isinstance(record, RequestRecord)]
    assert request.num_output_tokens == 400
    assert max(request.token_gaps) > pause.resumed_at - pause.paused_at > 0
    workers = [record for record in outcome.records if isinstance(record, WorkerRecord)]
    assert [(worker.rank, worker.memory / GB) for worker in workers] == [(1, 9.0), (0, 18.0)]
    assert workers[0].ended_at == ended
    # kept for 30 s after the last token, looked at every second
    assert workers[1].last_busy_at == request.finished_at
    assert request.finished_at is not None and workers[1].ended_at is not None
    assert 30.0 < workers[1].ended_at - request.finished_at <= 31.0


def test_without_migration_the_sequence_ends_in_the_pipeline() -> None:
    client = sent([(0.25, make_requests(1, 64, 400)[0])])
    outcome = run(replace(ADAPTIVE_SYSTEM, config=replace(ADAPTIVE, migrate=False)), client, TIGHT)
    assert not [record for record in outcome.records if isinstance(record, PauseRecord)]
    moved = run(ADAPTIVE_SYSTEM, sent([(0.25, make_requests(1, 64, 400)[0])]), TIGHT)
    slow, fast = outcome.requests[0].finished_at, moved.requests[0].finished_at
    assert slow is not None and fast is not None and slow > fast


def test_a_model_that_was_served_by_one_worker_starts_from_the_cache_without_a_fetch() -> None:
    cached = replace(SYSTEMS["hydraserve_with_cache"], config=HydraServeConfig(sizing="adaptive", cache=True))
    testbed = Testbed(
        servers=((replace(A10, cache=60 * GB), 1), (V100, 1)), num_stores=2, store_nic_rate=64 * Gbps, exclusive=False
    )
    first, second = make_requests(2, 64, 4)
    outcome = run(cached, sent([(0.25, first), (60.25, second)]), make_deployment(ttft_slo=60.0), testbed=testbed)
    launched = [r for r in outcome.records if isinstance(r, DecisionRecord) and r.action == "launch"]
    assert [launch.from_cache for launch in launched] == [False, True]
    fetched = [r.num_bytes for r in outcome.records if isinstance(r, StageRecord) and r.stage == "fetch"]
    assert fetched == [pytest.approx(13.4768 * GB, rel=1e-3), 0.0]


def test_cached_servers_come_first_and_the_rest_is_fetched() -> None:
    testbed = Testbed(
        servers=((replace(A10, cache=60 * GB), 2),), num_stores=1, store_nic_rate=64 * Gbps, exclusive=False
    )
    deployment = make_deployment(ttft_slo=60.0)
    cluster = make_cluster(deployment, testbed=testbed)
    cache = cluster.servers[1].cache
    assert cache is not None
    entry = cache.open("llama2-7b", 13 * GB)
    entry.complete = True
    cache.close(entry)
    sequences = hold(cluster, 9)  # two workers' worth
    actions = launches(HydraServe(HydraServeConfig(sizing="adaptive", cache=True)).on_arrival(sequences[-1], cluster))
    where = [[(p.server.name, p.from_cache) for p in launch.placements] for launch in actions]
    assert where == [[(cluster.servers[1].name, True)], [(cluster.servers[0].name, False)]]


def test_fixed_sizing_has_as_many_whole_workers_as_are_required() -> None:
    config = HydraServeConfig(sizing="fixed", max_pipeline_size=3)
    cluster = make_cluster(make_deployment(size=10 * GB))
    sequences = hold(cluster, 9)
    (launch,) = launches(HydraServe(config).on_arrival(sequences[-1], cluster))
    assert [placement.whole for placement in launch.placements] == [True, True, False]
    assert launch.max_batch == 8
    assert launch.max_sequences == 24
