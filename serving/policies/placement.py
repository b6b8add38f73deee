"""FreeMemory: a plan's view of the GPUs, from which placements are taken without touching the cluster."""

from dataclasses import dataclass
from math import ceil

from serving.core.actions import Placement
from serving.core.cluster import Cluster
from serving.core.hardware import GPU, Server
from serving.units import GB, Bytes


def slice_size(size: Bytes, kv_reserve: Bytes, num_stages: int = 1) -> Bytes:
    """GPU memory of one worker, in whole GB: ceil(M + kv) for one, ceil((M + kv) / s) for a stage of s
    (HydraServe sheet, section 3)."""
    return ceil((size + kv_reserve) / num_stages / GB) * GB


@dataclass(slots=True)
class FreeMemory:
    """Free bytes per GPU; ``take`` books in the plan only."""

    free: dict[GPU, Bytes]

    @classmethod
    def of(cls, cluster: Cluster) -> "FreeMemory":
        """The cluster as it is now."""
        return cls({gpu: gpu.memory.free for server in cluster.servers for gpu in server.gpus})

    def fits(self, server: Server, size: Bytes) -> bool:
        """Whether one of the server's GPUs has that much free."""
        return any(self.free[gpu] >= size for gpu in server.gpus)

    def take(self, server: Server, size: Bytes, leftover: Bytes = 0.0) -> Placement:
        """The GPU with the least free memory that fits; all of it, when no more than ``leftover`` would remain."""
        gpu = min((gpu for gpu in server.gpus if self.free[gpu] >= size), key=lambda candidate: self.free[candidate])
        taken = self.free[gpu] if self.free[gpu] - size <= leftover else size
        self.free[gpu] -= taken
        return Placement(server=server, gpu=gpu, memory=taken)
