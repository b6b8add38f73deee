"""Metrics of migrations one by one (Llumnix sheet, section 9), beside formulas as in ``aebench.metrics``: columns that
``summary.csv`` has more where an experiment asks for ``measure.metrics = ["migration"]``."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from statistics import fmean

from aebench.llumnix_metrics import LLUMNIX_METRICS
from aebench.resources import Observed
from serving.records import RequestRecord
from serving.units import Seconds

NUM_GAPS = 16
"""Of each request, the gaps that a run without migrations is measured by: the original's prompts are 8 tokens shorter
than the length that they stand for, which is the mean over so many steps. The very first is left out: on real time it
waits for prompts of others, and no migration begins in it."""


def of_measured(observed: Observed) -> Observed:
    """The same with the migrations of measured requests only: those of requests that warm a server up do not count."""
    measured = {request.request_id for request in observed.requests}
    return replace(observed, migrations=[one for one in observed.migrations if one.request_id in measured])


def decode_step(observed: Observed) -> float:
    """Mean time of the decode steps that began while the first stage of a migration was copied, over the sequences in
    them; in a run without migrations, of each request's first steps after its first token. Needs tokens' times."""
    if observed.migrations:
        windows = [(one.started_at, one.started_at + one.first_stage) for one in observed.migrations]
        steps = [
            gap
            for request in observed.arrived
            for began_at, gap in _steps(request)
            if any(start <= began_at < end for start, end in windows)
        ]
    else:
        steps = [gap for request in observed.arrived for gap in request.token_gaps[1 : NUM_GAPS + 1]]
    return fmean(steps) if steps else math.nan


def _steps(request: RequestRecord) -> Iterator[tuple[Seconds, Seconds]]:
    """When each step after a request's first token began, and how long it took."""
    if request.first_token_at is None:
        return iter(())
    return zip(accumulate(request.token_gaps, initial=request.first_token_at), request.token_gaps, strict=False)


def _over_measured(metric: Callable[[Observed], float]) -> Callable[[Observed], float]:
    return lambda observed: metric(of_measured(observed))


MIGRATION_METRICS: dict[str, Callable[[Observed], float]] = {
    **{name: _over_measured(LLUMNIX_METRICS[name]) for name in ("num_migrations", "num_aborted", "downtime_mean")},
    "decode_step": _over_measured(decode_step),
}
"""The metrics by name, in the order of ``summary.csv``; see ``of_measured``."""
