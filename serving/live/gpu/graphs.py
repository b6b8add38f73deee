"""DecodeGraphs: decode steps recorded once as CUDA graphs, one a batch size, and replayed with a single launch."""

import sys
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from serving.live.batch import StepBatch
from serving.live.gpu.attention_triton import supports
from serving.live.gpu.decoder import Decoder, decoder_of
from serving.live.gpu.step_inputs import StepInputs
from serving.live.kv import KvCache

if TYPE_CHECKING:
    from serving.live.runner import StageRunner

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""A batch is padded to the next of these; steps of more sequences are not recorded."""
NUM_WARM_UPS = 2
"""Steps before a recording: kernels are compiled in the first, cuBLAS takes its memory."""


class DecodeGraphs:
    """The recorded decode steps of a model that is one stage. One thread uses it.

    Kernels, shapes and addresses of a recording are fixed; sequences, positions and block tables are read from
    ``StepInputs``. A size is recorded when it is first needed, or before, by ``capture``.
    """

    def __init__(self, decoder: Decoder, kv: KvCache, max_context: int) -> None:
        """The last block of ``kv`` belongs to padding."""
        self._decoder = decoder
        self._kv = kv
        self._inputs = StepInputs(kv, BATCH_SIZES[-1], max_context)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, batch: StepBatch) -> Tensor | None:
        """Residual [B, hidden] of a decode batch, good until the next run; None when the batch does not fit. The GPU
        may still be at work: the caller waits for what it reads before it runs the next step."""
        if not self._inputs.fits(batch):
            return None
        size = BATCH_SIZES[bisect_left(BATCH_SIZES, batch.num_sequences)]
        if size not in self._graphs:
            self.capture([size])
        graph, hidden = self._graphs[size]
        self._inputs.fill(batch, size)
        graph.replay()
        return hidden[: batch.num_sequences]

    @torch.inference_mode()
    def capture(self, sizes: Sequence[int] = BATCH_SIZES) -> None:
        """Record these batch sizes, largest first, so that the smaller ones find their memory in the larger ones'."""
        for size in sorted(sizes, reverse=True):
            if size not in self._graphs:
                self._graphs[size] = self._record(size)

    def _record(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        rows = self._inputs.rows(size)
        self._inputs.clear(size)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                self._decoder.forward(rows, self._kv)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads of a worker may be copying weights with the driver meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            hidden = self._decoder.forward(rows, self._kv)
        return graph, hidden


def decode_graphs(runner: "StageRunner") -> DecodeGraphs | None:
    """For a runner whose model is one stage and whose KV cache is allocated; None, and a line that says so, when the
    kernels cannot hold the model's heads."""
    config = runner.config
    if not supports(config.num_heads, config.num_kv_heads, config.head_size):
        heads = f"{config.num_heads} heads of {config.head_size} over {config.num_kv_heads} KV heads"
        print(f"decode steps are not recorded as CUDA graphs: no kernel for {heads}", file=sys.stderr, flush=True)
        return None
    return DecodeGraphs(decoder_of(runner.model), runner.kv, config.max_positions)
