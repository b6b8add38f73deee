"""Metrics as Llumnix's authors define them (sheet, section 9), beside formulas as in ``aebench.metrics``: columns that
``summary.csv`` has more where an experiment asks for ``measure.metrics = ["llumnix"]``.

Seconds, where the originals have milliseconds. Samples are those from the first arrival to the last token.
"""

import math
import statistics
from collections.abc import Callable, Sequence

from aebench.metrics import e2e, mean_of, percentile_of, span, ttft
from aebench.resources import Observed
from serving.records import RequestRecord, SampleRecord
from serving.units import Seconds


def decode(request: RequestRecord) -> Seconds | None:
    """Mean gap between a request's tokens after the first, stalls by preemption and migration included; 0 for a request
    of one token, which TPOT leaves out. None: unfinished."""
    if request.finished_at is None or request.first_token_at is None:
        return None
    if request.num_output_tokens == 1:
        return 0.0
    return (request.finished_at - request.first_token_at) / (request.num_output_tokens - 1)


def preemption_loss(requests: Sequence[RequestRecord]) -> float:
    """Seconds between losing KV and having it again, over all preemptions / all requests. The recomputation counts as
    long as it took, where the originals add its profiled time less a decode step's."""
    return math.fsum(request.preempted_for for request in requests) / len(requests) if requests else math.nan


def decode_execution(requests: Sequence[RequestRecord]) -> float:
    """Mean over the finished requests of the durations of all steps that they were in; a log may not keep them."""
    return mean_of(lambda request: None if request.finished_at is None else request.computed_for or None)(requests)


def samples_of_run(observed: Observed) -> Sequence[SampleRecord]:
    """The samples from the first arrival to the last token."""
    begin = min((request.arrived_at for request in observed.arrived), default=math.inf)
    end = begin + span(observed.arrived)
    return [sample for sample in observed.samples if begin <= sample.at <= end]


def fragmented(sample: SampleRecord) -> float:
    """Blocks that sequences at the head of a queue would have if free ones were in one place / all blocks."""
    return sample.num_fragmented_blocks / sample.num_blocks if sample.num_blocks else 0.0


def _mean_over_samples(measure: Callable[[SampleRecord], float]) -> Callable[[Observed], float]:
    def mean(observed: Observed) -> float:
        samples = samples_of_run(observed)
        return statistics.fmean(map(measure, samples)) if samples else math.nan

    return mean


def _num_migrations(observed: Observed) -> float:
    """Migrations that brought their sequence to its target."""
    return float(sum(migration.outcome == MIGRATED for migration in observed.migrations))


def _num_aborted(observed: Observed) -> float:
    """Migrations that did not."""
    return len(observed.migrations) - _num_migrations(observed)


def _downtime_mean(observed: Observed) -> float:
    """Mean time that a migrated sequence was not computed for."""
    downtimes = [one.downtime for one in observed.migrations if one.outcome == MIGRATED]
    return statistics.fmean(downtimes) if downtimes else math.nan


def _migrating_share(observed: Observed) -> float:
    """Time that instances spent as source or target of a migration / time that instances were ready."""
    samples = samples_of_run(observed)
    if len(samples) < 2:
        return math.nan
    period = (samples[-1].at - samples[0].at) / (len(samples) - 1)
    ready = period * sum(sample.num_instances for sample in samples)
    return 2 * math.fsum(one.ended_at - one.started_at for one in observed.migrations) / ready if ready else math.nan


MIGRATED = "migrated"
"""Outcome of a migration that was not aborted."""

LLUMNIX_METRICS: dict[str, Callable[[Observed], float]] = {
    "request_p99": lambda observed: percentile_of(e2e, 99)(observed.requests),
    "request_mean": lambda observed: mean_of(e2e)(observed.requests),
    "prefill_p99": lambda observed: percentile_of(ttft, 99)(observed.requests),
    "prefill_mean": lambda observed: mean_of(ttft)(observed.requests),
    "decode_p99": lambda observed: percentile_of(decode, 99)(observed.requests),
    "decode_mean": lambda observed: mean_of(decode)(observed.requests),
    "preemption_loss": lambda observed: preemption_loss(observed.requests),
    "decode_execution": lambda observed: decode_execution(observed.requests),
    "avg_instances": _mean_over_samples(lambda sample: sample.num_instances),
    "fragmentation": _mean_over_samples(fragmented),
    "num_migrations": _num_migrations,
    "num_aborted": _num_aborted,
    "downtime_mean": _downtime_mean,
    "migrating_share": _migrating_share,
}
"""The metrics by name, in the order of ``summary.csv``. Request, prefill and decode latencies are E2E, TTFT and
``decode``; those of instances are of the whole point, also where its requests are told apart."""
