"""Consolidation: carry out a Consolidate. A pipeline that serves becomes instances of one worker each.

Each worker with memory for the whole model fetches what it lacks in the background, as the network allows. When the
first has it, new sequences run there; those of the pipeline follow with their KV, or stay until their last token. Then
the workers that are not needed end, and each further whole one is an instance of its own (HydraServe sheet, section
3.4).

**Departures**: low-memory workers end, and the KV pool grows, when all whole workers have their weights and the
pipeline is empty; in the artifact the pool grows with the first one's weights, and the workers end when that one is
done.
"""

from dataclasses import dataclass, field
from typing import Protocol

from serving.core.actions import Consolidate
from serving.core.clock import FlowBody, spawn
from serving.core.instance import Instance
from serving.core.ports import Backend
from serving.core.sharing import close_for, hand_over
from serving.core.stages import Loader
from serving.core.worker import Worker
from serving.cost.memory import BLOCK_SIZE
from serving.mechanisms.streaming import stream
from serving.records import PauseRecord, StageRecord
from serving.units import Bytes, Seconds


class Keeper(Protocol):
    """Who keeps the books of instances, and of what becomes of them."""

    def whole_of(self, group: Instance, worker: Worker, max_sequences: int) -> Instance:
        """A new instance on the worker's process: the first shares the group's identity and its KV blocks."""
        ...

    def opened(self, whole: Instance) -> None:
        """It takes sequences from now on."""
        ...

    def switched(self, group: Instance, wholes: list[Instance]) -> None:
        """The group is no more; these are what it became, the first with all that it had of its process."""
        ...

    def note(self, record: StageRecord | PauseRecord) -> None:
        """Something to write down."""
        ...


@dataclass(slots=True, eq=False)
class Consolidation:
    """One pipeline's. ``run()`` is the flow to spawn; cancelling it leaves the pipeline as it was, so long as nothing
    was opened."""

    action: Consolidate
    backend: Backend
    keeper: Keeper
    wholes: list[Instance] = field(default_factory=list)
    """What it is becoming, as far as that has memory for sequences."""

    @property
    def group(self) -> Instance:
        """The pipeline."""
        return self.action.instance

    @property
    def kept(self) -> list[Worker]:
        """Its workers with memory for the whole model."""
        return [worker for worker in self.group.workers if worker.whole]

    def run(self) -> FlowBody:
        """Load in parallel, open the first, empty the pipeline, switch."""
        clock, started_at = self.backend.clock, self.backend.clock.now
        loads = [spawn(clock, self._complete(worker)) for worker in self.kept]
        try:
            yield loads[0]
            first = self._open(self.kept[0])
            close_for(self.group, first)
            self.keeper.opened(first)
            yield from self._empty(first)
            for load in loads[1:]:
                yield load
        finally:
            for load in loads:
                load.cancel()
        self._write(self.kept[0], "consolidation", started_at)
        for worker in self.kept[1:]:
            self._open(worker)
        self.keeper.switched(self.group, self.wholes)

    def _open(self, worker: Worker) -> Instance:
        whole = self.keeper.whole_of(self.group, worker, self.action.max_sequences)
        self.wholes.append(whole)
        return whole

    def _complete(self, worker: Worker) -> FlowBody:
        """Bring the layers that a worker lacks to its GPU, and make it ready to compute them all."""
        network, now = self.action.network, self.backend.clock.now
        rest = worker.rest(self.group.spec)
        size = sum(part.weights for part in rest)
        while not network.open_for_rest(worker, size):
            yield self.action.network_poll
        self._write(worker, "await network", now)
        try:
            for part in rest:
                yield from self._bring(part)
        finally:
            network.close_rest(worker)
        whole = worker.of_layers(self.group.spec, range(self.group.spec.num_layers))
        yield self.backend.provisioner.grow(self.group, whole)

    def _bring(self, part: Worker) -> FlowBody:
        """Fetch one part and copy it to the GPU behind the fetch."""
        server, started_at = part.server, self.backend.clock.now
        owner = f"rest of instance {self.group.instance_id}, rank {part.rank}, from layer {part.layers.start}"
        server.claim_buffer(owner, part.weights)
        fetch = self.backend.transport.fetch(part)
        loading = spawn(self.backend.clock, stream(self.backend.transport, part, fetch, Loader.BACKGROUND))
        try:
            yield fetch.done
            self._write(part, "background fetch", started_at, part.weights)
            yield loading
            self._write(part, "background load", started_at, part.weights)
        finally:
            loading.cancel()
            fetch.cancel()
            fetch.release()
            server.release_buffer(owner)

    def _empty(self, first: Instance) -> FlowBody:
        """Wait until the pipeline has no sequence; move them when the network may be had alone."""
        network, since = self.action.network, self.backend.clock.now
        servers = tuple(dict.fromkeys(worker.server for worker in self.group.workers))
        while self.group.num_sequences:
            if self.action.migrate and network.take_alone(servers):
                self._write(self.kept[0], "await exclusive", since)
                try:
                    yield from self._migrate(first)
                finally:
                    network.give_back(servers)
                return
            yield self.action.exclusive_poll
        self._write(self.kept[0], "await exclusive", since)
        yield self.group.freeze()  # a step of sequences that were taken back may still be computed

    def _migrate(self, first: Instance) -> FlowBody:
        """Freeze the pipeline's sequences, move their KV to the first worker, and go on there."""
        group, clock, asked_at = self.group, self.backend.clock, self.backend.clock.now
        yield group.freeze()
        target, started_at, sequences = first.workers[0], clock.now, list(group.running)
        blocks = [block for sequence in sequences for block in sequence.block_table]
        moves = []
        try:
            for worker in group.workers:
                if worker is not self.kept[0] and blocks:
                    size = len(blocks) * self._block_bytes(worker)
                    moves.append(self.backend.transport.move_kv(worker, target, blocks, blocks, size))
            for move in moves:
                yield move.done
        finally:
            for move in moves:
                move.cancel()
        paused = {
            sequence: max(asked_at, sequence.token_times[-1]) for sequence in group.running if sequence.token_times
        }
        size = sum(self._block_bytes(worker) for worker in group.workers if worker is not self.kept[0])
        for sequence in hand_over(group, first):
            self.keeper.note(
                PauseRecord(
                    request_id=sequence.request.request_id,
                    instance=group.instance_id,
                    paused_at=paused.get(sequence, asked_at),
                    resumed_at=clock.now,
                    num_bytes=len(sequence.block_table) * size,
                    reason="consolidation",
                )
            )
        self._write(self.kept[0], "kv migration", started_at, len(blocks) * size)

    def _block_bytes(self, worker: Worker) -> Bytes:
        return BLOCK_SIZE * self.group.spec.kv_bytes_per_layer * len(worker.layers)

    def _write(self, worker: Worker, stage: str, started_at: Seconds, num_bytes: Bytes = 0.0) -> None:
        self.keeper.note(
            StageRecord(
                instance=self.group.instance_id,
                rank=worker.rank,
                model=self.group.model,
                server=worker.server.name,
                stage=stage,
                started_at=started_at,
                ended_at=self.backend.clock.now,
                num_bytes=num_bytes,
            )
        )
