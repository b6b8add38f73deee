"""Invocations of the functions of a serverless platform over days, and a synthetic trace of them.

The synthetic trace has the structure that is published of such traces: rates that span many orders of magnitude, gaps
from those of timers to bursts, days with a peak in the evening, daily spikes. Sources stand beside the fields; a number
that nobody published says "assumption".
"""

import math
from dataclasses import dataclass, fields
from random import Random
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from serving.units import Seconds

Floats = NDArray[np.float64]
DAY: Seconds = 86_400.0
HOUR: Seconds = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Invocations:
    """When each function was invoked."""

    arrived_at: tuple[Floats, ...]
    """Per function, in the trace's order: instants in seconds from the trace's start, never decreasing."""
    span: Seconds
    """How long the trace is."""

    @property
    def num_invocations(self) -> int:
        """Of all functions."""
        return sum(len(times) for times in self.arrived_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticFunctions:
    """A trace of the Azure Functions kind, drawn from what is published of such traces.

    "2021": third-party analyses of Azure Functions 2021 (sheet section 5.6). "2019": "Serverless in the Wild" (ATC'20),
    from memory.
    """

    num_functions: int = 424
    """2021."""
    num_invocations: int = 1_980_951
    """In the whole trace; 2021."""
    days: int = 14
    """2021."""
    rate_sigma: float = 2.65
    """Standard deviation of the natural logarithm of the functions' rates, which are the quantiles of a lognormal
    distribution. Identified by one count (sheet section 5.6): 2,160 requests drawn at CV 8 touch 101 of 384 models. The
    percentiles of 2019 (45 % of applications at most once an hour, 81 % at most once a minute) would give 4.08."""
    diurnal: float = 1 / 3
    """How far the rate swings around its daily mean, as a fraction. 2019: the trough is about half of the peak."""
    peak_hour: float = 20.0
    """2021: more in the evening; the hour is an assumption."""
    spike_factor: float = 10.0
    """By how much a function's rate rises once a day, at a time of its own. 2021: marked daily spikes; the factor is an
    assumption, 1 is no spike."""
    spike_length: Seconds = 600.0
    """How long it stays there; assumption."""
    active_share: float = 1.0
    """Of the hours, those in which a function is invoked at all, drawn anew for each hour; assumption."""
    timer_share: float = 0.2
    """Of the functions, invoked by a timer. 2019: inter-arrival CV near 0 for about a fifth."""
    timer_cv: float = 0.02
    """CV of a timer's gaps; assumption."""
    gap_cv_median: float = 1.0
    """CV of the gaps of the other functions. 2019: above 1 for about 40 % of all, which is half of these."""
    gap_cv_sigma: float = 0.7
    """Standard deviation of that CV's natural logarithm; assumption."""

    def __post_init__(self) -> None:
        limits = {
            "num_functions": (1, math.inf),
            "num_invocations": (self.num_functions, math.inf),
            "days": (1, 366),
            "rate_sigma": (0.0, 10.0),
            "diurnal": (0.0, 1.0),
            "peak_hour": (0.0, 24.0),
            "spike_factor": (1.0, 1000.0),
            "spike_length": (1.0, DAY),
            "active_share": (0.01, 1.0),
            "timer_share": (0.0, 1.0),
            "timer_cv": (0.001, 10.0),
            "gap_cv_median": (0.001, 10.0),
            "gap_cv_sigma": (0.0, 1.0),
        }
        for field in fields(self):
            lowest, highest = limits[field.name]
            value = getattr(self, field.name)
            if not lowest <= value <= highest:
                raise ValueError(f"SyntheticFunctions.{field.name}: held {value!r}, expected {lowest:g} to {highest:g}")

    @property
    def span(self) -> Seconds:
        """Length of the trace."""
        return self.days * DAY

    def counts(self) -> list[int]:
        """Invocations per function, busiest first: at least one each, ``num_invocations`` in all."""
        normal = NormalDist()
        ranks = [1 - (index + 0.5) / self.num_functions for index in range(self.num_functions)]
        logs = [self.rate_sigma * normal.inv_cdf(rank) for rank in ranks]
        weights = [math.exp(value - logs[0]) for value in logs]
        spare = self.num_invocations - self.num_functions
        counts = [1 + int(spare * weight / math.fsum(weights)) for weight in weights]
        for index in range(self.num_invocations - sum(counts)):
            counts[index % self.num_functions] += 1
        return counts

    def invocations(self, seed: int) -> Invocations:
        """The trace of a seed. Which function is how busy, how even and when its spike comes is drawn, how busy the
        functions are is not."""
        rng = generator(f"{seed}/trace/functions")
        counts = rng.permutation(np.array(self.counts()))
        cvs = self.gap_cv_median * np.exp(self.gap_cv_sigma * rng.standard_normal(self.num_functions))
        cvs[rng.random(self.num_functions) < self.timer_share] = self.timer_cv
        spikes_at = rng.random(self.num_functions) * (DAY - self.spike_length)
        return Invocations(
            arrived_at=tuple(
                self._arrivals(rng, int(count), float(cv), float(spike_at))
                for count, cv, spike_at in zip(counts, cvs, spikes_at, strict=True)
            ),
            span=self.span,
        )

    def _arrivals(self, rng: np.random.Generator, count: int, cv: float, spike_at: Seconds) -> Floats:
        """Exactly ``count`` instants: Gamma gaps, scaled to fill the trace, in a time that runs as fast as the rate."""
        gaps = rng.standard_gamma(1 / (cv * cv), count + 1)
        total = gaps.sum()
        if total == 0:  # gaps so uneven that all of them underflow
            return np.sort(rng.random(count)) * self.span
        edges, passed = self._progress(rng, spike_at)
        return np.asarray(np.interp(np.cumsum(gaps[:-1]) / total, passed, edges))

    def _progress(self, rng: np.random.Generator, spike_at: Seconds) -> tuple[Floats, Floats]:
        """Instants, and the share of a function's invocations that come before each in the mean."""
        edges = np.unique(np.concatenate([np.arange(0.0, DAY, HOUR / 6), [spike_at, spike_at + self.spike_length]]))
        lengths = np.diff(edges, append=DAY)
        middles = edges + lengths / 2
        rates = 1 + self.diurnal * np.cos(2 * np.pi * (middles / HOUR - self.peak_hour) / 24)
        in_spike = (middles > spike_at) & (middles < spike_at + self.spike_length)
        of_day = np.where(in_spike, rates * self.spike_factor, rates) * lengths
        active = rng.random((self.days, 24)) < self.active_share
        active[0, 0] |= not active.any()
        passed = np.cumsum(np.where(active[:, (middles // HOUR).astype(int)], of_day, 0.0))
        instants = (np.arange(self.days)[:, None] * DAY + edges).ravel()
        return np.append(instants, self.span), np.insert(passed, 0, 0.0) / passed[-1]


def generator(stream: str) -> np.random.Generator:
    """A NumPy generator of its own for a stream of draws."""
    return np.random.default_rng(Random(stream).getrandbits(128))
