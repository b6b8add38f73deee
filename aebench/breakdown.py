"""Breakdown: the metrics of a point application by application and model by model, as ``by_application.csv`` and
``by_model.csv`` have them; definitions stand beside formulas, as in ``aebench.metrics``.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aebench.deployed_models import tables_by_model
from aebench.metrics import BOTH, attainment, mean_of, percentile_of, tpot, ttft
from aebench.resources import Observed, gpu_memory_time
from serving.records import RequestRecord, WorkerRecord

Metric = Callable[[Observed, Sequence[str]], float]
"""Of what was observed of a part, and the SLOs that count."""
Row = dict[str, str | float]


def tpot_of_tokens(requests: Sequence[RequestRecord]) -> float:
    """Sum of TPOT · (tokens − 1) / sum of (tokens − 1), over the requests that have a TPOT (sheet, section 6)."""
    weighted = [(tpot(request), request.num_output_tokens - 1) for request in requests]
    known = [(value, weight) for value, weight in weighted if value is not None]
    return (
        math.fsum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else math.nan
    )


def _memory_time(observed: Observed, _: Sequence[str]) -> float:
    return gpu_memory_time(observed.workers, observed.requests, observed.grace)


def _of_requests(metric: Callable[[Sequence[RequestRecord]], float]) -> Metric:
    return lambda observed, _: metric(observed.requests)


def _attained(observed: Observed, counted: Sequence[str]) -> float:
    return attainment(counted)(observed.requests)


APPLICATION_METRICS: dict[str, Metric] = {
    "num_requests": lambda observed, _: float(len(observed.requests)),
    "slo_attainment": _attained,
    "ttft_slo_attainment": _of_requests(attainment(("ttft",))),
    "tpot_slo_attainment": _of_requests(attainment(("tpot",))),
    "ttft_mean": _of_requests(mean_of(ttft)),
    "ttft_p50": _of_requests(percentile_of(ttft, 50)),
    "ttft_p99": _of_requests(percentile_of(ttft, 99)),
    "tpot_mean": _of_requests(mean_of(tpot)),
    "gpu_memory_time": _memory_time,
}
"""Columns of ``by_application.csv`` behind its keys."""

MODEL_METRICS: dict[str, Metric] = {
    "num_requests": lambda observed, _: float(len(observed.requests)),
    "tpot": _of_requests(tpot_of_tokens),
    "ttft_mean": _of_requests(mean_of(ttft)),
    "slo_attainment": _attained,
    "gpu_memory_time": _memory_time,
}
"""Columns of ``by_model.csv`` behind its keys."""


def application_rows(observed: Observed, spec: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each application that was asked anything, in the order of the deployments."""
    tables = tables_by_model(spec["deployments"])
    application_of = {model: table["application"] for model, table in tables.items()}
    parts = _parts(observed, application_of)
    for application in dict.fromkeys(application_of.values()):
        if application in parts:
            yield _row({"application": application}, parts[application], APPLICATION_METRICS, spec)


def model_rows(observed: Observed, spec: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each deployed model that was asked anything, in the order of the deployments."""
    tables = tables_by_model(spec["deployments"])
    parts = _parts(observed, {model: model for model in tables})
    for model, table in tables.items():
        if model in parts:
            yield _row({"application": table["application"], "model": model}, parts[model], MODEL_METRICS, spec)


def _parts(observed: Observed, part_of: Mapping[str, str]) -> dict[str, Observed]:
    """What was observed of each part that a deployed model belongs to, if anybody asked it anything."""
    requests: dict[str, list[RequestRecord]] = {}
    workers: dict[str, list[WorkerRecord]] = {}
    for request in observed.requests:
        requests.setdefault(part_of[request.model], []).append(request)
    for worker in observed.workers:
        workers.setdefault(part_of[worker.model], []).append(worker)
    return {part: replace(observed, requests=its, workers=workers.get(part, [])) for part, its in requests.items()}


def _row(keys: Row, observed: Observed, metrics: Mapping[str, Metric], spec: Mapping[str, Any]) -> Row:
    counted = spec.get("measure", {}).get("slo", BOTH)
    return keys | {name: metric(observed, counted) for name, metric in metrics.items()}
