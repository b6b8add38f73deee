"""serve(): wires workload, system and backend, runs the clock, and hands out records."""

from collections.abc import Callable
from dataclasses import dataclass

from serving.control import Control
from serving.core.clock import FlowBody, SimClock, spawn
from serving.core.cluster import Cluster, Deployment
from serving.core.ports import Backend, System
from serving.cost.profile import StepTable
from serving.records import Record
from serving.samples import is_empty, sample
from serving.sim.executor import SimExecutor
from serving.sim.processors import Processors
from serving.sim.provisioner import SimProvisioner
from serving.sim.transport import SimTransport
from serving.testbed import Testbed, build_inventory, isolation
from serving.units import Seconds
from serving.workload.clients import Client


class IsolationMismatch(ValueError):
    """The testbed lends GPUs in another way than the system expects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is served on, by which policies, for which models."""

    testbed: Testbed
    system: System
    deployments: tuple[Deployment, ...]
    seed: int
    steps: StepTable | None = None
    """Measured step times; None: from the GPUs' data sheets."""
    sample_period: Seconds | None = None
    """How often all instances are looked at for a record; None: never."""
    token_gaps: bool = True
    """Whether records of requests have the times of their tokens."""


def simulated_backend(testbed: Testbed, seed: int, steps: StepTable | None = None) -> tuple[SimClock, Backend]:
    """The ports in virtual time, and the clock that runs them."""
    clock = SimClock()
    processors = Processors(clock)
    transport = SimTransport(clock, testbed.startup, processors, testbed.engines)
    backend = Backend(
        clock=clock,
        executor=SimExecutor(clock, testbed.startup, steps, testbed.engines, transport.copies.is_copying),
        transport=transport,
        provisioner=SimProvisioner(clock, testbed.startup, seed, steps, processors, testbed.engines),
    )
    return clock, backend


def build_control(setup: Setup, backend: Backend, record: Callable[[Record], None]) -> Control:
    """The control plane over an idle cluster."""
    if setup.testbed.exclusive != setup.system.exclusive_gpus:
        raise IsolationMismatch(
            f"{setup.system.name} needs {isolation(setup.system.exclusive_gpus)} GPUs, the testbed's are "
            f"{isolation(setup.testbed.exclusive)}"
        )
    cluster = Cluster(
        clock=backend.clock,
        inventory=build_inventory(setup.testbed),
        deployments={deployment.model: deployment for deployment in setup.deployments},
    )
    return Control(
        cluster=cluster,
        controller=setup.system.controller(setup.system.config),
        scheduler=setup.system.scheduler(setup.system.config),
        backend=backend,
        record=record,
        token_gaps=setup.token_gaps,
    )


def serve(setup: Setup, client: Client, record: Callable[[Record], None]) -> Control:
    """Run one client against one system until every request is answered or refused; returns the control plane as it
    ended. Requests without an answer are recorded even when the run ends by an exception."""
    clock, backend = simulated_backend(setup.testbed, setup.seed, setup.steps)
    control = build_control(setup, backend, record)

    def whole_run() -> FlowBody:
        yield spawn(clock, client(control.arrive))
        control.draining = True

    def samples(period: Seconds) -> FlowBody:
        while not (control.draining and is_empty(control.cluster)):
            record(sample(control.cluster))
            yield period

    control.start()
    spawn(clock, whole_run())
    if setup.sample_period is not None:
        spawn(clock, samples(setup.sample_period))
    try:
        clock.run()
    finally:
        control.close()
    return control
