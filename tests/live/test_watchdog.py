"""Children that are stopped, not dead, and regions that go with a prefetcher: noticed, told, and replayed."""

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from serving.core.clock import FlowBody, SimClock, spawn
from serving.live.fleet import WorkerOptions
from serving.live.recording import FetchFailed, Lost, Recording
from serving.live.replay import replay
from serving.live.setup import LiveRun, LiveSetup, running, whole_run
from serving.live.worker import Worker as WorkerProcess
from serving.live.worker_link import BESIDE, Reply, WorkerLink
from serving.policies import configured
from serving.records import DecisionRecord, Record
from serving.units import MB
from serving.workload.clients import Client, Send
from tests.live.served import fixed, left_over, live_setup, request, small_testbed

pytestmark = pytest.mark.faults

pytest.importorskip("torch", reason="needs the live extra: make test-live")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left_over() == []


def setup_of(answer_limit: float = 60.0, rate: float = 200 * MB, fetch_limit: float = 60.0) -> LiveSetup:
    options = WorkerOptions(max_blocks=64, answer_limit=answer_limit, fetch_limit=fetch_limit)
    return live_setup(fixed(1), small_testbed(1, exclusive=True, fetch_rate=rate), workers=options)


def run_to_the_end(
    setup: LiveSetup, client: Client, disturb: "Disturb", records: list[Record] | None = None
) -> tuple[list[DecisionRecord], Recording]:
    """The decisions of a run, which a replay repeats."""
    records = [] if records is None else records
    recording = Recording()
    with running(setup, records.append, recording) as run:
        whole = spawn(run.clock, whole_run(run.clock, run.control, client))
        run.control.start()
        spawn(run.clock, disturb.flow(run))
        run.clock.run(until=lambda: whole.done.fired)
        run.control.close()
    decided = [record for record in records if isinstance(record, DecisionRecord)]
    assert replay(setup, recording, client) == decided
    return decided, recording


class Disturb:
    """What is done to a run, once, at the right moment."""

    def flow(self, run: LiveRun) -> FlowBody:
        """Looks often."""
        while not self.done(run):
            yield 0.01

    def done(self, run: LiveRun) -> bool:
        """Whether it was time, and it is done."""
        raise NotImplementedError


class StopWorker(Disturb):
    """In the middle of a request."""

    def done(self, run: LiveRun) -> bool:
        for instance in run.control.cluster.instances:
            if instance.num_sequences and instance.num_steps > 2:
                os.kill(run.fleet.links(instance)[0].live.pid, signal.SIGSTOP)
                return True
        return False


class StopPrefetcher(Disturb):
    """In the middle of a fetch."""

    def done(self, run: LiveRun) -> bool:
        if any(fetch.arrival.received > 0 for fetch in run.transport.fetches):
            os.kill(run.transport.prefetchers[0].process.live.pid, signal.SIGSTOP)
            return True
        return False


class EndPrefetcher(Disturb):
    """In an orderly way, after an instance has come and gone."""

    def done(self, run: LiveRun) -> bool:
        if run.control.num_launched and not run.control.cluster.instances:
            run.transport.prefetchers[0].send({"op": "exit"})
            return True
        return False


def once(send: Send) -> FlowBody:
    yield send(request(0, 12, 200))


def test_a_worker_that_is_stopped_in_a_step_is_lost_and_the_request_goes_on_elsewhere() -> None:
    decided, recording = run_to_the_end(setup_of(answer_limit=4.0), once, StopWorker())
    (lost,) = (event for event in recording.events if isinstance(event, Lost))
    assert lost.reason.startswith("worker 0.0 (process") and lost.reason.endswith("has not answered for 4 s")
    assert [decision.action for decision in decided] == ["launch", "dispatch", "lose", "launch", "dispatch"]


def test_a_prefetcher_that_is_stopped_in_a_fetch_is_replaced() -> None:
    decided, recording = run_to_the_end(setup_of(rate=0.4 * MB, fetch_limit=1.5), once, StopPrefetcher())
    (failed,) = (event for event in recording.events if isinstance(event, FetchFailed))
    assert "prefetcher of" in failed.reason and failed.reason.endswith("has said nothing of a fetch for 1.5 s")
    assert [decision.action for decision in decided].count("launch") == 2


def test_what_a_server_kept_is_fetched_anew_when_its_prefetcher_has_ended() -> None:
    def twice(send: Send) -> FlowBody:
        yield send(request(0))
        yield 1.5
        yield send(request(1))

    system = configured("serverlessllm", {"grace_period": 0.2, "interval": 0.1})
    testbed = small_testbed(1, exclusive=True, cache=1.2 * MB)
    setup = live_setup(system, testbed, workers=WorkerOptions(max_blocks=64))
    setup = replace(setup, workers=replace(setup.workers, answer_limit=60.0))
    decided, _ = run_to_the_end(setup, twice, EndPrefetcher())
    launches = [decision.from_cache for decision in decided if decision.action == "launch"]
    assert launches == [False, False]
    assert not [decision for decision in decided if decision.action in ("lose", "refuse")]


class SilentProcess:
    """Takes commands, and answers when the test says so."""

    name, pid = "worker 0.0", 1

    def __init__(self) -> None:
        self.socket, self._other = socket.socketpair()

    def stop(self, grace: float) -> None:
        """Nothing runs."""
        del grace

    def obituary(self) -> str:
        """It does not end by itself."""
        return "gone"


@pytest.mark.parametrize(("answered", "accused_at"), [("load", 7.0), ("step", 11.0), (None, 7.0)])
def test_answers_of_the_loading_thread_do_not_hide_that_steps_hang(answered: str | None, accused_at: float) -> None:
    clock = SimClock()
    link = WorkerLink(SilentProcess(), clock, answer_limit=6.0)  # type: ignore[arg-type]
    faults: list[tuple[float, str]] = []
    link.on_fault = lambda reason: faults.append((clock.now, reason))
    clock.call_at(0.0, link._hello)
    reply = Reply(header={}, payload=b"")
    for op in ("step", "step", "load"):
        clock.call_at(0.0, link.call, {"op": op}, lambda _: None)
    if answered is not None:  # the second load or step is still owed
        clock.call_at(1.0, link.call, {"op": "load"}, lambda _: None)
        clock.call_at(4.0, link._answer, 1 if answered == "step" else 3, reply)
        clock.call_at(5.0, link._answer, 3 if answered == "step" else 4, reply)
        clock.call_at(5.0, link._answer, 4, reply)
    clock.run()
    link.join()
    assert faults == [(accused_at, "worker 0.0 (process 1) has not answered for 6 s")]


def watched(answer_limit: float = 6.0) -> tuple[SimClock, WorkerLink, list[tuple[float, str]]]:
    """A process that says nothing but what the test says for it; and what becomes of it."""
    clock = SimClock()
    link = WorkerLink(SilentProcess(), clock, answer_limit)  # type: ignore[arg-type]
    faults: list[tuple[float, str]] = []
    link.on_fault = lambda reason: faults.append((clock.now, reason.removeprefix("worker 0.0 (process 1) ")))
    clock.call_at(0.0, link._hello)
    return clock, link, faults


def ask(clock: SimClock, link: WorkerLink, at: float, op: str, longer: float = 0.0) -> None:
    clock.call_at(at, lambda: link.call({"op": op}, lambda _: None, longer=longer))


@pytest.mark.parametrize(
    ("answers", "accused_at", "limit"),
    [
        ((), 27.0, 26),  # the take itself hangs
        ((25.5,), 32.5, 6),  # the load behind it
        ((3.0,), 10.0, 6),
        ((25.5, 31.0), 51.0, 19),  # the second take; a silence of it is seen at the end of its own limit
        ((25.5, 31.0, 49.5), None, 0),
    ],
)
def test_a_long_take_has_a_limit_of_its_own_and_those_behind_it_have_theirs_from_its_end(
    answers: tuple[float, ...], accused_at: float | None, limit: int
) -> None:
    clock, link, faults = watched()
    for op, longer in (("kv_take", 20.0), ("load", 0.0), ("kv_take", 13.0)):
        ask(clock, link, 0.0, op, longer)
    for number, at in enumerate(answers, start=1):
        clock.call_at(at, link._answer, number, Reply(header={}, payload=b""))
    clock.run()
    link.close()
    link.join()
    assert faults == ([] if accused_at is None else [(accused_at, f"has not answered for {limit} s")])


@pytest.mark.parametrize("asked_at", [0.0, 3.0, 6.0, 7.0, 40.0, 100.0])
def test_a_step_that_hangs_beside_a_long_take_is_seen_as_soon_as_ever(asked_at: float) -> None:
    clock, link, faults = watched()
    ask(clock, link, 0.0, "kv_take", 200.0)
    ask(clock, link, asked_at, "step")
    clock.run()
    link.join()
    assert faults == [(asked_at + 7.0, "has not answered for 6 s")]


def test_a_step_that_hangs_while_the_end_of_a_take_was_awaited_is_seen_in_time() -> None:
    """The take answers in its last second."""
    clock, link, faults = watched()
    ask(clock, link, 0.0, "kv_take", 4.0)
    ask(clock, link, 5.0, "step")
    clock.call_at(10.5, link._answer, 1, Reply(header={}, payload=b""))
    clock.run()
    link.join()
    assert faults == [(12.0, "has not answered for 6 s")]


def test_control_knows_which_commands_are_carried_out_beside_steps() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert tuple(WorkerProcess(ours)._beside) == BESIDE
