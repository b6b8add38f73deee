"""Length distributions: moments, clips, percentiles, independence, and what they refuse."""

import math
import pickle
import random
import statistics
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serving.workload.lengths import Empirical, Fixed, LengthPair, Lengths, LogNormal, quantiles

ALPHA = 1e-4
"""Significance of each distribution test; there are many, and a right generator fails 1 in 10,000."""

counts = st.integers(min_value=1, max_value=100_000)
seeds = st.integers(min_value=0, max_value=1000)
distributions = st.one_of(
    st.builds(Fixed, num_tokens=counts),
    st.builds(LogNormal, median=st.floats(1, 1e4), sigma=st.floats(0, 3)),
    st.builds(Empirical, values=st.lists(counts, min_size=1, max_size=20).map(tuple)),
)


def draw(lengths: Lengths, num: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [lengths.sample(rng) for _ in range(num)]


def test_fixed_is_always_the_same_count() -> None:
    assert draw(Fixed(num_tokens=7), 3) == [7, 7, 7]


def test_log_normal_has_the_median_and_the_spread_asked_for() -> None:
    drawn = draw(LogNormal(median=500.0, sigma=0.8), 20_000)
    logs = np.log(drawn)
    assert logs.mean() == pytest.approx(math.log(500), abs=4 * 0.8 / math.sqrt(20_000))
    assert logs.std() == pytest.approx(0.8, rel=4 / math.sqrt(2 * 20_000))


def test_log_normal_follows_its_distribution() -> None:
    drawn = draw(LogNormal(median=50_000.0, sigma=1.0), 10_000)  # so long that rounding does not show
    assert stats.kstest(drawn, stats.lognorm(1.0, scale=50_000).cdf).pvalue > ALPHA


def test_log_normal_from_mean_has_that_mean() -> None:
    lengths = LogNormal.from_mean(300.0, 1.0)
    spread = 300 * math.sqrt(math.e - 1)
    assert statistics.fmean(draw(lengths, 50_000)) == pytest.approx(300, abs=4 * spread / math.sqrt(50_000))


def test_log_normal_counts_what_lies_outside_as_the_limit() -> None:
    free = draw(LogNormal(median=100, sigma=1.0), 2000)
    clipped = draw(LogNormal(median=100, sigma=1.0, min_tokens=50, max_tokens=200), 2000)
    assert clipped == [min(200, max(50, num_tokens)) for num_tokens in free]
    assert {50, 200} <= set(clipped)


def test_log_normal_without_spread_is_its_median() -> None:
    assert draw(LogNormal(median=64, sigma=0), 3) == [64, 64, 64]


def test_empirical_draws_each_value_alike_without_weights() -> None:
    drawn = draw(Empirical(values=(1, 10, 100)), 9000)
    assert stats.chisquare([drawn.count(value) for value in (1, 10, 100)]).pvalue > ALPHA


def test_empirical_draws_in_proportion_to_the_weights() -> None:
    drawn = draw(Empirical(values=(1, 10, 100, 5), weights=(1, 2, 7, 0)), 10_000)
    assert stats.chisquare([drawn.count(value) for value in (1, 10, 100)], [1000, 2000, 7000]).pvalue > ALPHA
    assert 5 not in drawn


def test_empirical_travels_to_a_worker_process_and_compares_by_value() -> None:
    lengths = Empirical(values=(1, 2), weights=(1.0, 3.0))
    assert pickle.loads(pickle.dumps(lengths)) == lengths
    assert draw(pickle.loads(pickle.dumps(lengths)), 50) == draw(lengths, 50)


def test_percentiles_in_are_percentiles_out() -> None:
    published: dict[float, int] = {0: 1, 50: 38, 80: 113, 95: 413, 99: 1464, 100: 6144}
    values = Empirical.from_percentiles(published).values
    for rank in (50, 80, 95, 99):
        assert np.percentile(values, rank) == pytest.approx(published[rank], rel=0.02, abs=1)


def test_halfway_between_two_percentiles_lies_their_geometric_mean() -> None:
    values = Empirical.from_percentiles({0: 100, 100: 10_000}).values
    assert statistics.median(values) == pytest.approx(1000, rel=0.01)


@given(ladder=st.lists(counts, min_size=2, max_size=8).map(sorted))
def test_percentiles_give_rising_lengths_within_the_limits(ladder: list[int]) -> None:
    ranks = [100 * index / (len(ladder) - 1) for index in range(len(ladder))]
    values = Empirical.from_percentiles(dict(zip(ranks, ladder, strict=True))).values
    assert list(values) == sorted(values)
    assert ladder[0] <= values[0]
    assert values[-1] <= ladder[-1]


@given(lengths=distributions, seed=seeds)
def test_every_draw_is_a_whole_count_of_at_least_1_and_repeats(lengths: Lengths, seed: int) -> None:
    drawn = draw(lengths, 50, seed)
    assert all(type(num_tokens) is int and num_tokens >= 1 for num_tokens in drawn)
    assert drawn == draw(lengths, 50, seed)


@given(prompt=distributions, output=distributions, other=distributions, seed=seeds)
def test_changing_one_length_never_moves_the_other(prompt: Lengths, output: Lengths, other: Lengths, seed: int) -> None:
    base = list(islice(LengthPair(prompt=prompt, output=output).pairs(seed), 30))
    other_output = list(islice(LengthPair(prompt=prompt, output=other).pairs(seed), 30))
    other_prompt = list(islice(LengthPair(prompt=other, output=output).pairs(seed), 30))
    assert [pair[0] for pair in other_output] == [pair[0] for pair in base]
    assert [pair[1] for pair in other_prompt] == [pair[1] for pair in base]


def test_lengths_come_from_the_generators_named_by_seed_and_side() -> None:
    lengths = LogNormal(median=1000, sigma=1.0)
    pair = next(LengthPair(prompt=lengths, output=lengths).pairs(7))
    assert pair == (
        lengths.sample(random.Random("7/prompt-lengths")),
        lengths.sample(random.Random("7/output-lengths")),
    )


def test_prompt_and_output_of_one_distribution_do_not_correlate() -> None:
    lengths = LogNormal(median=1000, sigma=1.0)
    prompts, outputs = zip(*islice(LengthPair(prompt=lengths, output=lengths).pairs(0), 5000), strict=True)
    assert stats.spearmanr(prompts, outputs).pvalue > ALPHA


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Fixed(num_tokens=0),
            "Fixed.num_tokens: held 0, expected a whole number of tokens, at least 1",
        ),
        (lambda: Fixed(num_tokens=1.5), "Fixed.num_tokens: held 1.5, expected a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: LogNormal(median=0, sigma=1), "LogNormal.median: held 0, expected a finite number above 0"),
        (lambda: LogNormal(median=1, sigma=-1), "LogNormal.sigma: held -1, expected 0 to 10"),
        (lambda: LogNormal(median=1, sigma=math.nan), "LogNormal.sigma: held nan, expected 0 to 10"),
        (lambda: LogNormal.from_mean(1, 1e6), "LogNormal.sigma: held 1000000.0, expected 0 to 10"),
        (lambda: LogNormal.from_mean(-3, 1), "LogNormal mean: held -3, expected a finite number above 0"),
        (
            lambda: LogNormal(median=9, sigma=1, min_tokens=8, max_tokens=4),
            "LogNormal.max_tokens: held 4, expected a whole number of tokens, at least 8",
        ),
        (lambda: Empirical(values=()), "Empirical.values: held no counts, expected at least one"),
        (
            lambda: Empirical(values=(3, -1)),
            "Empirical.values[1]: held -1, expected a whole number of tokens",
        ),
        (
            lambda: Empirical(values=(1, 2), weights=(1.0,)),
            "Empirical.weights: held 1 weights, expected 2, one a value",
        ),
        (
            lambda: Empirical(values=(1,), weights=(-1.0,)),
            "Empirical.weights[0]: held -1.0, expected a finite number",
        ),
        (
            lambda: Empirical(values=(1,), weights=(0.0,)),
            "Empirical.weights: held a sum of 0.0, expected a finite one",
        ),
        (lambda: Empirical.from_percentiles({}), "percentiles: held the ranks [], expected 0 and 100"),
        (lambda: Empirical.from_percentiles({50: 9}), "percentiles: held the ranks [50], expected 0 and 100"),
        (
            lambda: Empirical.from_percentiles({-1: 9}),
            "percentiles: held the rank -1, expected ranks from 0 to 100",
        ),
        (
            lambda: Empirical.from_percentiles({0: 0, 100: 2}),
            "percentiles[0]: held 0, expected a whole number",
        ),
        (
            lambda: Empirical.from_percentiles({0: 1, 50: 9, 100: 8}),
            "percentiles[100]: held 8, expected at least 9, the length at 50",
        ),
    ],
)
def test_refusals_name_the_field_what_it_held_and_what_is_expected(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError) as refusal:
        make()
    assert str(refusal.value).startswith(message)


def test_quantiles_by_hand() -> None:
    """Ranks 25 and 75 between 1 and 9: lengths grow from 1 to 9, logarithms from 0 to log 9, roots from 1 to 3. Between
    100 and 900 inverses fall from 9/900 to 1/900."""
    known: dict[float, int] = {0: 1, 100: 9}
    assert quantiles(known, 2, 1.0) == [3, 7]
    assert quantiles(known, 2) == [round(9**0.25), round(9**0.75)] == [2, 5]
    assert quantiles(known, 2, 0.5) == [round(1.5**2), round(2.5**2)] == [2, 6]
    assert quantiles({0: 100, 100: 900}, 2, -1.0) == [round(900 / 7), round(900 / 3)] == [129, 300]


@given(
    ladder=st.lists(counts, min_size=2, max_size=8).map(sorted),
    powers=st.tuples(st.floats(-2, 3), st.floats(-2, 3)).map(sorted),
)
def test_a_higher_power_makes_no_length_shorter(ladder: list[int], powers: list[float]) -> None:
    known = {100 * index / (len(ladder) - 1): length for index, length in enumerate(ladder)}
    lower, higher = (quantiles(known, 100, power) for power in powers)
    assert all(few <= many + 1 for few, many in zip(lower, higher, strict=True))  # 1: rounding
    assert lower == sorted(lower)
    assert ladder[0] <= lower[0] and higher[-1] <= ladder[-1]
