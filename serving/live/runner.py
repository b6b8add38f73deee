"""StageRunner: one pipeline stage's model with its paged KV cache; runs steps and moves KV blocks in and out."""

import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from serving.live.attention import attention_batch
from serving.live.batch import Payload, StepBatch, StepSample, TokenLogprobs
from serving.live.config import ModelConfig
from serving.live.cpu.kernels import bind_threads
from serving.live.errors import LiveError
from serving.live.kv import KvCache
from serving.live.kv_rows import DeviceRows, HostRows, Staging, rows_of
from serving.live.model import StageModel
from serving.live.sampling import Draws, sample, top_logprobs

PROFILE_BLOCK = 16
"""Tokens of a KV block in a profile, whose cache is thrown away."""


class DecodeGraphs(Protocol):
    """Recorded decode steps of a stage, where the device has such a thing."""

    def run(self, batch: StepBatch) -> Tensor | None:
        """Hidden states [B, H] of a pure decode; None when the batch does not fit a recording."""
        ...


class StageRunner:
    """A stage at work. ``allocate`` comes before ``run``; one thread uses it."""

    def __init__(
        self,
        config: ModelConfig,
        layers: range,
        tensors: dict[str, Tensor],
        device: str,
        dtype: str,
        own: StageModel | None = None,
    ) -> None:
        """``tensors`` are those of the stage's part, on the device, but for those that ``own`` has; another ``dtype``
        than theirs copies them."""
        self.config = config
        self.layers = layers
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.is_first = layers.start == 0
        self.is_last = layers.stop == config.num_layers
        self.graphs: DecodeGraphs | None = None
        with torch.inference_mode():
            self.model = StageModel(config, layers, _cast(tensors, self.dtype), own=own)
        self._kv: KvCache | None = None
        self._num_blocks = self._block_size = 0
        self._staging = torch.empty(0, dtype=torch.int64)
        self._kv_staging: Staging | None = None
        """Of a GPU, once KV has been moved."""

    @property
    def kv(self) -> KvCache:
        """The KV cache; LiveError before ``allocate``."""
        if self._kv is None:
            raise LiveError("no KV cache yet: the engine command comes before steps")
        return self._kv

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make the KV cache. A GPU's has one block more, into which the padding of recorded steps writes."""
        if num_blocks < 1 or block_size < 1:
            raise LiveError(f"a KV cache of {num_blocks} blocks of {block_size} tokens holds nothing")
        self._take_kv(self._new_kv(num_blocks + (self.device.type == "cuda"), block_size), num_blocks)

    def bind(self, cores: Sequence[int]) -> None:
        """Keep the calling thread, which runs the steps, and those that compute with it on cores of their own."""
        if cores:
            bind_threads(cores)

    def grown(self, tensors: dict[str, Tensor]) -> "StageRunner":
        """A runner of the whole model, of this stage and of the tensors that it lacks. Both may be used by turns: they
        share this stage's weights and its layers' KV."""
        config = self.config
        every = range(config.num_layers)
        dtype = str(self.dtype).removeprefix("torch.")
        whole = StageRunner(config, every, tensors, str(self.device), dtype, self.model)
        before, behind = self.layers.start, every.stop - self.layers.stop
        whole._take_kv(self.kv.around(before, behind), self._num_blocks)
        return whole

    def run(self, batch: StepBatch, hidden: Tensor | None) -> Tensor | StepSample:
        """One step: hidden states [T, H] for the next stage, or the tokens. ``hidden`` comes from the stage before."""
        self._check(batch)
        with torch.inference_mode():
            computed = self.graphs.run(batch) if self.graphs is not None and batch.is_decode else None
            if computed is None:
                computed = self._forward(batch, hidden, self.kv, self._block_size)
            return self._sample(computed, batch) if self.is_last else computed

    def profile(self, num_tokens: int) -> None:
        """One forward pass over so many tokens, in sequences as long as the model allows, with a cache of its own."""
        if num_tokens < 1:
            raise LiveError(f"a profile of {num_tokens} tokens measures nothing")
        longest = min(num_tokens, self.config.max_positions)
        lengths = [longest] * (num_tokens // longest) + ([num_tokens % longest] if num_tokens % longest else [])
        counts = [-(-length // PROFILE_BLOCK) for length in lengths]
        starts = np.cumsum([0, *counts]).tolist()
        batch = StepBatch.of(
            ids=[[0] * length for length in lengths],
            num_computed=[0] * len(lengths),
            block_tables=[range(start, start + n) for start, n in zip(starts, counts, strict=False)],
            wants=[True] * len(lengths),
            sampling=[None] * len(lengths),
        )
        hidden = None if self.is_first else self.new_hidden(num_tokens, device=self.device).zero_()
        with torch.inference_mode():
            kv = self._new_kv(sum(counts), PROFILE_BLOCK)
            computed = self._forward(batch, hidden, kv, PROFILE_BLOCK)
            if self.is_last:
                self._sample(computed, batch)
        self.synchronize()

    def kv_rows(self, layers: range, blocks: list[int]) -> HostRows | DeviceRows:
        """The KV of some blocks, or of none, in some of the layers; another thread than that of the steps may give or
        take it."""
        if layers.start < self.layers.start or layers.stop > self.layers.stop:
            here = f"{self.layers.start}..{self.layers.stop}"
            raise LiveError(f"no KV of layers {layers.start}..{layers.stop} in a stage of layers {here}")
        if not blocks:  # the last stage of a migration has none when all were complete and none was begun
            return HostRows([], [])
        first = 2 * (layers.start - self.layers.start)
        self._check_blocks(blocks)
        if self.device.type == "cuda" and self._kv_staging is None:
            self._kv_staging = Staging(self.device)
        return rows_of(self._pools()[first : first + 2 * len(layers)], blocks, self._kv_staging)

    def kv_read(self, blocks: list[int]) -> Tensor:
        """The bytes of KV blocks as uint8 on the CPU: layer by layer, keys before values, in the order given."""
        with torch.inference_mode():
            index = self._block_index(blocks)
            tensors = [pool.index_select(0, index) for pool in self._pools()]
            return torch.stack(tensors).cpu().contiguous().view(torch.uint8).flatten()

    def kv_write(self, blocks: list[int], payload: Payload) -> None:
        """Fill KV blocks with what ``kv_read`` of a like stage gave."""
        pools = self._pools()
        index = self._block_index(blocks)
        shape = (len(pools), len(blocks), *pools[0].shape[1:])
        expected = int(np.prod(shape)) * self.dtype.itemsize
        if len(payload) != expected:
            raise LiveError(f"kv_write: {len(blocks)} blocks of these layers are {expected} bytes, got {len(payload)}")
        with torch.inference_mode():
            values = torch.frombuffer(bytearray(payload), dtype=self.dtype).view(shape).to(self.device)
            for pool, filling in zip(pools, values, strict=True):
                pool.index_copy_(0, index, filling)

    def new_hidden(self, num_rows: int, device: torch.device | str = "cpu") -> Tensor:
        """Room for activations between stages; on the CPU of a GPU's worker it is pinned."""
        pinned = self.device.type == "cuda" and str(device) == "cpu"
        return torch.empty(num_rows, self.config.hidden, dtype=self.dtype, device=device, pin_memory=pinned)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _take_kv(self, kv: KvCache, num_blocks: int) -> None:
        self._kv, self._num_blocks, self._block_size = kv, num_blocks, kv.block_size
        if self.device.type == "cuda" and self.is_first and self.is_last:
            self.graphs = _decode_graphs(self)

    def _new_kv(self, num_blocks: int, block_size: int) -> KvCache:
        return KvCache.allocate(self.config, self.layers, num_blocks, block_size, self.dtype, self.device)

    def _forward(self, batch: StepBatch, hidden: Tensor | None, kv: KvCache, block_size: int) -> Tensor:
        attention = attention_batch(
            batch.num_tokens.tolist(), batch.num_computed.tolist(), batch.tables(), block_size, self.device
        )
        if self.is_first:
            return self.model.forward(self._stage_ids(batch), attention, kv)
        if hidden is None or hidden.shape[0] != len(batch.ids):
            raise LiveError("a stage behind the first needs the activations of the one before")
        return self.model.forward(hidden.to(self.device, non_blocking=True), attention, kv)

    def _stage_ids(self, batch: StepBatch) -> Tensor:
        """The token ids on the device, through one pinned buffer."""
        count = len(batch.ids)
        if self._staging.numel() < count:
            self._staging = torch.empty(2 * count, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        staged = self._staging[:count]
        staged.numpy()[:] = batch.ids
        return staged.to(self.device, non_blocking=True)

    def _sample(self, hidden: Tensor, batch: StepBatch) -> StepSample:
        """Tokens of the sequences that want one; the only wait for the device."""
        wants = batch.wants.astype(bool)
        if not wants.any():
            self.synchronize()
            return StepSample(ids=np.empty(0, np.int64))
        last_rows = np.cumsum(batch.num_tokens)[wants] - 1
        if len(last_rows) < hidden.shape[0]:
            hidden = hidden.index_select(0, torch.from_numpy(last_rows.astype(np.int64)).to(self.device))
        logits = self.model.logits(hidden)
        positions = batch.num_computed.astype(np.int64) + batch.num_tokens
        ids = sample(logits, None if batch.sampled is None else Draws.of(batch.sampled, positions, wants))
        return StepSample(ids=ids.cpu().numpy(), logprobs=self._logprobs(logits, ids, batch, wants))

    def _logprobs(self, logits: Tensor, ids: Tensor, batch: StepBatch, wants: np.ndarray) -> TokenLogprobs | None:
        num_top = -1 if batch.logprobs is None else int(batch.logprobs[wants].max())
        if num_top < 0:
            return None
        chosen, top_ids, top = (part.cpu().numpy() for part in top_logprobs(logits, ids, num_top))
        return TokenLogprobs(chosen=chosen, top_ids=top_ids, top=top)

    def _check(self, batch: StepBatch) -> None:
        """What would make a kernel write where it must not."""
        self.kv  # noqa: B018 - raises when there is none
        held = batch.num_blocks.astype(np.int64) * self._block_size
        ends = batch.num_computed.astype(np.int64) + batch.num_tokens
        if (ends > held).any() or ends.max() > self.config.max_positions:
            raise LiveError(
                f"step: a sequence of {int(ends.max())} tokens, with KV blocks for {int(held[ends.argmax()])} of a "
                f"model for {self.config.max_positions}"
            )
        if batch.block_tables.min() < 0 or batch.block_tables.max() >= self._num_blocks:
            raise LiveError(f"step: KV block {int(batch.block_tables.max())} is not one of {self._num_blocks}")
        if batch.ids.min() < 0 or batch.ids.max() >= self.config.vocab:
            raise LiveError(f"step: token ids must be from 0 to {self.config.vocab - 1}")

    def _pools(self) -> list[Tensor]:
        kv = self.kv
        return [pool for pair in zip(kv.keys, kv.values, strict=True) for pool in pair]

    def _block_index(self, blocks: list[int]) -> Tensor:
        self._check_blocks(blocks)
        return torch.tensor(blocks, dtype=torch.int64, device=self.device)

    def _check_blocks(self, blocks: list[int]) -> None:
        if not blocks or min(blocks) < 0 or max(blocks) >= self._num_blocks:
            raise LiveError(f"KV blocks {blocks[:8]} are not among the {self._num_blocks} of this stage")


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in another type, one behind the other in new memory so that neighbours stay neighbours."""
    if all(tensor.dtype is dtype for tensor in tensors.values()):
        return tensors
    first = next(iter(tensors.values()))
    flat = torch.empty(sum(tensor.numel() for tensor in tensors.values()), dtype=dtype, device=first.device)
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
    cast = {}
    for (name, tensor), piece in zip(tensors.items(), pieces, strict=True):
        cast[name] = piece.view(tensor.shape).copy_(tensor)
    return cast


def _decode_graphs(runner: StageRunner) -> DecodeGraphs | None:
    try:
        from serving.live.gpu.graphs import decode_graphs
    except ImportError as error:
        print(f"decode steps are not recorded as CUDA graphs: {error}", file=sys.stderr, flush=True)
        return None
    graphs: DecodeGraphs | None = decode_graphs(runner)
    return graphs
