"""Serverless arrivals: a trace of functions as requests to many deployed models, in an hour (sheet section 5.6).

Functions are dealt to models in contiguous blocks. In each window of each model a Gamma distribution is fitted to the
gaps, made burstier, and drawn from anew; days are compressed into an hour; a uniform subset of the requests is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.units import Seconds
from serving.workload.functions import Floats, Invocations, generator

Indices = NDArray[np.int64]

MIN_CV = 1e-3
MAX_CV = 1e3
"""Of gaps that are drawn. Below they are even; above, nearly all of them underflow to 0 and a window never ends."""
LEVEL_RATE = 1.0
"""Requests per second up to which rates share their draws, so that a lower one's requests are a subset."""


class ServerlessError(ValueError):
    """A trace that cannot make the workload that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowFits:
    """Gaps of each model in each window that has enough of them; parallel arrays."""

    model: Indices
    """Index of the model."""
    starts_at: Floats
    """Of the window, in the trace's own time."""
    rate: Floats
    """Invocations per second."""
    cv: Floats
    """Coefficient of variation of the gaps."""
    window: Seconds


def model_of(function: int, num_functions: int, num_models: int) -> int:
    """The model that a function's invocations go to: contiguous blocks, as even as they can be."""
    return num_models * function // num_functions


def fitted(invocations: Invocations, num_models: int, window: Seconds = 600.0, rate_cap: float = 5.0) -> WindowFits:
    """A Gamma distribution for the gaps within each window of each model, by their mean and standard deviation; windows
    with fewer than two gaps are dropped. A rate above ``rate_cap`` times that of the whole window, which a burst in an
    else empty window gives, is replaced by the latter."""
    times, models = _by_model(invocations, num_models)
    cells = models * math.ceil(invocations.span / window) + (times // window).astype(np.int64)
    firsts = np.flatnonzero(np.diff(cells, prepend=-1))
    counts = np.diff(firsts, append=len(cells))
    squares = np.square(np.diff(times, prepend=0.0))
    squares[firsts] = 0.0  # no gap leads from one window into the next
    kept = counts >= 3
    lasts = (firsts + counts - 1)[kept]
    num_gaps = (counts - 1)[kept]
    means = (times[lasts] - times[firsts[kept]]) / num_gaps
    variances = np.maximum(np.add.reduceat(squares, firsts)[kept] / num_gaps - means**2, 0.0)
    in_window = counts[kept] / window
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where(means * rate_cap * in_window < 1, in_window, 1 / means)
        cvs = np.where(means > 0, np.sqrt(variances) / means, 1.0)
    starts_at = times[lasts] // window * window
    return WindowFits(model=models[lasts], starts_at=starts_at, rate=rates, cv=cvs, window=window)


def _by_model(invocations: Invocations, num_models: int) -> tuple[Floats, Indices]:
    """All instants, by model and then by time, and the model of each."""
    groups: list[list[Floats]] = [[] for _ in range(num_models)]
    num_functions = len(invocations.arrived_at)
    for function, times in enumerate(invocations.arrived_at):
        groups[model_of(function, num_functions, num_models)].append(times)
    merged = [np.sort(np.concatenate(group)) if len(group) > 1 else group[0] for group in groups if group]
    owners = [model for model, group in enumerate(groups) if group]
    return np.concatenate(merged), np.repeat(np.array(owners, dtype=np.int64), [len(times) for times in merged])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServerlessArrivals:
    """Requests in order of arrival; parallel arrays."""

    arrived_at: Floats
    """Seconds from the start of the run."""
    model: Indices
    """Index of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How fitted windows become the arrivals of a run."""

    rate: float
    """Requests per second that are kept of all."""
    cv: float
    """Factor on the fitted CVs; HydraServe's "CV" of 2, 4 and 8."""
    duration: Seconds = 3600.0
    """Of the run; what the compressed trace has beyond it is left out."""
    compression: float = 336.0
    """How much faster than recorded: 14 days in one hour."""
    stationary: bool = False
    """Whether a window begins amid a gap, so that it has as many arrivals as its rate says in the mean. As the original
    does it, it begins with a whole gap; of bursty gaps most are short, so sparse windows get up to CV**2 / 2 more."""
    shares: tuple[tuple[tuple[int, ...], float], ...] = ()
    """Groups of models (by index) and the fraction of the requests that each gets; none: whatever the trace gives."""

    @property
    def num_requests(self) -> int:
        """How many are kept."""
        return int(self.rate * self.duration + 1e-9)

    def arrivals(self, fits: WindowFits, seed: int) -> ServerlessArrivals:
        """A uniform subset of exactly ``num_requests`` of the arrivals that the fitted windows produce, the same for
        the same seed; a lower rate's is a part of a higher one's, up to ``LEVEL_RATE``.

        Drawing all arrivals to keep a thousandth would be slow. Instead each arrival is kept with a probability; of a
        renewal process that leaves a renewal process, whose gaps are the sum of a geometric number of gaps, a Gamma
        variate again. A uniform subset of those kept is one of all. The probability is doubled until enough are kept.
        """
        fits = _before(fits, self.duration * self.compression)
        cv = np.clip(self.cv * fits.cv, MIN_CV, MAX_CV)
        expected = float(np.sum(fits.rate * fits.window + np.maximum(cv**2 - 1, 0) / 2))
        level = max(self.num_requests, int(LEVEL_RATE * self.duration))
        probability = min(1.0, 2.0 ** math.ceil(math.log2(level / max(expected, 1.0))))
        while True:
            stream = generator(f"{seed}/trace/cv={float(self.cv)!r}/kept={probability!r}")
            times, models = _thinned(fits, cv, probability, stream, self.stationary)
            if probability == 1.0 or self._suffices(models, level):
                break
            probability = min(1.0, 2 * probability)
        if not self._suffices(models, self.num_requests):
            of_groups = " for the shares" if self.shares else ""
            raise ServerlessError(
                f"the trace has {len(times)} requests in {self.duration:g} s{of_groups}, "
                f"too few for {self.num_requests}, {self.rate:g} a second"
            )
        chosen = self._chosen(models, stream.random(len(times)))
        chosen = chosen[np.lexsort((models[chosen], times[chosen]))]
        return ServerlessArrivals(arrived_at=times[chosen] / self.compression, model=models[chosen])

    def _suffices(self, models: Indices, num_requests: int) -> bool:
        """Whether there are so many requests, of each group in its share."""
        if not self.shares:
            return len(models) >= num_requests
        quotas = split(num_requests, [share for _, share in self.shares])
        groups = [group for group, _ in self.shares]
        return all(np.isin(models, group).sum() >= quota for group, quota in zip(groups, quotas, strict=True))

    def _chosen(self, models: Indices, marks: Floats) -> Indices:
        """The requests with the lowest marks, of each group as many as its share."""
        order = np.argsort(marks, kind="stable")
        if not self.shares:
            return order[: self.num_requests]
        quotas = split(self.num_requests, [share for _, share in self.shares])
        by_group = [order[np.isin(models[order], group)] for group, _ in self.shares]
        return np.concatenate([found[:quota] for found, quota in zip(by_group, quotas, strict=True)])


def split(total: int, shares: Sequence[float]) -> list[int]:
    """A whole number in parts by their shares of it, those with the largest remainders rounded up."""
    exact = [total * share / math.fsum(shares) for share in shares]
    parts = [math.floor(part + 1e-9) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def _before(fits: WindowFits, end: Seconds) -> WindowFits:
    """The windows that are over by then."""
    within = fits.starts_at + fits.window <= end * (1 + 1e-9)
    return WindowFits(
        model=fits.model[within],
        starts_at=fits.starts_at[within],
        rate=fits.rate[within],
        cv=fits.cv[within],
        window=fits.window,
    )


def _thinned(
    fits: WindowFits, cv: Floats, probability: float, rng: np.random.Generator, stationary: bool = False
) -> tuple[Floats, Indices]:
    """Arrivals of all windows' renewal processes, each kept with a probability: instants and models."""
    index = np.arange(len(fits.model))
    shape = 1 / cv**2
    scale = cv**2 / fits.rate
    # before the first whole gap: nothing, or the rest of one that is met as often as it is long
    elapsed = rng.random(len(index)) * rng.standard_gamma(shape + 1) * scale if stationary else np.zeros(len(index))
    num_gaps = rng.geometric(probability, len(index)) - int(stationary)
    times: list[Floats] = []
    models: list[Indices] = []
    while len(index):
        elapsed = elapsed + rng.standard_gamma(num_gaps * shape[index]) * scale[index]
        within = elapsed < fits.window
        index, elapsed = index[within], elapsed[within]
        times.append(fits.starts_at[index] + elapsed)
        models.append(fits.model[index])
        num_gaps = rng.geometric(probability, len(index))
    return np.concatenate(times), np.concatenate(models)
