"""Step time from first principles: a forward pass is bound by arithmetic or by memory, whichever is slower."""

import numpy as np

from serving.core.instance import Instance
from serving.core.model import ModelSpec
from serving.core.plan import StepPlan
from serving.core.worker import Worker
from serving.cost.engine import StepTerms, Times
from serving.cost.gpus import COMPUTE_EFFICIENCY, GPUS, MEMORY_EFFICIENCY
from serving.cost.number import Number
from serving.units import Seconds, Tokens, ms

HOP = 1 * ms
"""Activations from one pipeline stage to the next over TCP."""

ABOVE = 1 + 1e-9
"""More than the roundings of a step time add up to."""

CONSTANTS = (Number(name="hop", value=HOP, unit="s", source="HydraServe artifact: 1 ms per extra stage"),)


def compute_share(worker: Worker) -> float:
    """Share of the GPU's compute that a memory slice comes with: all of it on exclusive GPUs, else in proportion,
    floored to 5 % (HydraServe sheet, section 2.5: cGPU)."""
    if worker.server.exclusive:
        return 1.0
    percent = int(100 * worker.memory / worker.gpu.memory.capacity + 1e-9) // 5 * 5
    return max(percent, 5) / 100


def forward_time(
    model: ModelSpec, worker: Worker, total_tokens: Tokens, context_tokens: Tokens, chunk_pairs: int = 0
) -> Seconds:
    """Time of one worker's part of a forward pass over ``total_tokens`` rows that read ``context_tokens`` of KV;
    ``chunk_pairs`` as in StepPlan (0 for many short sequences, as a profile run has)."""
    gpu = GPUS[worker.gpu.kind]
    num_layers = len(worker.layers)
    attention = 4 * model.hidden * num_layers * (context_tokens + total_tokens + chunk_pairs)
    flops = 2 * worker.weights / model.bytes_per_value * total_tokens + attention
    moved = worker.weights + context_tokens * num_layers * model.kv_bytes_per_layer
    busy = max(flops / (gpu.fp16_flops * COMPUTE_EFFICIENCY), moved / (gpu.memory_bandwidth * MEMORY_EFFICIENCY))
    return busy / compute_share(worker)


def decode_times(
    model: ModelSpec, worker: Worker, plan: StepPlan, now: Seconds, terms: StepTerms | None = None
) -> list[Seconds]:
    """When each of ``plan.repeats`` steps in a row from now on ends, in which each sequence decodes a token: those of
    ``forward_time`` and the terms step by step, to the last bit."""
    gpu, rows = GPUS[worker.gpu.kind], plan.total_tokens
    num_layers, share = len(worker.layers), compute_share(worker)
    flops_rate = gpu.fp16_flops * COMPUTE_EFFICIENCY
    memory_rate = gpu.memory_bandwidth * MEMORY_EFFICIENCY
    linear = 2 * worker.weights / model.bytes_per_value * rows
    per_token, kv_bytes = 4 * model.hidden * num_layers, model.kv_bytes_per_layer
    contexts = np.arange(plan.context_tokens, plan.context_tokens + rows * plan.repeats, rows)
    moved: Times = np.asarray(worker.weights + contexts * num_layers * kv_bytes, dtype=np.float64)
    times: Times = np.divide(moved, memory_rate)
    # Both bounds are lines over the context: one that is above at both ends, by more than rounding, is so in between.
    ends_of_line = (plan.context_tokens, plan.context_tokens + rows * (plan.repeats - 1))
    computing = [(linear + per_token * (context + rows)) / flops_rate for context in ends_of_line]
    if not (computing[0] * ABOVE < times[0] and computing[1] * ABOVE < times[-1]):
        times = np.maximum((linear + per_token * (contexts + rows)) / flops_rate, times)
    if share != 1.0:
        times /= share
    if terms is not None:
        times = terms.time(times, contexts)
    times[0] += now
    ends: list[Seconds] = times.cumsum().tolist()  # adds up in order, as steps would
    return ends


def step_time(instance: Instance, total_tokens: Tokens, context_tokens: Tokens, chunk_pairs: int = 0) -> Seconds:
    """Time of a step: the stages of the pipeline one after the other, and the hops between them."""
    model = instance.spec
    stages = sum(forward_time(model, w, total_tokens, context_tokens, chunk_pairs) for w in instance.workers)
    return stages + HOP * (len(instance.workers) - 1)
