"""Contender: vLLM on the CPU, in an interpreter that has it."""

import argparse
import os
from functools import partial
from importlib.metadata import version

from answering import Generate, answer


def load(folder: str, threads: int, tokens: int) -> tuple[str, Generate]:
    """An engine with its worker process; compiles the model, which takes a minute or two."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    from vllm import LLM, SamplingParams

    llm = LLM(folder, dtype="float32", max_model_len=2048, max_num_seqs=64, enable_prefix_caching=False)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = llm.generate(asked, sampling, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    return f"vllm-cpu {version('vllm-cpu')}, torch {version('torch')}", generate


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="output tokens of each prompt")
    options = parser.parse_args()
    answer(partial(load, options.folder, options.threads, options.tokens))


if __name__ == "__main__":
    main()
