"""Control: asks the Controller at each hook and carries out its Actions; where choice meets mechanism."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serving.core.actions import Action, Dispatch, Launch, Retire
from serving.core.clock import Flow, Signal, spawn
from serving.core.cluster import Cluster
from serving.core.instance import Instance, Phase, Worker
from serving.core.kv import BlockPool
from serving.core.ports import Backend, Controller, Scheduler
from serving.core.request import Request, Sequence
from serving.cost.memory import BLOCK_SIZE
from serving.cost.models import MODELS
from serving.mechanisms.coldstart import ColdStart
from serving.records import DecisionRecord, Record
from serving.units import GB, Bytes, Seconds

POD_OVERHEAD: Bytes = 4 * GB
"""Host memory of a worker process beyond its GPU slice. Source: HydraServe artifact (pod_host_memory_gb)."""


class NoProgress(RuntimeError):
    """Requests are unanswered and nothing that could answer them is under way."""


@dataclass(slots=True, eq=False)
class Control:
    """One run's control plane."""

    cluster: Cluster
    controller: Controller
    scheduler: Scheduler
    backend: Backend
    record: Callable[[Record], None]
    patience: Seconds = 3600.0
    """A run in which no request moves for so long, though some are unanswered, is ended."""
    num_launched: int = 0
    draining: bool = False
    """The workload has sent its last request."""
    _unfinished: dict[Sequence, Signal] = field(default_factory=dict)
    _progress_at: Seconds = 0.0

    def start(self) -> None:
        """Begin to call the Controller at its interval."""
        self.backend.clock.call_later(self.controller.interval, self._tick)

    def arrive(self, request: Request) -> Signal:
        """A request comes in; the signal fires with its Sequence when it has its last token."""
        if request.model not in self.cluster.deployments:
            raise ValueError(f"request {request.request_id} asks for {request.model!r}, which is not deployed")
        sequence = Sequence(request, self.backend.clock.now)
        finished = self._unfinished[sequence] = Signal(self.backend.clock)
        self.cluster.held.setdefault(request.model, deque()).append(sequence)
        self._progress_at = self.backend.clock.now
        self._carry_out("arrival", self.controller.on_arrival(sequence, self.cluster))
        return finished

    def close(self) -> None:
        """Write the records of requests that were never answered."""
        for sequence in self._unfinished:
            self.record(sequence.record())

    def _tick(self) -> None:
        if self.draining and not self._unfinished:
            return
        self._check_progress()
        self._carry_out("interval", self.controller.on_interval(self.cluster))
        self.backend.clock.call_later(self.controller.interval, self._tick)

    def _ready(self, instance: Instance, started: Any) -> None:
        del started  # the flow's return value, which is None
        instance.open(BlockPool(self.backend.provisioner.num_blocks(instance), BLOCK_SIZE))
        self._progress_at = self.backend.clock.now
        self._carry_out("ready", self.controller.on_ready(instance, self.cluster))

    def _finish(self, sequence: Sequence) -> None:
        self._progress_at = self.backend.clock.now
        self.record(sequence.record())
        self._unfinished.pop(sequence).fire(sequence)
        self._carry_out("finish", self.controller.on_finish(sequence, self.cluster))

    def _carry_out(self, hook: str, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch():
                    detail = self._dispatch(action)
                case Launch():
                    detail = self._launch(action)
                case Retire():
                    detail = self._retire(action)
            self.record(
                DecisionRecord(
                    at=self.backend.clock.now, hook=hook, action=type(action).__name__.lower(), detail=detail
                )
            )

    def _dispatch(self, action: Dispatch) -> str:
        sequence = action.sequence
        self.cluster.held[sequence.request.model].remove(sequence)
        sequence.dispatched_at = self.backend.clock.now
        action.instance.add(sequence)
        return f"request {sequence.request.request_id} to instance {action.instance.instance_id}"

    def _launch(self, action: Launch) -> str:
        workers = self._workers(action)
        for worker in workers:
            worker.gpu.memory.claim(worker, worker.memory)
            worker.server.host_memory.claim(worker, worker.memory + POD_OVERHEAD)
        instance = Instance(
            instance_id=self.num_launched,
            model=action.model,
            workers=workers,
            max_sequences=action.max_sequences,
            max_step_tokens=action.max_step_tokens,
            clock=self.backend.clock,
            scheduler=self.scheduler,
            executor=self.backend.executor,
            on_finish=self._finish,
        )
        self.num_launched += 1
        self.cluster.instances.append(instance)
        self._cold_start(instance, action).done.wait(lambda value: self._ready(instance, value))
        where = ", ".join(f"{w.gpu.name} {w.memory / GB:.0f} GB" for w in workers)
        return f"instance {instance.instance_id} of {action.model} on {where}"

    def _cold_start(self, instance: Instance, action: Launch) -> Flow:
        start = ColdStart(
            instance=instance,
            graph=action.graph,
            backend=self.backend,
            record=self.record,
            keep_in_host_memory=action.keep_in_host_memory,
        )
        return spawn(self.backend.clock, start.run())

    def _workers(self, action: Launch) -> tuple[Worker, ...]:
        model = MODELS[action.model]
        return tuple(
            Worker(
                rank=rank,
                server=placement.server,
                gpu=placement.gpu,
                memory=placement.memory,
                layers=layers,
                tensors=model.stage_tensors(layers),
                from_cache=placement.from_cache,
            )
            for rank, (placement, layers) in enumerate(
                zip(action.placements, model.split(len(action.placements)), strict=True)
            )
        )

    def _retire(self, action: Retire) -> str:
        instance = action.instance
        if instance.phase is not Phase.READY or instance.num_sequences:
            raise RuntimeError(
                f"instance {instance.instance_id} cannot retire: it is {instance.phase.value} "
                f"with {instance.num_sequences} sequences"
            )
        for worker in instance.workers:
            worker.gpu.memory.release(worker)
            worker.server.host_memory.release(worker)
        instance.phase = Phase.RETIRED
        self.cluster.instances.remove(instance)
        return f"instance {instance.instance_id} of {instance.model}"

    def _check_progress(self) -> None:
        now = self.backend.clock.now
        if any(instance.phase is Phase.STARTING or instance.num_sequences for instance in self.cluster.instances):
            self._progress_at = now
        if self._unfinished and now - self._progress_at > self.patience:
            held = ", ".join(f"{len(queue)} of {model}" for model, queue in self.cluster.held.items() if queue)
            free = ", ".join(
                f"{gpu.name} {gpu.memory.free / GB:.0f} GB" for s in self.cluster.servers for gpu in s.gpus
            )
            raise NoProgress(
                f"no request moved between t={self._progress_at:.1f} and t={now:.1f} s: held {held}; free {free}"
            )
