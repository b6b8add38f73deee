"""Llumnix's metrics and the tables that are made of them, worked out by hand."""

import math
from collections.abc import Sequence

import pandas as pd
import pytest

from aebench.execute import without_dispatches
from aebench.llumnix_metrics import LLUMNIX_METRICS, decode, samples_of_run
from aebench.log_format import NO_MATTER
from aebench.metrics import METRICS
from aebench.point import Point
from aebench.resources import Observed
from aebench.tables import table_frames, tables_of
from serving.records import DecisionRecord, MigrationRecord, Record, RequestRecord, SampleRecord
from tests.aebench.fake_execute import make_request


def request(request_id: int, arrived: float, first: float, finished: float | None, **changes: object) -> RequestRecord:
    fields = {
        "arrived_at": arrived,
        "first_token_at": first,
        "finished_at": finished,
        "num_output_tokens": 11,
        **changes,
    }
    return make_request(request_id, token_gaps=(), **fields)


def sample(at: float, instances: int, fragmented: int = 0, waiting: int = 0) -> SampleRecord:
    """Ten blocks an instance, half of them free."""
    return SampleRecord(
        at=at,
        num_instances=instances,
        num_running=3,
        num_waiting=waiting,
        num_blocks=10 * instances,
        num_free_blocks=5 * instances,
        num_fragmented_blocks=fragmented,
    )


def migration(start: float, end: float, downtime: float, outcome: str = "migrated") -> MigrationRecord:
    fields = {"request_id": 0, "source": 0, "target": 1, "stages": 2, "num_blocks": 5, "method": "live"}
    return MigrationRecord(
        started_at=start, ended_at=end, downtime=downtime, outcome=outcome, first_stage=0.1, **fields
    )  # type: ignore[arg-type]


REQUESTS = [
    request(0, 10.0, 11.0, 16.0, preempted_for=1.5, computed_for=4.0),  # 6 s; prefill 1 s; decode 0.5 s
    request(1, 12.0, 15.0, 16.0, priority=1, computed_for=3.0),  # 4 s; 3 s; 0.1 s
    request(2, 13.0, 15.0, 15.0, num_output_tokens=1, computed_for=2.0),  # 2 s; 2 s; 0
    request(3, 14.0, 18.0, None, preempted_for=0.5, computed_for=9.0),  # prefill 4 s; never finished
]
SAMPLES = [sample(0.0, 0), sample(10.0, 2, 1), sample(12.0, 2), sample(14.0, 4, 2), sample(100.0, 9)]
MIGRATIONS = [migration(11.0, 12.0, 0.02), migration(13.0, 13.5, 0.04), migration(13.0, 13.5, 0.0, "no space")]


def seen(requests: Sequence[RequestRecord] = REQUESTS, samples: Sequence[SampleRecord] = SAMPLES) -> Observed:
    return Observed(
        requests=requests,
        workers=(),
        launches=(),
        refusals=(),
        consolidations=(),
        pauses=(),
        grace=0.0,
        arrived=REQUESTS,
        samples=samples,
        migrations=MIGRATIONS,
    )


def test_every_metric_by_hand() -> None:
    found = {name: metric(seen()) for name, metric in LLUMNIX_METRICS.items()}
    assert found == pytest.approx(
        {
            "request_p99": 5.96,  # of 2, 4 and 6 s: 0.98 between the last two
            "request_mean": 4.0,
            "prefill_p99": 3.97,  # of 1, 2, 3 and 4 s
            "prefill_mean": 2.5,
            "decode_p99": 0.492,  # of 0, 0.1 and 0.5 s
            "decode_mean": 0.2,
            "preemption_loss": 0.5,  # 2 s over four requests
            "decode_execution": 3.0,
            "avg_instances": 8 / 3,  # at 10, 12 and 14 s, the run being from 10 to 18 s
            "fragmentation": (1 / 20 + 0 + 2 / 40) / 3,
            "num_migrations": 2,
            "num_aborted": 1,
            "downtime_mean": 0.03,
            "migrating_share": 2 * 2.0 / (2 * 8),  # two instances each for 2 s, of 8 instances seen every 2 s
        }
    )


def test_a_request_of_one_token_has_a_decode_latency_of_0_and_no_tpot() -> None:
    assert [decode(one) for one in REQUESTS] == pytest.approx([0.5, 0.1, 0.0, None])


def test_samples_before_the_first_arrival_and_after_the_last_token_do_not_count() -> None:
    assert [one.at for one in samples_of_run(seen())] == [10.0, 12.0, 14.0]
    assert math.isnan(LLUMNIX_METRICS["avg_instances"](seen(samples=())))


class Log:
    """A log that holds the same records for every point."""

    def is_sealed(self, point: Point) -> bool:
        return point.seed == 0

    def records(self, point: Point, wanted: Sequence[type[Record]], only: object = NO_MATTER) -> list[Record]:
        del point, only
        return [record for record in (*REQUESTS, *SAMPLES, *MIGRATIONS) if isinstance(record, tuple(wanted))]


def frames(**measure: object) -> dict[str, pd.DataFrame]:
    spec = {"measure": measure, "system": "llumnix", "policy": {}}
    points = [Point(experiment="p/e", keys={"cv": 2}, seed=seed, spec=spec) for seed in (0, 1)]
    return table_frames(Log(), points)


def test_priorities_have_a_row_each_and_the_instances_are_the_points_in_both() -> None:
    frame = frames(metrics=["llumnix"], by="priority")["summary"]
    assert list(frame.columns) == ["cv", "seed", "priority", *METRICS, *LLUMNIX_METRICS]
    assert frame["priority"].tolist() == ["normal", "high"]
    assert frame["num_requests"].tolist() == [3, 1]
    assert frame["request_mean"].tolist() == [4.0, 4.0]
    assert frame["prefill_mean"].tolist() == pytest.approx([7 / 3, 3.0])
    assert frame["avg_instances"].tolist() == pytest.approx([8 / 3, 8 / 3])


def test_without_own_metrics_the_summary_is_as_ever() -> None:
    assert list(frames()["summary"].columns) == ["cv", "seed", *METRICS]
    assert list(tables_of({})) == ["summary"]


def test_windows_of_ten_seconds_hold_means_and_the_requests_that_arrived() -> None:
    found = frames(metrics=["llumnix"], sample_period=1.0)
    rows = found["by_time"].set_index("time")
    assert rows.index.tolist() == [0.0, 10.0, 100.0]
    assert rows["num_requests"].tolist() == [0, 4, 0]
    assert rows["num_requests"].sum() == found["summary"]["num_requests"].sum()
    assert rows.loc[10.0, "instances"] == pytest.approx(8 / 3)
    assert rows.loc[10.0, "fragmentation"] == pytest.approx((1 / 20 + 2 / 40) / 3)
    assert rows["free_share"].tolist() == pytest.approx([0.0, 0.5, 0.5])


def test_decisions_about_single_sequences_can_be_left_out_of_logs() -> None:
    written: list[Record] = []
    write = without_dispatches(written.append)
    decisions = [DecisionRecord(at=0.0, hook="h", action=name, detail="") for name in ("dispatch", "launch", "migrate")]
    for record in (*decisions, REQUESTS[0]):
        write(record)
    assert written == [decisions[1], REQUESTS[0]]
