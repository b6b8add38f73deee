"""Stages: where the time of a run's cold starts went, stage by stage, averaged over the workers of each cell."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from aebench.claim_syntax import key_text
from aebench.errors import LogError
from aebench.figure import value_text
from aebench.log_format import read_parquet, read_parquet_header
from aebench.logs import RunLog
from aebench.report import columns
from serving.records import CONSOLIDATION_STAGES, RequestRecord, StageRecord
from serving.units import Seconds

FIRST_TOKEN = "first token"
"""The row of what follows the last stage: dispatch and prefill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage of the cold starts of one cell of the grid; means over workers, or the extremes where it says so."""

    cell: tuple[str, ...]
    """Grid values as text, in grid order."""
    stage: str
    start: Seconds
    """Since the arrival of the request for which the instance was started."""
    duration: Seconds
    shortest: Seconds
    longest: Seconds
    num_samples: int
    """Workers that were started, over all seeds."""


@dataclass(frozen=True, slots=True)
class _Sample:
    stage: str
    start: Seconds
    duration: Seconds


def stage_rows(log: RunLog, labels: Sequence[str] | None) -> list[StageRow]:
    """The stages of every cell of a run, in grid order and in order of start; of the cold starts for requests with one
    of the labels (None: any), in which ``first token`` comes last."""
    samples: dict[tuple[str, ...], list[_Sample]] = {}
    for path in sorted(log.points_folder.glob("*.parquet")):
        keys: Mapping[str, object] = read_parquet_header(path).keys
        cell = tuple(key_text(keys[key]) for key in log.manifest.grid_keys)
        samples.setdefault(cell, []).extend(_samples(path, labels))
    if not any(samples.values()):
        raise LogError(f"{log.folder}: no cold start in its points. Run again with --resume")
    grid = log.manifest.spec["grid"]
    ranks = [{key_text(value): rank for rank, value in enumerate(grid[key])} for key in log.manifest.grid_keys]
    order = sorted(samples, key=lambda cell: [rank.get(value, 0) for rank, value in zip(ranks, cell, strict=True)])
    return [row for cell in order for row in _rows(cell, samples[cell])]


def stage_table(rows: Sequence[StageRow], grid_keys: Sequence[str]) -> str:
    """The rows in columns; a cell is named once."""
    lines = [[*grid_keys, "stage", "start", "mean", "shortest", "longest", "workers"]]
    last: tuple[str, ...] = ()
    for row in rows:
        names = row.cell if row.cell != last else ("",) * len(row.cell)
        last = row.cell
        times = (row.start, row.duration, row.shortest, row.longest)
        lines.append([*names, row.stage, *(value_text(time, "s") for time in times), str(row.num_samples)])
    return columns(lines, len(grid_keys) + 1, 5)


def _samples(path: Path, labels: Sequence[str] | None) -> Iterator[_Sample]:
    records = read_parquet(path, (RequestRecord, StageRecord))
    first: dict[int, RequestRecord] = {}
    for request in records:
        if isinstance(request, RequestRecord) and request.instance is not None:
            known = first.get(request.instance)
            if known is None or request.arrived_at < known.arrived_at:
                first[request.instance] = request
    asked = {instance: request for instance, request in first.items() if labels is None or request.label in labels}
    ends: dict[int, Seconds] = {}
    for stage in records:
        if isinstance(stage, StageRecord) and stage.stage not in CONSOLIDATION_STAGES and stage.instance in asked:
            arrived_at = asked[stage.instance].arrived_at
            yield _Sample(stage.stage, stage.started_at - arrived_at, stage.ended_at - stage.started_at)
            ends[stage.instance] = max(stage.ended_at, ends.get(stage.instance, 0.0))
    for instance, ended_at in ends.items():
        request = asked[instance]
        if request.first_token_at is not None:
            yield _Sample(FIRST_TOKEN, ended_at - request.arrived_at, request.first_token_at - ended_at)


def _rows(cell: tuple[str, ...], samples: Sequence[_Sample]) -> list[StageRow]:
    rows = []
    for stage in dict.fromkeys(sample.stage for sample in samples):
        starts = [sample.start for sample in samples if sample.stage == stage]
        durations = [sample.duration for sample in samples if sample.stage == stage]
        rows.append(
            StageRow(
                cell=cell,
                stage=stage,
                start=fmean(starts),
                duration=fmean(durations),
                shortest=min(durations),
                longest=max(durations),
                num_samples=len(durations),
            )
        )
    return sorted(rows, key=lambda row: (row.stage == FIRST_TOKEN, row.start, row.start + row.duration))
