"""Every seam as a Protocol. Policies and mechanisms know these; ``sim`` and ``live`` implement the ports."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from serving.core.actions import Action
from serving.core.clock import Clock, Signal
from serving.core.cluster import Cluster
from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.core.request import Sequence
from serving.core.stages import Loader, Stage, StageGraph
from serving.core.worker import Worker
from serving.units import Bytes, Seconds


class Executor(Protocol):
    """Runs forward passes."""

    def submit(self, instance: Instance, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        """Start one step; ``done`` is called on the clock when it ends."""
        ...

    def step_ends(self, instance: Instance, plan: StepPlan) -> list[Seconds] | None:
        """When each of ``plan.repeats`` such steps in a row, begun now, will end, which then need not be submitted;
        None: nobody knows before they are computed."""
        ...


class Transfer(Protocol):
    """Bytes on their way."""

    done: Signal

    def reached(self, num_bytes: Bytes) -> Signal:
        """Fires when so many bytes have arrived (at once if they have)."""
        ...

    def cancel(self) -> None:
        """The rest of its bytes never arrive; nothing when all have."""
        ...

    def release(self) -> None:
        """Of a fetch: its bytes in host memory are not needed any more; nothing when they are gone already."""
        ...


class Transport(Protocol):
    """Moves bytes."""

    def fetch(self, worker: Worker) -> Transfer:
        """The worker's weights, from its server's storage servers into host memory."""
        ...

    def pieces(self, worker: Worker) -> tuple[Bytes, ...]:
        """Sizes in which a load that follows a fetch copies the worker's weights, in order."""
        ...

    def load(self, worker: Worker, size: Bytes, loader: Loader) -> Transfer:
        """Some weights, from host memory to the worker's GPU."""
        ...

    def move_kv(self, source: Worker, target: Worker, blocks: list[int], into: list[int], size: Bytes) -> Transfer:
        """KV blocks of the source's layers, so many bytes, into as many blocks of the target, in their order; there
        may be none. Once it is cancelled, nothing more is written before whatever the target is asked to compute from
        then on."""
        ...


class Provisioner(Protocol):
    """Starts processes and sizes their memory."""

    def start(self, instance: Instance, worker: Worker, stage: Stage) -> Signal:
        """Begin a TIMED, PROFILE or POLL stage, or the wait before a FETCH; the signal fires at its end."""
        ...

    def num_blocks(self, instance: Instance) -> int:
        """KV blocks that the instance's memory slices hold beside the weights."""
        ...

    def grow(self, instance: Instance, whole: Worker) -> Signal:
        """Make the process of one of the instance's workers, which has all weights by now, ready to compute the whole
        model beside its stage, and to keep KV of all layers; the signal fires when it is."""
        ...

    def stop(self, instance: Instance, workers: tuple[Worker, ...]) -> None:
        """End the processes of some of the instance's workers."""
        ...


class Scheduler(Protocol):
    """One instance, one step: what to compute now. May move its sequences between queues and claim blocks."""

    def plan(self, instance: Instance) -> StepPlan:
        """The next step; an empty plan when there is nothing to compute."""
        ...


class Controller(Protocol):
    """The cluster: where, how many, what shape. Each hook returns actions and touches nothing."""

    interval: Seconds
    """How often ``on_interval`` is called."""

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """A sequence has come and is held."""
        ...

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        """An instance can serve."""
        ...

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """A sequence has its last token and left its instance."""
        ...

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        """An instance of the model died and its sequences are held again, or (None) a client took a sequence back, or
        sequences moved from one instance to another."""
        ...

    def on_interval(self, cluster: Cluster) -> list[Action]:
        """Time has passed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The ports of one world, and its clock."""

    clock: Clock
    executor: Executor
    transport: Transport
    provisioner: Provisioner
    first_start: StageGraph | None = None
    """What instances that are to serve from the beginning have to go through; None: they are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A bundle of policies: two choices and their knobs."""

    name: str
    config: Any
    """The frozen dataclass instance with the defaults of this system."""
    controller: Callable[[Any], Controller]
    """Config to Controller."""
    scheduler: Callable[[Any], Scheduler]
    """Config to Scheduler."""
    exclusive_gpus: bool
    """Whether its testbed must lend whole GPUs instead of slices."""
    summary: str
    """One line for the report."""
    plans_by_slos: bool = False
    """Whether it needs the SLOs of every deployment."""
    resident_workers: bool = False
    """Its workers are processes of a cluster that runs already: an interpreter waits on every GPU."""
