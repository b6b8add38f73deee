"""Contenders: transformers' ``generate`` (prompts must be equally long: nothing is padded) and ``generate_batch``."""

import argparse
from functools import partial

import torch
import transformers
from answering import Generate, answer
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

CONTINUOUS = ContinuousBatchingConfig(
    page_size=32, num_blocks=256, max_batch_tokens=4096, max_requests_per_batch=64, allow_block_sharing=False
)
"""Room for 64 sequences, as the others have. Left alone it sizes itself by its first batch and a GPU's memory."""


def load(folder: str, threads: int, tokens: int, continuous: bool) -> tuple[str, Generate]:
    """A model in float32."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    run = partial(_batch if continuous else _plain, model, config)
    return f"transformers {transformers.__version__}, torch {torch.__version__}", run


@torch.inference_mode()
def _plain(model: torch.nn.Module, config: GenerationConfig, prompts: list[list[int]]) -> list[list[int]]:
    ids = torch.tensor(prompts)
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return output[:, ids.shape[1] :].tolist()


def _batch(model: torch.nn.Module, config: GenerationConfig, prompts: list[list[int]]) -> list[list[int]]:
    results = model.generate_batch(
        prompts, generation_config=config, continuous_batching_config=CONTINUOUS, persistent_manager=True
    )
    return [list(result.generated_tokens) for result in results.values()]


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="output tokens of each prompt")
    parser.add_argument("--continuous", action="store_true", help="generate_batch instead of generate")
    options = parser.parse_args()
    answer(partial(load, options.folder, options.threads, options.tokens, options.continuous))


if __name__ == "__main__":
    main()
