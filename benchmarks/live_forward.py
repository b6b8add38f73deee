"""How fast the live backend's forward pass alone is on this machine's CPU: no processes, sockets or scheduler.

    python benchmarks/live_forward.py             # random Llama of 106 million parameters, float32, 2 threads
    python benchmarks/live_forward.py --plain     # matrices as they are stored, not packed

Every batch size computes prompts of 64 tokens in one step, then 63 greedy steps of one token a sequence; output tokens
count from the prompts' first. Times are wall times, the fastest of the repeats.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from serving.live.attention import attention_batch
from serving.live.config import ModelConfig
from serving.live.cpu.build import build
from serving.live.kv import KvCache
from serving.live.layout import layout
from serving.live.model import StageModel

BLOCK_SIZE = 16
PROMPT = OUTPUT = 64
CONFIG = ModelConfig(
    family="llama",
    vocab=32000,
    hidden=768,
    num_layers=8,
    num_heads=12,
    num_kv_heads=12,
    head_size=64,
    ffn=2048,
    max_positions=2048,
    norm_eps=1e-5,
    tied=False,
    dtype="float32",
    attention_bias=False,
    output_bias=False,
    mlp_bias=False,
    rope_theta=10000.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one run."""

    prefill: float
    steps: list[float]

    @property
    def total(self) -> float:
        """From the first prompt token to the last output token."""
        return self.prefill + sum(self.steps)


def random_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """All tensors of a random model, in one piece of memory as a worker has them."""
    shapes = layout(config, range(config.num_layers))
    sizes = [int(np.prod(shape)) for _, shape in shapes]
    memory = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0)).mul_(0.02)
    pieces = memory.split(sizes)
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes, pieces, strict=True)}


def run(model: StageModel, batch_size: int) -> Timing:
    """One generation of ``OUTPUT`` tokens for a batch of random prompts."""
    random = np.random.default_rng(batch_size)
    ids = torch.from_numpy(random.integers(0, CONFIG.vocab, batch_size * PROMPT))
    blocks = -(-(PROMPT + OUTPUT) // BLOCK_SIZE)
    tables = random.permutation(batch_size * blocks).reshape(batch_size, blocks).tolist()
    kv = KvCache.allocate(CONFIG, model.layers, batch_size * blocks, BLOCK_SIZE, model.dtype, model.device)
    times = []
    for computed in (0, *range(PROMPT, PROMPT + OUTPUT - 1)):
        began = time.perf_counter()
        count = 1 if computed else PROMPT
        batch = attention_batch([count] * batch_size, [computed] * batch_size, tables, BLOCK_SIZE, model.device)
        hidden = model.forward(ids, batch, kv)
        ids = model.logits(hidden[batch.query_starts[1:] - 1]).argmax(-1)
        times.append(time.perf_counter() - began)
    return Timing(prefill=times[0], steps=times[1:])


def main() -> None:
    """Prints a row a batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="keep matrices as they are stored")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(build() or "kernels compiled for this processor")
    tensors = random_tensors(CONFIG)
    began = time.perf_counter()
    model = StageModel(CONFIG, range(CONFIG.num_layers), tensors, pack=not options.plain)
    built = time.perf_counter() - began
    parameters = sum(tensor.numel() for tensor in tensors.values())
    read = 4 * (parameters - CONFIG.vocab * CONFIG.hidden)
    print(f"{parameters / 1e6:.0f} M parameters, float32, torch {torch.__version__}, {options.threads} threads")
    print(f"model built in {built:.2f} s; a step reads {read / 1e6:.0f} MB of weights")
    print(f"{'batch':>5} {'prefill s':>10} {'step ms':>9} {'weights GB/s':>13} {'output tokens/s':>16}")
    for batch_size in options.batch:
        best = min((run(model, batch_size) for _ in range(options.repeats)), key=lambda timing: timing.total)
        step = float(np.median(best.steps))
        rate = batch_size * OUTPUT / best.total
        print(f"{batch_size:>5} {best.prefill:>10.3f} {step * 1e3:>9.2f} {read / step / 1e9:>13.1f} {rate:>16.1f}")


if __name__ == "__main__":
    main()
