"""Length traces: the generated ones as published, the others with the published percentiles; gaps and seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from serving.workload.arrivals import Fixed, Gamma, Poisson
from serving.workload.length_traces import (
    LENGTH_TRACES,
    LONG,
    MAX_TOKENS,
    MEDIUM,
    SHORT,
    ConversationTrace,
    GeneratedTrace,
    PowerLaw,
    Published,
    one_after_another,
)

NUM = 10_000
"""Requests of a trace that Llumnix is evaluated with."""
GENERATED = [slug for slug, trace in LENGTH_TRACES.items() if isinstance(trace, GeneratedTrace)]
CONVERSATIONS = [slug for slug, trace in LENGTH_TRACES.items() if isinstance(trace, ConversationTrace)]
FIRST_ROWS = {
    "s-s": [(76, 35), (113, 172), (38, 240)],
    "m-m": [(95, 30), (173, 363), (32, 610)],
    "l-l": [(267, 41), (570, 1264), (55, 1930)],
    "s-l": [(76, 41), (113, 1264), (38, 1930)],
    "l-s": [(267, 35), (570, 172), (55, 240)],
}
"""The first requests of the original's generator (prompt and output tokens)."""
FIRST_GAPS = [3.206315, 0.598182, 1.755577]
"""Its first gaps at one request a second, to six digits; those of all five traces."""


@pytest.mark.parametrize(
    ("law", "published"),
    [(SHORT, [38, 113, 413, 1464]), (MEDIUM, [32, 173, 1288, 4208]), (LONG, [55, 582, 3113, 5166])],
)
def test_generated_lengths_have_the_published_percentiles_to_the_unit(law: PowerLaw, published: list[int]) -> None:
    """Percentiles 50, 80, 95 and 99 of Llumnix' Table 1, which are those of the first sample of the stream: prompts."""
    pairs, _ = GeneratedTrace(prompt=law, output=SHORT).draw(NUM, 0)
    found = np.percentile([prompt for prompt, _ in pairs], [50, 80, 95, 99])
    assert [math.floor(length) for length in found] == published


@pytest.mark.parametrize("slug", GENERATED)
def test_generated_traces_begin_as_the_originals(slug: str) -> None:
    pairs, stream = LENGTH_TRACES[slug].draw(NUM, 0)
    timed = one_after_another(pairs, stream, Poisson(rate=1.0))
    assert [pair for _, pair in timed[:3]] == FIRST_ROWS[slug]
    assert np.diff([at for at, _ in timed[:4]]).tolist() == pytest.approx(FIRST_GAPS, abs=1e-6)
    assert timed[0][0] == 0.0


def test_all_of_the_generated_requests_add_up_as_the_originals_do() -> None:
    """Sums of the original's 10,000 prompts and outputs."""
    sums = {slug: tuple(np.array(LENGTH_TRACES[slug].draw(NUM, 0)[0]).sum(axis=0).tolist()) for slug in GENERATED}
    assert sums == {
        "s-s": (1_280_134, 1_277_840),
        "m-m": (2_537_239, 2_546_881),
        "l-l": (5_126_595, 5_124_421),
        "s-l": (1_280_134, 5_124_421),
        "l-s": (5_126_595, 1_277_840),
    }


@pytest.mark.parametrize("num", [1, 7, 300])
def test_a_short_generated_trace_has_the_mean_of_a_long_one(num: int) -> None:
    """The sample is scaled to the mean, and each length is then rounded up."""
    prompts = [prompt for prompt, _ in LENGTH_TRACES["s-s"].draw(num, 0)[0]]
    assert len(prompts) == num
    assert 128 <= np.mean(prompts) < 129


def test_generated_lengths_are_the_same_for_every_seed_and_gaps_are_not() -> None:
    trace = LENGTH_TRACES["m-m"]
    draws = [trace.draw(50, seed) for seed in (0, 1, 1, 2)]
    assert all(pairs == draws[0][0] for pairs, _ in draws)
    gaps = [tuple(Poisson(rate=1.0).gaps(stream, 20)) for _, stream in draws]
    assert gaps[1] == gaps[2]
    assert len(dict.fromkeys(gaps)) == 3


@pytest.mark.parametrize("slug", CONVERSATIONS)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("seed", [0, 3])
def test_conversations_have_the_published_mean_and_percentiles(slug: str, side: int, seed: int) -> None:
    trace = LENGTH_TRACES[slug]
    assert isinstance(trace, ConversationTrace)
    published = (trace.prompt, trace.output)[side]
    found = [pair[side] for pair in trace.draw(NUM, seed)[0]]
    assert round(float(np.mean(found))) == published.mean
    expected = [published.p50, published.p80, published.p95, published.p99]
    assert np.percentile(found, [50, 80, 95, 99]).tolist() == pytest.approx(expected, rel=0.0015)
    assert min(found) >= 1 and max(found) <= published.largest <= MAX_TOKENS


def test_the_largest_is_as_far_above_p99_as_that_is_above_p95() -> None:
    """1234 * 1234 / 988 = 1541.3; 3388 * 3388 / 1484 = 7734.9 is cut."""
    trace = LENGTH_TRACES["sharegpt"]
    assert isinstance(trace, ConversationTrace)
    assert (trace.output.largest, trace.prompt.largest) == (1541, 6144)


def test_conversations_of_a_few_requests_keep_mean_and_median() -> None:
    pairs, _ = LENGTH_TRACES["burstgpt"].draw(200, 0)
    assert np.mean(pairs, axis=0).tolist() == pytest.approx([830, 271], rel=0.01)
    assert np.median(pairs, axis=0).tolist() == pytest.approx([582, 243], rel=0.03)


def test_conversations_of_two_seeds_are_the_same_lengths_in_another_order() -> None:
    one, other = ([prompt for prompt, _ in LENGTH_TRACES["sharegpt"].draw(NUM, seed)[0]] for seed in (0, 1))
    assert one != other
    assert sorted(one) == sorted(other)
    assert one == [prompt for prompt, _ in LENGTH_TRACES["sharegpt"].draw(NUM, 0)[0]]


@pytest.mark.parametrize("slug", CONVERSATIONS)
def test_prompts_outputs_and_places_do_not_correlate(slug: str) -> None:
    prompts, outputs = zip(*LENGTH_TRACES[slug].draw(NUM, 0)[0], strict=True)
    for one, other in ((prompts, outputs), (prompts, range(NUM)), (outputs, range(NUM))):
        assert stats.spearmanr(one, other).pvalue > 1e-3


@pytest.mark.parametrize("slug", LENGTH_TRACES)
def test_every_length_is_a_whole_count_within_the_limits(slug: str) -> None:
    flat = [count for pair in LENGTH_TRACES[slug].draw(NUM, 1)[0] for count in pair]
    assert all(type(count) is int and 1 <= count <= MAX_TOKENS for count in flat)
    assert max(sum(pair) for pair in LENGTH_TRACES[slug].draw(NUM, 1)[0]) < 12_672  # the KV of an A10 beside 7B, sheet


def test_requests_come_a_gap_after_the_one_before() -> None:
    _, stream = LENGTH_TRACES["s-s"].draw(3, 0)
    assert one_after_another([(1, 2), (3, 4), (5, 6)], stream, Fixed(gap=0.5)) == [
        (0.0, (1, 2)),
        (0.5, (3, 4)),
        (1.0, (5, 6)),
    ]


def test_a_faster_rate_shortens_the_same_gaps() -> None:
    slow, fast = (Poisson(rate=rate).gaps(LENGTH_TRACES["s-s"].draw(NUM, 0)[1], 100) for rate in (1.0, 4.0))
    assert fast == pytest.approx([gap / 4 for gap in slow])


@pytest.mark.parametrize("cv", [2.0, 6.0])
def test_gaps_follow_the_gamma_distribution_asked_for(cv: float) -> None:
    _, stream = LENGTH_TRACES["l-l"].draw(NUM, 0)
    gaps = Gamma(rate=2.0, cv=cv).gaps(stream, 5000)
    assert stats.kstest(gaps, stats.gamma(1 / cv**2, scale=cv**2 / 2.0).cdf).pvalue > 1e-3


def test_published_keeps_between_its_percentiles_whatever_the_power() -> None:
    for power in (-1.0, 0.0, 1.0, 3.0):
        counts = sorted(Published(mean=1, p50=10, p80=20, p95=30, p99=40, power=power).shuffled(1000, "any"))
        assert counts[0] >= 1 and counts[499] <= 10 <= counts[500] and counts[-1] <= 53  # 40 * 40 / 30
