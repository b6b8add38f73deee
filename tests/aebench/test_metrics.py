"""Metrics: each definition on requests whose numbers are worked out by hand, and the laws between them."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aebench import metrics
from aebench.metrics import METRICS, measured
from serving.records import RequestRecord
from tests.aebench.fake_execute import make_request


def summarise(requests: list[RequestRecord], spec: dict[str, Any]) -> dict[str, float]:
    """The metrics over those of the requests that count."""
    return metrics.summarise(measured(requests, spec), spec)


def make_with_ttft(*ttfts: float) -> list[RequestRecord]:
    return [make_request(number, first_token_at=ttft) for number, ttft in enumerate(ttfts)]


def make_unfinished(request_id: int = 9, **changes: object) -> RequestRecord:
    fields: dict[str, object] = {
        "dispatched_at": None,
        "first_token_at": None,
        "finished_at": None,
        "num_output_tokens": 0,
        "token_gaps": (),
    }
    return make_request(request_id, **{**fields, **changes})


def test_one_request_has_the_metrics_of_its_life() -> None:
    values = summarise([make_request(ttft_slo=1.0, tpot_slo=0.5)], {})
    assert values == {
        "num_requests": 1,
        "num_finished": 1,
        "ttft_mean": 1.0,
        "ttft_p50": 1.0,
        "ttft_p99": 1.0,
        "tpot_mean": 0.5,
        "tpot_p50": 0.5,
        "tpot_p99": 0.5,
        "itl_p99": pytest.approx(0.598),
        "e2e_mean": 2.0,
        "e2e_p50": 2.0,
        "e2e_p99": 2.0,
        "slo_attainment": 1.0,
        "goodput": 0.5,
        "token_throughput": 1.5,
    }
    assert list(values) == list(METRICS)


def test_percentiles_interpolate_linearly() -> None:
    values = summarise(make_with_ttft(1.0, 2.0, 3.0, 4.0), {})
    assert values["ttft_p50"] == 2.5
    assert values["ttft_p99"] == pytest.approx(3.97)


def test_no_request_leaves_every_metric_but_the_counts_empty() -> None:
    values = summarise([], {})
    assert (values.pop("num_requests"), values.pop("num_finished")) == (0, 0)
    assert all(math.isnan(value) for value in values.values())


def test_a_request_of_one_token_has_no_tpot_and_cannot_miss_it() -> None:
    request = make_request(num_output_tokens=1, finished_at=1.0, token_gaps=(), tpot_slo=0.01)
    values = summarise([request], {})
    assert math.isnan(values["tpot_mean"])
    assert values["slo_attainment"] == 1.0


def test_an_unfinished_request_counts_as_arrived_and_as_missed() -> None:
    values = summarise([make_request(ttft_slo=2.0), make_unfinished(ttft_slo=2.0)], {})
    assert (values["num_requests"], values["num_finished"]) == (2, 1)
    assert values["slo_attainment"] == 0.5
    assert values["ttft_mean"] == 1.0


def test_an_answer_that_began_in_time_but_never_ended_is_missed() -> None:
    assert not metrics.met_slo(make_request(finished_at=None, ttft_slo=5.0))


@pytest.mark.parametrize(("ttft_slo", "tpot_slo", "met"), [(1.0, 0.5, 1), (0.9, 0.5, 0), (1.0, 0.4, 0)])
def test_both_slos_have_to_be_met_where_both_are_set(ttft_slo: float, tpot_slo: float, met: int) -> None:
    assert summarise([make_request(ttft_slo=ttft_slo, tpot_slo=tpot_slo)], {})["slo_attainment"] == met


def test_without_any_slo_attainment_and_goodput_are_empty() -> None:
    values = summarise([make_request()], {})
    assert math.isnan(values["slo_attainment"])
    assert math.isnan(values["goodput"])


def test_requests_without_an_slo_do_not_dilute_attainment() -> None:
    assert summarise([make_request(0), make_request(1, ttft_slo=0.5)], {})["slo_attainment"] == 0.0


def test_goodput_is_per_second_from_first_arrival_to_last_token() -> None:
    requests = [
        make_request(0, arrived_at=10.0, first_token_at=11.0, finished_at=12.0, ttft_slo=2.0),
        make_request(1, arrived_at=12.0, first_token_at=17.0, finished_at=18.0, ttft_slo=2.0),
    ]
    assert summarise(requests, {})["goodput"] == 1 / 8


def test_tokens_of_an_unfinished_answer_count_and_stretch_the_span() -> None:
    request = make_request(finished_at=None, num_output_tokens=3, token_gaps=(1.0, 2.0))
    assert summarise([request], {})["token_throughput"] == 3 / 4


def test_only_requests_with_a_measured_label_count() -> None:
    requests = [make_request(0), make_request(1, label="warmup", first_token_at=1.9)]
    assert summarise(requests, {"measure": {"labels": ["measured"]}})["ttft_mean"] == 1.0
    assert summarise(requests, {})["num_requests"] == 2


def test_of_three_cold_requests_the_slowest_is_dropped_from_every_metric() -> None:
    values = summarise(make_with_ttft(1.0, 1.8, 1.2), {"measure": {"drop_largest": 1}})
    assert values["ttft_mean"] == pytest.approx(1.1)
    assert values["num_requests"] == 2


def test_dropping_the_largest_never_hides_a_request_without_an_answer() -> None:
    kept = measured([make_unfinished(), *make_with_ttft(1.0, 1.5)], {"measure": {"drop_largest": 1}})
    assert [request.request_id for request in kept] == [9, 0]


@given(
    st.lists(
        st.builds(
            lambda arrived, first, gap, slo: make_request(
                arrived_at=arrived,
                first_token_at=arrived + first,
                finished_at=arrived + first + 2 * gap,
                token_gaps=(gap, gap),
                ttft_slo=slo,
            ),
            *[st.floats(0, 1e4)] * 3,
            st.none() | st.floats(0, 1e4),
        ),
        min_size=1,
    ),
    st.randoms(),
)
def test_metrics_keep_their_order_and_do_not_depend_on_the_order_of_records(
    requests: list[RequestRecord], random: object
) -> None:
    values = summarise(requests, {})
    assert values["ttft_p50"] <= values["ttft_p99"]
    assert values["ttft_mean"] <= values["e2e_mean"]
    assert math.isnan(values["slo_attainment"]) or 0 <= values["slo_attainment"] <= 1
    shuffled = list(requests)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' random.Random
    assert str(summarise(shuffled, {})) == str(values)
