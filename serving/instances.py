"""Instances: makes them, claims memory for their processes, and writes down what each process was used for."""

from collections.abc import Callable
from dataclasses import dataclass, field

from serving.core.actions import Launch
from serving.core.cluster import Cluster
from serving.core.instance import Instance
from serving.core.kv import BlockPool
from serving.core.ports import Backend, Scheduler
from serving.core.request import Sequence
from serving.core.worker import Process, Worker
from serving.cost.memory import BLOCK_SIZE, POD_OVERHEAD
from serving.records import WorkerRecord
from serving.units import Seconds


@dataclass(slots=True, eq=False)
class Use:
    """What a process is used for."""

    instance: Instance
    worker: Worker
    started_at: Seconds
    ready_at: Seconds | None = None

    def record(self, ended_at: Seconds | None) -> WorkerRecord:
        """As it is written down."""
        return WorkerRecord(
            instance=self.instance.instance_id,
            rank=self.worker.rank,
            model=self.instance.model,
            server=self.worker.server.name,
            gpu=self.worker.gpu.name,
            memory=self.worker.billed,
            started_at=self.started_at,
            ready_at=self.ready_at,
            last_busy_at=self.instance.last_busy_at,
            ended_at=ended_at,
        )


@dataclass(slots=True, eq=False)
class Instances:
    """The instances of a run and their processes."""

    cluster: Cluster
    scheduler: Scheduler
    backend: Backend
    record: Callable[[WorkerRecord], None]
    on_finish: Callable[[Sequence], None]
    num_made: int = 0
    """Instances that were launched or came of a consolidation, which have ids of their own."""
    _uses: dict[Process, Use] = field(default_factory=dict)

    def launch(self, action: Launch) -> Instance:
        """The launch's instance, its memory claimed, in the cluster's list."""
        instance = self._make(action.model, self._workers(action), action.max_sequences, action.max_step_tokens)
        instance.max_batch = action.max_batch
        for worker in instance.workers:
            worker.gpu.memory.claim(worker.process, worker.memory)
            worker.server.host_memory.claim(worker.process, worker.memory + POD_OVERHEAD)
            self._uses[worker.process] = Use(instance, worker, self.backend.clock.now)
        self.cluster.instances.append(instance)
        return instance

    def open(self, instance: Instance) -> None:
        """It is ready: give it KV memory."""
        instance.open(BlockPool(self.backend.provisioner.num_blocks(instance), BLOCK_SIZE))
        for worker in instance.workers:
            self._uses[worker.process].ready_at = self.backend.clock.now

    def whole_of(self, group: Instance, worker: Worker, max_sequences: int) -> Instance:
        """The whole model on the process of one of a pipeline's workers: the first is the pipeline's heir, with its id
        and, for now, its KV blocks; the others are new instances."""
        is_first = worker is group.workers[0]
        whole = worker.of_layers(group.spec, range(group.spec.num_layers))
        instance = self._make(
            group.model, (whole,), max_sequences, group.max_step_tokens, group.instance_id if is_first else None
        )
        num_blocks = self.backend.provisioner.num_blocks(instance)
        pool = group.pool if is_first else None
        instance.open(pool or BlockPool(num_blocks, BLOCK_SIZE))
        at = self.cluster.instances.index(group) + 1 if is_first else len(self.cluster.instances)
        self.cluster.instances.insert(at, instance)
        return instance

    def switch(self, group: Instance, wholes: list[Instance]) -> None:
        """A pipeline has become other instances: each has its process now, and those of the rest end."""
        first, now = wholes[0], self.backend.clock.now
        heirs = {whole.workers[0].process: whole for whole in wholes}
        self.end(group, tuple(worker for worker in group.workers if worker.process not in heirs))
        for process, heir in heirs.items():
            use = self._uses[process]
            if heir is first:
                use.instance, use.worker = first, first.workers[0]
            else:
                self.record(use.record(now))
                self._uses[process] = Use(heir, heir.workers[0], now, now)
        times = [time for time in (group.last_busy_at, first.last_busy_at) if time is not None]
        first.last_busy_at = max(times, default=None)
        if first.idle_since is not None:  # it was there, idle, while the group still served
            first.idle_since = max(times, default=group.idle_since)
        self.cluster.instances.remove(group)
        if first.pool is not None:
            first.pool.grow(self.backend.provisioner.num_blocks(first))
        first.part_from_neighbour()

    def take_away(self, instance: Instance) -> None:
        """It is retired or lost: end its processes."""
        self.end(instance, instance.workers)
        self.cluster.instances.remove(instance)

    def end(self, instance: Instance, workers: tuple[Worker, ...]) -> None:
        """End some of an instance's processes and give their memory back; those that have ended already stay so."""
        self.backend.provisioner.stop(instance, workers)
        for worker in workers:
            use = self._uses.pop(worker.process, None)
            if use is not None:
                worker.gpu.memory.release(worker.process)
                worker.server.host_memory.release(worker.process)
                self.record(use.record(self.backend.clock.now))

    def close(self) -> None:
        """The run ends: write down what is still in use."""
        for use in self._uses.values():
            use.instance.settle()
            self.record(use.record(None))

    def _make(
        self,
        model: str,
        workers: tuple[Worker, ...],
        max_sequences: int,
        max_step_tokens: int,
        instance_id: int | None = None,
    ) -> Instance:
        if instance_id is None:
            instance_id = self.num_made
            self.num_made += 1
        return Instance(
            instance_id=instance_id,
            model=model,
            spec=self.cluster.deployments[model].spec,
            workers=workers,
            max_sequences=max_sequences,
            max_step_tokens=max_step_tokens,
            clock=self.backend.clock,
            scheduler=self.scheduler,
            executor=self.backend.executor,
            on_finish=self.on_finish,
        )

    def _workers(self, action: Launch) -> tuple[Worker, ...]:
        model = self.cluster.deployments[action.model].spec
        return tuple(
            Worker(
                rank=rank,
                server=placement.server,
                gpu=placement.gpu,
                memory=placement.memory,
                layers=layers,
                tensors=model.stage_tensors(layers),
                from_cache=placement.from_cache,
                planned=placement.planned,
                whole=placement.whole,
            )
            for rank, (placement, layers) in enumerate(
                zip(action.placements, model.split(len(action.placements)), strict=True)
            )
        )
