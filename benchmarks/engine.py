"""Steps and simulated output tokens per second of one Instance, with full per-request accounting.

    python benchmarks/engine.py                 # about 30 s
    pytest benchmarks/engine.py                 # batch 40 under pytest-benchmark, to compare two commits

One llama2-7b instance with ContinuousBatching and the sim executor. A closed loop keeps a fixed number of sequences on
it: whenever one finishes, its record (with the gap between every two tokens) is built and kept, and the next comes.
Prompts and answers are of 128 to 384 tokens, 256 in the mean, so sequences come and go at different steps.
"""

import argparse
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from measure import Rate, best_time

from serving.core.clock import SimClock
from serving.core.hardware import GPU, Link, Memory, Server, StorageServer
from serving.core.instance import Instance
from serving.core.kv import BlockPool
from serving.core.request import Request, Sequence
from serving.core.worker import Worker
from serving.cost.memory import BLOCK_SIZE
from serving.cost.models import MODELS
from serving.cost.startup import StartupCosts
from serving.policies.continuous import Batching, ContinuousBatching
from serving.records import RequestRecord
from serving.sim.executor import SimExecutor
from serving.units import GB, Gbps, Tokens

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

MODEL = "llama2-7b"
SHORTEST: Tokens = 128
LONGEST: Tokens = 384
MAX_STEP_TOKENS: Tokens = 2048
BATCHES = (8, 40, 200)
JUDGED_BATCH = 40
STEPS_FLOOR = 40_000
TOKENS_FLOOR = 2_000_000
STARTUP = StartupCosts(
    container=0.0, libraries=0.0, context=0.0, engine=0.0, first_step=0.0, engine_load_rate=1 * GB, jitter=0.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one run went through."""

    num_steps: int
    records: tuple[RequestRecord, ...]

    @property
    def num_output_tokens(self) -> Tokens:
        """Tokens of all answers."""
        return sum(record.num_output_tokens for record in self.records)


def _worker() -> Worker:
    """One exclusive GPU that holds the whole model; its KV pool is made apart."""
    rate = 10 * Gbps
    gpu = GPU("gpu0", "a10", Memory("gpu0", 22 * GB), Link("pcie", 10 * GB))
    server = Server(
        name="server0",
        kind="a10",
        gpus=(gpu,),
        nic_rate=rate,
        downlink=Link("down", rate),
        uplink=Link("up", rate),
        host_memory=Memory("dram", 100 * GB),
        stores=(StorageServer("store0", rate, Link("store0/up", rate)),),
        exclusive=True,
    )
    layers = range(MODELS[MODEL].num_layers)
    tensors = MODELS[MODEL].stage_tensors(layers)
    return Worker(rank=0, server=server, gpu=gpu, memory=22 * GB, layers=layers, tensors=tensors, from_cache=False)


def closed_loop(batch: int, num_requests: int) -> Load:
    """Serve so many requests, ``batch`` at a time."""
    clock, random = SimClock(), Random("benchmark/lengths")
    records: list[RequestRecord] = []
    waiting = [
        Request(
            request_id=request_id,
            model=MODEL,
            num_prompt_tokens=random.randint(SHORTEST, LONGEST),
            num_output_tokens=random.randint(SHORTEST, LONGEST),
        )
        for request_id in reversed(range(num_requests))
    ]

    def arrive() -> None:
        if waiting:
            instance.add(Sequence(waiting.pop(), clock.now))

    def finish(sequence: Sequence) -> None:
        records.append(sequence.record())
        arrive()

    instance = Instance(
        instance_id=0,
        model=MODEL,
        spec=MODELS[MODEL],
        workers=(_worker(),),
        max_sequences=batch,
        max_step_tokens=MAX_STEP_TOKENS,
        clock=clock,
        scheduler=ContinuousBatching(Batching()),
        executor=SimExecutor(clock, {"a10": STARTUP}),
        on_finish=finish,
    )
    instance.open(BlockPool(2 * batch * (2 * LONGEST // BLOCK_SIZE + 1), BLOCK_SIZE))
    for _ in range(batch):
        arrive()
    clock.run()
    if len(records) != num_requests:
        raise RuntimeError(f"{num_requests} requests were sent, {len(records)} answered")
    return Load(num_steps=instance.num_steps, records=tuple(records))


def rates(batch: int, num_requests: int, repeats: int) -> list[Rate]:
    """Steps and output tokens of the run, per second."""
    load = closed_loop(batch, num_requests)
    seconds = best_time(lambda: closed_loop(batch, num_requests), repeats)
    judged = batch == JUDGED_BATCH
    held = load.num_output_tokens / load.num_steps
    return [
        Rate(
            name=f"batch {batch} (mean {held:.1f} tokens a step)",
            unit="steps",
            per_second=load.num_steps / seconds,
            floor=STEPS_FLOOR if judged else None,
        ),
        Rate(
            name=f"batch {batch}",
            unit="tokens",
            per_second=load.num_output_tokens / seconds,
            floor=TOKENS_FLOOR if judged else None,
        ),
    ]


def test_batch_40(benchmark: "BenchmarkFixture") -> None:
    """Under pytest-benchmark."""
    load = benchmark(closed_loop, JUDGED_BATCH, 400)
    assert len(load.records) == 400


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=50, help="requests per seat of the batch (default: 50)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts (default: 3)")
    options = parser.parse_args()
    for batch in BATCHES:
        for rate in rates(batch, batch * options.requests, options.repeats):
            print(rate)


if __name__ == "__main__":
    main()
