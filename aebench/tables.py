"""Tables: what is made of a run's records: ``summary.csv`` with a row a point, and where an experiment breaks that
down, tables with a row an application and a row a model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from aebench.breakdown import APPLICATION_METRICS, MODEL_METRICS, Row, application_rows, model_rows
from aebench.llumnix_metrics import LLUMNIX_METRICS
from aebench.log_format import NO_MATTER, Only
from aebench.logs import PRIORITIES, SUMMARY
from aebench.metrics import METRICS, measured, summarise
from aebench.migration_metrics import MIGRATION_METRICS
from aebench.over_time import TIME_METRICS, time_rows
from aebench.point import Point
from aebench.resources import OF_INSTANCES, ONLY, RESOURCE_METRICS, WANTED, Observed, grace_period
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

if TYPE_CHECKING:  # pandas takes 0.4 s to import, and only the tables need it
    import pandas as pd


class PointLog(Protocol):
    """What tables are made of: the sealed points of a run."""

    def is_sealed(self, point: Point) -> bool:
        """Whether the point's records are complete and made from its spec."""

    def records(self, point: Point, wanted: Sequence[type[Record]], only: Only = NO_MATTER) -> list[Record]:
        """The point's records of some types, ``only`` those with certain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A kind of table."""

    keys: tuple[str, ...]
    """Columns between the seed and the metrics that tell the rows of a point apart."""
    metrics: tuple[str, ...]
    """The other columns."""
    rows: Callable[[Observed, Mapping[str, Any]], Iterator[Row]]


BREAKDOWNS = {
    "application": Table(keys=("application",), metrics=tuple(APPLICATION_METRICS), rows=application_rows),
    "model": Table(keys=("application", "model"), metrics=tuple(MODEL_METRICS), rows=model_rows),
}
"""Tables beside the summary, by what ``measure.breakdown`` calls them."""


OWN_METRICS: dict[str, Mapping[str, Callable[[Observed], float]]] = {
    "llumnix": LLUMNIX_METRICS,
    "migration": MIGRATION_METRICS,
}
"""Columns behind those of any summary, by what ``measure.metrics`` calls them."""


def tables_of(measure: Mapping[str, Any]) -> dict[str, Table]:
    """The tables that a run has by the names of their files, by the ``[measure]`` of its experiment."""
    breakdown, by = measure.get("breakdown", ()), measure.get("by")
    more = (
        *(RESOURCE_METRICS if breakdown else ()),
        *dict.fromkeys(name for kind in measure.get("metrics", ()) for name in OWN_METRICS[kind]),
    )
    summary = Table(keys=(by,) if by else (), metrics=(*METRICS, *more), rows=_summary_rows)
    tables = {SUMMARY: summary, **{f"by_{part}": BREAKDOWNS[part] for part in breakdown}}
    if measure.get("sample_period") is not None:
        tables["by_time"] = Table(keys=("time",), metrics=TIME_METRICS, rows=time_rows)
    return tables


def table_frames(log: PointLog, points: Sequence[Point]) -> "dict[str, pd.DataFrame]":
    """Every table of the sealed points, in grid order: the grid keys, the seed, the table's keys, its metrics."""
    import pandas as pd

    tables = tables_of(points[0].spec.get("measure", {}) if points else {})
    rows: dict[str, list[Row]] = {name: [] for name in tables}
    for point in points:
        if log.is_sealed(point):
            seen = observed(log, point)
            for name, table in tables.items():
                rows[name] += [{**point.keys, "seed": point.seed, **row} for row in table.rows(seen, point.spec)]
    frames = {}
    for name, found in rows.items():
        table = tables[name]
        keys = points[0].keys if points else ()
        frame = pd.DataFrame(found, columns=[*keys, "seed", *table.keys, *table.metrics])
        counts = [metric for metric in table.metrics if metric.startswith("num_")]
        frames[name] = frame.astype(dict.fromkeys(counts, "int64"))
    return frames


def observed(log: PointLog, point: Point) -> Observed:
    """All that is measured of a point; of one whose experiment asks for no more, the requests alone are read."""
    measure = point.spec.get("measure", {})
    if measure.get("breakdown"):
        records = log.records(point, (*WANTED, MigrationRecord, SampleRecord), ONLY)
    elif measure.get("metrics") or measure.get("sample_period") is not None:
        records = log.records(point, OF_INSTANCES)
    else:
        records = log.records(point, (RequestRecord,))
    decisions = [record for record in records if isinstance(record, DecisionRecord)]
    requests = measured([record for record in records if isinstance(record, RequestRecord)], point.spec)
    return Observed(
        requests=requests,
        workers=[record for record in records if isinstance(record, WorkerRecord)],
        launches=[decision for decision in decisions if decision.action == "launch"],
        refusals=[decision for decision in decisions if decision.action == "refuse"],
        consolidations=[record for record in records if isinstance(record, StageRecord)],
        pauses=[record for record in records if isinstance(record, PauseRecord)],
        grace=grace_period(point.spec) if measure.get("breakdown") else 0.0,
        arrived=requests,
        samples=[record for record in records if isinstance(record, SampleRecord)],
        migrations=[record for record in records if isinstance(record, MigrationRecord)],
    )


def _summary_rows(seen: Observed, spec: Mapping[str, Any]) -> Iterator[Row]:
    if spec.get("measure", {}).get("by") != "priority":
        yield _summary_row(seen, spec)
        return
    for name in PRIORITIES:
        requests = [request for request in seen.requests if (request.priority > 0) == (name == "high")]
        yield {"priority": name, **_summary_row(replace(seen, requests=requests), spec)}


def _summary_row(seen: Observed, spec: Mapping[str, Any]) -> Row:
    row: Row = dict(summarise(seen.requests, spec))
    if spec.get("measure", {}).get("breakdown"):
        row |= {name: metric(seen) for name, metric in RESOURCE_METRICS.items()}
    for kind in spec.get("measure", {}).get("metrics", ()):
        row |= {name: metric(seen) for name, metric in OWN_METRICS[kind].items()}
    return row
