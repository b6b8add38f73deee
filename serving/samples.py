"""Samples: what all ready instances have at one moment, looked at without disturbing them."""

from serving.core.cluster import Cluster
from serving.core.instance import Instance, Phase
from serving.records import SampleRecord


def sample(cluster: Cluster) -> SampleRecord:
    """The ready instances now."""
    ready = [instance for instance in cluster.instances if instance.phase is Phase.READY]
    num_free = sum(instance.num_free_blocks for instance in ready)
    return SampleRecord(
        at=cluster.now,
        num_instances=len(ready),
        num_running=sum(len(instance.running) for instance in ready),
        num_waiting=sum(len(instance.waiting) for instance in ready),
        num_blocks=sum(instance.pool.num_blocks for instance in ready if instance.pool is not None),
        num_free_blocks=num_free,
        num_fragmented_blocks=fragmented(num_free, [blocked_demand(instance) for instance in ready]),
    )


def is_empty(cluster: Cluster) -> bool:
    """Whether no sequence is anywhere."""
    return not any(cluster.held.values()) and not any(instance.num_sequences for instance in cluster.instances)


def blocked_demand(instance: Instance) -> int:
    """KV blocks that the first in the queue wants and the instance has not; 0 where nothing waits for blocks."""
    if not instance.waiting or instance.pool is None:
        return 0
    demand = instance.pool.blocks_for(instance.waiting[0].num_tokens)
    return demand if demand > instance.num_free_blocks else 0


def fragmented(num_free: int, demands: list[int]) -> int:
    """Blocks of those demands that all free blocks together could meet, the smallest first (sheet, section 8)."""
    met = 0
    for demand in sorted(demands):
        if met + demand > num_free:
            break
        met += demand
    return met
