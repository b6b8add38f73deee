"""Resources: metrics of a point's instances and their memory, beside those of its requests; definitions stand beside
formulas, as in ``aebench.metrics``.

They are the columns that ``summary.csv`` has more where an experiment has a breakdown. What nothing happened for is NaN
where it is a mean or a maximum, and 0 where it is a count or a sum.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aebench.metrics import attainment, mean_of
from serving.policies import configured
from serving.records import (
    DecisionRecord,
    MigrationRecord,
    PauseRecord,
    Record,
    RequestRecord,
    SampleRecord,
    StageRecord,
    WorkerRecord,
)
from serving.units import GB, Seconds

WANTED: tuple[type[Record], ...] = (RequestRecord, WorkerRecord, DecisionRecord, PauseRecord, StageRecord)
OF_INSTANCES: tuple[type[Record], ...] = (RequestRecord, MigrationRecord, SampleRecord)
"""What is read where nobody asks for workers."""
ONLY = {"action": ("launch", "refuse"), "stage": ("consolidation",)}
"""Of decisions and stages, those that count here; the others are most of a log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a point left that is measured."""

    requests: Sequence[RequestRecord]
    workers: Sequence[WorkerRecord]
    launches: Sequence[DecisionRecord]
    refusals: Sequence[DecisionRecord]
    consolidations: Sequence[StageRecord]
    pauses: Sequence[PauseRecord]
    grace: Seconds
    """The system's grace period: how long an instance stays after its last request."""
    arrived: Sequence[RequestRecord] = ()
    """All requests of the point, where ``requests`` are a part."""
    samples: Sequence[SampleRecord] = ()
    migrations: Sequence[MigrationRecord] = ()


def grace_period(spec: Mapping[str, Any]) -> Seconds:
    """The grace period of the point's system; 0 for one that keeps its instances."""
    return float(getattr(configured(spec["system"], spec["policy"]).config, "grace_period", 0.0))


def queued(request: RequestRecord) -> Seconds | None:
    """Queueing = dispatch − arrival; None: no instance got it."""
    return None if request.dispatched_at is None else request.dispatched_at - request.arrived_at


def billed(worker: WorkerRecord, grace: Seconds) -> float:
    """GB·s = planned memory · (end − start). Where the run ended first, the end is when the instance last held a
    request (or was ready, or began to start) + the grace period (sheet, section 6). Else it is when the memory was free
    again: the reaper's turn after the grace period, up to a second later than the artifact reckons, for any system."""
    end = worker.ended_at
    if end is None:
        known = (worker.last_busy_at, worker.ready_at, worker.started_at)
        end = next(at for at in known if at is not None) + grace
    return worker.memory / GB * (end - worker.started_at)


def gpu_memory_time(workers: Sequence[WorkerRecord], requests: Sequence[RequestRecord], grace: Seconds) -> float:
    """GB·s of all workers / requests that arrived."""
    return math.fsum(billed(worker, grace) for worker in workers) / len(requests) if requests else math.nan


def _pause_mean(observed: Observed) -> float:
    """Mean of resumption − pause over the pauses of running requests."""
    pauses = [pause.resumed_at - pause.paused_at for pause in observed.pauses]
    return statistics.fmean(pauses) if pauses else math.nan


def _pause_max(observed: Observed) -> float:
    """The longest pause."""
    return max((pause.resumed_at - pause.paused_at for pause in observed.pauses), default=math.nan)


def _consolidation_time(observed: Observed) -> float:
    """Sum of end − start over the consolidations that came to an end."""
    return math.fsum(stage.ended_at - stage.started_at for stage in observed.consolidations)


def _num_cache_hits(observed: Observed) -> float:
    """Launches whose weights were all in host memory when they were decided on."""
    return float(sum(launch.from_cache is True for launch in observed.launches))


RESOURCE_METRICS: dict[str, Callable[[Observed], float]] = {
    "ttft_slo_attainment": lambda observed: attainment(("ttft",))(observed.requests),
    "tpot_slo_attainment": lambda observed: attainment(("tpot",))(observed.requests),
    "num_cold_starts": lambda observed: float(len(observed.launches)),
    "num_cache_hits": _num_cache_hits,
    "queue_mean": lambda observed: mean_of(queued)(observed.requests),
    "gpu_memory_time": lambda observed: gpu_memory_time(observed.workers, observed.requests, observed.grace),
    "num_consolidations": lambda observed: float(len(observed.consolidations)),
    "consolidation_time": _consolidation_time,
    "pause_mean": _pause_mean,
    "pause_max": _pause_max,
    "num_refused": lambda observed: float(len(observed.refusals)),
}
"""The metrics by name, in the order of ``summary.csv``. Cold starts are launches, those from the cache included;
refusals are requests that were given up."""
