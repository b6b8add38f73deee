"""Decode steps beside a migration, by a small timeline computed by hand."""

import math
from dataclasses import replace

import pytest

from aebench.migration_metrics import MIGRATION_METRICS, NUM_GAPS, decode_step
from aebench.resources import Observed
from serving.core.request import Sequence
from serving.records import MigrationRecord, RequestRecord
from tests.build import make_requests


def request(first_token_at: float | None, gaps: tuple[float, ...]) -> RequestRecord:
    """One that got its tokens then."""
    record = Sequence(make_requests(1)[0], 0.0).record()
    return replace(record, first_token_at=first_token_at, token_gaps=gaps)


MOVED = MigrationRecord(
    request_id=0,
    source=0,
    target=1,
    started_at=2.5,
    ended_at=9.0,
    stages=2,
    num_blocks=4,
    downtime=0.25,
    outcome="migrated",
    method="live",
    first_stage=4.0,
)


def seen(requests: list[RequestRecord], migrations: list[MigrationRecord]) -> Observed:
    """What a point left."""
    return Observed(
        requests=requests,
        workers=[],
        launches=[],
        refusals=[],
        consolidations=[],
        pauses=[],
        grace=0.0,
        arrived=requests,
        migrations=migrations,
    )


def test_steps_count_that_begin_while_the_first_stage_is_copied() -> None:
    # tokens at 1, 2, 3, 5, 7, 8: steps begin at 1, 2, 3, 5, 7; the first stage is from 2.5 to 6.5
    observed = seen([request(1.0, (1.0, 1.0, 2.0, 2.0, 1.0)), request(None, ())], [MOVED])
    assert decode_step(observed) == pytest.approx((2.0 + 2.0) / 2)


def test_without_a_migration_the_steps_after_the_first_count() -> None:
    gaps = (50.0,) + (1.0,) * NUM_GAPS + (100.0,)
    others = (50.0,) + (3.0,) * NUM_GAPS
    assert decode_step(seen([request(0.0, gaps), request(0.0, others)], [])) == pytest.approx(2.0)


def test_where_no_step_began_in_time_there_is_no_value() -> None:
    assert math.isnan(decode_step(seen([request(7.0, (1.0, 1.0))], [MOVED])))
    assert math.isnan(decode_step(seen([], [])))


def test_the_columns_are_counts_the_downtime_and_the_step() -> None:
    aborted = replace(MOVED, outcome="no space", downtime=0.0)
    observed = seen([request(1.0, (1.0, 1.0, 2.0, 2.0, 1.0))], [MOVED, aborted])
    values = {name: metric(observed) for name, metric in MIGRATION_METRICS.items()}
    assert values == {"num_migrations": 1.0, "num_aborted": 1.0, "downtime_mean": 0.25, "decode_step": 2.0}


def test_migrations_of_requests_that_do_not_count_do_not_count() -> None:
    # that of request 7, a warm-up, had its first stage from 0 to 100: every step would have been beside it
    warmup = replace(MOVED, request_id=7, started_at=0.0, first_stage=100.0, downtime=9.0)
    observed = seen([request(1.0, (1.0, 1.0, 2.0, 2.0, 1.0))], [warmup, MOVED])
    values = {name: metric(observed) for name, metric in MIGRATION_METRICS.items()}
    assert values == {"num_migrations": 1.0, "num_aborted": 0.0, "downtime_mean": 0.25, "decode_step": 2.0}
