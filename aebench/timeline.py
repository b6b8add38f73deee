"""Timeline: what every worker process of a point did and when, by GPU; made from records, drawn by
``aebench.plotting.timeline``."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from serving.records import DecisionRecord, Record, RequestRecord, StageRecord, WorkerRecord
from serving.units import Seconds

Interval = tuple[Seconds, Seconds]
Placed = tuple[int, int]
"""Instance and rank of a worker."""


class Phase(Enum):
    """What a worker does; a stretch of fetching or loading lies over whatever else it does meanwhile."""

    STARTING = "starting"
    """Container, libraries, device context, engine."""
    FETCHING = "fetching"
    LOADING = "loading"
    IDLE = "ready, idle"
    BUSY = "serving"
    CONSOLIDATING = "consolidating"
    """From a pipeline's worker to one that has the whole model."""
    MIGRATING = "moving KV"


STAGE_PHASES = {
    "fetch": Phase.FETCHING,
    "background fetch": Phase.FETCHING,
    "load": Phase.LOADING,
    "background load": Phase.LOADING,
    "consolidation": Phase.CONSOLIDATING,
    "kv migration": Phase.MIGRATING,
}
"""Stages that are shown as such; all others are parts of a start or of a consolidation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One phase of a worker, from when to when."""

    phase: Phase
    start: Seconds
    end: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBar:
    """One worker process, from its start to its end."""

    instance: int
    rank: int
    model: str
    server: str
    gpu: str
    start: Seconds
    end: Seconds
    stretches: Sequence[Stretch]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One GPU's workers in lanes: no two workers of a lane are there at once."""

    server: str
    gpu: str
    """Its name on its server; empty where the log does not say which GPU it was."""
    lanes: Sequence[Sequence[WorkerBar]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A point's workers, and when its requests waited and were served."""

    bars: Sequence[WorkerBar]
    requests: Sequence[RequestRecord]
    end: Seconds
    """The last instant that anything is recorded of."""

    def rows(self, window: Interval) -> list[GpuRow]:
        """A row for every GPU that ever held a worker, by server, with the workers of the window."""
        places: dict[tuple[str, str], list[WorkerBar]] = {}
        for bar in self.bars:
            inside = places.setdefault((bar.server, bar.gpu), [])
            if bar.end > window[0] and bar.start < window[1]:
                inside.append(bar)
        return [
            GpuRow(server=server, gpu=gpu.removeprefix(f"{server}/"), lanes=_lanes(places[server, gpu]))
            for server, gpu in sorted(places, key=lambda place: (_natural(place[0]), _natural(place[1])))
        ]

    def busiest(self, length: Seconds) -> Interval:
        """The window of that length in which most requests arrive, from a whole second on; all of a shorter run."""
        if self.end <= length:
            return 0.0, self.end
        arrivals = sorted(request.arrived_at for request in self.requests)
        counts = [bisect_left(arrivals, start + length) - index for index, start in enumerate(arrivals)]
        first = arrivals[counts.index(max(counts))] if arrivals else 0.0
        start = float(int(min(first, self.end - length)))
        return start, start + length


def timeline(records: Sequence[Record]) -> Timeline:
    """The timeline of a point; without worker records, as in logs from before there were any, launches and retirements
    say when a worker was there."""
    requests = [record for record in records if isinstance(record, RequestRecord)]
    decisions = [record for record in records if isinstance(record, DecisionRecord)]
    stages = _stages(records)
    end = max(_instants(records), default=0.0)
    workers = [record for record in records if isinstance(record, WorkerRecord)] or _launched(decisions, stages)
    busy = _busy(requests, decisions, end)
    bars = [
        _bar(worker, stages.get((worker.instance, worker.rank), []), busy.get(worker.instance, []), end)
        for worker in workers
    ]
    return Timeline(bars=sorted(bars, key=lambda bar: (bar.start, bar.instance, bar.rank)), requests=requests, end=end)


def _stages(records: Iterable[Record]) -> dict[Placed, list[StageRecord]]:
    found: dict[Placed, list[StageRecord]] = {}
    for record in records:
        if isinstance(record, StageRecord):
            found.setdefault((record.instance, record.rank), []).append(record)
    return found


def _instants(records: Iterable[Record]) -> Iterator[Seconds]:
    for record in records:
        for name in ("at", "arrived_at", "first_token_at", "finished_at", "started_at", "ready_at", "ended_at"):
            instant = getattr(record, name, None)
            if instant is not None:
                yield instant


def _launched(decisions: Sequence[DecisionRecord], stages: dict[Placed, list[StageRecord]]) -> list[WorkerRecord]:
    """Workers as launches and retirements tell them; ready with the last stage of their instance."""
    gone = {record.instance: record.at for record in decisions if record.action in ("retire", "lose")}
    ready: dict[int, Seconds] = {}
    for (instance, _), own in stages.items():
        ready[instance] = max(ready.get(instance, 0.0), *(stage.ended_at for stage in own))
    return [
        WorkerRecord(
            instance=record.instance,
            rank=rank,
            model=record.model or "",
            server=server,
            gpu="",
            memory=record.memory[rank] if rank < len(record.memory) else 0.0,
            started_at=record.at,
            ready_at=ready.get(record.instance),
            last_busy_at=None,
            ended_at=gone.get(record.instance),
        )
        for record in decisions
        if record.action == "launch" and record.instance is not None
        for rank, server in enumerate(record.servers)
    ]


def _busy(
    requests: Sequence[RequestRecord], decisions: Sequence[DecisionRecord], end: Seconds
) -> dict[int, list[Interval]]:
    """By instance: when it held a request. Dispatches say where a request was, without them its own record does."""
    hands: dict[int, list[tuple[Seconds, int]]] = {}
    for record in decisions:
        if record.action == "dispatch" and record.request_id is not None and record.instance is not None:
            hands.setdefault(record.request_id, []).append((record.at, record.instance))
    found: dict[int, list[Interval]] = {}
    for request in requests:
        held = hands.get(request.request_id, [])
        if not held and request.dispatched_at is not None and request.instance is not None:
            held = [(request.dispatched_at, request.instance)]
        ends = [*(at for at, _ in held[1:]), end if request.finished_at is None else request.finished_at]
        for (at, instance), until in zip(held, ends, strict=False):
            found.setdefault(instance, []).append((at, until))
    return {instance: _union(intervals) for instance, intervals in found.items()}


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """The intervals without overlaps, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _bar(worker: WorkerRecord, stages: Sequence[StageRecord], busy: Sequence[Interval], run_end: Seconds) -> WorkerBar:
    start, end = worker.started_at, run_end if worker.ended_at is None else worker.ended_at
    ready = end if worker.ready_at is None else worker.ready_at
    stretches = [Stretch(phase=Phase.STARTING, start=start, end=ready), Stretch(phase=Phase.IDLE, start=ready, end=end)]
    stretches += [Stretch(phase=Phase.BUSY, start=max(at, ready), end=min(until, end)) for at, until in busy]
    stretches += [
        Stretch(phase=STAGE_PHASES[stage.stage], start=max(stage.started_at, start), end=min(stage.ended_at, end))
        for stage in stages
        if stage.stage in STAGE_PHASES
    ]
    return WorkerBar(
        instance=worker.instance,
        rank=worker.rank,
        model=worker.model,
        server=worker.server,
        gpu=worker.gpu,
        start=start,
        end=end,
        stretches=[stretch for stretch in stretches if stretch.end > stretch.start],
    )


def _lanes(bars: Sequence[WorkerBar]) -> list[list[WorkerBar]]:
    """The bars in as few lanes as hold them without overlaps: each goes into the first that is free."""
    lanes: list[list[WorkerBar]] = []
    for bar in sorted(bars, key=lambda bar: (bar.start, bar.instance, bar.rank)):
        free = next((lane for lane in lanes if lane[-1].end <= bar.start), None)
        if free is None:
            lanes.append([bar])
        else:
            free.append(bar)
    return lanes


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which ``gpu10`` comes behind ``gpu9``."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
