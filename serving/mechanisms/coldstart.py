"""Cold start: carry out a Launch. Every worker walks its stage graph; the group is ready at the slowest."""

from collections.abc import Callable
from dataclasses import dataclass, field

from serving.core.clock import Flow, FlowBody, Signal, spawn
from serving.core.hardware import CacheEntry
from serving.core.instance import Instance
from serving.core.ports import Backend, Transfer
from serving.core.stages import Stage, StageGraph, Work
from serving.core.worker import Worker
from serving.mechanisms.streaming import stream
from serving.records import StageRecord
from serving.units import Bytes


@dataclass(slots=True, eq=False)
class ColdStart:
    """The start of one instance. ``run()`` is the flow to spawn; it returns when every worker is ready."""

    instance: Instance
    graph: StageGraph
    backend: Backend
    record: Callable[[StageRecord], None]
    keep_in_host_memory: bool
    _fetches: dict[tuple[int, str], Signal] = field(default_factory=dict)
    _buffered: dict[int, Transfer] = field(default_factory=dict)
    """By rank: fetches into a buffer that goes when the weights are loaded."""

    def run(self) -> FlowBody:
        """Start all workers and wait for each."""
        starts = [spawn(self.backend.clock, self._start_worker(worker)) for worker in self.instance.workers]
        try:
            for start in starts:
                yield start
        finally:
            for start in starts:
                start.cancel()

    def _start_worker(self, worker: Worker) -> FlowBody:
        entry = self._open_host_memory(worker)
        stages: dict[str, Flow] = {}
        for stage in self.graph.stages:
            waits_for = [stages[name] for name in stage.after]
            stages[stage.name] = spawn(self.backend.clock, self._run_stage(worker, stage, waits_for, entry))
        try:
            for flow in stages.values():
                yield flow
        finally:
            for flow in stages.values():
                flow.cancel()
            self._close_host_memory(worker, entry)

    def _run_stage(self, worker: Worker, stage: Stage, waits_for: list[Flow], entry: CacheEntry | None) -> FlowBody:
        if stage.work is Work.FETCH:
            self._fetches[worker.rank, stage.name] = Signal(self.backend.clock)
        for flow in waits_for:
            yield flow
        started_at = self.backend.clock.now
        num_bytes: Bytes = 0.0
        if stage.work is Work.FETCH:
            num_bytes = yield from self._fetch(worker, stage, entry)
        elif stage.work is Work.LOAD:
            num_bytes = yield from self._load(worker, stage)
        else:
            yield self.backend.provisioner.start(self.instance, worker, stage)
        self._write(worker, stage, started_at, num_bytes)

    def _fetch(self, worker: Worker, stage: Stage, entry: CacheEntry | None) -> FlowBody:
        """Bring the weights into host memory; nothing to do when they are there, and a fetch that is bringing them
        already is joined."""
        started = self._fetches[worker.rank, stage.name]
        if worker.from_cache:
            started.fire(None)
            return 0.0
        if stage.period:
            yield self.backend.provisioner.start(self.instance, worker, stage)
        joined = None if entry is None else entry.transfer
        transfer = joined or self.backend.transport.fetch(worker)
        if entry is not None and not joined:
            entry.fill(transfer)
        started.fire(transfer)
        if entry is None:
            self._buffered[worker.rank] = transfer
            yield from self._carry(transfer)
        else:
            yield transfer.done  # it goes on for the cache, whatever becomes of this start
        return 0.0 if joined else worker.weights

    def _carry(self, transfer: Transfer) -> FlowBody:
        """Wait for a transfer that nobody else wants."""
        try:
            yield transfer.done
        finally:
            transfer.cancel()

    def _load(self, worker: Worker, stage: Stage) -> FlowBody:
        """Copy the weights to the GPU, at once or tensor by tensor as their bytes arrive."""
        if stage.streams is None:
            yield from self._carry(self.backend.transport.load(worker, worker.weights, stage.loader))
            return worker.weights
        fetch: Transfer | None = yield self._fetches[worker.rank, stage.streams]
        yield from stream(self.backend.transport, worker, fetch, stage.loader)
        return worker.weights

    def _open_host_memory(self, worker: Worker) -> CacheEntry | None:
        """Room for the weights on the server: an entry of its cache, or a buffer that goes when they are loaded."""
        cache = worker.server.cache
        if worker.from_cache and (cache is None or not cache.holds(self.instance.model)):
            worker.from_cache = False  # evicted since the decision
        if self.keep_in_host_memory and cache is not None:
            return cache.open(self.instance.model, worker.weights)
        worker.server.claim_buffer(self._buffer(worker), worker.weights)
        return None

    def _buffer(self, worker: Worker) -> str:
        return f"weights of instance {self.instance.instance_id}, rank {worker.rank}"

    def _close_host_memory(self, worker: Worker, entry: CacheEntry | None) -> None:
        if entry is not None and worker.server.cache is not None:
            worker.server.cache.close(entry)
        else:
            worker.server.release_buffer(self._buffer(worker))
            if worker.rank in self._buffered:
                self._buffered.pop(worker.rank).release()

    def _write(self, worker: Worker, stage: Stage, started_at: float, num_bytes: Bytes) -> None:
        self.record(
            StageRecord(
                instance=self.instance.instance_id,
                rank=worker.rank,
                model=self.instance.model,
                server=worker.server.name,
                stage=stage.name,
                started_at=started_at,
                ended_at=self.backend.clock.now,
                num_bytes=num_bytes,
            )
        )
