"""Diagnosis: what control says of an instance or a cluster, in records and messages."""

from dataclasses import replace

from serving.core.cluster import Cluster
from serving.core.instance import Instance
from serving.core.request import Sequence
from serving.records import DecisionRecord
from serving.units import GB


def about_workers(decision: DecisionRecord, instance: Instance) -> DecisionRecord:
    """The decision with where the instance's workers are and what they hold."""
    return replace(
        decision,
        servers=tuple(worker.server.name for worker in instance.workers),
        memory=tuple(worker.memory for worker in instance.workers),
    )


def reason_to_refuse(sequence: Sequence, instance: Instance) -> str | None:
    """Why the instance can never hold the sequence to its end; None: it can, or is not ready and says so itself."""
    pool = instance.pool
    if pool is None or pool.can_ever_hold(sequence):
        return None
    return (
        f"request {sequence.request.request_id} of {sequence.final_tokens} prompt and output tokens, "
        f"instance {instance.instance_id} has KV memory for {pool.num_blocks * pool.block_size}"
    )


def standstill(cluster: Cluster) -> str:
    """What is held, what memory is free, and what each instance has."""
    held = ", ".join(f"{len(queue)} of {model}" for model, queue in cluster.held.items() if queue)
    free = ", ".join(f"{gpu.name} {gpu.memory.free / GB:.0f} GB" for s in cluster.servers for gpu in s.gpus)
    instances = ", ".join(
        f"{i.instance_id} of {i.model} {i.phase.value} with {len(i.waiting)} waiting and {len(i.running)} running"
        for i in cluster.instances
    )
    return f"held {held or 'none'}; free {free}; instances {instances or 'none'}"
