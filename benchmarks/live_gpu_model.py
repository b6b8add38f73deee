"""The whole model in this process, ours and transformers' on the same weights: how fast it decodes, and how exactly."""

import math
import time
from copy import deepcopy
from typing import Any

import live_gpu_kernels as kernels
import numpy as np
import torch
from live_gpu_table import Table
from torch import Tensor

from serving.live import attention
from serving.live.batch import StepBatch
from serving.live.config import ModelConfig
from serving.live.layout import layout
from serving.live.runner import StageRunner

BLOCK = 16
STEP_TOKENS = 8192
"""Prompt tokens of one step."""
DEVICE = "cuda"


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
