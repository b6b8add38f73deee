"""From a body to Asks: sampling with a seed for each answer, stop strings, and room for the output."""

import secrets
from collections.abc import Sequence

from aebench.service.api_errors import refused
from aebench.service.bodies import GenerationBody
from aebench.service.engine_port import Ask
from aebench.service.served_model import ServedModel
from serving.core.request import Sampling
from serving.units import Tokens

COLDEST = 1e-3
"""Temperatures below are greedy: the likeliest token would be drawn anyway, and logits over them overflow float32."""
NARROWEST = 1e-6
"""A top-p below keeps the likeliest token only."""
SEEDS = 2**63


def asks(
    body: GenerationBody,
    model: ServedModel,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: Tokens | None,
    logprobs: int | None,
) -> list[Ask]:
    """What to submit: the answers to each prompt in turn; ``max_tokens`` None is as many as fit."""
    if body.stops and model.tokenizer is None:
        raise refused("stop", f"{model.name} has no tokenizer, so that stop strings cannot be found")
    param = "messages" if max_tokens is None else "max_tokens"
    seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed
    return [
        Ask(
            model=model.name,
            prompt=prompt,
            max_tokens=model.room(prompt, max_tokens, param),
            sampling=_sampling(body, (seed + choice) % SEEDS, logprobs),
            stop=body.stops,
            ignore_eos=bool(body.ignore_eos),
        )
        for prompt in prompts
        for choice in range(body.num_choices)
    ]


def _sampling(body: GenerationBody, seed: int, logprobs: int | None) -> Sampling:
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    if temperature < COLDEST or top_p < NARROWEST:
        return Sampling(seed=seed, logprobs=logprobs)
    return Sampling(temperature=temperature, top_p=top_p, seed=seed, logprobs=logprobs)


def usage(prompts: Sequence[tuple[int, ...]], num_output_tokens: Tokens) -> dict[str, int]:
    """Token counts in the words of OpenAI's API."""
    num_prompt_tokens = sum(map(len, prompts))
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }
