"""Arrival processes: moments, distributions, determinism, and what they refuse."""

import math
import random
import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serving.workload.arrivals import Arrivals, Fixed, Gamma, Poisson, TraceArrivals
from serving.workload.lengths import LengthPair, LogNormal

ALPHA = 1e-4
"""Significance of each distribution test; there are many, and a right generator fails 1 in 10,000."""
RESOLUTION = 1e-6
"""Seconds; gaps far below it vanish when they are added to a time of hours, as most of a high CV's do."""

rates = st.floats(min_value=1e-3, max_value=1e3)
cvs = st.floats(min_value=0.05, max_value=16.0)
processes = st.one_of(
    st.builds(Poisson, rate=rates),
    st.builds(Gamma, rate=rates, cv=cvs),
    st.builds(Fixed, gap=rates),
)
seeds = st.integers(min_value=0, max_value=1000)


def first(process: Arrivals, num: int, seed: int = 0, stream: str = "arrivals") -> list[float]:
    return list(islice(process.times(seed, stream), num))


def gaps(process: Arrivals, num: int, seed: int = 0) -> list[float]:
    return [later - earlier for earlier, later in pairwise([0.0, *first(process, num, seed)])]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_poisson_gaps_are_exponential_with_mean_one_over_rate(seed: int) -> None:
    drawn = gaps(Poisson(rate=2.5), 20_000, seed)
    assert statistics.fmean(drawn) == pytest.approx(0.4, rel=4 / math.sqrt(20_000))
    assert stats.kstest(drawn, stats.expon(scale=0.4).cdf).pvalue > ALPHA


@pytest.mark.parametrize("cv", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_gamma_gaps_follow_the_gamma_distribution_of_that_rate_and_cv(cv: float) -> None:
    drawn = gaps(Gamma(rate=0.8, cv=cv), 20_000)
    expected = stats.gamma(1 / cv**2, scale=cv**2 / 0.8)
    below = expected.cdf(RESOLUTION)
    visible = [gap for gap in drawn if gap > RESOLUTION]
    assert stats.binomtest(len(visible), len(drawn), 1 - below).pvalue > ALPHA
    assert stats.kstest(visible, lambda gap: (expected.cdf(gap) - below) / (1 - below)).pvalue > ALPHA


@pytest.mark.parametrize("cv", [0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
def test_gamma_gaps_have_the_mean_and_cv_asked_for(cv: float) -> None:
    num = 100_000
    drawn = gaps(Gamma(rate=0.8, cv=cv), num)
    mean, cv_drawn = statistics.fmean(drawn), statistics.stdev(drawn) / statistics.fmean(drawn)
    # Delta method: the sample CV of Gamma gaps has relative variance (1 + cv**2) / (2 * num).
    assert mean == pytest.approx(1.25, rel=4 * cv / math.sqrt(num))
    assert cv_drawn == pytest.approx(cv, rel=4 * math.sqrt((1 + cv**2) / (2 * num)))


def test_gamma_with_cv_1_is_poisson_draw_by_draw() -> None:
    assert first(Gamma(rate=3.0, cv=1.0), 1000, seed=5) == pytest.approx(first(Poisson(rate=3.0), 1000, seed=5))


def test_fixed_arrivals_are_the_multiples_of_the_gap_without_drift() -> None:
    assert first(Fixed(gap=0.5), 4) == [0.5, 1.0, 1.5, 2.0]
    assert first(Fixed(gap=0.1), 100_000)[-1] == 10_000.0


def test_trace_arrivals_replay_the_recorded_times_and_end() -> None:
    trace = TraceArrivals(arrived_at=(0.0, 1.5, 1.5, 4.0))
    assert list(trace.times(0)) == list(trace.times(9, "other")) == [0.0, 1.5, 1.5, 4.0]


def test_trace_arrivals_at_twice_the_rate_take_half_the_time() -> None:
    assert list(TraceArrivals(arrived_at=(1.0, 3.0), rate_scale=2).times(0)) == [0.5, 1.5]


@given(process=processes, seed=seeds)
def test_arrivals_never_go_back_and_never_precede_0(process: Arrivals, seed: int) -> None:
    times = first(process, 200, seed)
    assert times[0] >= 0
    assert all(earlier <= later < math.inf for earlier, later in pairwise(times))


@given(process=processes, seed=seeds)
def test_same_seed_gives_the_same_times_whatever_else_is_drawn(process: Arrivals, seed: int) -> None:
    expected = first(process, 50, seed)
    times = process.times(seed)
    interleaved = []
    for _ in range(50):
        random.random()
        interleaved.append(next(times))
    assert interleaved == expected


@given(rate=rates, cv=cvs, seed=seeds, more=st.integers(1, 5), sigma=st.floats(0.1, 2.0))
def test_arrivals_and_lengths_do_not_move_each_other(
    rate: float, cv: float, seed: int, more: int, sigma: float
) -> None:
    process, lengths = (
        Gamma(rate=rate, cv=cv),
        LengthPair(prompt=LogNormal(median=100, sigma=sigma), output=LogNormal(median=50, sigma=sigma)),
    )
    times_alone, lengths_alone = first(process, 20, seed), list(islice(lengths.pairs(seed), 20))
    times, pairs = process.times(seed), lengths.pairs(seed)
    drawn_times: list[float] = []
    drawn_lengths: list[tuple[int, int]] = []
    for _ in range(20):
        drawn_times.extend(islice(times, more))
        drawn_lengths.extend(islice(pairs, 1 if more % 2 else 2))
    assert drawn_times[:20] == times_alone
    assert drawn_lengths[:20] == lengths_alone


def test_seeds_and_streams_differ_and_do_not_correlate() -> None:
    process = Poisson(rate=1.0)
    base = gaps(process, 5000)
    other_stream = first(process, 5000, 0, "warm-up")
    shifted = [later - earlier for earlier, later in pairwise([0.0, *other_stream])]
    for other in (gaps(process, 5000, seed=1), shifted):
        assert other != base
        assert stats.pearsonr(base, other).pvalue > ALPHA


def test_times_come_from_the_generator_named_by_seed_and_stream() -> None:
    rng = random.Random("7/warm-up")
    assert first(Poisson(rate=2.0), 1, seed=7, stream="warm-up") == [rng.expovariate(2.0)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Poisson(rate=0.0),
            "Poisson.rate: held 0.0, expected a finite number above 0 (requests per second)",
        ),
        (lambda: Poisson(rate=math.nan), "Poisson.rate: held nan, expected a finite number above 0"),
        (lambda: Poisson(rate="2"), "Poisson.rate: held '2', expected a finite number above 0"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Gamma(rate=-1, cv=2), "Gamma.rate: held -1, expected a finite number above 0"),
        (lambda: Gamma(rate=1, cv=0), "Gamma.cv: held 0, expected a finite number above 0"),
        (lambda: Gamma(rate=1, cv=1e200), "Gamma.cv: held 1e+200, expected 0.0001 to 100"),
        (
            lambda: Gamma(rate=1, cv=1e-9),
            "Gamma.cv: held 1e-09, expected 0.0001 to 100 (for even gaps, take Fixed)",
        ),
        (lambda: Fixed(gap=math.inf), "Fixed.gap: held inf, expected a finite number above 0 (seconds)"),
        (
            lambda: TraceArrivals(arrived_at=()),
            "TraceArrivals.arrived_at: held no times, expected at least one",
        ),
        (
            lambda: TraceArrivals(arrived_at=(0.0, -1.0)),
            "TraceArrivals.arrived_at[1]: held -1.0, expected finite",
        ),
        (
            lambda: TraceArrivals(arrived_at=(0.0, 2.0, 1.0)),
            "TraceArrivals.arrived_at[2]: held 1.0, expected at least 2.0, the time before it",
        ),
        (
            lambda: TraceArrivals(arrived_at=(0.0,), rate_scale=0),
            "TraceArrivals.rate_scale: held 0, expected a finite number above 0",
        ),
    ],
)
def test_refusals_name_the_field_what_it_held_and_what_is_expected(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError) as refusal:
        make()
    assert str(refusal.value).startswith(message)
