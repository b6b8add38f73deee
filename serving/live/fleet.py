"""Fleet: the worker processes of a live run, by the Worker that each is; whose they are, and what if one dies."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

from serving.core.clock import Clock
from serving.core.cluster import Cluster
from serving.core.hardware import GPU
from serving.core.instance import Instance
from serving.core.worker import Process, Worker
from serving.cost.memory import num_blocks
from serving.live.config import DTYPES
from serving.live.errors import LiveError
from serving.live.processes import spawn_module
from serving.live.recording import Event, Lost, Recording, WorkerKey
from serving.live.worker_link import ANSWER_LIMIT, WorkerLink
from serving.units import Seconds

START_LIMIT: Seconds = 30.0
"""For a bare interpreter to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What all worker processes of a run have in common."""

    device: str = "cpu"
    """``cpu`` or ``cuda``."""
    num_devices: int = 1
    """CUDA devices of this machine, over which the testbed's GPUs are dealt out in turn."""
    dtype: str | None = None
    """Type to compute and keep KV in; None: the checkpoint's."""
    threads: int = 1
    """CPU threads of each process."""
    max_blocks: int | None = None
    """KV blocks of an instance at most; None: as many as its slices hold beside the weights."""
    answer_limit: Seconds = ANSWER_LIMIT
    """A worker that owes an answer, of a step or a stage of its start, and is silent for so long has hung."""
    fetch_limit: Seconds = 40.0
    """A prefetcher that owes news of a fetch and is silent for so long has hung. It gives up by itself before: two
    connections of 5 s, two storage servers that stall for 10 s."""
    log_folder: Path | None = None
    """Where each process's output goes; None: nowhere, but for the last lines in messages."""

    def num_blocks(self, instance: Instance, alone: Worker | None = None) -> int:
        """KV blocks of an instance; of one of its workers when it will be alone."""
        if alone is not None:
            instance = replace(instance, workers=(alone,))
        room = num_blocks(instance, None if self.dtype is None else DTYPES[self.dtype])
        return room if self.max_blocks is None else min(room, self.max_blocks)


@dataclass(slots=True, eq=False)
class Fleet:
    """The worker processes. All of it is for the clock's thread, and ``close`` for when that has ended."""

    clock: Clock
    options: WorkerOptions
    sockets: Path
    """What the names of the sockets between stages begin with. They have no folder of their own: those who listen
    remove them, even when this process was killed, and none could tell that it is the last to leave a folder."""
    recording: Recording | None = None
    cluster: Cluster | None = None
    """Whose instances the workers are stages of; known once there is a control plane."""
    on_lost: Callable[[Instance, str], None] | None = None
    """Called once for each instance of which a process died or failed."""
    _links: dict[Process, WorkerLink] = field(default_factory=dict)
    _spares: dict[GPU, WorkerLink] = field(default_factory=dict)
    _ended: list[WorkerLink] = field(default_factory=list)
    _serials: Iterator[int] = field(default_factory=count)

    def link(self, worker: Worker) -> WorkerLink | None:
        """The worker's process; None before it was started."""
        return self._links.get(worker.process)

    def links(self, instance: Instance) -> list[WorkerLink]:
        """An instance's processes by rank."""
        return [self._links[worker.process] for worker in instance.workers]

    def instance_of(self, worker: Worker) -> Instance | None:
        """The instance that a worker's process belongs to, while there is one; a pipeline before what it becomes."""
        return None if self.cluster is None else instance_on(self.cluster, worker.process)

    def key(self, worker: Worker) -> WorkerKey:
        """What a recording calls the process of a living instance's worker."""
        instance = self.instance_of(worker)
        if instance is None:
            raise LookupError(f"worker of rank {worker.rank} on {worker.gpu.name} is no instance's")
        return key_of(instance, worker)

    def serial_of_fetch(self, instance: Instance, worker: Worker) -> int:
        """Which of its process's fetches the next one is: 0 of what the worker starts with, then of what it lacks."""
        link = self.link(worker)
        if link is None or worker in instance.workers:
            return 0
        link.num_rests += 1
        return link.num_rests

    def record(self, event: Event) -> None:
        """Write an event down, if anybody wants to know."""
        if self.recording is not None:
            self.recording.add(event)

    def start(self, worker: Worker) -> WorkerLink:
        """A new process for the worker."""
        return self._adopt(worker, self._spawn("worker {}.{}".format(*self.key(worker))))

    def take_spare(self, worker: Worker) -> WorkerLink:
        """A process that waits on the worker's GPU already, as in a running Ray cluster; a new one if there is none."""
        spare = self._spares.pop(worker.gpu, None)
        return self.start(worker) if spare is None else self._adopt(worker, spare)

    def keep_spare(self, gpu: GPU) -> None:
        """Have a bare process wait on a GPU."""
        if gpu not in self._spares:
            with suppress(LiveError):  # whoever needs one tries again, and says why there is none
                spare = self._spares[gpu] = self._spawn(f"spare worker {next(self._serials)}")
                spare.on_fault = partial(self._drop_spare, gpu)

    def await_spares(self) -> None:
        """Wait until the spare processes listen; before the clock runs."""
        for spare in self._spares.values():
            spare.await_hello(START_LIMIT)

    def stop(self, instance: Instance, workers: tuple[Worker, ...]) -> None:
        """End the processes of some of an instance's workers; those that died are gone already."""
        for worker in workers:
            link = self._links.pop(worker.process, None)
            if link is not None:
                self._end(link)
                self.kv_path(link).unlink(missing_ok=True)
            self.socket_path(instance, worker.rank).unlink(missing_ok=True)

    def fault(self, worker: Worker, reason: str) -> None:
        """The worker is of no use any more: its instance is lost, unless it is gone anyway."""
        instance = self.instance_of(worker)
        if instance is not None and self.on_lost is not None:
            self.record(Lost(at=self.clock.now, instance=instance.instance_id, reason=reason))
            self.on_lost(instance, reason)

    def socket_path(self, instance: Instance, rank: int) -> Path:
        """Where the worker of this rank listens for activations."""
        return self.sockets.with_name(f"{self.sockets.name}-{instance.instance_id}.{rank}")

    def kv_path(self, link: WorkerLink) -> Path:
        """Where a process takes KV from others, whatever instance it is of."""
        return self.sockets.with_name(f"{self.sockets.name}-{link.live.pid}.kv")

    def num_stages(self, worker: Worker) -> int:
        """Of the engine in whose place the worker stands: a process may have two."""
        instances = () if self.cluster is None else self.cluster.instances
        return next(len(instance.workers) for instance in instances if worker in instance.workers)

    def device_of(self, gpu: GPU) -> str:
        """The device that stands for a GPU of the testbed."""
        if self.options.device == "cpu" or self.cluster is None:
            return self.options.device
        gpus = [candidate for server in self.cluster.servers for candidate in server.gpus]
        return f"{self.options.device}:{gpus.index(gpu) % self.options.num_devices}"

    def cores_of(self, gpu: GPU) -> list[int]:
        """The cores that the threads of a process on this GPU of the testbed are bound to; none where this machine has
        others to run them on, or too few, or where several processes share the GPU."""
        if self.options.device != "cpu" or self.cluster is None or not hasattr(os, "sched_getaffinity"):
            return []
        gpus = [candidate for server in self.cluster.servers for candidate in server.gpus]
        cores, threads = sorted(os.sched_getaffinity(0)), self.options.threads
        if len(cores) != len(gpus) * threads or self._num_processes(gpu) > 1:
            return []
        first = gpus.index(gpu) * threads
        return cores[first : first + threads]

    def close(self) -> None:
        """End every process and wait for it."""
        for link in [*self._links.values(), *self._spares.values()]:
            self._end(link)
        self._links.clear()
        self._spares.clear()
        for link in self._ended:
            link.join()
        for path in self.sockets.parent.glob(f"{self.sockets.name}-*"):
            path.unlink(missing_ok=True)  # of those that had to be killed

    def _num_processes(self, gpu: GPU) -> int:
        """Of living instances on a GPU."""
        instances = () if self.cluster is None else self.cluster.instances
        processes = (worker.process for instance in instances for worker in instance.workers if worker.gpu is gpu)
        return len({id(process) for process in processes})

    def _spawn(self, name: str) -> WorkerLink:
        threads = str(self.options.threads)
        folder = self.options.log_folder
        live = spawn_module(
            "serving.live.worker",
            name,
            env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            log_path=None if folder is None else folder / f"{name.replace(' ', '-')}.log",
        )
        try:
            return WorkerLink(live, self.clock, self.options.answer_limit)
        except RuntimeError as error:  # no thread can be started
            live.stop()
            raise LiveError(f"{name}: {error}") from error

    def _adopt(self, worker: Worker, link: WorkerLink) -> WorkerLink:
        link.on_fault = partial(self.fault, worker)
        self._links[worker.process] = link
        return link

    def _drop_spare(self, gpu: GPU, reason: str) -> None:
        del reason  # whoever needs one starts another
        self._end(self._spares.pop(gpu))

    def _end(self, link: WorkerLink) -> None:
        link.close()
        self._ended = [ended for ended in self._ended if ended.ending]
        self._ended.append(link)


def instance_on(cluster: Cluster, process: Process) -> Instance | None:
    """The first instance with a worker in the process."""
    for instance in cluster.instances:
        if any(worker.process is process for worker in instance.workers):
            return instance
    return None


def key_of(instance: Instance, worker: Worker) -> WorkerKey:
    """An instance's id and the rank of its worker in this one's process, whichever layers this one has."""
    return instance.instance_id, next(own.rank for own in instance.workers if own.process is worker.process)
