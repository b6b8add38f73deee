"""Over time: the samples of a point in windows, as ``by_time.csv`` has them."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aebench.llumnix_metrics import fragmented
from aebench.resources import Observed
from serving.records import SampleRecord
from serving.units import Seconds

WINDOW: Seconds = 10.0
"""Length of a window; the first begins with the run, and each is called by its begin."""

TIME_METRICS = ("num_requests", "instances", "fragmentation", "free_share", "waiting")
"""Columns of ``by_time.csv`` behind the time: requests that arrived, then means over the window's samples."""


def time_rows(observed: Observed, _: Mapping[str, Any]) -> Iterator[dict[str, str | float]]:
    """A row for each window in which a sample was taken or a request arrived."""
    windows: dict[int, list[SampleRecord]] = {}
    arrived: dict[int, int] = {}
    for sample in observed.samples:
        windows.setdefault(int(sample.at // WINDOW), []).append(sample)
    for request in observed.requests:
        number = int(request.arrived_at // WINDOW)
        arrived[number] = arrived.get(number, 0) + 1
    for number in sorted({*windows, *arrived}):
        yield {"time": number * WINDOW, "num_requests": arrived.get(number, 0), **_means(windows.get(number, ()))}


def _means(samples: Sequence[SampleRecord]) -> dict[str, float]:
    if not samples:
        return {}
    return {
        "instances": statistics.fmean(sample.num_instances for sample in samples),
        "fragmentation": statistics.fmean(map(fragmented, samples)),
        "free_share": statistics.fmean(sample.num_free_blocks / max(sample.num_blocks, 1) for sample in samples),
        "waiting": statistics.fmean(sample.num_waiting for sample in samples),
    }
