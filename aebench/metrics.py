"""Metrics: records -> TTFT, TPOT, goodput...; pure, each definition beside its formula.

A metric that no request has a value for is NaN, an empty cell in ``summary.csv``. Percentiles interpolate
linearly between the two nearest values; means are exactly rounded, so the order of records changes nothing.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from serving.records import RequestRecord
from serving.units import Seconds

Requests = Sequence[RequestRecord]


def ttft(request: RequestRecord) -> Seconds | None:
    """TTFT = first token − arrival; None: no token came."""
    if request.first_token_at is None:
        return None
    return request.first_token_at - request.arrived_at


def tpot(request: RequestRecord) -> Seconds | None:
    """TPOT = (last token − first token) / (output tokens − 1); None: unfinished, or one token."""
    if request.finished_at is None or request.first_token_at is None or request.num_output_tokens < 2:
        return None
    return (request.finished_at - request.first_token_at) / (request.num_output_tokens - 1)


def e2e(request: RequestRecord) -> Seconds | None:
    """E2E = last token − arrival; None: unfinished."""
    return None if request.finished_at is None else request.finished_at - request.arrived_at


BOTH = ("ttft", "tpot")
"""The SLOs that count where nothing else is said."""


def has_slo(request: RequestRecord, counted: Sequence[str] = BOTH) -> bool:
    """Whether the request asked for one of the SLOs that count."""
    asks_ttft, asks_tpot = request.ttft_slo is not None, request.tpot_slo is not None
    return ("ttft" in counted and asks_ttft) or ("tpot" in counted and asks_tpot)


def met_slo(request: RequestRecord, counted: Sequence[str] = BOTH) -> bool:
    """TTFT <= its SLO and TPOT <= its SLO, where they count and are set (one token has no TPOT to miss). The request
    has its first token, and its last one where the TPOT counts."""
    if request.first_token_at is None or ("tpot" in counted and request.finished_at is None):
        return False
    is_late = "ttft" in counted and _exceeds(ttft(request), request.ttft_slo)
    is_slow = "tpot" in counted and _exceeds(tpot(request), request.tpot_slo)
    return not (is_late or is_slow)


def _exceeds(value: Seconds | None, slo: Seconds | None) -> bool:
    return value is not None and slo is not None and value > slo


def span(requests: Requests) -> Seconds:
    """Run span = last thing that happened to a request − first arrival. Of an unfinished request whose token gaps are
    not kept that is its first token."""
    if not requests:
        return 0.0
    return max(map(_last_seen, requests)) - min(request.arrived_at for request in requests)


def _last_seen(request: RequestRecord) -> Seconds:
    if request.finished_at is not None:
        return request.finished_at
    if request.first_token_at is not None:
        return request.first_token_at + math.fsum(request.token_gaps)
    return request.arrived_at


def attainment(counted: Sequence[str]) -> Callable[[Requests], float]:
    """The metric: requests that met the SLOs that count / arrived requests that had one; unfinished ones count as
    missed."""

    def slo_attainment(requests: Requests) -> float:
        asked = [request for request in requests if has_slo(request, counted)]
        return sum(met_slo(request, counted) for request in asked) / len(asked) if asked else math.nan

    return slo_attainment


def goodput_of(counted: Sequence[str]) -> Callable[[Requests], float]:
    """The metric: requests that met the SLOs that count / run span; NaN when none had one."""

    def goodput(requests: Requests) -> float:
        asked = [request for request in requests if has_slo(request, counted)]
        return _per_second(sum(met_slo(request, counted) for request in asked), requests) if asked else math.nan

    return goodput


def token_throughput(requests: Requests) -> float:
    """Output tokens, those of unfinished requests included / run span."""
    return _per_second(sum(request.num_output_tokens for request in requests), requests)


def num_requests(requests: Requests) -> float:
    """Requests that arrived."""
    return float(len(requests))


def num_finished(requests: Requests) -> float:
    """Requests whose last token came."""
    return float(sum(request.finished_at is not None for request in requests))


def itl_p99(requests: Requests) -> float:
    """99th percentile of the gaps between two tokens, over all gaps of all requests."""
    gaps = itertools.chain.from_iterable(request.token_gaps for request in requests)
    return _percentile(gaps, 99)


def _per_second(count: float, requests: Requests) -> float:
    seconds = span(requests)
    return count / seconds if seconds > 0 else math.nan


def _percentile(values: Iterable[Seconds], percent: int) -> float:
    array = np.fromiter(values, dtype=np.float64)
    return float(np.percentile(array, percent)) if array.size else math.nan


def _known(measure: Callable[[RequestRecord], Seconds | None], requests: Requests) -> list[Seconds]:
    return [value for value in map(measure, requests) if value is not None]


def mean_of(measure: Callable[[RequestRecord], Seconds | None]) -> Callable[[Requests], float]:
    """The metric: mean of a measure over the requests that have it."""

    def mean(requests: Requests) -> float:
        values = _known(measure, requests)
        return statistics.fmean(values) if values else math.nan

    return mean


def percentile_of(measure: Callable[[RequestRecord], Seconds | None], percent: int) -> Callable[[Requests], float]:
    """The metric: a percentile of a measure over the requests that have it."""
    return lambda requests: _percentile(_known(measure, requests), percent)


METRICS: dict[str, Callable[[Requests], float]] = {
    "num_requests": num_requests,
    "num_finished": num_finished,
    "ttft_mean": mean_of(ttft),
    "ttft_p50": percentile_of(ttft, 50),
    "ttft_p99": percentile_of(ttft, 99),
    "tpot_mean": mean_of(tpot),
    "tpot_p50": percentile_of(tpot, 50),
    "tpot_p99": percentile_of(tpot, 99),
    "itl_p99": itl_p99,
    "e2e_mean": mean_of(e2e),
    "e2e_p50": percentile_of(e2e, 50),
    "e2e_p99": percentile_of(e2e, 99),
    "slo_attainment": attainment(BOTH),
    "goodput": goodput_of(BOTH),
    "token_throughput": token_throughput,
}
"""The metrics by name, in the order of ``summary.csv``; a paper's own are appended. Counts are ``num_*``."""


def measured(records: Requests, spec: Mapping[str, Any]) -> list[RequestRecord]:
    """The requests that count: those with a label of ``measure.labels`` (all, when not given), without the
    ``measure.drop_largest`` largest TTFTs. A request without a first token has no TTFT and always counts.
    """
    measure = spec.get("measure", {})
    labels = measure.get("labels")
    chosen = [record for record in records if labels is None or record.label in labels]
    number = measure.get("drop_largest", 0)
    if not number:
        return chosen
    answered = [index for index, record in enumerate(chosen) if record.first_token_at is not None]
    slowest = sorted(answered, key=lambda index: ttft(chosen[index]) or 0.0)
    kept = sorted({*range(len(chosen))} - {*slowest[-number:]})
    return [chosen[index] for index in kept]


def metrics_of(measure: Mapping[str, Any]) -> dict[str, Callable[[Requests], float]]:
    """``METRICS`` by the ``[measure]`` of a spec, which may say that one SLO only counts."""
    counted = measure.get("slo", BOTH)
    return METRICS | {"slo_attainment": attainment(counted), "goodput": goodput_of(counted)}


def summarise(requests: Requests, spec: Mapping[str, Any]) -> dict[str, float]:
    """Every metric of ``METRICS`` over requests that count, as the point's spec has them."""
    return {name: metric(requests) for name, metric in metrics_of(spec.get("measure", {})).items()}
