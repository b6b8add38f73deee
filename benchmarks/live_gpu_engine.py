"""The engine as clients see it: one instance in a worker process, requests that all come at once."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

import numpy as np

from serving.core.cluster import Deployment
from serving.cost.startup import StartupCosts
from serving.live.checkpoint import Checkpoint
from serving.live.engine import Engine
from serving.live.fleet import WorkerOptions
from serving.live.output import Output
from serving.live.setup import LiveSetup
from serving.policies import configured
from serving.testbed import ServerKind, Testbed
from serving.units import GB

BLOCK = 16
NO_COSTS = StartupCosts(
    container=0.0, libraries=0.0, context=0.0, engine=0.0, first_step=0.0, engine_load_rate=20 * GB, jitter=0.0
)


@dataclass(slots=True)
class Answers:
    """The tokens of a batch of requests, as they come."""

    expected: int
    left: int
    done: Event = field(default_factory=Event)
    lock: Lock = field(default_factory=Lock)
    began: int = 0
    tokens: int = 0
    tokens_at_full: int = 0
    full_at: float = 0.0
    """When the last request had its first token."""
    error: str | None = None

    def listener(self) -> Callable[[Output], None]:
        """What one request calls."""
        fresh = True

        def hear(output: Output) -> None:
            nonlocal fresh
            with self.lock:
                self.tokens += len(output.token_ids)
                if fresh and output.token_ids:
                    fresh = False
                    self.began += 1
                    if self.began == self.expected:
                        self.tokens_at_full, self.full_at = self.tokens, time.perf_counter()
                if output.finish_reason is not None:
                    self.error = self.error or output.error
                    self.left -= 1
                    if not self.left:
                        self.done.set()

        return hear


def time_engine(engine: Engine, prompts: np.ndarray, num_tokens: int) -> tuple[float, float]:
    """Tokens/s once all requests have their first one, and from the first request on."""
    answers = Answers(expected=len(prompts), left=len(prompts))
    start = time.perf_counter()
    for prompt in prompts.tolist():
        engine.submit(prompt, model="m", max_tokens=num_tokens, ignore_eos=True, on_output=answers.listener())
    if not answers.done.wait(240) or answers.error:
        raise SystemExit(f"engine: {answers.error or 'no answer for 240 s'}")
    stop = time.perf_counter()
    decode = (answers.tokens - answers.tokens_at_full) / (stop - answers.full_at)
    return decode, answers.tokens / (stop - start)


@contextmanager
def engine_on(folder: Path, max_batch: int, tokens: tuple[int, int], device: str = "cuda") -> Iterator[Engine]:
    """One instance, in a worker process on the GPU, for sequences and steps of up to so many tokens."""
    context, step_tokens = tokens
    spec = Checkpoint.open(folder).spec("m")
    kv = (max_batch * -(-context // BLOCK) + 64) * BLOCK * spec.kv_bytes_per_layer * spec.num_layers
    kind = ServerKind(
        name="local", gpu="h200", num_gpus=1, gpu_memory=(spec.weight_bytes + kv) / 0.9, dram=100 * GB,
        nic_rate=20 * GB, fetch_rate=20 * GB, pcie_rate=20 * GB, startup=NO_COSTS,
    )  # fmt: skip
    system = configured("fixed_instances", {"max_sequences": max_batch, "max_step_tokens": step_tokens})
    deployment = Deployment(model="m", spec=spec, size=spec.weight_bytes, ttft_slo=60.0, tpot_slo=1.0)
    setup = LiveSetup(
        testbed=Testbed(servers=((kind, 1),), num_stores=1, store_nic_rate=20 * GB, exclusive=system.exclusive_gpus),
        system=system,
        deployments=(deployment,),
        checkpoints={"m": folder},
        workers=WorkerOptions(device=device, threads=4, log_folder=folder),
    )
    engine = Engine(setup)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()
        for path in folder.glob("*.log"):
            sys.stderr.write(path.read_text()[-2000:])
