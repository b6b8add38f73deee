"""Azure Functions 2021: the published trace file of two weeks as Invocations.

    app,func,end_timestamp,duration
    7b2c43a2bc30f6bb438074df88b603d2cb982d3e7961de05270735055950a568,e3cb...,120.5,0.079

AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt: one row an invocation; seconds from the trace's start and of the
invocation, which therefore arrived at the difference.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from serving.units import Seconds
from serving.workload.functions import DAY, Invocations
from serving.workload.recordings import read_columns, refuse

COLUMNS = ("app", "func", "end_timestamp", "duration")
MAX_DAYS = 366
"""A trace that seems longer has its times in another unit."""


def read_azure_functions(path: Path) -> Invocations:
    """The invocations of each function, in the order in which functions first appear in the file; whole days. An
    invocation that was under way when the trace began counts as arriving then. Raises ``RecordingError``."""
    times: dict[tuple[str, str], array[float]] = {}
    latest = 0.0
    for app, function, arrived_at in _rows(path):
        found = times.get((app, function))
        if found is None:
            found = times[app, function] = array("d")
        found.append(arrived_at)
        latest = max(latest, arrived_at)
    if not times:
        refuse(path, 2, "row", "held nothing, expected at least one invocation")
    return Invocations(
        arrived_at=tuple(np.sort(np.array(found)) for found in times.values()),
        span=max(1, math.ceil(latest / DAY)) * DAY,
    )


def _rows(path: Path) -> Iterator[tuple[str, str, Seconds]]:
    """App, function and arrival of one row after another."""
    unpacked = "The trace is published packed; expected the unpacked .txt file"
    for line, cells in read_columns(path, COLUMNS, unpacked):
        yield _row(path, line, cells)


def _row(path: Path, line: int, cells: Sequence[str]) -> tuple[str, str, Seconds]:
    app, function, end, took = cells
    ended_at, duration = _number(end), _number(took)
    if not 0 <= ended_at <= MAX_DAYS * DAY:
        refuse(path, line, "end_timestamp", f"held {end!r}, expected seconds from the trace's start")
    if not 0 <= duration < math.inf:
        refuse(path, line, "duration", f"held {took!r}, expected seconds, a finite number from 0 on")
    return app, function, max(0.0, ended_at - duration)


def _number(cell: str) -> float:
    """The number in a cell; NaN, which fails every comparison, where there is none."""
    try:
        return float(cell)
    except ValueError:
        return math.nan
