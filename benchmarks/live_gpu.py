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
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import live_gpu_kernels as kernels
import numpy as np
import torch
from live_gpu_engine import engine_on, time_engine
from live_gpu_model import (
    BLOCK,
    STEP_TOKENS,
    bandwidth_limit,
    check_accuracy,
    shared_weights,
    time_runner,
    time_transformers,
)
from live_gpu_table import Table, say, timed

from serving.live.config import ModelConfig
from serving.live.gpu.graphs import BATCH_SIZES
from serving.live.make import make_checkpoint
from serving.live.runner import StageRunner
from serving.live.shapes import Changes, config_table
from serving.units import GB

PARTS = ("kernels", "accuracy", "decode", "engine")
Way = Callable[[np.ndarray, int], float]
"""Tokens/s for prompts [B, n] and a number of output tokens each."""


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
