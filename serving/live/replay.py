"""replay(): the same system in virtual time, with ports that complete when those of a recorded live run did.

Policies and mechanisms run unchanged in both worlds, so the same completions at the same times must give the same
decisions: equal records, times included.
"""

from collections import Counter
from collections.abc import Callable

from serving.control import Control
from serving.core.clock import Signal, SimClock, spawn
from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.core.ports import Backend
from serving.core.stages import Loader, Stage
from serving.core.worker import Worker
from serving.live.arrival import Arrival, Inflow
from serving.live.engine_stats import sequences_of
from serving.live.fleet import instance_on, key_of
from serving.live.loops import ControlLoops
from serving.live.recording import (
    Aborted,
    Fetched,
    FetchFailed,
    KvMoved,
    Loaded,
    Lost,
    Recording,
    StageEnded,
    StepEnded,
    Submitted,
    WorkerKey,
)
from serving.live.setup import FIRST_START, LiveSetup, whole_run
from serving.records import DecisionRecord, Record
from serving.serve import build_control
from serving.units import Bytes
from serving.workload.clients import Client


class ReplayMismatch(RuntimeError):
    """The replay asked a port for something that cannot be what the live run asked for."""


def replay(setup: LiveSetup, recording: Recording, client: Client | None = None) -> list[DecisionRecord]:
    """The decisions of a replayed run. The client is the live run's; None for an engine's run, whose requests are in
    the recording."""
    clock = SimClock()
    decisions: list[DecisionRecord] = []

    def record(written: Record) -> None:
        if isinstance(written, DecisionRecord):
            decisions.append(written)

    ports = ReplayedPorts(clock, recording, setup)
    backend = Backend(clock=clock, executor=ports, transport=ports, provisioner=ports, first_start=FIRST_START)
    control = ports.control = build_control(setup.served, backend, record)
    ports.book_outside_events()
    if client is not None:
        spawn(clock, whole_run(clock, control, client))
    control.start()
    clock.run(until=recording.ended_at)
    return decisions


class ReplayedPorts:
    """Executor, Transport and Provisioner that complete as recorded; what is not in the recording never completes."""

    def __init__(self, clock: SimClock, recording: Recording, setup: LiveSetup) -> None:
        self.control: Control | None = None
        self._clock = clock
        self._loops = ControlLoops(clock, setup.seed)
        self._workers = setup.workers
        self._recording = recording
        self._num_loads: dict[WorkerKey, int] = {}
        self._num_rests: dict[WorkerKey, int] = {}
        self._num_moves: Counter[WorkerKey] = Counter()
        events = recording.events
        self._stages = {(e.worker, e.stage): e for e in events if isinstance(e, StageEnded)}
        self._loads = {(e.worker, e.serial): e for e in events if isinstance(e, Loaded)}
        self._moves = {(e.worker, e.serial): e for e in events if isinstance(e, KvMoved)}
        self._steps = {(e.instance, e.num_stages, e.serial): e for e in events if isinstance(e, StepEnded)}
        self._fetches: dict[tuple[WorkerKey, int], list[Fetched | FetchFailed]] = {}
        for event in events:
            if isinstance(event, Fetched | FetchFailed):
                self._fetches.setdefault((event.worker, event.serial), []).append(event)

    def book_outside_events(self) -> None:
        """What came from clients of an engine, and what was lost."""
        for event in self._recording.events:
            match event:
                case Submitted():
                    self._clock.call_at(event.at, self._plane().arrive, event.request)
                case Aborted():
                    self._clock.call_at(event.at, self._abort, event.request_id)
                case Lost():
                    self._clock.call_at(event.at, self._lose, event)

    def submit(self, instance: Instance, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        """End the step when the recorded one did, with as many tokens for each sequence."""
        event = self._steps.get((instance.instance_id, len(instance.workers), instance.num_steps))
        if event is not None:
            if len(event.num_output) != len(plan.sequences):
                raise ReplayMismatch(
                    f"step {event.serial} of instance {event.instance} has {len(plan.sequences)} sequences at "
                    f"t={self._clock.now}, {len(event.num_output)} were recorded"
                )
            self._clock.call_at(event.at, _end_step, plan, event, done)

    def step_ends(self, instance: Instance, plan: StepPlan) -> None:
        """As live."""
        del instance, plan

    def pieces(self, worker: Worker) -> tuple[Bytes, ...]:
        """As live."""
        return worker.tensors

    def fetch(self, worker: Worker) -> Arrival:
        """Bytes arrive when the recorded ones did."""
        instance = self._instance_of(worker)
        serial, key = 0, key_of(instance, worker)
        if worker not in instance.workers:
            serial = self._num_rests[key] = self._num_rests.get(key, 0) + 1
        inflow = Inflow(instance, worker.rank, worker.server, Arrival(self._clock, worker.weights), serial)
        for event in self._fetches.get((key, serial), ()):
            self._clock.call_at(event.at, self._hear, inflow, event)
        return inflow.arrival

    def load(self, worker: Worker, size: Bytes, loader: Loader) -> Arrival:
        """The load ends when the recorded one did."""
        del loader  # its time is in the recording
        arrival = Arrival(self._clock, size)
        key = key_of(self._instance_of(worker), worker)
        serial = self._num_loads.get(key, 0)
        self._num_loads[key] = serial + 1
        event = self._loads.get((key, serial))
        if event is not None:
            self._clock.call_at(event.at, arrival.finish)
        return arrival

    def move_kv(self, source: Worker, target: Worker, blocks: list[int], into: list[int], size: Bytes) -> Arrival:
        """The blocks' KV has moved when the recorded one had."""
        del target, blocks, into  # when is all that matters, and is in the recording
        arrival = Arrival(self._clock, size)
        key = key_of(self._instance_of(source), source)
        event = self._moves.get((key, self._num_moves[key]))
        self._num_moves[key] += 1
        if event is not None:
            self._clock.call_at(event.at, arrival.finish)
        return arrival

    def grow(self, instance: Instance, whole: Worker) -> Signal:
        """It ends when the recorded one did."""
        ended = Signal(self._clock)
        event = self._stages.get((key_of(instance, whole), "grow"))
        if event is not None:
            self._clock.call_at(event.at, ended.fire)
        return ended

    def start(self, instance: Instance, worker: Worker, stage: Stage) -> Signal:
        """The stage ends when the recorded one did; loops of the control plane turn by themselves."""
        if stage.period:
            return self._loops.wait(stage)
        ended = Signal(self._clock)
        event = self._stages.get(((instance.instance_id, worker.rank), stage.name))
        if event is not None:
            self._clock.call_at(event.at, ended.fire)
        return ended

    def num_blocks(self, instance: Instance) -> int:
        """As live."""
        return self._workers.num_blocks(instance)

    def stop(self, instance: Instance, workers: tuple[Worker, ...]) -> None:
        """Nothing runs that would have to end."""

    def _hear(self, inflow: Inflow, event: Fetched | FetchFailed) -> None:
        if isinstance(event, FetchFailed) and inflow.arrival.done.fired:
            inflow.forget()
        if not inflow.arrival.under_way:
            return
        match event:
            case Fetched():
                inflow.arrival.advance(event.received)
                if event.done:
                    inflow.arrival.finish()
            case FetchFailed():
                inflow.fail(self._plane().cluster, event.reason, self._plane().lose)

    def _abort(self, request_id: int) -> None:
        cluster = self._plane().cluster
        for model in cluster.deployments:
            for sequence in sequences_of(cluster, model):
                if sequence.request.request_id == request_id:
                    self._plane().abort(sequence)
                    return
        raise ReplayMismatch(f"request {request_id} was aborted at t={self._clock.now}, here it has ended")

    def _lose(self, event: Lost) -> None:
        for instance in self._plane().cluster.instances:
            if instance.instance_id == event.instance:
                self._plane().lose(instance, event.reason)
                return
        raise ReplayMismatch(f"instance {event.instance} was lost at t={event.at}, here it is not there")

    def _instance_of(self, worker: Worker) -> Instance:
        instance = instance_on(self._plane().cluster, worker.process)
        assert instance is not None, "ports are asked for workers of living instances"
        return instance

    def _plane(self) -> Control:
        assert self.control is not None, "ports are asked by a control plane"
        return self.control


def _end_step(plan: StepPlan, event: StepEnded, done: Callable[[StepResult], None]) -> None:
    for sequence, final_tokens in zip(plan.sequences, event.final_tokens, strict=True):
        sequence.final_tokens = final_tokens
    done(StepResult(plan, list(event.num_output)))
