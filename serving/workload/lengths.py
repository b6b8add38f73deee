"""Length distributions: how many tokens a request brings and asks for.

A distribution draws from the generator it is handed; ``LengthPair`` owns the two streams of a
workload, so that a change of the output lengths never moves a prompt.
"""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Protocol, Self

from serving.units import Tokens

MAX_SIGMA = 10.0
"""Of ``LogNormal``; e**10 is a factor of 22,000 for one standard deviation."""
NUM_QUANTILES = 1000
"""Values that stand for a distribution known by its percentiles: ten beyond P99."""
MIN_POWER = 1e-6
"""Of ``quantiles``; a power closer to 0 is 0, because a root of so high a degree would be lost in rounding."""


class Lengths(Protocol):
    """A distribution of token counts."""

    def sample(self, rng: random.Random) -> Tokens:
        """One draw, at least 1."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Always the same count."""

    num_tokens: Tokens

    def __post_init__(self) -> None:
        _require_tokens("Fixed.num_tokens", self.num_tokens)

    def sample(self, rng: random.Random) -> Tokens:
        """The count."""
        del rng  # nothing is drawn
        return self.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """Counts whose logarithm is normal, rounded, then clipped: a count outside counts as the limit."""

    median: float
    """Tokens, before the clip; a clip that lies on its own side of the median does not move it."""
    sigma: float
    """Standard deviation of the natural logarithm; 0 is a fixed count."""
    min_tokens: Tokens = 1
    max_tokens: Tokens | None = None
    """None: no upper limit."""

    def __post_init__(self) -> None:
        _require_positive("LogNormal.median", self.median, "tokens")
        if not (_is_number(self.sigma) and 0 <= self.sigma <= MAX_SIGMA):
            raise ValueError(f"LogNormal.sigma: held {self.sigma!r}, expected 0 to {MAX_SIGMA:g}")
        _require_tokens("LogNormal.min_tokens", self.min_tokens)
        if self.max_tokens is not None:
            _require_tokens("LogNormal.max_tokens", self.max_tokens, at_least=self.min_tokens)

    @classmethod
    def from_mean(cls, mean: float, sigma: float, *, min_tokens: Tokens = 1, max_tokens: Tokens | None = None) -> Self:
        """The distribution with this mean before the clip: its median is mean / exp(sigma**2 / 2)."""
        _require_positive("LogNormal mean", mean, "tokens")
        if not (_is_number(sigma) and 0 <= sigma <= MAX_SIGMA):
            raise ValueError(f"LogNormal.sigma: held {sigma!r}, expected 0 to {MAX_SIGMA:g}")
        median = mean / math.exp(sigma * sigma / 2)
        return cls(median=median, sigma=sigma, min_tokens=min_tokens, max_tokens=max_tokens)

    def sample(self, rng: random.Random) -> Tokens:
        """One draw, within the limits."""
        num_tokens = max(self.min_tokens, round(rng.lognormvariate(math.log(self.median), self.sigma)))
        return num_tokens if self.max_tokens is None else min(self.max_tokens, num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Empirical:
    """Counts that were observed, drawn with replacement."""

    values: tuple[Tokens, ...]
    weights: tuple[float, ...] | None = None
    """How often each value is drawn, in proportion; None: all alike."""
    _cumulative: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("Empirical.values: held no counts, expected at least one")
        for index, value in enumerate(self.values):
            _require_tokens(f"Empirical.values[{index}]", value)
        weights = (1.0,) * len(self.values) if self.weights is None else self.weights
        _require_weights(weights, len(self.values))
        object.__setattr__(self, "_cumulative", tuple(accumulate(weights)))

    @classmethod
    def from_percentiles(cls, percentiles: Mapping[float, Tokens]) -> Self:
        """The distribution through published percentiles, ``{0: 1, 50: 38, 80: 113, ..., 100: 6144}``: the lengths at
        ``NUM_QUANTILES`` evenly spaced ranks, interpolated as ``quantiles`` does with power 0."""
        return cls(values=tuple(quantiles(percentiles, NUM_QUANTILES)))

    def sample(self, rng: random.Random) -> Tokens:
        """One of the values."""
        return rng.choices(self.values, cum_weights=self._cumulative)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPair:
    """Prompt and output lengths of a workload, independent of each other."""

    prompt: Lengths
    output: Lengths

    def pairs(self, seed: int) -> Iterator[tuple[Tokens, Tokens]]:
        """``(num_prompt_tokens, num_output_tokens)`` of one request after another, without end."""
        prompt_rng = random.Random(f"{seed}/prompt-lengths")
        output_rng = random.Random(f"{seed}/output-lengths")
        while True:
            yield self.prompt.sample(prompt_rng), self.output.sample(output_rng)


def quantiles(percentiles: Mapping[float, Tokens], num: int, power: float = 0.0) -> list[Tokens]:
    """Lengths at so many evenly spaced ranks, rising, through published percentiles.

    Between two percentiles the length to the ``power`` grows linearly with the rank, at 0 its logarithm. That is
    monotone and keeps every length between its neighbours; a higher power makes all of them longer, so a published mean
    identifies it. 0 follows the long tails of token counts better than a line, power 1, would. Percentiles 0 and 100
    bound the tails and are seldom published, so they have to be stated: nothing is guessed.
    """
    import numpy as np

    ranks = _require_percentiles(percentiles)
    known = np.array([float(percentiles[rank]) for rank in ranks])
    wanted = (np.arange(num) + 0.5) * (100.0 / num)
    if abs(power) < MIN_POWER:
        lengths = np.exp(np.interp(wanted, ranks, np.log(known)))
    else:
        lengths = np.interp(wanted, ranks, known**power) ** (1 / power)
    return [int(length) for length in np.rint(lengths)]


def _is_number(value: object) -> bool:
    """Whether it is a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require_positive(name: str, value: float, unit: str) -> None:
    """Refuse what is no finite number above 0."""
    if not (_is_number(value) and value > 0):
        raise ValueError(f"{name}: held {value!r}, expected a finite number above 0 ({unit})")


def _require_tokens(name: str, value: Tokens, at_least: Tokens = 1) -> None:
    """Refuse what is no whole number of tokens."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name}: held {value!r}, expected a whole number of tokens, at least {at_least}")


def _require_weights(weights: tuple[float, ...], num_values: int) -> None:
    """Refuse weights that do not fit the values, or give none of them a chance."""
    if len(weights) != num_values:
        raise ValueError(f"Empirical.weights: held {len(weights)} weights, expected {num_values}, one a value")
    for index, weight in enumerate(weights):
        if not (_is_number(weight) and weight >= 0):
            raise ValueError(f"Empirical.weights[{index}]: held {weight!r}, expected a finite number from 0 on")
    if not 0 < sum(weights) < math.inf:
        raise ValueError(f"Empirical.weights: held a sum of {sum(weights)!r}, expected a finite one above 0")


def _require_percentiles(percentiles: Mapping[float, Tokens]) -> list[float]:
    """The ranks in order; refuses ends that are missing and lengths that fall."""
    for rank, length in percentiles.items():
        if not (_is_number(rank) and 0 <= rank <= 100):
            raise ValueError(f"percentiles: held the rank {rank!r}, expected ranks from 0 to 100")
        _require_tokens(f"percentiles[{rank:g}]", length)
    ranks = sorted(percentiles)
    if not ranks or ranks[0] != 0 or ranks[-1] != 100:
        raise ValueError(f"percentiles: held the ranks {ranks}, expected 0 and 100 (the limits) among them")
    for lower, upper in pairwise(ranks):
        if percentiles[upper] < percentiles[lower]:
            raise ValueError(
                f"percentiles[{upper:g}]: held {percentiles[upper]}, "
                f"expected at least {percentiles[lower]}, the length at {lower:g}"
            )
    return ranks
