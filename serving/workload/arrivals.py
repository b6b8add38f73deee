"""Arrival processes: a spec and a seed give the instants at which requests come.

The gap before the first arrival is drawn like any other, so a process starts one gap after 0. A
process draws from its own stream alone: what else a run draws never moves an arrival.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Protocol

import numpy as np

from serving.units import Seconds

GapStream = np.random.RandomState | np.random.Generator
"""NumPy's legacy generator, for what others drew with it, or the one of today."""

MIN_CV = 1e-4
MAX_CV = 100.0
"""Outside of these the gaps of ``Gamma`` are lost in rounding, or nearly all underflow to 0."""


class Arrivals(Protocol):
    """An arrival process."""

    def times(self, seed: int, stream: str = "arrivals") -> Iterator[Seconds]:
        """Arrival instants from 0 on, never decreasing; endless, except for a replay."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson:
    """Memoryless arrivals: exponential gaps."""

    rate: float
    """Requests per second, in the mean."""

    def __post_init__(self) -> None:
        _require_positive("Poisson.rate", self.rate, "requests per second")

    def times(self, seed: int, stream: str = "arrivals") -> Iterator[Seconds]:
        """Arrival instants, without end."""
        rng = random.Random(f"{seed}/{stream}")
        now = 0.0
        while True:
            now += rng.expovariate(self.rate)
            yield now

    def gaps(self, stream: GapStream, num: int) -> list[Seconds]:
        """So many gaps between arrivals, drawn at once."""
        found: list[Seconds] = stream.exponential(1.0 / self.rate, num).tolist()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Gamma:
    """Bursty arrivals: gaps of a Gamma distribution; ``cv`` 1 is Poisson, more bursts, less is more even."""

    rate: float
    """Requests per second, in the mean."""
    cv: float
    """Coefficient of variation of the gaps: their standard deviation over their mean."""

    def __post_init__(self) -> None:
        _require_positive("Gamma.rate", self.rate, "requests per second")
        _require_positive("Gamma.cv", self.cv, "the gaps' standard deviation over their mean")
        if not MIN_CV <= self.cv <= MAX_CV:
            raise ValueError(
                f"Gamma.cv: held {self.cv!r}, expected {MIN_CV:g} to {MAX_CV:g} (for even gaps, take Fixed)"
            )

    def times(self, seed: int, stream: str = "arrivals") -> Iterator[Seconds]:
        """Arrival instants, without end."""
        rng = random.Random(f"{seed}/{stream}")
        shape = 1.0 / (self.cv * self.cv)
        mean_over_shape = self.cv * self.cv / self.rate
        now = 0.0
        while True:
            now += rng.gammavariate(shape, mean_over_shape)
            yield now

    def gaps(self, stream: GapStream, num: int) -> list[Seconds]:
        """So many gaps between arrivals, drawn at once."""
        found: list[Seconds] = stream.gamma(1.0 / (self.cv * self.cv), self.cv * self.cv / self.rate, num).tolist()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Even arrivals: one request every ``gap``."""

    gap: Seconds

    def __post_init__(self) -> None:
        _require_positive("Fixed.gap", self.gap, "seconds")

    def times(self, seed: int, stream: str = "arrivals") -> Iterator[Seconds]:
        """Multiples of the gap, without end; products, so that no rounding piles up."""
        del seed, stream  # nothing is drawn
        return (index * self.gap for index in count(1))

    def gaps(self, stream: GapStream, num: int) -> list[Seconds]:
        """So many gaps, all alike."""
        del stream  # nothing is drawn
        return [self.gap] * num


Drawn = Poisson | Gamma | Fixed
"""A process that gives gaps as well, from whatever stream it is handed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceArrivals:
    """Recorded arrivals, replayed; the only process that ends, and that may start at 0 itself."""

    arrived_at: tuple[Seconds, ...]
    rate_scale: float = 1.0
    """How much faster than recorded: 2 halves every gap and so doubles the rate."""

    def __post_init__(self) -> None:
        _require_positive("TraceArrivals.rate_scale", self.rate_scale, "as a factor of the recorded rate")
        if not self.arrived_at:
            raise ValueError("TraceArrivals.arrived_at: held no times, expected at least one")
        for index, time in enumerate(self.arrived_at):
            if not (math.isfinite(time) and time >= 0):
                raise ValueError(f"TraceArrivals.arrived_at[{index}]: held {time!r}, expected finite seconds from 0 on")
        for index, (earlier, later) in enumerate(pairwise(self.arrived_at), 1):
            if later < earlier:
                raise ValueError(
                    f"TraceArrivals.arrived_at[{index}]: held {later!r}, "
                    f"expected at least {earlier!r}, the time before it"
                )

    def times(self, seed: int, stream: str = "arrivals") -> Iterator[Seconds]:
        """The recorded instants in order, divided by ``rate_scale``."""
        del seed, stream  # nothing is drawn
        return (time / self.rate_scale for time in self.arrived_at)


def _require_positive(name: str, value: float, unit: str) -> None:
    """Refuse what is no finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: held {value!r}, expected a finite number above 0 ({unit})")
