"""Serverless arrivals: fits by hand, and the laws of what is drawn from them."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from serving.workload.functions import Invocations, SyntheticFunctions, generator
from serving.workload.serverless import Replay, ServerlessError, WindowFits, _thinned, fitted, model_of, split

NUM_MODELS = 10
FITS = fitted(SyntheticFunctions(num_functions=12, num_invocations=40_000, days=2).invocations(0), NUM_MODELS)
HOUR_OF = {"compression": 48.0}
"""Two days in one hour."""


def recorded(*functions: list[float], span: float = 1200.0) -> Invocations:
    """A trace of so many functions."""
    return Invocations(arrived_at=tuple(np.array(times, dtype=float) for times in functions), span=span)


def windows(num_windows: int, rate: float, cv: float) -> WindowFits:
    """One model whose windows are alike."""
    return WindowFits(
        model=np.zeros(num_windows, dtype=np.int64),
        starts_at=np.arange(num_windows) * 600.0,
        rate=np.full(num_windows, rate),
        cv=np.full(num_windows, cv),
        window=600.0,
    )


def test_functions_go_to_models_in_contiguous_blocks() -> None:
    assert [model_of(function, 5, 3) for function in range(5)] == [0, 0, 1, 1, 2]
    dealt = [model_of(function, 424, 384) for function in range(424)]
    assert dealt == sorted(dealt)
    assert [dealt.count(model) for model in range(384)].count(2) == 40
    assert set(dealt) == set(range(384))


def test_a_window_is_fitted_by_the_mean_and_deviation_of_its_gaps() -> None:
    fits = fitted(recorded([0, 200, 500]), 1)  # gaps 200 and 300: mean 250, deviation 50
    assert fits.rate.tolist() == pytest.approx([1 / 250])
    assert fits.cv.tolist() == pytest.approx([0.2])
    assert fits.starts_at.tolist() == [0.0]


def test_a_burst_in_an_empty_window_counts_with_the_rate_of_the_window() -> None:
    # gaps 10 and 20: 1/15 a second, more than five times the 3/600 of the window; gaps of 41 are just within
    fits = fitted(recorded([0, 10, 30], [600, 641, 682]), 2)
    assert fits.model.tolist() == [0, 1]
    assert fits.rate.tolist() == pytest.approx([3 / 600, 1 / 41])
    assert fits.cv.tolist() == pytest.approx([1 / 3, 0.0], abs=1e-6)
    assert fitted(recorded([0, 10, 30]), 1, rate_cap=inf).rate.tolist() == pytest.approx([1 / 15])


def test_a_window_with_fewer_than_two_gaps_is_dropped_and_no_gap_spans_two_windows() -> None:
    fits = fitted(recorded([100, 200, 599, 600, 700]), 1)  # three arrivals before 600, two after
    assert fits.starts_at.tolist() == [0.0]
    assert fits.rate.tolist() == pytest.approx([2 / 499])


def test_functions_of_one_model_are_fitted_together() -> None:
    fits = fitted(recorded([0, 400], [100, 500], [0, 1, 2]), 2)  # models 0, 0, 1
    assert fits.model.tolist() == [0, 1]
    assert fits.rate.tolist() == pytest.approx([3 / 500, 3 / 600])


def test_invocations_of_one_instant_are_a_burst_of_the_windows_rate() -> None:
    fits = fitted(recorded([5, 5, 5, 5]), 1)
    assert (fits.rate.tolist(), fits.cv.tolist()) == ([4 / 600], [1.0])


def test_windows_of_another_length() -> None:
    assert fitted(recorded([0, 200, 500]), 1, window=1200).starts_at.tolist() == [0.0]
    assert len(fitted(recorded([0, 200, 500]), 1, window=300).rate) == 0


@settings(max_examples=30, deadline=None)
@given(
    rate=st.floats(0.01, 3.0),
    cv=st.floats(0.1, 10.0),
    duration=st.floats(600, 3600),
    seed=st.integers(0, 3),
)
def test_exactly_so_many_requests_in_order_within_the_run(rate: float, cv: float, duration: float, seed: int) -> None:
    found = Replay(rate=rate, cv=cv, duration=duration, **HOUR_OF).arrivals(FITS, seed)
    assert len(found.arrived_at) == len(found.model) == int(rate * duration + 1e-9)
    assert np.all(np.diff(found.arrived_at) >= 0)
    assert np.all((found.arrived_at >= 0) & (found.arrived_at <= duration))
    assert np.all(np.isin(found.model, FITS.model))


@settings(max_examples=20, deadline=None)
@given(rates=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)), cv=st.sampled_from([2, 4, 8]))
def test_the_requests_of_a_lower_rate_are_a_subset_of_those_of_a_higher_one(
    rates: tuple[float, float], cv: float
) -> None:
    lower, higher = (Replay(rate=rate, cv=cv, **HOUR_OF).arrivals(FITS, 0) for rate in sorted(rates))
    some, more = (set(zip(each.arrived_at, each.model, strict=True)) for each in (lower, higher))
    assert some <= more


def test_seeds_and_cvs_draw_anew_and_a_whole_number_is_the_same_cv() -> None:
    base = Replay(rate=0.6, cv=8, **HOUR_OF)
    times = base.arrivals(FITS, 0).arrived_at.tolist()
    assert times == base.arrivals(FITS, 0).arrived_at.tolist()
    assert times == Replay(rate=0.6, cv=8.0, **HOUR_OF).arrivals(FITS, 0).arrived_at.tolist()
    assert times != base.arrivals(FITS, 1).arrived_at.tolist()
    assert times != Replay(rate=0.6, cv=4, **HOUR_OF).arrivals(FITS, 0).arrived_at.tolist()


def test_compression_divides_times_and_a_shorter_run_is_the_beginning() -> None:
    fits = windows(num_windows=100, rate=1.0, cv=0.01)
    found = Replay(rate=10.0, cv=1, duration=50.0, compression=600.0).arrivals(fits, 0)  # a window a second
    seconds = np.bincount(found.arrived_at.astype(int), minlength=100)
    assert found.arrived_at.max() < 50
    assert seconds[:50].min() >= 1
    assert seconds.sum() == 500


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("cv", [0.05, 1.0, 4.0])
def test_keeping_before_drawing_is_the_same_in_law_as_drawing_all_and_keeping_some(cv: float, stationary: bool) -> None:
    fits, keep = windows(num_windows=4000, rate=0.1, cv=cv), 0.05
    drawn, _ = _thinned(fits, fits.cv, 1.0, generator("all"), stationary)
    of_all = drawn[generator("some").random(len(drawn)) < keep]
    thinned, _ = _thinned(fits, fits.cv, keep, generator("thinned"), stationary)
    counts = [np.bincount((times // 600).astype(int), minlength=4000) for times in (of_all, thinned)]
    assert counts[1].mean() == pytest.approx(counts[0].mean(), rel=0.06)
    assert counts[1].var() == pytest.approx(counts[0].var(), rel=0.12)
    assert stats.ks_2samp(of_all % 600, thinned % 600).pvalue > 0.001


def test_a_window_draws_as_many_as_its_rate_says() -> None:
    times, _ = _thinned(windows(num_windows=200, rate=0.5, cv=1.0), np.ones(200), 1.0, generator("all"))
    assert len(times) == pytest.approx(200 * 300, rel=0.01)


def test_a_bursty_window_draws_more_than_its_rate_says_unless_it_begins_amid_a_gap() -> None:
    """With CV 4, shape 1/16: a first gap beyond 600 s, of 300 s in the mean, comes once in eight windows."""
    fits = windows(num_windows=5000, rate=1 / 300, cv=4.0)
    fresh, _ = _thinned(fits, fits.cv, 1.0, generator("all"))
    amid, _ = _thinned(fits, fits.cv, 1.0, generator("all"), stationary=True)
    none_in = 1 - len(np.unique(fresh // 600)) / 5000
    assert none_in == pytest.approx(stats.gamma(1 / 16, scale=16 * 300).sf(600), abs=0.015)
    assert len(amid) / 5000 == pytest.approx(2.0, rel=0.1)  # 600 s of 1/300 a second
    assert len(fresh) > 2.5 * len(amid)


def test_every_request_is_as_likely_to_be_kept_as_any_other() -> None:
    fits = windows(num_windows=1000, rate=0.05, cv=1.0)
    replay = Replay(rate=1.0, cv=1, duration=1000.0, compression=600.0)
    times = np.concatenate([replay.arrivals(fits, seed).arrived_at for seed in range(20)])
    by_part = np.histogram(times, bins=10, range=(0, 1000))[0]
    assert stats.chisquare(by_part).pvalue > 0.001


def test_groups_get_their_shares_exactly() -> None:
    groups = ((tuple(range(5)), 0.75), (tuple(range(5, 10)), 0.25))
    found = Replay(rate=0.5, cv=4, shares=groups, **HOUR_OF).arrivals(FITS, 0)
    assert np.sum(found.model < 5) == 1350
    assert len(found.model) == 1800


@given(total=st.integers(0, 10_000), weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_parts_add_up_to_the_whole_and_are_off_by_less_than_one(total: int, weights: list[float]) -> None:
    parts = split(total, weights)
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) < 1 for part, weight in zip(parts, weights, strict=True))


def test_largest_remainders_are_rounded_up() -> None:
    assert split(10, [0.5, 0.25, 0.25]) == [5, 3, 2]
    assert split(2160, [0.55, 0.35, 0.1]) == [1188, 756, 216]


def test_a_trace_with_too_few_requests_is_refused() -> None:
    message = r"the trace has \d+ requests in 10 s, too few for 50000, 5000 a second"
    with pytest.raises(ServerlessError, match=message):
        Replay(rate=5000, cv=1, duration=10).arrivals(FITS, 0)
    with pytest.raises(ServerlessError, match="for the shares, too few"):
        Replay(rate=5000, cv=1, duration=10, shares=(((0,), 1.0),)).arrivals(FITS, 0)


def test_the_burstiest_gaps_still_end() -> None:
    fits = windows(num_windows=2016, rate=0.1, cv=40.0)
    found = Replay(rate=0.6, cv=100).arrivals(fits, 0)
    assert len(found.arrived_at) == 2160
