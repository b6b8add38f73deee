"""From logits to tokens: greedy, or drawn with a seed; a drawn token depends on its row, seed and position alone.

The random number of a token is a hash of (seed, position), made on the host: no generator has a state that the
batch, a preemption or a chunk could move. It goes through the inverse of the row's cumulative distribution.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.live.batch import Float32s, Int64s, SampledRows

LOOKS = (256, 4096)
"""Likeliest tokens among which top-p is looked for on a CPU before a whole row is sorted: of 50,000, they take 0.2 and
1 ms, a sort 6 ms."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """The rows of a batch's logits that are drawn, as host arrays of one length; the others are greedy."""

    rows: Int64s
    temperature: Float32s
    top_p: Float32s
    uniforms: NDArray[np.float64]
    """In [0, 1)."""

    @classmethod
    def of(cls, sampled: SampledRows, positions: Int64s, wants: NDArray[np.bool_]) -> "Draws | None":
        """The draws of the sequences that want a token, whose positions are given for every sequence of the batch."""
        temperature = sampled.temperature[wants]
        rows = np.flatnonzero(temperature > 0)
        if not len(rows):
            return None
        uniforms = uniform(sampled.seeds[wants][rows], positions[wants][rows])
        top_p = sampled.top_p[wants][rows]
        return cls(rows=rows, temperature=temperature[rows], top_p=top_p, uniforms=uniforms)


def uniform(seeds: Int64s, positions: Int64s) -> NDArray[np.float64]:
    """A number in [0, 1) for each (seed, position): splitmix64 of both, 53 bits of it."""
    mixed = _mix(_mix(seeds.astype(np.uint64)) ^ positions.astype(np.uint64))
    scaled: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return scaled


def sample(logits: Tensor, draws: Draws | None) -> Tensor:
    """Token ids int64 [N] for logits float32 [N, V]; the largest logit where nothing is drawn."""
    ids = logits.argmax(dim=-1)
    if draws is None:
        return ids
    device = logits.device
    rows = torch.from_numpy(draws.rows).to(device)
    temperature = torch.from_numpy(draws.temperature).to(device).unsqueeze(1)
    probabilities = torch.softmax(logits[rows] / temperature, dim=-1)
    uniforms = torch.from_numpy(draws.uniforms).to(device)
    cut = np.flatnonzero(draws.top_p < 1)
    if len(cut) < len(draws.rows):
        ids[rows] = _invert(probabilities, uniforms)
    if len(cut):
        part = torch.from_numpy(cut).to(device)
        top_p = torch.from_numpy(draws.top_p[cut].astype(np.float64)).to(device)
        ids[rows[part]] = _draw_top(probabilities[part], top_p, uniforms[part])
    return ids


def top_logprobs(logits: Tensor, ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log probability of each row's token [N], ids [N, K] and log probabilities [N, K] of its likeliest tokens."""
    values = torch.log_softmax(logits, dim=-1)
    chosen = values.gather(1, ids.unsqueeze(1)).squeeze(1)
    top = values.topk(min(num_top, values.shape[1]), dim=-1)
    return chosen, top.indices, top.values


def _draw_top(probabilities: Tensor, top_p: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from the fewest likeliest tokens of each row whose probabilities reach ``top_p``."""
    drawn = torch.empty(len(top_p), dtype=torch.int64, device=top_p.device)
    rows = torch.arange(len(top_p), device=top_p.device)
    for width in () if probabilities.is_cuda else LOOKS:
        if width < probabilities.shape[1] and len(rows):
            likeliest, tokens = probabilities[rows].topk(width, dim=-1)
            found = likeliest.sum(dim=-1, dtype=torch.float64) >= top_p[rows]
            chosen = rows[found]
            drawn[chosen] = _draw_sorted(likeliest[found], tokens[found], top_p[chosen], uniforms[chosen])
            rows = rows[~found]  # on a CPU the shape is known without waiting
    if len(rows):
        likeliest, tokens = probabilities[rows].sort(dim=-1, descending=True)
        drawn[rows] = _draw_sorted(likeliest, tokens, top_p[rows], uniforms[rows])
    return drawn


def _draw_sorted(likeliest: Tensor, tokens: Tensor, top_p: Tensor, uniforms: Tensor) -> Tensor:
    before = likeliest.cumsum(dim=-1, dtype=torch.float64) - likeliest
    kept = likeliest.masked_fill(before >= top_p.unsqueeze(1), 0.0)
    return tokens.gather(1, _invert(kept, uniforms).unsqueeze(1)).squeeze(1)


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first column of each row at which the running sum exceeds the row's uniform share of the whole."""
    # float32 sums would lose the share of the rarest tokens
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    found = torch.searchsorted(sums, (uniforms * sums[:, -1]).unsqueeze(1), right=True).squeeze(1)
    return found.clamp_(max=weights.shape[1] - 1)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One round of splitmix64 (Steele, Lea, Flood 2014), which wraps around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
