"""Length traces: prompt and output tokens of as many requests as one wants, and the gaps between them.

The traces that Llumnix is evaluated with (sheet section 7): five of generated lengths, which are reproduced exactly,
and two of conversations, of which only the mean and four percentiles are published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Protocol

import numpy as np

from serving.units import Seconds, Tokens
from serving.workload.arrivals import Drawn, GapStream
from serving.workload.functions import generator
from serving.workload.lengths import quantiles

ARTIFACT_SEED = 0xCADE
"""From which the original draws lengths and gaps, with NumPy's legacy generator."""
MAX_TOKENS: Tokens = 6_144
"""Of a prompt, and of an output."""

Pair = tuple[Tokens, Tokens]
"""Prompt and output tokens."""
Timed = tuple[Seconds, Pair]


class LengthTrace(Protocol):
    """A way to get a trace of any length."""

    def draw(self, num_requests: int, seed: int) -> tuple[list[Pair], GapStream]:
        """The requests' lengths, and the stream from which the gaps between them come."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """Counts 1 to 2 * mean - 1, drawn with weights count ** -alpha, then scaled to the mean, rounded up, and cut."""

    mean: Tokens
    """Of the sample before it is cut to ``MAX_TOKENS``."""
    alpha: float

    def sample(self, stream: np.random.RandomState, num: int) -> list[Tokens]:
        """So many draws. The sample is scaled as a whole, so it is no part of a longer one."""
        counts = np.arange(1, 2 * self.mean)
        weights = counts.astype(float) ** -self.alpha
        drawn = stream.choice(counts, size=num, p=weights / weights.sum())
        scaled = np.ceil(drawn * (self.mean / drawn.mean())).astype(int)
        found: list[Tokens] = np.minimum(scaled, MAX_TOKENS).tolist()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedTrace:
    """Lengths as the original generates them, whatever the seed; prompts are drawn before outputs.

    Seed 0 has the original's gaps too: they are the next draws of the same stream. Other seeds have gaps of their own.
    """

    prompt: PowerLaw
    output: PowerLaw

    def draw(self, num_requests: int, seed: int) -> tuple[list[Pair], GapStream]:
        """The requests' lengths, and the stream from which the gaps between them come."""
        stream = np.random.RandomState(ARTIFACT_SEED)
        prompts = self.prompt.sample(stream, num_requests)
        outputs = self.output.sample(stream, num_requests)
        return list(zip(prompts, outputs, strict=True)), stream if seed == 0 else gap_stream(seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Counts known by their mean and percentiles 50, 80, 95 and 99, from 1 to a largest one.

    The largest is an assumption: as far above P99, as a ratio, as P99 is above P95, at most ``MAX_TOKENS``.
    """

    mean: Tokens
    p50: Tokens
    p80: Tokens
    p95: Tokens
    p99: Tokens
    power: float
    """How to interpolate (``lengths.quantiles``); identified by the mean."""

    @property
    def largest(self) -> Tokens:
        """Percentile 100."""
        return min(MAX_TOKENS, round(self.p99 * self.p99 / self.p95))

    def shuffled(self, num: int, stream: str) -> list[Tokens]:
        """The counts at so many evenly spaced ranks, in an order drawn from the stream: mean and percentiles are those
        published for every seed, not for many on average."""
        known: dict[float, Tokens] = {0: 1, 50: self.p50, 80: self.p80, 95: self.p95, 99: self.p99, 100: self.largest}
        counts = quantiles(known, num, self.power)
        Random(stream).shuffle(counts)
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTrace:
    """Lengths with the published percentiles; prompts and outputs are independent, for lack of anything published."""

    prompt: Published
    output: Published

    def draw(self, num_requests: int, seed: int) -> tuple[list[Pair], GapStream]:
        """The requests' lengths, and the stream from which the gaps between them come."""
        prompts = self.prompt.shuffled(num_requests, f"{seed}/prompt-lengths")
        outputs = self.output.shuffled(num_requests, f"{seed}/output-lengths")
        return list(zip(prompts, outputs, strict=True)), gap_stream(seed)


def gap_stream(seed: int) -> GapStream:
    """A stream of gaps that no other draw shares."""
    return generator(f"{seed}/gaps")


def one_after_another(pairs: Sequence[Pair], stream: GapStream, arrivals: Drawn) -> list[Timed]:
    """The requests with their arrival times: the first at 0, each other a gap after the one before."""
    times = accumulate(arrivals.gaps(stream, len(pairs) - 1), initial=0.0)
    return list(zip(times, pairs, strict=True))


SHORT = PowerLaw(mean=128, alpha=2.0)
MEDIUM = PowerLaw(mean=256, alpha=1.5)
LONG = PowerLaw(mean=512, alpha=1.15)

LENGTH_TRACES: dict[str, LengthTrace] = {
    "s-s": GeneratedTrace(prompt=SHORT, output=SHORT),
    "m-m": GeneratedTrace(prompt=MEDIUM, output=MEDIUM),
    "l-l": GeneratedTrace(prompt=LONG, output=LONG),
    "s-l": GeneratedTrace(prompt=SHORT, output=LONG),
    "l-s": GeneratedTrace(prompt=LONG, output=SHORT),
    "sharegpt": ConversationTrace(
        prompt=Published(mean=306, p50=74, p80=348, p95=1484, p99=3388, power=-0.254),
        output=Published(mean=500, p50=487, p80=781, p95=988, p99=1234, power=0.951),
    ),
    "burstgpt": ConversationTrace(
        prompt=Published(mean=830, p50=582, p80=1427, p95=2345, p99=3549, power=0.466),
        output=Published(mean=271, p50=243, p80=434, p95=669, p99=964, power=0.528),
    ),
}
"""By slug; prompts before outputs. Sources: PowerLaw from the original's generator; Published from its Table 1, GPT-4
conversations of ShareGPT and of BurstGPT."""
