"""LiveSetup: what a live run serves, and on what; serve_live(): the live twin of ``serving.serve.serve``."""

import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import gettempdir

from serving.control import Control
from serving.core.clock import Clock, FlowBody, Signal, spawn
from serving.core.cluster import Deployment
from serving.core.hardware import Server, StorageServer
from serving.core.model import ModelSpec
from serving.core.ports import Backend, System
from serving.core.request import Request
from serving.live.checkpoint import Checkpoint
from serving.live.clock import RealClock
from serving.live.cpu.build import build
from serving.live.errors import LiveError
from serving.live.executor import LiveExecutor
from serving.live.fleet import Fleet, WorkerOptions
from serving.live.loops import ControlLoops
from serving.live.processes import StorageProcess, start_storage
from serving.live.provisioner import LiveProvisioner
from serving.live.recording import Recording
from serving.live.store_link import OnSpawn, StoreLink
from serving.live.transport import LiveTransport
from serving.policies.fixed_instances import STREAMED_START
from serving.records import Record
from serving.serve import Setup, build_control
from serving.testbed import Testbed
from serving.units import Bytes, BytesPerSecond
from serving.workload.clients import Client

FIRST_START = STREAMED_START
"""Of instances that a system has from the beginning: no process is there by itself, so they start the fastest way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSetup:
    """What is served, by which policies, on which logical machines, with which weights."""

    testbed: Testbed
    system: System
    deployments: tuple[Deployment, ...]
    """Their specs are those of the checkpoints."""
    checkpoints: Mapping[str, Path]
    """The folder of each deployed model's weights; several models may share one."""
    seed: int = 0
    """Of made-up prompts, and of waits for the control plane's loops."""
    workers: WorkerOptions = field(default_factory=WorkerOptions)

    @property
    def served(self) -> Setup:
        """The setup as virtual time knows it."""
        return Setup(testbed=self.testbed, system=self.system, deployments=self.deployments, seed=self.seed)

    def open_checkpoints(self) -> dict[str, Checkpoint]:
        """The checkpoint of each deployed model; LiveError on one that is missing, damaged or not as deployed."""
        opened: dict[Path, Checkpoint] = {}
        checkpoints = {}
        for deployment in self.deployments:
            folder = self.checkpoints.get(deployment.model)
            if folder is None:
                raise LiveError(f"{deployment.model}: deployed without a checkpoint; say which folder has its weights")
            if folder not in opened:
                opened[folder] = Checkpoint.open(folder)
            checkpoint = checkpoints[deployment.model] = opened[folder]
            if _sizes(deployment.spec) != _sizes(checkpoint.spec(deployment.model)):
                raise LiveError(f"{deployment.model}: deployed with other sizes than its checkpoint {folder} has")
        return checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """A control plane with real processes beneath it."""

    clock: RealClock
    control: Control
    executor: LiveExecutor
    fleet: Fleet
    transport: LiveTransport
    stores: tuple[StoreLink, ...]


@contextmanager
def running(
    setup: LiveSetup, record: Callable[[Record], None], recording: Recording | None = None
) -> Iterator[LiveRun]:
    """Storage servers, prefetchers and a control plane, for whoever runs the clock; afterwards no process, port, region
    or socket file is left. The recording, if one is wanted, gets everything that comes in from outside."""
    checkpoints = setup.open_checkpoints()
    if setup.workers.device == "cpu" and (reason := build()):
        print(f"workers compute without kernels for this processor, more slowly: {reason}", file=sys.stderr, flush=True)
    clock = RealClock()
    with ExitStack() as stack:
        run_id = f"{os.getpid()}.{secrets.token_hex(3)}"
        fleet = Fleet(clock, setup.workers, Path(gettempdir()) / f"aebench-{run_id}", recording)
        stack.callback(fleet.close)
        transport = LiveTransport(fleet, run_id, checkpoints)
        stack.callback(transport.close)
        provisioner = LiveProvisioner(fleet, ControlLoops(clock, setup.seed), checkpoints)
        executor = LiveExecutor(fleet, setup.seed)
        backend = Backend(
            clock=clock, executor=executor, transport=transport, provisioner=provisioner, first_start=FIRST_START
        )
        control = build_control(setup.served, backend, record)
        fleet.cluster, fleet.on_lost = control.cluster, control.lose
        stores = _start_stores(stack, setup, control.cluster.servers)
        transport.stores.update(stores)
        for server in control.cluster.servers:
            transport.open(server)
        if setup.system.resident_workers:
            provisioner.keeps_spares = True
            for server in control.cluster.servers:
                for gpu in server.gpus:
                    fleet.keep_spare(gpu)
            fleet.await_spares()
        yield LiveRun(
            clock=clock,
            control=control,
            executor=executor,
            fleet=fleet,
            transport=transport,
            stores=tuple(stores.values()),
        )
        if recording is not None:
            recording.ended_at = clock.now


def serve_live(
    setup: LiveSetup, client: Client, record: Callable[[Record], None], recording: Recording | None = None
) -> Control:
    """Run one client against one system until every request is answered or refused; returns the control plane as it
    ended, whose clock knows its lag. The calling thread runs the clock. Requests without an answer are recorded even
    when the run ends by an exception."""
    with running(setup, record, recording) as run:
        whole = spawn(run.clock, whole_run(run.clock, run.control, client))
        run.control.start()
        try:
            run.clock.run(until=lambda: whole.done.fired)
        finally:
            run.control.close()
        return run.control


def whole_run(clock: Clock, control: Control, client: Client) -> FlowBody:
    """The flow of a client, and of the answers to all that it sent."""
    answers: list[Signal] = []

    def send(request: Request) -> Signal:
        answers.append(control.arrive(request))
        return answers[-1]

    yield spawn(clock, client(send))
    control.draining = True
    for answer in answers:  # noqa: UP028 - an iterator of a list takes no values
        yield answer


def _sizes(spec: ModelSpec) -> tuple[Bytes, ...]:
    return spec.stage_tensors(range(spec.num_layers))


def _start_stores(stack: ExitStack, setup: LiveSetup, servers: tuple[Server, ...]) -> dict[StorageServer, StoreLink]:
    """A storage process for each storage server that a server fetches from; they start side by side."""
    links: dict[StorageServer, dict[str, BytesPerSecond]] = {}
    for server in servers:
        rates = links.setdefault(server.store, {})
        if math.isfinite(server.downlink.capacity):
            rates[server.name] = server.downlink.capacity

    def start(store: StorageServer, on_spawn: OnSpawn) -> StorageProcess:
        setup.open_checkpoints()  # when it is started again: they may have been replaced
        rate = store.nic_rate if math.isfinite(store.nic_rate) else None
        folder = setup.workers.log_folder
        log_path = None if folder is None else folder / f"{store.name}.log"
        return start_storage(setup.checkpoints, rate, link_rates=links[store], log_path=log_path, on_spawn=on_spawn)

    def link(store: StorageServer) -> StoreLink:
        made = StoreLink(partial(start, store))
        stack.callback(made.close)
        return made

    with ThreadPoolExecutor(len(links)) as threads:
        return dict(zip(links, threads.map(link, links), strict=True))
