"""Worker processes under test: real ones, loaded through shared regions, driven by the frames that control sends."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from serving.core.request import Sampling
from serving.live.batch import StepBatch, StepSample
from serving.live.checkpoint import Checkpoint
from serving.live.frames import recv_frame, send_frame
from serving.live.make import make_checkpoint
from serving.live.part import Part
from serving.live.processes import LiveProcess, spawn_module
from serving.live.shared_region import SharedRegion, region_name

TINY = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "dtype": "float32",
    "eos_token_id": 2,
}
BLOCK_SIZE = 4
NUM_BLOCKS = 32
_serials = itertools.count()


class CommandError(AssertionError):
    """A worker answered that it could not."""


def make_lively(folder: Path, scale: float = 10.0, **changes: Any) -> Path:
    """A random model whose layers matter: with weights as small as usual it would repeat one token forever."""
    from safetensors.torch import load_file, save_file

    make_checkpoint(folder, {**TINY, **changes}, seed=1)
    weights = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        if ".layers." in name and values.dim() == 2:
            values.mul_(scale)
    save_file(weights, folder / "model.safetensors")
    return folder


@dataclass(eq=False)
class StageWorker:
    """One worker process and the test's end of its socket."""

    live: LiveProcess
    _ids: Iterator[int] = field(default_factory=itertools.count)
    _answers: dict[int, tuple[dict[str, Any], bytes]] = field(default_factory=dict)

    @classmethod
    def spawn(cls) -> Self:
        """Start the process; its greeting comes with ``greet``."""
        worker = cls(spawn_module("serving.live.worker", "worker", env={"OMP_NUM_THREADS": "1"}))
        worker.live.socket.settimeout(60)
        return worker

    def greet(self) -> Self:
        """Wait until it runs."""
        hello, _ = recv_frame(self.live.socket)
        assert hello == {"event": "hello", "pid": self.live.pid}
        return self

    def send(self, op: str, *payload: memoryview | bytes, **fields: Any) -> int:
        """Send a command; returns its id."""
        command = next(self._ids)
        send_frame(self.live.socket, {"op": op, "id": command, **fields}, *payload)
        return command

    def wait(self, command: int) -> tuple[dict[str, Any], bytes]:
        """The answer to a command; CommandError with its error when it has one."""
        while command not in self._answers:
            header, payload = recv_frame(self.live.socket)
            self._answers[header["id"]] = header, payload
        header, payload = self._answers.pop(command)
        if not header["ok"]:
            raise CommandError(header["error"])
        return header, payload

    def call(self, op: str, *payload: memoryview | bytes, **fields: Any) -> tuple[dict[str, Any], bytes]:
        """Send a command and wait for its answer."""
        return self.wait(self.send(op, *payload, **fields))

    def answered(self, command: int) -> bool:
        """Whether an answer came while others were waited for."""
        return command in self._answers


class Stages:
    """The workers of one instance, ready for steps; as a context it leaves nothing behind."""

    def __init__(self, folder: Path, num_stages: int = 1, loader: str = "direct", device: str = "cpu") -> None:
        self._device = device
        self.checkpoint = Checkpoint.open(folder)
        self.model = {"config": self.checkpoint.config.to_json(), "dtype": "float32", "threads": 1}
        self.sockets = Path(tempfile.mkdtemp(prefix="aebench-test-"))
        self.workers = [StageWorker.spawn() for _ in range(num_stages)]
        try:
            loads = [self._start(rank, loader) for rank in range(num_stages)]
            for rank, (worker, load) in enumerate(zip(self.workers, loads, strict=True)):
                worker.wait(load)
                worker.call("engine", **self.model, **self.place(rank))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for rank, worker in enumerate(self.workers):
            worker.live.stop()
            self.inlet(rank).unlink(missing_ok=True)
        leftovers = list(self.sockets.iterdir())
        shutil.rmtree(self.sockets)
        assert leftovers == []

    def place(self, rank: int) -> dict[str, Any]:
        """The part of the engine command that differs by stage."""
        last = len(self.workers) - 1
        return {
            "rank": rank,
            "num_stages": last + 1,
            "listen": str(self.sockets / f"{rank}") if rank else None,
            "connect": str(self.sockets / f"{rank + 1}") if rank < last else None,
            "num_blocks": NUM_BLOCKS,
            "block_size": BLOCK_SIZE,
            "inlet": str(self.inlet(rank)),
        }

    def inlet(self, rank: int) -> Path:
        """Where a worker takes KV."""
        return self.sockets / f"{rank}.kv"

    def send_step(self, batch: StepBatch) -> int:
        """Give a step to every stage; returns the command id of the last."""
        header, buffers = batch.encode()
        return [worker.send("step", *buffers, num_stages=len(self.workers), **header) for worker in self.workers][-1]

    def step(self, batch: StepBatch) -> StepSample:
        """Run a step."""
        return StepSample.decode(*self.workers[-1].wait(self.send_step(batch)))

    def _start(self, rank: int, loader: str) -> int:
        """Everything up to the load, whose command id it returns; the engine's loader waits for the libraries."""
        worker = self.workers[rank].greet()
        libraries = worker.send("libraries")
        worker.call("context", device=self._device)
        per_stage = self.checkpoint.config.num_layers // len(self.workers)
        part = self.checkpoint.part(range(rank * per_stage, (rank + 1) * per_stage), "tiny")
        with filled_region(self.checkpoint, part) as region:
            worker.call("part", part=part.to_json(), region=region.name)
        if loader == "engine":
            worker.wait(libraries)
        return worker.send("load", first_layer=part.layers.start, tensors=[0, len(part.tensors)], loader=loader)


class InOneProcess:
    """All stages of the model as one runner in this process."""

    def __init__(self, folder: Path) -> None:
        import torch

        from serving.live.runner import StageRunner

        checkpoint = Checkpoint.open(folder)
        part = checkpoint.part(range(checkpoint.config.num_layers), "tiny")
        tensors = {
            entry.name: torch.frombuffer(bytearray(values), dtype=torch.float32).view(entry.shape)
            for entry, values in zip(part.tensors, checkpoint.buffers(part), strict=True)
        }
        self.runner = StageRunner(checkpoint.config, part.layers, tensors, "cpu", "float32")
        self.runner.allocate(NUM_BLOCKS, BLOCK_SIZE)

    def step(self, batch: StepBatch) -> StepSample:
        """Run a step."""
        sampled = self.runner.run(batch, None)
        assert isinstance(sampled, StepSample)
        return sampled


@contextmanager
def filled_region(checkpoint: Checkpoint, part: Part, stop: int | None = None) -> Iterator[SharedRegion]:
    """A region with the first tensors of a part, as a prefetcher leaves it; unlinked at the end."""
    region = SharedRegion.create(region_name(f"test{os.getpid()}", next(_serials)), part.size)
    try:
        fill(region, checkpoint, part, stop)
        yield region
    finally:
        region.unlink()
        region.close()


def fill(region: SharedRegion, checkpoint: Checkpoint, part: Part, stop: int | None = None) -> None:
    """Let the first tensors of a part arrive."""
    end = 0
    for entry, values in list(zip(part.tensors, checkpoint.buffers(part), strict=True))[:stop]:
        end = entry.offset + entry.num_bytes
        region.data[entry.offset : end] = values
    region.received = end


def a_step(
    ids: Sequence[int], num_computed: int, blocks: Sequence[int], wants: bool = True, sampling: Sampling | None = None
) -> StepBatch:
    """A step of one sequence."""
    return StepBatch.of(
        ids=[ids], num_computed=[num_computed], block_tables=[blocks], wants=[wants], sampling=[sampling]
    )


def generate(
    stages: Stages | InOneProcess, prompt: Sequence[int], num_output: int, blocks: Sequence[int], chunk: int = 999
) -> list[int]:
    """Greedy output of one sequence, its prompt computed in chunks."""
    for start in range(0, len(prompt), chunk):
        rows = prompt[start : start + chunk]
        sample = stages.step(a_step(rows, start, blocks, wants=start + chunk >= len(prompt)))
    output = sample.ids.tolist()
    while len(output) < num_output:
        output += stages.step(a_step(output[-1:], len(prompt) + len(output) - 1, blocks)).ids.tolist()
    return output
