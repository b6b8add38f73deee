"""What tests of the engine start with: small clusters, instances and requests of round numbers; runs of a system."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from serving.control import Control
from serving.core.clock import Clock, FlowBody, Signal, SimClock
from serving.core.cluster import Cluster, Deployment
from serving.core.instance import Instance
from serving.core.kv import BlockPool
from serving.core.plan import StepPlan, StepResult
from serving.core.ports import Scheduler, System
from serving.core.request import Request, Sequence
from serving.core.worker import Worker
from serving.cost.models import MODELS
from serving.cost.startup import StartupCosts
from serving.policies import SYSTEMS
from serving.policies.continuous import Batching, ContinuousBatching
from serving.records import Record, RequestRecord, StageRecord
from serving.serve import Setup, serve
from serving.testbed import ServerKind, Testbed, build_inventory
from serving.units import GB, Gbps, GiB, Seconds, Tokens
from serving.workload.clients import Client, Send

STARTUP = StartupCosts(
    container=1.0, libraries=2.0, context=0.5, engine=0.25, first_step=0.125, engine_load_rate=1 * GB, jitter=0.0
)
"""Start-up times in binary fractions, so that sums of them are exact; no jitter."""

A10 = ServerKind(
    name="a10x1",
    gpu="a10",
    num_gpus=1,
    gpu_memory=22 * GB,
    dram=188 * GB,
    nic_rate=16 * Gbps,
    fetch_rate=2 * GB,
    pcie_rate=8 * GB,
    startup=STARTUP,
)
"""One A10 behind 16 Gbps, which are 2 GB/s."""

V100 = replace(A10, name="v100x4", gpu="v100", num_gpus=4, gpu_memory=32 * GB, dram=368 * GB)
"""Four V100 behind one NIC of 16 Gbps."""


def make_testbed(num_servers: int = 4, kind: ServerKind = A10, *, exclusive: bool = False) -> Testbed:
    """Servers of one kind, and two storage servers whose NICs are no bottleneck."""
    return Testbed(servers=((kind, num_servers),), num_stores=2, store_nic_rate=64 * Gbps, exclusive=exclusive)


def make_deployment(model: str = "llama2-7b", **changes: Any) -> Deployment:
    """A model with HydraServe's table size and chatbot SLOs."""
    sizes = {"opt-2.7b": 7 * GB, "opt-6.7b": 13 * GB, "llama2-7b": 13 * GB, "llama2-13b": 25 * GB}
    return replace(
        Deployment(model=model, spec=MODELS[model], size=sizes[model], ttft_slo=7.5, tpot_slo=0.2), **changes
    )


def make_cluster(*deployments: Deployment, testbed: Testbed | None = None) -> Cluster:
    """An idle cluster; its clock is a SimClock of its own."""
    return Cluster(
        clock=SimClock(),
        inventory=build_inventory(testbed or make_testbed()),
        deployments={deployment.model: deployment for deployment in deployments or (make_deployment(),)},
    )


def make_requests(
    n: int, num_prompt_tokens: Tokens = 64, num_output_tokens: Tokens = 4, **fields: Any
) -> list[Request]:
    """Requests with ids from 0 on, for Llama2-7B unless ``model`` says otherwise."""
    model = fields.pop("model", "llama2-7b")
    return [
        Request(
            request_id=request_id,
            model=model,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=num_output_tokens,
            **fields,
        )
        for request_id in range(n)
    ]


def make_sequence(num_prompt_tokens: Tokens = 64, num_output_tokens: Tokens = 4, request_id: int = 0) -> Sequence:
    """One sequence that arrived at 0 and belongs nowhere yet."""
    request = make_requests(1, num_prompt_tokens, num_output_tokens)[0]
    return Sequence(replace(request, request_id=request_id), 0.0)


def hold(cluster: Cluster, n: int, model: str = "llama2-7b") -> list[Sequence]:
    """Sequences that arrive now and are held."""
    sequences = [Sequence(request, cluster.now) for request in make_requests(n, model=model)]
    cluster.held.setdefault(model, deque()).extend(sequences)
    return sequences


def one_second(plan: StepPlan) -> Seconds:
    """Every step alike."""
    del plan
    return 1.0


@dataclass(slots=True, eq=False)
class TableExecutor:
    """An Executor whose step times a test decides; it notes the tokens and sequences of every step."""

    clock: Clock
    step_time: Callable[[StepPlan], Seconds] = one_second
    steps: list[tuple[Tokens, int]] = field(default_factory=list)

    def submit(self, instance: Instance, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        """Book the step's end; a sequence whose tokens are all computed gains one."""
        del instance
        self.steps.append((sum(plan.num_tokens), len(plan.sequences)))
        num_output = [
            int(sequence.num_computed + num == sequence.num_tokens)
            for sequence, num in zip(plan.sequences, plan.num_tokens, strict=True)
        ]
        self.clock.call_later(self.step_time(plan), done, StepResult(plan, num_output))

    def step_ends(self, instance: Instance, plan: StepPlan) -> list[Seconds] | None:
        """Nobody knows: every step is submitted, and noted."""
        del instance, plan
        return None


def make_workers(
    cluster: Cluster, num_stages: int = 1, memory: float = 22 * GB, model: str = "llama2-7b"
) -> tuple[Worker, ...]:
    """One worker per stage, each on a server of its own."""
    spec = MODELS[model]
    return tuple(
        Worker(
            rank=rank,
            server=cluster.servers[rank],
            gpu=cluster.servers[rank].gpus[0],
            memory=memory,
            layers=layers,
            tensors=spec.stage_tensors(layers),
            from_cache=False,
        )
        for rank, layers in enumerate(spec.split(num_stages))
    )


@dataclass(slots=True, eq=False)
class Bench:
    """An instance on its own, what runs its steps, and what it has finished."""

    clock: SimClock
    executor: TableExecutor
    instance: Instance
    finished: list[Sequence]


def make_instance(num_blocks: int = 64, scheduler: Scheduler | None = None, **fields: Any) -> Bench:
    """A ready instance with KV blocks of 16 tokens; every step takes a second."""
    cluster = make_cluster()
    clock = SimClock()
    executor = TableExecutor(clock)
    finished: list[Sequence] = []
    parts: dict[str, Any] = {
        "instance_id": 0,
        "model": "llama2-7b",
        "spec": MODELS["llama2-7b"],
        "workers": make_workers(cluster),
        "max_sequences": 8,
        "max_step_tokens": 256,
        "clock": clock,
        "scheduler": scheduler or ContinuousBatching(Batching(watermark=0.0)),
        "executor": executor,
        "on_finish": finished.append,
    }
    instance = Instance(**{**parts, **fields})
    instance.open(BlockPool(num_blocks, 16))
    return Bench(clock, executor, instance, finished)


def sent(timed: Iterable[tuple[Seconds, Request]], linger: Seconds = 0.0) -> Client:
    """A client that sends each request at its instant, waits for all answers, and stays ``linger`` longer."""

    def flow(send: Send) -> FlowBody:
        answers: list[Signal] = []
        now = 0.0
        for arrived_at, request in timed:
            yield arrived_at - now
            now = arrived_at
            answers.append(send(request))
        while answers:
            yield answers.pop(0)
        yield linger

    return flow


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left."""

    control: Control
    records: list[Record]

    @property
    def requests(self) -> list[RequestRecord]:
        """Records of requests in order of their ids."""
        found = [record for record in self.records if isinstance(record, RequestRecord)]
        return sorted(found, key=lambda record: record.request_id)

    def stages(self, instance: int = 0, rank: int = 0) -> dict[str, tuple[Seconds, Seconds]]:
        """Start and end of each stage of one worker's start."""
        return {
            record.stage: (record.started_at, record.ended_at)
            for record in self.records
            if isinstance(record, StageRecord) and (record.instance, record.rank) == (instance, rank)
        }


def run(
    system: str | System,
    client: Client,
    *deployments: Deployment,
    testbed: Testbed | None = None,
    seed: int = 0,
) -> Outcome:
    """Serve a client by a system, given by slug or as itself, on four A10 servers unless told otherwise."""
    chosen = SYSTEMS[system] if isinstance(system, str) else system
    records: list[Record] = []
    setup = Setup(
        testbed=testbed or make_testbed(exclusive=chosen.exclusive_gpus),
        system=chosen,
        deployments=deployments or (make_deployment(),),
        seed=seed,
    )
    return Outcome(serve(setup, client, records.append), records)


def with_cache(kind: ServerKind, gib: float) -> ServerKind:
    """The kind with host memory set aside for weights that stay."""
    return replace(kind, cache=gib * GiB)
