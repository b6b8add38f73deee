"""FreeMemory: a plan's view of the GPUs, from which placements are taken without touching the cluster."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from serving.core.actions import Placement
from serving.core.cluster import Cluster
from serving.core.hardware import GPU, Server
from serving.core.instance import Instance
from serving.cost.memory import POD_OVERHEAD
from serving.units import GB, Bytes


def slice_size(size: Bytes, kv_reserve: Bytes, num_stages: int = 1) -> Bytes:
    """GPU memory of one worker, in whole GB: ceil(M + kv) for one, ceil((M + kv) / s) for a stage of s
    (HydraServe sheet, section 3)."""
    return ceil((size + kv_reserve) / num_stages / GB) * GB


@dataclass(slots=True)
class FreeMemory:
    """Free bytes per GPU, and of each server's own memory; ``take`` books in the plan only."""

    free: dict[GPU, Bytes]
    host: dict[Server, Bytes]

    @classmethod
    def of(cls, cluster: Cluster, retiring: Iterable[Instance] = ()) -> "FreeMemory":
        """The cluster as it is now, or will be when some instances have retired."""
        memory = cls(
            {gpu: gpu.memory.free for server in cluster.servers for gpu in server.gpus},
            {server: server.host_memory.free for server in cluster.servers},
        )
        for worker in (worker for instance in retiring for worker in instance.workers):
            memory.free[worker.gpu] += worker.memory
            memory.host[worker.server] += worker.memory + POD_OVERHEAD
        return memory

    def fits(self, server: Server, size: Bytes) -> bool:
        """Whether one of the server's GPUs has that much free, and the server the memory for such a worker."""
        return self.host[server] >= size + POD_OVERHEAD and any(self.free[gpu] >= size for gpu in server.gpus)

    def take(self, server: Server, size: Bytes, leftover: Bytes = 0.0, *, whole: bool = True) -> Placement:
        """The GPU with the least free memory that fits; all of it, when no more than ``leftover`` would remain, as far
        as the server's own memory lets it. ``whole``: the size is that of a worker with the whole model."""
        gpu = min((gpu for gpu in server.gpus if self.free[gpu] >= size), key=lambda candidate: self.free[candidate])
        taken = self.free[gpu] if self.free[gpu] - size <= leftover else size
        if self.host[server] < taken + POD_OVERHEAD:
            taken = size
        self.free[gpu] -= taken
        self.host[server] -= taken + POD_OVERHEAD
        return Placement(server=server, gpu=gpu, memory=taken, planned=size, whole=whole)
