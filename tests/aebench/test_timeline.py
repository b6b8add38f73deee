"""Timelines: what a worker did when, from its records; lanes; the busiest window; logs without worker records."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aebench.timeline import Phase, Timeline, WorkerBar, timeline
from serving.records import CONSOLIDATION_STAGES, DecisionRecord, Record, RequestRecord, StageRecord, WorkerRecord

WORKER = WorkerRecord(
    instance=0,
    rank=0,
    model="llama2-7b/3",
    server="v100x4-0",
    gpu="v100x4-0/gpu1",
    memory=18e9,
    started_at=10.0,
    ready_at=20.0,
    last_busy_at=40.0,
    ended_at=70.0,
)


def stage(name: str, start: float, end: float, rank: int = 0) -> StageRecord:
    return StageRecord(
        instance=0, rank=rank, model="llama2-7b/3", server="v100x4-0", stage=name, started_at=start, ended_at=end,
        num_bytes=0.0,
    )  # fmt: skip


def request(number: int, arrived: float, dispatched: float | None, finished: float | None) -> RequestRecord:
    return RequestRecord(
        request_id=number,
        model="llama2-7b/3",
        label="chatbot",
        arrived_at=arrived,
        dispatched_at=dispatched,
        first_token_at=dispatched,
        finished_at=finished,
        num_prompt_tokens=10,
        num_output_tokens=10,
        num_preemptions=0,
        instance=None if dispatched is None else 0,
        ttft_slo=None,
        tpot_slo=None,
        token_gaps=(),
    )


def decision(at: float, action: str, instance: int = 0, **fields: object) -> DecisionRecord:
    return replace(
        DecisionRecord(at=at, hook="on_arrival", action=action, detail="", instance=instance),
        **fields,  # type: ignore[arg-type]  # a mixed dict of keyword arguments
    )


def stretches(shown: Timeline, phase: Phase, number: int = 0) -> list[tuple[float, float]]:
    return [(each.start, each.end) for each in shown.bars[number].stretches if each.phase is phase]


def test_a_worker_starts_is_idle_serves_and_ends() -> None:
    records: list[Record] = [WORKER, request(1, 9.0, 20.0, 30.0), request(2, 25.0, 25.0, 40.0)]
    shown = timeline([*records, request(3, 50.0, 50.0, 55.0), request(4, 26.0, 26.0, 28.0)])
    (bar,) = shown.bars
    assert (bar.start, bar.end, bar.gpu) == (10.0, 70.0, "v100x4-0/gpu1")
    assert stretches(shown, Phase.STARTING) == [(10.0, 20.0)]
    assert stretches(shown, Phase.IDLE) == [(20.0, 70.0)]
    assert stretches(shown, Phase.BUSY) == [(20.0, 40.0), (50.0, 55.0)]
    assert shown.end == 70.0


def test_stages_of_a_start_and_of_a_consolidation_lie_over_it() -> None:
    shown = timeline(
        [
            WORKER,
            stage("container", 10.0, 12.0),
            stage("fetch", 10.0, 15.0),
            stage("load", 13.0, 18.0),
            stage("load balancer", 19.0, 20.0),
            stage("await network", 21.0, 22.0),
            stage("background fetch", 22.0, 30.0),
            stage("background load", 24.0, 32.0),
            stage("await exclusive", 32.0, 33.0),
            stage("kv migration", 33.0, 34.0),
            stage("consolidation", 21.0, 34.0),
        ]
    )
    assert stretches(shown, Phase.FETCHING) == [(10.0, 15.0), (22.0, 30.0)]
    assert stretches(shown, Phase.LOADING) == [(13.0, 18.0), (24.0, 32.0)]
    assert stretches(shown, Phase.CONSOLIDATING) == [(21.0, 34.0)]
    assert stretches(shown, Phase.MIGRATING) == [(33.0, 34.0)]
    assert {"background fetch", "background load", "kv migration", "consolidation"} <= {*CONSOLIDATION_STAGES}


def test_stages_are_of_their_rank() -> None:
    second = replace(WORKER, rank=1, gpu="v100x4-0/gpu2")
    shown = timeline([WORKER, second, stage("fetch", 10.0, 12.0, rank=1)])
    assert stretches(shown, Phase.FETCHING, 0) == []
    assert stretches(shown, Phase.FETCHING, 1) == [(10.0, 12.0)]


def test_a_worker_that_never_was_ready_starts_until_it_ends() -> None:
    shown = timeline([replace(WORKER, ready_at=None, last_busy_at=None, ended_at=33.0)])
    assert stretches(shown, Phase.STARTING) == [(10.0, 33.0)]
    assert stretches(shown, Phase.IDLE) == []


def test_a_worker_and_a_request_that_outlive_the_run_end_with_it() -> None:
    shown = timeline([replace(WORKER, ended_at=None), request(1, 9.0, 30.0, None), decision(100.0, "refuse")])
    assert (shown.end, shown.bars[0].end) == (100.0, 100.0)
    assert stretches(shown, Phase.BUSY) == [(30.0, 100.0)]


def test_a_worker_that_is_released_early_does_not_serve_on() -> None:
    shown = timeline([replace(WORKER, ended_at=35.0), request(1, 9.0, 15.0, 60.0)])
    assert stretches(shown, Phase.BUSY) == [(20.0, 35.0)]


def test_dispatches_say_which_instance_held_a_request_when() -> None:
    other = replace(WORKER, instance=1, started_at=11.0)
    moved = replace(request(1, 9.0, 20.0, 60.0), instance=1)
    hands = [decision(20.0, "dispatch", 0, request_id=1), decision(45.0, "dispatch", 1, request_id=1)]
    shown = timeline([WORKER, other, moved, *hands])
    assert stretches(shown, Phase.BUSY, 0) == [(20.0, 45.0)]
    assert stretches(shown, Phase.BUSY, 1) == [(45.0, 60.0)]


def test_without_worker_records_launches_and_retirements_tell() -> None:
    servers = ("a10x1-0", "a10x1-1")
    shown = timeline(
        [
            decision(10.0, "launch", 0, model="llama2-7b", servers=servers, memory=(6e9, 6e9)),
            stage("engine", 15.0, 17.0, rank=0),
            stage("engine", 15.0, 19.0, rank=1),
            request(1, 9.0, 19.0, 30.0),
            decision(60.0, "retire", 0, servers=servers),
        ]
    )
    assert [(bar.server, bar.rank, bar.start, bar.end) for bar in shown.bars] == [
        ("a10x1-0", 0, 10.0, 60.0),
        ("a10x1-1", 1, 10.0, 60.0),
    ]
    assert stretches(shown, Phase.STARTING, 0) == stretches(shown, Phase.STARTING, 1) == [(10.0, 19.0)]
    assert stretches(shown, Phase.BUSY, 1) == [(19.0, 30.0)]
    assert [(row.server, row.gpu) for row in shown.rows((0.0, 60.0))] == [("a10x1-0", ""), ("a10x1-1", "")]


def test_rows_are_gpus_by_server_in_the_order_of_their_numbers() -> None:
    places = ["v100x4-10/gpu0", "v100x4-2/gpu1", "a10x4-0/gpu3", "v100x4-2/gpu0"]
    workers = [
        replace(WORKER, instance=number, server=place.partition("/")[0], gpu=place)
        for number, place in enumerate(places)
    ]
    rows = timeline(workers).rows((0.0, 70.0))
    assert [(row.server, row.gpu) for row in rows] == [
        ("a10x4-0", "gpu3"), ("v100x4-2", "gpu0"), ("v100x4-2", "gpu1"), ("v100x4-10", "gpu0"),
    ]  # fmt: skip


def test_a_gpu_without_workers_in_the_window_keeps_its_row() -> None:
    later = replace(WORKER, instance=1, gpu="v100x4-0/gpu2", started_at=80.0, ready_at=85.0, ended_at=90.0)
    rows = timeline([WORKER, later]).rows((0.0, 50.0))
    assert [len(row.lanes) for row in rows] == [1, 0]
    assert [row.lanes for row in timeline([WORKER, later]).rows((70.0, 80.0))] == [[], []]


def test_the_busiest_window_is_where_most_requests_arrive() -> None:
    arrivals = [5.0, 120.4, 130.0, 150.0, 155.0, 290.0]
    shown = Timeline(bars=(), requests=[request(i, at, None, None) for i, at in enumerate(arrivals)], end=300.0)
    assert shown.busiest(40.0) == (120.0, 160.0)
    assert shown.busiest(5.0) == (5.0, 10.0)
    assert shown.busiest(1000.0) == (0.0, 300.0)
    assert replace(shown, requests=()).busiest(40.0) == (0.0, 40.0)
    assert replace(shown, requests=[request(0, 290.0, None, None)]).busiest(40.0) == (260.0, 300.0)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=30))
def test_lanes_hold_every_worker_once_and_no_two_at_a_time(spans: list[tuple[int, int]]) -> None:
    bars = [
        WorkerBar(
            instance=number, rank=0, model="m", server="s", gpu="s/gpu0", start=start, end=start + length,
            stretches=(),
        )
        for number, (start, length) in enumerate(spans)
    ]  # fmt: skip
    rows = Timeline(bars=bars, requests=(), end=100.0).rows((0.0, 100.0))
    lanes = [lane for row in rows for lane in row.lanes]
    assert sorted(bar.instance for lane in lanes for bar in lane) == list(range(len(bars)))
    for lane in lanes:
        assert all(one.end <= other.start for one, other in pairwise(lane))
    at_once = max((sum(bar.start <= instant < bar.end for bar in bars) for instant in range(100)), default=0)
    assert len(lanes) == at_once
