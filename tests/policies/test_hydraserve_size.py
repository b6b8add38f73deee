"""HydraServe's choice of group size (section 3.1) on worked examples.

Llama2-7B is planned with 13 GB and 5 GB for KV: a full-memory slice is 18 GB, low-memory ones of 2, 3 and 4 stages 9, 6
and 5 GB. With all NICs at 2 GB/s, 2 s for what follows the fetch and no prefill, the predicted TTFT is 13 / (2 s) + 2:
8.5, 5.25, 4.167 and 3.625 s for 1 to 4 stages.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.cluster import Deployment
from serving.policies.hydraserve_size import GroupSize, Profile, SizeRule, predicted_tpot, predicted_ttft
from serving.units import GB, Seconds, ms
from tests.build import make_cluster, make_deployment, make_sequence

FULL: dict[int, int] = {1: 18, 2: 9, 3: 6, 4: 5}
"""Slice of one worker by number of stages, in GB."""


def make_rule(
    deployment: Deployment, free_gb: tuple[int, ...] = (22, 22, 22, 22), rates_gb: tuple[float, ...] = (2, 2, 2, 2)
) -> SizeRule:
    """Servers with one GPU each, given what is free on it and what rate its NIC offers, best first."""
    servers = make_cluster().servers
    ranked = [(server, rate * GB) for server, rate in zip(servers, rates_gb, strict=False) if rate]
    free = dict(zip(servers, free_gb, strict=False))
    return SizeRule(
        deployment=deployment,
        ranked=ranked,
        fits=lambda server, num_stages: free[server] >= FULL[num_stages],
        ttft=lambda size, rate, prefill, delay: predicted_ttft(13 * GB, size, rate, prefill, delay) + 2.0,
        tpot=lambda size, tpot: predicted_tpot(tpot, size, 1 * ms),
        max_stages=4,
    )


def profile(tpot: Seconds, prefill: Seconds = 0.0) -> Profile:
    return Profile(num_prefills=1, prefill=prefill, num_tpots=1, tpot=tpot)


@pytest.mark.parametrize(
    ("stages", "full", "slowdown"),
    # (s - w) + w / s
    [(1, 1, 1), (2, 1, 1.5), (2, 2, 1), (4, 0, 4), (4, 1, 3.25), (4, 4, 1), (3, 2, 1 + 2 / 3)],
)
def test_low_memory_workers_take_a_whole_tpot_and_full_ones_their_part(stages: int, full: int, slowdown: float) -> None:
    assert GroupSize(stages, full).slowdown == pytest.approx(slowdown)


def test_predicted_ttft_is_fetch_prefill_and_wait() -> None:
    # 13 GB / (2 x 2 GB/s) = 3.25; 0.1 x 1.5 = 0.15; waited 0.5
    assert predicted_ttft(13 * GB, GroupSize(2, 1), 2 * GB, 0.1, 0.5) == pytest.approx(3.9)


def test_predicted_tpot_is_slowed_down_and_pays_a_hop_per_extra_stage() -> None:
    assert predicted_tpot(42 * ms, GroupSize(4, 1), 1 * ms) == pytest.approx(42 * ms * 3.25 + 3 * ms)
    assert predicted_tpot(42 * ms, GroupSize(1, 1), 1 * ms) == 42 * ms


@pytest.mark.parametrize(
    ("ttft_slo", "size"),
    [
        (9.0, GroupSize(1, 1)),
        (8.5, GroupSize(2, 1)),  # 8.5 s is not below 8.5 s
        (7.5, GroupSize(2, 1)),  # chatbot
        (5.0, GroupSize(3, 1)),
        (4.0, GroupSize(4, 1)),
        (3.0, GroupSize(1, 1)),  # nothing meets it: fall back to one worker
    ],
)
def test_the_smallest_group_that_meets_the_ttft_slo_with_the_fewest_full_workers(
    ttft_slo: float, size: GroupSize
) -> None:
    assert make_rule(make_deployment(ttft_slo=ttft_slo)).choose(1, None, 0.0) == size


def test_time_in_the_queue_counts_against_the_slo() -> None:
    rule = make_rule(make_deployment(ttft_slo=7.5))
    assert rule.choose(1, None, 2.0) == GroupSize(2, 1)  # 5.25 + 2 = 7.25
    assert rule.choose(1, None, 2.5) == GroupSize(3, 1)  # 7.75 is late; 4.167 + 2.5 = 6.667


@pytest.mark.parametrize(
    ("required", "size"), [(1, GroupSize(1, 1)), (2, GroupSize(2, 2)), (3, GroupSize(3, 3)), (4, GroupSize(4, 4))]
)
def test_as_many_full_workers_as_the_autoscaler_requires(required: int, size: GroupSize) -> None:
    assert make_rule(make_deployment(ttft_slo=9.0)).choose(required, None, 0.0) == size


def test_a_larger_group_than_required_has_as_many_full_workers_as_required() -> None:
    # 5 s need 3 stages; two of them are required: w starts at 2
    assert make_rule(make_deployment(ttft_slo=5.0)).choose(2, None, 0.0) == GroupSize(3, 2)


def test_with_too_few_servers_the_largest_accepted_group_serves() -> None:
    rule = make_rule(make_deployment(ttft_slo=9.0), rates_gb=(2, 2, 0, 0))
    assert rule.choose(4, None, 0.0) == GroupSize(2, 2)


def test_full_workers_are_limited_to_servers_that_hold_the_whole_model() -> None:
    # one server holds 18 GB, the others low-memory slices only: two full workers cannot be had, so nothing above one
    rule = make_rule(make_deployment(ttft_slo=9.0), free_gb=(22, 10, 10, 10))
    assert rule.choose(2, None, 0.0) == GroupSize(1, 1)
    tight = make_rule(make_deployment(ttft_slo=7.5), free_gb=(22, 10, 10, 10))
    assert tight.choose(1, None, 0.0) == GroupSize(2, 1)


def test_no_group_when_no_open_server_holds_the_whole_model() -> None:
    assert make_rule(make_deployment(), free_gb=(10, 10, 10, 10)).choose(1, None, 0.0) is None
    assert make_rule(make_deployment(), free_gb=(10, 22, 22, 22), rates_gb=(2, 0, 0, 0)).choose(1, None, 0.0) is None


def test_the_slowest_nic_that_the_group_needs_decides() -> None:
    # s = 2, w = 1: the best full-capable server has 1 GB/s, the second best low-capable 1 GB/s: 13 / 2 + 2 = 8.5;
    # s = 3: the third best has 0.5 GB/s: 13 / 1.5 + 2 = 10.67; s = 4 as well: 13 / 2 + 2 = 8.5
    rule = make_rule(make_deployment(ttft_slo=9.0), free_gb=(10, 22, 10, 10), rates_gb=(2, 1, 0.5, 0.5))
    assert rule.choose(1, None, 0.0) == GroupSize(2, 1)
    late = make_rule(make_deployment(ttft_slo=8.4), free_gb=(10, 22, 10, 10), rates_gb=(2, 1, 0.5, 0.5))
    assert late.choose(1, None, 0.0) == GroupSize(1, 1)


def test_a_full_worker_on_a_slow_nic_holds_the_group_up() -> None:
    # the only server that holds 18 GB has 1 GB/s: 13 / 2 + 2 = 8.5 s for two stages, though the low-memory servers
    # have 2 GB/s; three take 13 / 3 + 2 = 6.33 s
    rule = make_rule(make_deployment(ttft_slo=8.0), free_gb=(10, 10, 22, 10), rates_gb=(2, 2, 1, 1))
    assert rule.choose(1, None, 0.0) == GroupSize(3, 1)


def test_a_profiled_tpot_asks_for_more_full_workers() -> None:
    # 42 ms and an SLO of 84 ms: (3, 1) would take 42 x 2.333 + 2 = 100 ms, (3, 2) 42 x 1.667 + 2 = 72 ms
    rule = make_rule(make_deployment(ttft_slo=5.0, tpot_slo=84 * ms))
    assert rule.choose(1, profile(42 * ms), 0.0) == GroupSize(3, 2)
    assert rule.choose(1, None, 0.0) == GroupSize(3, 1)


def test_a_profiled_prefill_enters_the_predicted_ttft() -> None:
    # s = 2, w = 1: 3.25 + 1.5 x 0.2 + 2 = 5.55
    rule = make_rule(make_deployment(ttft_slo=5.5))
    assert rule.choose(1, profile(42 * ms, prefill=0.1), 0.0) == GroupSize(2, 1)
    assert rule.choose(1, profile(42 * ms, prefill=0.2), 0.0) == GroupSize(2, 2)  # 3.25 + 0.2 + 2 = 5.45


def test_a_model_whose_plain_tpot_misses_its_slo_gets_one_worker() -> None:
    rule = make_rule(make_deployment(ttft_slo=5.0, tpot_slo=40 * ms))
    assert rule.choose(4, profile(42 * ms), 0.0) == GroupSize(1, 1)


def test_a_profile_averages_prefill_and_tpot_and_skips_the_tpot_of_one_token() -> None:
    learned = Profile()
    for dispatched_at, times in ((1.0, [1.5, 1.6, 1.7]), (2.0, [2.3]), (3.0, [3.1, 3.4])):
        sequence = make_sequence()
        sequence.dispatched_at = dispatched_at
        sequence.token_times = times
        learned.observe(sequence)
    assert (learned.num_prefills, learned.num_tpots) == (3, 2)
    assert learned.prefill == pytest.approx((0.5 + 0.3 + 0.1) / 3)
    assert learned.tpot == pytest.approx((0.1 + 0.3) / 2)


@given(
    st.integers(1, 4),
    st.lists(st.integers(4, 22), min_size=4, max_size=4),
    st.lists(st.floats(0.1, 2), min_size=4, max_size=4),
    st.floats(3, 40),
)
@settings(max_examples=100)
def test_a_chosen_group_can_be_placed_one_worker_a_server(
    required: int, free_gb: list[int], rates_gb: list[float], ttft_slo: float
) -> None:
    rule = make_rule(make_deployment(ttft_slo=ttft_slo), tuple(free_gb), tuple(sorted(rates_gb, reverse=True)))
    size = rule.choose(required, None, 0.0)
    num_full = sum(free >= 18 for free in free_gb)
    if size is None:
        assert num_full == 0
    else:
        assert 1 <= size.full <= min(size.stages, num_full)
        assert size.stages <= sum(free >= FULL[size.stages] for free in free_gb)
