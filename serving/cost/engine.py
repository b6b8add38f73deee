"""EngineCosts: what an engine on one kind of server takes beyond the data sheet of its GPU.

Without it a step is the roofline's. Values are in the testbed's TOML; those that paper points set are declared there as
calibrated.
"""

from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from serving.core.model import ModelSpec
from serving.core.worker import Worker
from serving.cost.gpus import GPUS, MEMORY_EFFICIENCY
from serving.units import BytesPerSecond, Seconds, Tokens

Times = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepTerms:
    """How long a worker's part of a step takes when the roofline and the context are known."""

    degree: int = 1
    fixed: Seconds = 0.0
    per_context: Seconds = 0.0
    """For each KV entry that attention reads."""
    factor: float = 1.0
    """On all of it."""

    @overload
    def time(self, busy: Seconds, context_tokens: Tokens) -> Seconds:
        """Of a step that keeps a single GPU busy for so long."""

    @overload
    def time(self, busy: Times, context_tokens: Counts) -> Times:
        """Of many such steps."""

    def time(self, busy: Any, context_tokens: Any) -> Any:
        """Of a step that keeps a single GPU busy for so long, or of many."""
        alone = busy if self.degree == 1 else busy / self.degree
        time = alone + (self.fixed + self.per_context * context_tokens)
        return time if self.factor == 1.0 else time * self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """Additions to the roofline, and what moving KV blocks costs."""

    tensor_parallel: int = 1
    """GPUs that compute every layer together. They count as one, whose memory and links are theirs added up."""
    kv_blocks: int | None = None
    """Of an instance at most, as its engine profiled them; None: as many as its memory holds."""
    kv_read_share: float | None = None
    """Share of the peak memory bandwidth at which attention reads KV; None: that of the weights."""
    step: Seconds = 0.0
    """For each step: scheduling it, launching its kernels."""
    sequence: Seconds = 0.0
    """For each sequence of a step: preparing, sampling, detokenizing it."""
    all_reduce: Seconds = 0.0
    """Least time of an all-reduce; every layer has two."""
    all_reduce_rate: BytesPerSecond | None = None
    """Bytes of hidden values reduced per second, where that takes longer; None: it never does."""
    copy_rate: BytesPerSecond | None = None
    """KV blocks to another instance, over host memory; None: as fast as the links let them through."""
    copy_message: Seconds = 0.0
    """For each message that a copy is sent in; see ``num_messages``."""
    copy_slowdown: float = 1.0
    """Factor on steps that begin while KV is copied from or to their GPU."""

    def terms(
        self, model: ModelSpec, worker: Worker, num_rows: Tokens, num_sequences: int, *, copying: bool = False
    ) -> StepTerms:
        """Of a step of so many rows, for so many sequences."""
        fixed = self.step + self.sequence * num_sequences
        num_layers = len(worker.layers)
        if self.tensor_parallel > 1:
            size = num_rows * model.hidden * model.bytes_per_value
            fixed += 2 * num_layers * max(self.all_reduce, size / self.all_reduce_rate if self.all_reduce_rate else 0.0)
        return StepTerms(
            self.tensor_parallel, fixed, self._context(model, worker), self.copy_slowdown if copying else 1.0
        )

    def copy_delay(self, worker: Worker) -> Seconds:
        """What a copy of KV blocks takes beside its bytes."""
        return self.copy_message * num_messages(worker)

    def _context(self, model: ModelSpec, worker: Worker) -> Seconds:
        """What reading a token's KV takes longer than the roofline has it."""
        if self.kv_read_share is None:
            return 0.0
        rate = GPUS[worker.gpu.kind].memory_bandwidth * self.tensor_parallel
        size = model.kv_bytes_per_layer * len(worker.layers)
        return size / (rate * self.kv_read_share) - size / (rate * MEMORY_EFFICIENCY)


def num_messages(worker: Worker) -> int:
    """Messages of one copy: K and V of a layer are each gathered from all blocks into a buffer (Llumnix sheet, section
    2: block fusion)."""
    return 2 * len(worker.layers)


ROOFLINE = EngineCosts()
"""Of an engine about which nothing is known."""
