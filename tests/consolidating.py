"""What tests of consolidation start with: a Network that opens at given times, an eager Controller, and its runs."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from serving.control import Control
from serving.core.actions import Action, Consolidate, Launch, Placement
from serving.core.clock import Clock, SimClock
from serving.core.cluster import Cluster
from serving.core.hardware import Server
from serving.core.instance import Instance, Phase
from serving.core.ports import System
from serving.core.request import Sequence, State
from serving.core.stages import Stage, StageGraph, Work
from serving.core.worker import Worker
from serving.policies import SYSTEMS
from serving.policies.autoscale import hand_out, retire_idle
from serving.policies.continuous import Batching, ContinuousBatching
from serving.records import DecisionRecord, PauseRecord, Record, RequestRecord, StageRecord, WorkerRecord
from serving.serve import Setup, build_control, simulated_backend
from serving.units import GB, Bytes, Seconds
from tests.build import make_deployment, make_requests, make_testbed

GRAPH = StageGraph(
    stages=(Stage(name="fetch", work=Work.FETCH), Stage(name="load", work=Work.LOAD, streams="fetch")),
)


@dataclass(slots=True, eq=False)
class Doors:
    """A Network that opens at given times, and checks that what it lends comes back once."""

    clock: Clock | None = None
    rest_at: Seconds = 0.0
    alone_at: Seconds = 0.0
    fetching: list[Worker] = field(default_factory=list)
    taken: list[Server] = field(default_factory=list)
    num_asked: int = 0

    @property
    def now(self) -> Seconds:
        assert self.clock is not None
        return self.clock.now

    def open_for_rest(self, worker: Worker, size: Bytes) -> bool:
        assert size == sum(part.weights for part in worker.rest(make_deployment().spec)) > 0
        if self.now < self.rest_at:
            return False
        self.fetching.append(worker)
        return True

    def close_rest(self, worker: Worker) -> None:
        self.fetching.remove(worker)

    def take_alone(self, servers: tuple[Server, ...]) -> bool:
        self.num_asked += 1
        if self.now < self.alone_at or self.fetching:
            return False
        self.taken += servers
        return True

    def give_back(self, servers: tuple[Server, ...]) -> None:
        for server in servers:
            self.taken.remove(server)


@dataclass(slots=True, eq=False)
class Eager:
    """A Controller that starts one pipeline at a time, consolidates it as soon as it may, and retires what is idle."""

    num_stages: int = 2
    num_full: int = 1
    migrate: bool = True
    network: Doors = field(default_factory=Doors)
    grace: Seconds = 30.0
    max_sequences: int = 8
    interval: Seconds = 0.25
    groups: list[Instance] = field(default_factory=list)
    """Every pipeline that became ready."""

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        return self._serve(sequence.request.model, cluster)

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        self.groups.append(instance)
        return self._serve(instance.model, cluster)

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        return self._serve(sequence.request.model, cluster)

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        del lost
        return self._serve(model, cluster)

    def on_interval(self, cluster: Cluster) -> list[Action]:
        self.network.clock = cluster.clock
        ripe = [one for one in cluster.instances if one.phase is Phase.READY and len(one.workers) > 1]
        retired = retire_idle(cluster, self.grace)
        gone = [action.instance for action in retired]
        return [*retired, *(self._consolidate(one) for one in ripe if not one.num_becoming and one not in gone)]

    def _serve(self, model: str, cluster: Cluster) -> list[Action]:
        actions = hand_out(model, cluster)
        if cluster.instances or not cluster.num_held(model):
            return actions
        places = tuple(
            Placement(
                server=server,
                gpu=server.gpus[0],
                memory=(22 if rank < self.num_full else 9) * GB,
                planned=(18 if rank < self.num_full else 9) * GB,
                whole=rank < self.num_full,
            )
            for rank, server in enumerate(cluster.servers[: self.num_stages])
        )
        return [
            *actions,
            Launch(
                model=model,
                placements=places,
                graph=GRAPH,
                max_sequences=self.max_sequences * self.num_stages,
                max_batch=self.max_sequences,
                max_step_tokens=3072,
            ),
        ]

    def _consolidate(self, group: Instance) -> Consolidate:
        return Consolidate(
            instance=group,
            network=self.network,
            max_sequences=self.max_sequences,
            migrate=self.migrate,
            network_poll=0.1,
            exclusive_poll=0.05,
        )


@dataclass(slots=True, eq=False)
class Run:
    """A control plane with an Eager controller, under way."""

    control: Control
    controller: Eager
    records: list[Record]
    clock: SimClock
    sequences: list[Sequence] = field(default_factory=list)

    def send(self, at: Seconds, num_prompt_tokens: int = 64, num_output_tokens: int = 100) -> None:
        """A request that arrives then."""
        request = replace(make_requests(1, num_prompt_tokens, num_output_tokens)[0], request_id=self.num_sent)
        self.num_sent += 1
        self.clock.call_at(at, self._arrive, request)

    num_sent: int = 0

    def _arrive(self, request: object) -> None:
        self.control.arrive(request)  # type: ignore[arg-type]
        self.sequences.append(list(self.control._unfinished)[-1])

    def go(self, until: Seconds = 200.0) -> None:
        """Let it run; ticks go on until everything has retired."""
        self.clock.call_at(until - 60.0, setattr, self.control, "draining", True)
        self.clock.run(until)

    def spans(self, rank: int = 0) -> dict[str, tuple[Seconds, Seconds, Bytes]]:
        """Start, end and bytes of a worker's stages."""
        return {
            record.stage: (record.started_at, record.ended_at, record.num_bytes)
            for record in self.records
            if isinstance(record, StageRecord) and record.rank == rank
        }

    def of(self, kind: type[Record]) -> list[Record]:
        return [record for record in self.records if isinstance(record, kind)]

    def decided(self, action: str) -> list[Seconds]:
        """When an action was carried out."""
        return [r.at for r in self.records if isinstance(r, DecisionRecord) and r.action == action]

    @property
    def workers(self) -> list[WorkerRecord]:
        return [record for record in self.records if isinstance(record, WorkerRecord)]

    @property
    def pauses(self) -> list[PauseRecord]:
        return [record for record in self.records if isinstance(record, PauseRecord)]


def make_run(num_blocks: int | None = None, **knobs: object) -> Run:
    controller = Eager(**knobs)  # type: ignore[arg-type]
    system = System(
        name="eager",
        config=SYSTEMS["hydraserve"].config,
        controller=lambda _: controller,
        scheduler=lambda _: ContinuousBatching(Batching(watermark=0.0)),
        exclusive_gpus=False,
        summary="consolidates as soon as it may",
    )
    testbed = make_testbed()
    clock, backend = simulated_backend(testbed, seed=0)
    if num_blocks is not None:
        backend.provisioner.num_blocks = lambda _: num_blocks  # type: ignore[method-assign]
    records: list[Record] = []
    setup = Setup(testbed=testbed, system=system, deployments=(make_deployment(),), seed=0)
    run = Run(build_control(setup, backend, records.append), controller, records, clock)
    run.control.start()
    return run


def assert_nothing_is_left(run: Run) -> None:
    """All requests ended once; no memory, network or block is held, and nothing is under way."""
    assert run.control.cluster.instances == []
    assert sorted(r.request_id for r in run.records if isinstance(r, RequestRecord)) == list(range(run.num_sent))
    for server in run.control.cluster.servers:
        assert (server.host_memory.used, server.gpus[0].memory.used) == (0, 0)
    assert (run.controller.network.fetching, run.controller.network.taken) == ([], [])
    assert run.control._consolidations.under_way == {}
    assert run.control.backend.transport.links._users == {}  # type: ignore[attr-defined]
    for group in run.controller.groups:
        assert (group.phase, group.num_sequences) == (Phase.RETIRED, 0)
        assert group.pool is not None
        assert group.pool.num_free == group.pool.num_blocks
    for sequence in run.sequences:
        assert sequence.state in (State.FINISHED, State.ABORTED)
        assert (sequence.block_table, sequence.in_flight) == ([], False)
        if sequence.state is State.FINISHED:
            assert len(sequence.token_times) == sequence.request.num_output_tokens
            assert all(before < after for before, after in pairwise(sequence.token_times))
