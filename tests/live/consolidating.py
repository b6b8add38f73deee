"""Live runs in which a pipeline of a tiny model is consolidated, with requests before, during and after."""

import atexit
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from serving.core.clock import FlowBody, Signal, spawn
from serving.core.cluster import Deployment
from serving.core.ports import System
from serving.core.request import Request, Sequence
from serving.core.worker import Worker
from serving.live.checkpoint import Checkpoint
from serving.live.fleet import WorkerOptions
from serving.live.recording import Recording
from serving.live.setup import LiveRun, LiveSetup, running, whole_run
from serving.policies import configured
from serving.policies.hydraserve import HydraServe, HydraServeConfig
from serving.policies.hydraserve_size import GroupSize
from serving.records import PauseRecord, Record, RequestRecord, StageRecord, WorkerRecord
from serving.units import GB, MB
from serving.workload.clients import Send
from tests.live.served import small_testbed
from tests.live.stages import make_lively

MODEL = "lively"
NUM_OUTPUT = 160
PROMPTS = [[Random(number).randrange(320) for _ in range(6 + 5 * number)] for number in range(9)]
"""Thirds are sent before the consolidation, while it goes on, and after it."""
KNOBS: dict[str, Any] = {
    "sizing": "fixed",
    "kv_reserve": 3.5 * GB,
    "leftover": 0.0,
    "batch_size": 2,
    "interval": 0.05,
    "network_poll": 0.01,
    "exclusive_poll": 0.01,
}
"""Slices are whole GB: a worker for all takes 4, one of four stages takes 1."""


@cache
def lively_model() -> Path:
    """Six layers with a tied embedding, made once a session."""
    folder = mkdtemp(prefix="aebench-test-")
    atexit.register(rmtree, folder, ignore_errors=True)
    return make_lively(Path(folder) / MODEL, num_hidden_layers=6, tie_word_embeddings=True, max_position_embeddings=512)


class Grouped(HydraServe):
    """Groups of a size that is told."""

    def __init__(self, config: HydraServeConfig, group: GroupSize) -> None:
        super().__init__(config)
        self._group = group

    def _size(self, *_: object) -> GroupSize:
        return self._group


def grouped(stages: int, full: int, **knobs: Any) -> System:
    """HydraServe that starts each model with one group."""
    system = configured("hydraserve", {**KNOBS, **knobs})
    return replace(system, controller=partial(Grouped, group=GroupSize(stages, full)))


def consolidating(system: System, num_servers: int, rate: float = 100 * MB, **options: Any) -> LiveSetup:
    """The lively model on servers with room for one whole worker each."""
    folder = lively_model()
    spec = Checkpoint.open(folder).spec(MODEL)
    deployment = Deployment(model=MODEL, spec=spec, size=spec.weight_bytes, ttft_slo=30.0, tpot_slo=1.0)
    return LiveSetup(
        testbed=small_testbed(num_servers, gpu_memory=4.5 * GB, fetch_rate=rate, nic_rate=rate),
        system=system,
        deployments=(deployment,),
        checkpoints={MODEL: folder},
        workers=WorkerOptions(**options),
    )


@dataclass
class Watched:
    """What a run left, and was seen to do."""

    records: list[Record] = field(default_factory=list)
    recording: Recording = field(default_factory=Recording)
    sequences: list[Sequence] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    """Of the pipeline's workers."""
    most_in_flight: int = 0
    """Steps of one instance at once."""
    blocks: list[int] = field(default_factory=list)
    """KV blocks of the pipeline, then of what it became."""

    @property
    def outputs(self) -> list[list[int]]:
        """Of all requests, in their order."""
        return [sequence.output_ids for sequence in sorted(self.sequences, key=lambda s: s.request.request_id)]

    def of(self, kind: type[Any]) -> list[Any]:
        """Records of a kind."""
        return [record for record in self.records if isinstance(record, kind)]

    def stages(self, name: str) -> list[StageRecord]:
        """Records of a stage."""
        return [record for record in self.of(StageRecord) if record.stage == name]

    def workers(self) -> list[WorkerRecord]:
        """Records of worker processes."""
        return self.of(WorkerRecord)

    def pauses(self) -> list[tuple[PauseRecord, RequestRecord]]:
        """Each with its request's."""
        requests = {record.request_id: record for record in self.of(RequestRecord)}
        return [(pause, requests[pause.request_id]) for pause in self.of(PauseRecord)]


Look = Callable[[LiveRun, Watched], None]


def send_thirds(run: LiveRun, seen: Watched, send: Send) -> FlowBody:
    """Ask before the pipeline is there, when it begins to be something else, and when it is."""
    answers: list[Signal] = []

    def ask(numbers: range) -> None:
        for number in numbers:
            prompt = tuple(PROMPTS[number])
            answers.append(
                send(
                    Request(
                        request_id=number,
                        model=MODEL,
                        num_prompt_tokens=len(prompt),
                        num_output_tokens=NUM_OUTPUT,
                        prompt=prompt,
                    )
                )
            )

    cluster = run.control.cluster
    ask(range(3))
    while not any(instance.num_becoming for instance in cluster.instances):
        yield 0.005
    group = cluster.instances[0]
    seen.pids = [link.live.pid for link in run.fleet.links(group)]
    seen.blocks.append(0 if group.pool is None else group.pool.num_blocks)
    ask(range(3, 6))
    while any(instance.num_becoming for instance in cluster.instances):
        seen.most_in_flight = max([seen.most_in_flight, *(len(i._in_flight.plans) for i in cluster.instances)])
        yield 0.002
    for instance in cluster.instances:
        if instance.pool is not None and len(instance.workers) == 1:
            seen.blocks.append(instance.pool.num_blocks)
            instance.pool._free.reverse()  # blocks that the pipeline did not have are used first
    ask(range(6, 9))
    while answers:
        seen.sequences.append((yield answers.pop(0)))


def watch(setup: LiveSetup, look: Look | None = None, meet: Callable[[LiveRun], None] | None = None) -> Watched:
    """Run it; ``meet`` is called before that, ``look`` when all is answered and the processes still run."""
    seen = Watched()
    with running(setup, seen.records.append, seen.recording) as run:
        if meet is not None:
            meet(run)
        whole = spawn(run.clock, whole_run(run.clock, run.control, partial(send_thirds, run, seen)))
        run.control.start()
        run.clock.run(until=lambda: whole.done.fired)
        if look is not None:
            look(run, seen)
        run.control.close()
    return seen


def pid_of(run: LiveRun, worker: Worker) -> int:
    """Of the process that a worker is in."""
    link = run.fleet.link(worker)
    assert link is not None
    return link.live.pid


def kill(pid: int) -> None:
    """At once."""
    os.kill(pid, signal.SIGKILL)
