"""Parity: a live run's completions, replayed in virtual time at their recorded times, give the same decisions."""

import os
import signal
from dataclasses import replace
from typing import Any

import pytest

from serving.core.actions import Method
from serving.core.clock import FlowBody, Signal
from serving.core.ports import System
from serving.live.fleet import WorkerOptions
from serving.live.recording import Event, KvMoved, Recording, StepEnded
from serving.live.replay import ReplayMismatch, replay
from serving.live.setup import LiveRun, LiveSetup, serve_live
from serving.policies import configured
from serving.records import DecisionRecord, PauseRecord, Record, RequestRecord, StageRecord
from serving.testbed import Testbed
from serving.units import GB, MB
from serving.workload.clients import Client, Send
from tests.live.migrations import Sky, Weather, stormy
from tests.live.served import fixed, left_over, live_setup, request, small_testbed
from tests.live.test_engine import ask, serving, until
from tests.live.test_watchdog import Disturb, run_to_the_end

pytest.importorskip("torch", reason="needs the live extra: make test-live")

SCALED = {"kv_reserve": 4 * MB, "leftover": 0.0, "grace_period": 0.2, "interval": 0.1}
"""The knobs of serverless systems, for a model of 0.9 MB; slices are whole GB."""

SYSTEMS: dict[str, tuple[System, Testbed]] = {
    "hydraserve": (
        configured("hydraserve", {**SCALED, "small_model": 0.1 * MB, "max_pipeline_size": 2}),
        small_testbed(2, gpu_memory=1.5 * GB),
    ),
    "serverlessllm": (
        configured("serverlessllm", {"grace_period": 0.2, "interval": 0.1}),
        small_testbed(1, exclusive=True, cache=1.2 * MB),
    ),
    "serverless_vllm": (configured("serverless_vllm", SCALED), small_testbed(1, gpu_memory=1.5 * GB)),
    "llumnix": (  # whose first instance is there at the beginning, so far as anything is
        configured("llumnix", {"num_instances": 1, "max_step_tokens": 64}),
        small_testbed(1, exclusive=True),
    ),
}


def waves(num_waves: int) -> Client:
    """Some requests at once; when all are answered and the instance has had time to retire, perhaps one more."""

    def flow(send: Send) -> FlowBody:
        answers: list[Signal] = []
        for number in range(4):
            yield 0.03
            answers.append(send(request(number, 9 + number, 5)))
        while answers:
            yield answers.pop()
        if num_waves > 1:
            yield 0.5
            yield send(request(100, 20, 3))

    return flow


def run_live(setup: LiveSetup, client: Client) -> tuple[list[Record], Recording]:
    records: list[Record] = []
    recording = Recording()
    serve_live(setup, client, records.append, recording)
    assert left_over() == []
    return records, recording


def decisions(records: list[Record]) -> list[DecisionRecord]:
    return [record for record in records if isinstance(record, DecisionRecord)]


@pytest.mark.parametrize("name", SYSTEMS)
def test_replayed_completions_give_the_same_decisions(name: str) -> None:
    system, testbed = SYSTEMS[name]
    setup = live_setup(system, testbed, workers=WorkerOptions(max_blocks=64))
    client = waves(2 if name == "serverlessllm" else 1)
    records, recording = run_live(setup, client)
    answered = [r.num_output_tokens for r in records if isinstance(r, RequestRecord)]
    assert answered[:4] == [5, 5, 5, 5]
    assert replay(setup, recording, client) == decisions(records)
    if name == "serverlessllm":  # the second instance loads from the server's host memory
        assert [d.action for d in decisions(records)].count("retire") == 1
        assert [d.from_cache for d in decisions(records) if d.action == "launch"] == [False, True]
        fetched = [r.num_bytes for r in records if isinstance(r, StageRecord) and r.stage == "fetch"]
        assert fetched[0] > 0 == fetched[1]
    if name == "hydraserve":
        assert {len(d.servers) for d in decisions(records) if d.action == "launch"} == {2}


def test_migrations_of_all_methods_are_replayed_also_those_that_end_early() -> None:
    """A client goes while its sequence moves, and an instance is lost."""
    setup, recording, records = stormy(3, 1, Weather(tuple(Method))), Recording(), list[Any]()
    with serving(setup, recording, records) as engine:
        until(engine, lambda stats: stats.instances_ready == 3)
        sky = Sky(engine, Weather(), records)
        asked = [ask(engine, list(range(20 + number)), 120) for number in range(12)]
        sky.until(lambda: len(sky.migrations()) > 4)
        moving: list[int] = []

        def look() -> bool:
            moving.extend(one.move.sequence.request.request_id for one in sky.instances if one.move is not None)
            return bool(moving)

        sky.until(look)
        engine.abort(asked[moving[0]][0])
        os.kill(sky.run.fleet.links(sky.instances[0])[0].live.pid, signal.SIGKILL)
        assert {heard.last.finish_reason for _, heard in asked} <= {"length", "abort"}
    moved = [record for record in sky.migrations() if record.outcome == "migrated"]
    assert {record.method for record in moved} == {method.value for method in Method}
    assert {event.serial for event in recording.events if isinstance(event, KvMoved)} > {0, 1}
    decided = decisions(records)
    assert [d.action for d in decided].count("migrate") == len(sky.migrations())
    assert "lose" in {d.action for d in decided}
    assert replay(setup, recording) == decided


class EndTheSecondRest(Disturb):
    """Kills the prefetcher that fetches what the second pipeline's worker lacks."""

    def done(self, run: LiveRun) -> bool:
        for fetch in run.transport.fetches:
            if (
                fetch.instance.instance_id == 1
                and fetch.serial
                and fetch.prefetcher is not None
                and fetch.arrival.under_way
            ):
                os.kill(fetch.prefetcher.process.live.pid, signal.SIGKILL)
                return True
        return False


def test_consolidations_of_adaptive_groups_are_replayed_also_one_that_fails() -> None:
    """One worker would take (0.96 MB at 1 MB/s) + 29.3 s, more than the SLO of 30 s; two fetch half each. Once the
    oldest request has waited for a while, nothing meets the SLO, and one worker starts."""
    records: list[Record] = []
    knobs = {**SCALED, "sizing": "adaptive", "after_fetch": 29.3, "max_pipeline_size": 2, "batch_size": 2}
    testbed = small_testbed(2, gpu_memory=1.5 * GB, nic_rate=1 * MB, fetch_rate=1 * MB)
    setup = live_setup(configured("hydraserve", knobs), testbed, workers=WorkerOptions(max_blocks=64))

    def client(send: Send) -> FlowBody:
        answers = [send(request(number, 9 + number, 350)) for number in range(3)]
        while answers:
            yield answers.pop()
        yield 1.0
        yield send(request(3, 20, 350))

    decided, recording = run_to_the_end(setup, client, EndTheSecondRest(), records)
    assert [d.action for d in decided if d.action != "dispatch"] == [
        *("launch", "consolidate", "retire"),
        *("launch", "consolidate", "lose"),
        "launch",
    ]
    assert [len(d.servers) for d in decided if d.action in ("launch", "retire")] == [2, 1, 2, 1]
    assert [d.num_output_tokens for d in records if isinstance(d, RequestRecord)] == [350] * 4
    (lost,) = (d for d in decided if d.action == "lose")
    assert "prefetcher of small-0" in lost.detail
    assert sum(isinstance(event, KvMoved) for event in recording.events) == 1
    assert 1 <= sum(isinstance(record, PauseRecord) for record in records) <= 3  # as many as had not ended by then


def test_a_replay_that_is_not_of_this_run_is_noticed() -> None:
    setup = live_setup(fixed(), small_testbed(1, exclusive=True), workers=WorkerOptions(max_blocks=64))
    records, recording = run_live(setup, waves(1))
    assert replay(setup, recording, waves(1)) == decisions(records)
    later = Recording([replace_time(event, 1.0) for event in recording.events], recording.ended_at + 1.0)
    assert replay(setup, later, waves(1)) != decisions(records)
    fewer = [replace(e, num_output=e.num_output[1:]) if isinstance(e, StepEnded) else e for e in recording.events]
    with pytest.raises(ReplayMismatch, match=r"step 1 of instance 0 has \d sequences"):
        replay(setup, Recording(fewer, recording.ended_at), waves(1))


def replace_time(event: Event, delay: float) -> Event:
    return replace(event, at=event.at + delay)
