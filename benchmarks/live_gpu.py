"""Decode tokens/s of a random Llama-2-7B in bfloat16 on one NVIDIA GPU, beside transformers; and whether it is right.

    PYTHONPATH=. python benchmarks/live_gpu.py                        # about 4 minutes on an H200
    PYTHONPATH=. python benchmarks/live_gpu.py --parts kernels        # one part of: kernels, accuracy, decode, engine
    PYTHONPATH=. python benchmarks/live_gpu.py --static               # beside transformers' compiled static cache too

Prompts are 128 random ids, answers 128 greedy tokens; a rate is that of the 127 steps after the first token. "runner"
is one process that calls the stage runner; "engine" goes through the control process and a worker process. All ways of
a batch size are warmed up, then measured in turn, ``--repeats`` times; medians are shown. The runner and transformers
have the same weights; the engine's are as many, but equal in all layers, which makes its checkpoint small.
"""

import argparse
import gc
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import live_gpu_kernels as kernels
import numpy as np
import torch
from live_gpu_engine import engine_on, time_engine
from torch import Tensor

from serving.live import attention
from serving.live.batch import StepBatch
from serving.live.config import ModelConfig
from serving.live.gpu.graphs import BATCH_SIZES
from serving.live.layout import layout
from serving.live.make import make_checkpoint
from serving.live.runner import StageRunner
from serving.live.shapes import Changes, config_table
from serving.units import GB

PARTS = ("kernels", "accuracy", "decode", "engine")
Way = Callable[[np.ndarray, int], float]
"""Tokens/s for prompts [B, n] and a number of output tokens each."""
BLOCK = 16
STEP_TOKENS = 8192
"""Prompt tokens of one step."""
DEVICE = "cuda"


@dataclass(slots=True)
class Table:
    """Rates by column and batch size."""

    rates: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def add(self, column: str, batch_size: int, rate: float) -> None:
        """One measurement, in tokens/s."""
        self.rates.setdefault(column, {}).setdefault(batch_size, []).append(rate)
        say(f"  {column:<24} batch {batch_size:<4} {rate:>9.0f} tokens/s")

    def note(self, line: str) -> None:
        """Something to repeat at the end."""
        say(line)
        self.lines.append(line)

    def __str__(self) -> str:
        sizes = sorted({size for found in self.rates.values() for size in found})
        rows = [f"{'output tokens/s at batch':<26}" + "".join(f"{size:>10}" for size in sizes)]
        for column, found in self.rates.items():
            cells = [f"{median(found[size]):.0f}" if size in found else "-" for size in sizes]
            rows.append(f"{column:<26}" + "".join(f"{cell:>10}" for cell in cells))
        return "\n".join([*self.lines, *rows])


def say(line: str) -> None:
    """Print at once: a run that is cut off has shown what it had."""
    print(line, flush=True)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Says how long a part took."""
    start = time.perf_counter()
    yield
    say(f"[{name}: {time.perf_counter() - start:.1f} s]")


def shared_weights(table: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """Random weights in one piece of GPU memory, laid out like a part, and a transformers model on the same memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    table = {key: value for key, value in table.items() if key not in ("eos_token_id", "bos_token_id")}
    settings = AutoConfig.for_model(**table)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        theirs = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    config = ModelConfig.parse(table, "benchmark")
    entries = layout(config, range(config.num_layers))
    flat = torch.empty(sum(math.prod(shape) for _, shape in entries), dtype=torch.bfloat16, device=DEVICE)
    tensors, start = {}, 0
    parameters = dict(theirs.named_parameters())
    for name, shape in entries:
        stop = start + math.prod(shape)
        tensors[name] = flat[start:stop].view(shape).copy_(parameters[name].data)
        parameters[name].data = tensors[name]
        start = stop
    theirs.generation_config.eos_token_id = theirs.generation_config.pad_token_id = None
    return tensors, theirs


def step(tokens: np.ndarray, computed: int, tables: list[list[int]]) -> StepBatch:
    """A step in which every sequence computes the same number of tokens, [B, n]."""
    count = len(tables)
    return StepBatch.of(tokens.tolist(), [computed] * count, tables, [True] * count, [None] * count)


def block_tables(count: int, tokens: int) -> list[list[int]]:
    """Shuffled blocks for sequences of so many tokens."""
    width = -(-tokens // BLOCK)
    return np.random.default_rng(0).permutation(count * width).reshape(count, width).tolist()


def prefill(runner: StageRunner, prompts: np.ndarray, tables: list[list[int]]) -> np.ndarray:
    """First tokens, [B, 1]."""
    some = max(1, STEP_TOKENS // prompts.shape[1])
    pieces = [
        runner.run(step(prompts[at : at + some], 0, tables[at : at + some]), None).ids
        for at in range(0, len(prompts), some)
    ]
    return np.concatenate(pieces)[:, None]


def time_runner(runner: StageRunner, prompts: np.ndarray, num_tokens: int) -> float:
    """Tokens/s after the first ones."""
    count, length = prompts.shape
    tables = block_tables(count, length + num_tokens)
    tokens = prefill(runner, prompts, tables)
    start = time.perf_counter()
    for computed in range(length, length + num_tokens - 1):
        tokens = runner.run(step(tokens, computed, tables), None).ids[:, None]
    return count * (num_tokens - 1) / (time.perf_counter() - start)


def time_transformers(theirs: Any, prompts: np.ndarray, num_tokens: int, **options: Any) -> float:
    """Tokens/s after the first ones: what more tokens took more than one."""
    ids = torch.from_numpy(prompts).to(DEVICE)
    both = []
    for count in (1, num_tokens):
        torch.cuda.synchronize()
        start = time.perf_counter()
        theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            pad_token_id=0, **options,
        )  # fmt: skip
        torch.cuda.synchronize()
        both.append(time.perf_counter() - start)
    return len(prompts) * (num_tokens - 1) / (both[1] - both[0])


def check_accuracy(runner: StageRunner, theirs: Any, table: Table) -> None:
    """Logits of random tokens, teacher-forced through prefill and decode steps, against transformers in float32."""
    count, length, steps = 6, 50, 24
    tokens = np.random.default_rng(3).integers(0, runner.config.vocab, (count, length + steps))
    exact = deepcopy(theirs).float()
    ids = torch.from_numpy(tokens).to(DEVICE)
    with torch.inference_mode():
        expected = exact(ids).logits[:, length:]
        del exact
        found = {"transformers bfloat16": theirs(ids).logits[:, length:]}
        found["ours, graphs"] = teacher_forced(runner, tokens, length)
        graphs, runner.graphs = runner.graphs, None
        found["ours, eager"] = teacher_forced(runner, tokens, length)
        kernel, attention._triton_kernels = attention._triton_kernels, lambda: None
        found["ours, eager SDPA"] = teacher_forced(runner, tokens, length)
        runner.graphs, attention._triton_kernels = graphs, kernel
    errors: dict[str, float] = {}
    for name, logits in found.items():
        same = float((logits.argmax(-1) == expected.argmax(-1)).float().mean())
        error = errors[name] = kernels.relative_error(logits, expected)
        table.note(f"logits of {name:<22} error {error:.2e} against float32, greedy token the same in {same:.1%}")
        if not error < 1.2 * errors["transformers bfloat16"]:
            raise SystemExit(f"{name}: relative error of the logits {error}, expected that of bfloat16")


def teacher_forced(runner: StageRunner, tokens: np.ndarray, length: int) -> Tensor:
    """Logits float32 [B, steps, vocab] of decode steps after a prompt of ``length``."""
    tables = block_tables(*tokens.shape)
    prefill(runner, tokens[:, :length], tables)
    rows = []
    for computed in range(length, tokens.shape[1]):
        batch = step(tokens[:, computed : computed + 1], computed, tables)
        hidden = runner.graphs.run(batch) if runner.graphs is not None else None
        if hidden is None:
            hidden = runner._forward(batch, None, runner.kv, BLOCK)
        rows.append(runner.model.logits(hidden))
        torch.cuda.synchronize()  # the next step fills the same inputs
    return torch.stack(rows, 1)


def bandwidth_limit(config: ModelConfig, batch_size: int, context: float, rate: float) -> float:
    """Tokens/s when a step takes as long as reading the weights and the KV cache once."""
    embedding = config.vocab * config.hidden
    weights = sum(math.prod(shape) for _, shape in layout(config, range(config.num_layers))) - embedding
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_size * context
    return batch_size * rate / (2 * (weights + batch_size * kv))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=f"default: {','.join(PARTS)}")
    parser.add_argument("--batch", default="1,8,64,256", help="batch sizes (default: 1,8,64,256)")
    parser.add_argument("--like", default="llama2-7b", help="shape of the model (default: llama2-7b)")
    parser.add_argument("--tokens", type=int, default=128, help="prompt and output tokens each (default: 128)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--limit", type=float, default=90.0, help="seconds after which a part measures nothing more")
    parser.add_argument("--static", action="store_true", help="transformers' static compiled cache too (slow to start)")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    table = Table()
    say_versions(table)
    if "kernels" in parts:
        with timed("kernels"):
            measure_kernels(table, options)
    if set(parts) - {"kernels"}:
        measure_model(table, options, parts)
    say(f"\n{table}")


def say_versions(table: Table) -> None:
    """What was measured on."""
    import transformers
    import triton

    versions = f"torch {torch.__version__}, triton {triton.__version__}, transformers {transformers.__version__}"
    table.note(f"{torch.cuda.get_device_name()}, {versions}, Python {sys.version.split()[0]}")


def measure_kernels(table: Table, options: argparse.Namespace) -> None:
    """Right first, then fast."""
    started = time.perf_counter()
    for line in kernels.check_attention() + kernels.check_rows():
        say(line)
    table.note(str(kernels.time_copy()))
    shapes = [(size, 192, (32, 32, 128)) for size in (1, 8, 64, 256)] + [(64, 2048, (32, 8, 128))]
    for shape in shapes:
        if time.perf_counter() - started < options.limit:
            for index, speed in enumerate(kernels.time_attention(*shape)):
                (table.note if index == 0 else say)(str(speed))
    if time.perf_counter() - started < options.limit:
        for speed in kernels.time_linears():
            say(str(speed))


def measure_model(table: Table, options: argparse.Namespace, parts: list[str]) -> None:
    """The whole model, by all ways asked for."""
    sizes = [int(size) for size in options.batch.split(",")]
    settings = config_table(options.like, Changes(), "bfloat16")
    config = ModelConfig.parse(settings, "benchmark")
    with timed("weights"):
        tensors, theirs = shared_weights(settings)
    for size in sizes:
        rate = bandwidth_limit(config, size, 1.5 * options.tokens, 4.3e12)
        table.rates.setdefault("bandwidth limit", {})[size] = [rate]
    ways: dict[str, Way] = {"transformers dynamic": partial(time_transformers, theirs)}
    if options.static:
        ways["transformers static"] = partial(time_transformers, theirs, cache_implementation="static")
    if "accuracy" in parts or "decode" in parts:
        runner = StageRunner(config, range(config.num_layers), tensors, "cuda:0", "bfloat16")
        runner.allocate(max(*sizes, 8) * -(-2 * options.tokens // BLOCK) + 64, BLOCK)
        if "accuracy" in parts:
            with timed("accuracy"):
                check_accuracy(runner, theirs, table)
        if "decode" in parts:
            measure_capture(runner, table)
            interleave({"ours, runner": partial(time_runner, runner)} | ways, sizes, table, options)
        del runner
        gc.collect()
        torch.cuda.empty_cache()
    if "engine" in parts:
        measure_engine(settings, ways, sizes, table, options)


def measure_engine(
    settings: dict[str, Any], ways: dict[str, Way], sizes: list[int], table: Table, options: argparse.Namespace
) -> None:
    """Through control process and worker, beside other ways that are in this process."""
    with tempfile.TemporaryDirectory(prefix="aebench-gpu-") as name:
        folder = Path(name) / "m"
        with timed("checkpoint"):
            make_checkpoint(folder, settings, 0, share_layers=True)
        with engine_on(folder, max(sizes), (2 * options.tokens, STEP_TOKENS)) as engine:
            with timed("engine start and first answer"):
                time_engine(engine, prompts_for(1, options.tokens), 2)
            ours: dict[str, Way] = {
                "ours, engine": lambda prompts, count: time_engine(engine, prompts, count)[0],
                "ours, engine, with prefill": lambda prompts, count: time_engine(engine, prompts, count)[1],
            }
            interleave(ours | ways, sizes, table, options)


def measure_capture(runner: StageRunner, table: Table) -> None:
    """What recording all batch sizes takes."""
    if runner.graphs is None:
        raise SystemExit("the runner records no graphs: is triton installed?")
    with torch.inference_mode():
        before, start = torch.cuda.memory_reserved(), time.perf_counter()
        runner.graphs.capture()
        torch.cuda.synchronize()
        taken = (torch.cuda.memory_reserved() - before) / GB
    table.note(f"graphs of {len(BATCH_SIZES)} batch sizes: {time.perf_counter() - start:.1f} s, {taken:.2f} GB")


def interleave(ways: dict[str, Way], sizes: list[int], table: Table, options: argparse.Namespace) -> None:
    """Every way at every batch size, once to warm up and then in turn."""
    started = time.perf_counter()
    for size in sizes:
        prompts = prompts_for(size, options.tokens)
        for name, rate in ways.items():
            # what is compiled for a static cache depends on its length
            rate(prompts, options.tokens if name == "transformers static" else 4)
        for repeat in range(options.repeats):
            for name, rate in ways.items():
                if repeat and time.perf_counter() - started > options.limit:
                    say(f"  {name}, batch {size}: not repeated, {options.limit:g} s are over")
                else:
                    table.add(name, size, rate(prompts, options.tokens))


def prompts_for(count: int, length: int) -> np.ndarray:
    """Random ids [count, length], small enough for any vocabulary."""
    return np.random.default_rng(count).integers(10, 500, (count, length))


if __name__ == "__main__":
    main()
