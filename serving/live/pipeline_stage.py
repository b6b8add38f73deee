"""PipelineStage: a runner between its neighbours; takes steps as frames, and hands on activations or tokens."""

import contextlib
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from serving.live.activations import Downstream, Upstream
from serving.live.batch import Header, Payload, StepBatch, StepSample
from serving.live.runner import StageRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlace:
    """Where a stage stands in its instance, and the KV cache that it is to have."""

    rank: int
    num_stages: int
    listen: str | None
    """Socket file at which the stage before calls; None for the first."""
    connect: str | None
    """Socket file at which the stage behind listens; None for the last."""
    num_blocks: int
    block_size: int

    @classmethod
    def of(cls, command: Header) -> Self:
        """As an engine command states it; KeyError for what it lacks."""
        return cls(**{name: command[name] for name in cls.__dataclass_fields__})

    def __post_init__(self) -> None:
        if (self.listen is None) != (self.rank == 0) or (self.connect is None) != (self.rank == self.num_stages - 1):
            raise ValueError(
                f"stage {self.rank} of {self.num_stages}: listen and connect must be those of its neighbours"
            )


class PipelineStage:
    """One stage of an instance, ready for steps. Steps are numbered by every stage for itself: all get every one."""

    def __init__(self, runner: StageRunner, listen: str | None = None, connect: str | None = None) -> None:
        """The runner has its KV cache. ``listen`` and ``connect`` are those of its place; None for a whole model."""
        self.runner = runner
        self._step = 0
        self._upstream = None if listen is None else Upstream(listen)
        self._downstream = None if connect is None else Downstream(connect)
        self._received = runner.new_hidden(0)

    def step(self, header: Header, payload: Payload) -> StepSample | None:
        """Run a step; the tokens if this is the last stage, None once the next one has the activations."""
        self._step += 1
        try:
            if self._downstream is not None:
                self._downstream.open()
            batch = StepBatch.decode(header, payload)
            result = self.runner.run(batch, self._receive(len(batch.ids)))
        except Exception as error:
            if self._downstream is not None:
                self._downstream.fail(self._step, str(error))
            raise
        if isinstance(result, StepSample):
            return result
        if self._downstream is not None:
            self._downstream.send(self._step, _raw(result.cpu()))
        return None

    def kv_read(self, blocks: list[int]) -> memoryview:
        """The bytes of KV blocks of this stage's layers."""
        return _raw(self.runner.kv_read(blocks))

    def kv_write(self, blocks: list[int], payload: Payload) -> None:
        """Fill KV blocks with bytes that ``kv_read`` gave, here or elsewhere."""
        self.runner.kv_write(blocks, payload)

    def close(self) -> None:
        """Hang up on the neighbours."""
        for neighbour in (self._upstream, self._downstream):
            if neighbour is not None:
                with contextlib.suppress(OSError):
                    neighbour.close()

    def _receive(self, num_rows: int) -> Tensor | None:
        if self._upstream is None:
            return None
        if self._received.shape[0] < num_rows:
            self._received = self.runner.new_hidden(2 * num_rows)
        hidden = self._received[:num_rows]
        self._upstream.receive(self._step, _raw(hidden))
        return hidden


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in host memory, writable."""
    return tensor.contiguous().view(torch.uint8).flatten().numpy().data
