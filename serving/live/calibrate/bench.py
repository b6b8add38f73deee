"""Bench: a cluster that does what it is told and says how long each thing took; live, or in virtual time.

It goes through the ports of any run: instances are launched by Actions and walk their StageGraph, steps are handed to
the Executor. So what is measured holds all that a run pays for, and the simulator can be asked the very same.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from serving.control import Control
from serving.core.actions import Action, Launch, Placement, Retire
from serving.core.clock import Clock, FlowBody, Signal, spawn
from serving.core.cluster import Cluster, Deployment
from serving.core.instance import Instance
from serving.core.plan import StepPlan
from serving.core.ports import System
from serving.core.request import Sequence
from serving.core.stages import Loader, Stage, StageGraph, Work
from serving.cost.memory import BLOCK_SIZE, UTILISATION
from serving.cost.profile import Profile
from serving.cost.startup import StartupCosts
from serving.live.calibrate.shapes import Shape
from serving.live.checkpoint import Checkpoint
from serving.live.errors import LiveError
from serving.live.fleet import WorkerOptions
from serving.live.setup import LiveSetup, running
from serving.records import Record, StageRecord
from serving.serve import Setup, build_control, simulated_backend
from serving.testbed import ServerKind, Testbed
from serving.units import GB, Bytes, Seconds, Tokens, ms

KV_TOKENS: Tokens = 8192
"""KV memory of a measured instance; its allocation is part of the engine's start."""
UNMEASURED = StartupCosts(
    container=0.0, libraries=0.0, context=0.0, engine=0.0, first_step=0.0, engine_load_rate=1 * GB, jitter=0.0
)
Timed = Generator[Any, Any, Seconds]


def serial_start(loader: Loader) -> StageGraph:
    """Every stage of a start by itself, so that each has the machine alone."""
    names = ("container", "libraries", "context", "fetch", "load", "engine")
    work = {"fetch": Work.FETCH, "load": Work.LOAD}
    return StageGraph(
        stages=tuple(
            Stage(name=name, work=work.get(name, Work.TIMED), after=names[max(0, index - 1) : index], loader=loader)
            for index, name in enumerate(names)
        )
    )


@dataclass(slots=True, eq=False)
class Orders:
    """The Controller of a bench: at its next interval it does what was ordered."""

    interval: Seconds = 20 * ms
    actions: list[Action] = field(default_factory=list)
    on_ready_instance: Callable[[Instance], None] | None = None

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """There are no requests on a bench."""
        del sequence, cluster
        return []

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        """Tell who waits for it."""
        del cluster
        if self.on_ready_instance is not None:
            self.on_ready_instance(instance)
        return []

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """There are no requests on a bench."""
        del sequence, cluster
        return []

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        """A bench ends when it loses an instance."""
        del model, cluster, lost
        return []

    def on_interval(self, cluster: Cluster) -> list[Action]:
        """What was ordered."""
        del cluster
        actions, self.actions = self.actions, []
        return actions


class NoScheduler:
    """The Scheduler of a bench, whose steps are planned by hand."""

    def plan(self, instance: Instance) -> StepPlan:
        """Nothing."""
        del instance
        return StepPlan()


@dataclass(slots=True, eq=False)
class Bench:
    """The cluster. Its methods are flows, to be run on its clock."""

    clock: Clock
    control: Control
    orders: Orders
    records: list[Record]
    drive: Callable[[Signal], None]
    """Runs the clock until a signal has fired."""

    def run(self, body: FlowBody) -> Any:
        """Run a flow to its end, from outside of the clock; returns what it returns."""
        whole = spawn(self.clock, body)
        try:
            self.drive(whole.done)
        finally:
            whole.cancel()
        return whole.done.value

    def launch(self, graph: StageGraph, count: int = 1, num_stages: int = 1) -> FlowBody:
        """Start so many instances at once; returns them when all are ready."""
        ready: list[Instance] = []
        all_ready = Signal(self.clock)

        def arrived(instance: Instance) -> None:
            ready.append(instance)
            if len(ready) == count:
                all_ready.fire()

        self.orders.on_ready_instance = arrived
        free = [(s, g) for s in self.control.cluster.servers for g in s.gpus if g.memory.used == 0]
        if len(free) < count * num_stages:
            raise LiveError(f"{count} instances of {num_stages} stages need more than the {len(free)} free GPUs here")
        for index in range(count):
            places = free[index * num_stages : (index + 1) * num_stages]
            placements = tuple(Placement(server=s, gpu=g, memory=g.memory.capacity) for s, g in places)
            (model,) = self.control.cluster.deployments
            self.orders.actions.append(
                Launch(model=model, placements=placements, graph=graph, max_sequences=64, max_step_tokens=512)
            )
        yield all_ready
        return sorted(ready, key=lambda instance: instance.instance_id)

    def retire(self, instances: list[Instance]) -> FlowBody:
        """End instances."""
        self.orders.actions += [Retire(instance=instance) for instance in instances]
        yield 2 * self.orders.interval

    def step(self, instance: Instance, shape: Shape) -> Timed:
        """Run one step; returns how long it took from submission to its result on the clock."""
        pool = instance.pool
        assert pool is not None, "steps are for instances that are ready"
        plan = shape.plan(instance.model)
        for sequence in plan.sequences:
            pool.extend(sequence, sequence.num_tokens)
        ended = Signal(self.clock)
        began = self.clock.now
        self.control.backend.executor.submit(instance, plan, ended.fire)
        yield ended
        for sequence in plan.sequences:
            pool.free(sequence)
        return self.clock.now - began

    def stages(self, instance: Instance) -> dict[str, StageRecord]:
        """What the stages of the start of an instance's first worker took."""
        records = (record for record in self.records if isinstance(record, StageRecord))
        return {r.stage: r for r in records if r.instance == instance.instance_id and r.rank == 0}


@contextmanager
def live_bench(checkpoint: Checkpoint, num_servers: int, workers: WorkerOptions) -> Iterator[Bench]:
    """A bench of real processes."""
    orders, records = Orders(), list[Record]()
    served = _setup(checkpoint, num_servers, orders, None)
    (deployment,) = served.deployments
    setup = LiveSetup(
        testbed=served.testbed,
        system=served.system,
        deployments=served.deployments,
        checkpoints={deployment.model: checkpoint.folder},
        workers=workers,
    )
    with running(setup, records.append) as run:
        run.fleet.on_lost = _give_up
        run.control.start()
        yield Bench(run.clock, run.control, orders, records, lambda ended: run.clock.run(lambda: ended.fired))


def simulated_bench(checkpoint: Checkpoint, num_servers: int, profile: Profile) -> Bench:
    """The same bench in virtual time, as a profile has it."""
    orders, records = Orders(), list[Record]()
    setup = _setup(checkpoint, num_servers, orders, profile)
    clock, backend = simulated_backend(setup.testbed, setup.seed, setup.steps)
    control = build_control(setup, backend, records.append)
    control.start()

    def drive(ended: Signal) -> None:
        ended.wait(lambda _: setattr(control, "draining", True))  # or the interval goes on for ever
        clock.run()

    return Bench(clock, control, orders, records, drive)


def _setup(checkpoint: Checkpoint, num_servers: int, orders: Orders, profile: Profile | None) -> Setup:
    spec = checkpoint.spec(checkpoint.folder.absolute().name)
    system = System(
        name="calibrate",
        config=None,
        controller=lambda _: orders,
        scheduler=lambda _: NoScheduler(),
        exclusive_gpus=True,
        summary="does what it is told",
    )
    unlimited = math.inf if profile is None else 1e15  # which links in virtual time can be added up to
    server = ServerKind(
        name="bench",
        gpu="cpu",
        num_gpus=1,
        gpu_memory=(spec.weight_bytes + _kv_bytes(checkpoint)) / UTILISATION + 1,
        dram=1e15,  # an account of policies, which a bench has none of
        nic_rate=unlimited,
        fetch_rate=unlimited if profile is None else profile.fetch_rate,
        pcie_rate=1 * GB if profile is None else profile.load_rate,
        startup=UNMEASURED if profile is None else profile.startup,
    )
    deployment = Deployment(model=spec.slug, spec=spec, size=spec.weight_bytes, ttft_slo=60.0, tpot_slo=1.0)
    testbed = Testbed(servers=((server, num_servers),), num_stores=1, store_nic_rate=unlimited, exclusive=True)
    steps = None if profile is None else profile.steps
    return Setup(testbed=testbed, system=system, deployments=(deployment,), seed=0, steps=steps)


def _kv_bytes(checkpoint: Checkpoint) -> Bytes:
    spec = checkpoint.spec("")
    return -(-KV_TOKENS // BLOCK_SIZE) * BLOCK_SIZE * spec.kv_bytes_per_layer * spec.num_layers


def _give_up(instance: Instance, reason: str) -> NoReturn:
    raise LiveError(f"calibration of {instance.model}: {reason}")
