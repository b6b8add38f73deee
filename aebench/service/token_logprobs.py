"""Log-probabilities of tokens in the two forms of OpenAI's API."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from aebench.service.served_model import ServedModel
from serving.live.output import TokenLogprob

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say."""
REPLACEMENT = "\ufffd"
"""What a token that is part of a character decodes to."""


def of_completion(model: ServedModel, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, object]:
    """Parallel lists; ``offset`` is where in the text the first token begins."""
    tokens = [model.token(entry.token_id) for entry in logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(entry.logprob) for entry in logprobs],
        "top_logprobs": [_by_text(model, entry) for entry in logprobs],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=offset)) if tokens else [],
    }


def of_chat(model: ServedModel, logprobs: Iterable[TokenLogprob]) -> dict[str, object]:
    """A list with one entry a token."""
    entries = []
    for entry in logprobs:
        top = [_entry(model, token_id, logprob) for token_id, logprob in entry.top]
        entries.append({**_entry(model, entry.token_id, entry.logprob), "top_logprobs": top})
    return {"content": entries}


def _by_text(model: ServedModel, entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the one that was drawn; the likelier of two with the same text."""
    found: dict[str, float] = {}
    for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
        found.setdefault(model.token(token_id), _finite(logprob))
    return found


def _entry(model: ServedModel, token_id: int, logprob: float) -> dict[str, object]:
    text = model.token(token_id)
    return {"token": text, "logprob": _finite(logprob), "bytes": None if REPLACEMENT in text else list(text.encode())}


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST
