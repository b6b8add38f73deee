"""GPU memory: how many KV blocks a slice holds beside the weights."""

from serving.core.instance import Instance
from serving.core.model import ModelSpec
from serving.core.worker import Worker
from serving.cost.number import Number
from serving.units import GB, Bytes, Tokens

BLOCK_SIZE: Tokens = 16
"""Tokens per KV block."""

UTILISATION = 0.95
"""Share of a slice that the engine uses."""

POD_OVERHEAD: Bytes = 4 * GB
"""Host memory of a worker process beyond its GPU slice."""

CONSTANTS = (
    Number(name="pod_overhead", value=POD_OVERHEAD, unit="B", source="HydraServe artifact, pod_host_memory_gb"),
    Number(name="block_size", value=BLOCK_SIZE, unit="tokens", source="vLLM's default"),
    Number(
        name="gpu_memory_utilisation",
        value=UTILISATION,
        unit="",
        source="HydraServe artifact, gpu_mem_utilization",
    ),
)


def num_blocks(instance: Instance, value_bytes: int | None = None) -> int:
    """KV blocks of an instance: the fewest that any of its stages has room for; one whose slice is for the whole model
    keeps room for it, since it will have it while the blocks are in use. ``value_bytes``: of a weight and a KV value on
    the device, where the engine computes in another type than the model is stored in."""
    model = instance.spec
    factor = 1 if value_bytes is None else value_bytes / model.bytes_per_value
    per_layer = model.kv_bytes_per_layer * factor * BLOCK_SIZE
    room = [_room(model, worker, factor, per_layer) for worker in instance.workers]
    if min(room) < 1:
        worker = instance.workers[room.index(min(room))]
        raise ValueError(
            f"{instance.model}: {worker.weights * factor / 1e9:.1f} GB of weights leave no KV block in a slice of "
            f"{worker.memory / 1e9:.1f} GB on {worker.gpu.name}"
        )
    return min(room)


def _room(model: ModelSpec, worker: Worker, factor: float, per_layer: Bytes) -> int:
    weights, num_layers = worker.weights, len(worker.layers)
    if worker.whole and num_layers < model.num_layers:
        weights, num_layers = model.weight_bytes, model.num_layers
    return int((worker.memory * UTILISATION - weights * factor) // (per_layer * num_layers))
