"""Ticks: a log that keeps few digits of a second is small, and exact in what it keeps."""

import dataclasses
import json
import typing
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aebench.errors import LogError
from aebench.execute import CAN_BE_LEFT_OUT, without, without_dispatches
from aebench.log_format import encode
from aebench.point import Point
from aebench.point_log import PointWriter, read_point, sealed_path
from aebench.record_columns import COLUMNS
from aebench.ticks import SINCE, TIMES, NotInTicks, Ticks, from_ticks, to_ticks
from serving.records import RECORD_TYPES, DecisionRecord, MigrationRecord, PauseRecord, Record, RequestRecord
from tests.aebench.fake_execute import make_decision, make_point, make_request, make_stage

EVERYTHING = tuple(RECORD_TYPES.values())
NO_TIMES = {"ttft_slo", "tpot_slo", "num_bytes", "memory", "worker_memory"}
moments = st.none() | st.floats(0, 1e5)
durations = st.floats(0, 1e3)


def rounded(digits: int) -> Point:
    return make_point(measure={"time_digits": digits})


def in_digits(digits: int) -> Ticks:
    return Ticks(digits=digits, since=SINCE)


def seal(folder: Path, point: Point, records: list[Record]) -> Path:
    with PointWriter(folder, point) as writer:
        for record in records:
            writer.write(record)
        writer.seal()
    return sealed_path(folder, point)


def test_times_after_each_other_become_small_numbers() -> None:
    columns = {"arrived_at": [2.0, 3.5], "dispatched_at": [2.0, np.nan], "first_token_at": [2.25, np.nan]}
    stored = to_ticks({name: np.array(values) for name, values in columns.items()}, in_digits(2))
    assert stored["arrived_at"].tolist() == [200, 350]
    assert (stored["dispatched_at"][0], stored["first_token_at"][0]) == (0, 25)
    assert np.isnan([stored["dispatched_at"][1], stored["first_token_at"][1]]).all()


def test_a_computed_duration_is_stored_less_the_life_of_its_request() -> None:
    columns = {"arrived_at": 1.0, "dispatched_at": 1.5, "first_token_at": 2.0, "finished_at": 9.5, "computed_for": 7.75}
    stored = to_ticks({name: np.array([value]) for name, value in columns.items()}, in_digits(2))
    assert stored["computed_for"].tolist() == [775 - 800]


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 6), st.lists(st.tuples(*[moments] * 5), min_size=1))
def test_ticks_come_back_to_the_last_bit(digits: int, rows: list[tuple[float | None, ...]]) -> None:
    names = ("arrived_at", "dispatched_at", "first_token_at", "finished_at", "computed_for")
    table = np.array([[np.nan if at is None else round(at, digits) for at in row] for row in rows])
    columns = {name: table[:, number] for number, name in enumerate(names)}
    back = from_ticks(to_ticks(columns, in_digits(digits)), in_digits(digits))
    for name in names:
        assert np.array_equal(back[name], columns[name], equal_nan=True)


def test_a_time_of_more_digits_is_refused() -> None:
    with pytest.raises(NotInTicks, match="column arrived_at has times of more than 3 digits"):
        to_ticks({"arrived_at": np.array([0.1234])}, in_digits(3))


def test_every_number_of_a_record_is_a_time_or_known_to_be_none() -> None:
    floats = {
        column
        for record_type, columns in COLUMNS.items()
        for name, column in columns.items()
        if "float" in str(typing.get_type_hints(record_type)[name])
    }
    assert floats == TIMES | NO_TIMES
    assert set(SINCE) | {name for near in SINCE.values() for name in near if name} <= TIMES


def test_times_are_rounded_as_they_are_written_and_nothing_else_is() -> None:
    request = make_request(arrived_at=0.123456, finished_at=None, ttft_slo=0.123456, token_gaps=(0.00016, 0.1))
    row = json.loads(encode(request, 4))
    assert (row["arrived_at"], row["finished_at"], row["ttft_slo"]) == (0.1235, None, 0.123456)
    assert row["token_gaps"] == [0.0002, 0.1]
    assert json.loads(encode(request))["arrived_at"] == 0.123456


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(
            make_request,
            st.integers(0, 99),
            arrived_at=st.floats(0, 1e5),
            dispatched_at=moments,
            first_token_at=moments,
            finished_at=moments,
            token_gaps=st.lists(durations, max_size=3).map(tuple),
            computed_for=durations,
        ),
        max_size=8,
        unique_by=lambda request: request.request_id,
    )
)
def test_lines_and_the_sealed_file_hold_the_same_rounded_records(
    tmp_path_factory: pytest.TempPathFactory, requests: list[RequestRecord]
) -> None:
    folder, point = tmp_path_factory.mktemp("rounded"), rounded(4)
    records: list[Record] = [make_stage(ended_at=0.33333), *requests, make_decision(0.12345678), make_stage(rank=1)]
    with PointWriter(folder, point) as writer:
        for record in records:
            writer.write(record)
        writer._flush()
        lines = read_point(folder, point, EVERYTHING)
        writer.seal()
    sealed = read_point(folder, point, EVERYTHING)
    kinds = list(RECORD_TYPES)
    in_order = sorted(lines, key=lambda r: (kinds.index(r.kind), r.request_id if isinstance(r, RequestRecord) else 0))
    assert sealed == in_order
    assert read_point(folder, point, (RequestRecord,)) == [r for r in in_order if isinstance(r, RequestRecord)]
    assert [getattr(record, "ended_at", None) for record in sealed if record.kind == "stage"] == [0.3333, 0.1]


def test_rows_in_several_parts_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aebench.log_format._CHUNK_BYTES", 1000)
    records: list[Record] = [make_request(number, arrived_at=number / 8, token_gaps=(0.5,) * 3) for number in range(50)]
    path = seal(tmp_path, rounded(3), records)
    assert pq.ParquetFile(path).num_row_groups > 1
    assert read_point(tmp_path, rounded(3), EVERYTHING) == records


def test_a_point_without_records_can_be_sealed_in_ticks(tmp_path: Path) -> None:
    seal(tmp_path, rounded(4), [])
    assert read_point(tmp_path, rounded(4), EVERYTHING) == []


def test_who_does_not_know_ticks_finds_no_header(tmp_path: Path) -> None:
    metadata = pq.read_schema(seal(tmp_path, rounded(4), [make_request()])).metadata
    assert b"aebench" not in metadata
    assert json.loads(metadata[b"ticks"])["digits"] == 4


def test_a_tick_file_that_lost_bytes_is_damaged(tmp_path: Path) -> None:
    path = seal(tmp_path, rounded(4), [make_request(number) for number in range(500)])
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(LogError, match="damaged"):
        read_point(tmp_path, rounded(4), EVERYTHING)


def test_four_digits_take_a_third_of_the_bytes(tmp_path: Path) -> None:
    rng = Random("0/sizes")
    requests: list[Record] = []
    now = 0.0
    for number in range(2000):
        now += rng.expovariate(2.0)
        first = now + rng.expovariate(5.0)
        last = first + rng.expovariate(0.05)
        times = {"arrived_at": now, "dispatched_at": now, "first_token_at": first, "finished_at": last}
        requests.append(make_request(number, **times, computed_for=(last - now) * 0.9, token_gaps=()))
    sizes = [seal(tmp_path, point, requests).stat().st_size for point in (make_point(), rounded(4))]
    assert sizes[1] < sizes[0] / 3


def test_what_a_log_leaves_out_takes_no_room(tmp_path: Path) -> None:
    rng = Random("0/lives")
    requests: list[Record] = [make_request(number, finished_at=2.0 + rng.expovariate(0.1)) for number in range(2000)]
    sizes = []
    for kept in (True, False):
        point = make_point(int(kept), measure={"time_digits": 4, "computed_for": kept})
        path = seal(tmp_path, point, requests)
        column = next(c for c in columns_of(path) if c.path_in_schema == "computed_for")
        sizes.append(column.total_compressed_size)
        assert {r.computed_for for r in read_point(tmp_path, point, (RequestRecord,)) if r.kind == "request"} == {0.0}
    assert sizes[1] < 100 < sizes[0]


def columns_of(path: Path) -> list[pq.ColumnChunkMetaData]:
    group = pq.ParquetFile(path).metadata.row_group(0)
    return [group.column(number) for number in range(group.num_columns)]


def test_what_is_left_out_of_requests_is_empty_and_pauses_of_migrations_go_with_the_dispatches() -> None:
    written: list[Record] = []
    request = make_request(computed_for=2.0)
    without(CAN_BE_LEFT_OUT, written.append)(request)
    assert written == [dataclasses.replace(request, token_gaps=(), computed_for=0.0)]
    pause = PauseRecord(request_id=0, instance=0, paused_at=1.0, resumed_at=2.0, num_bytes=1.0, reason="migration")
    other = dataclasses.replace(pause, reason="kv migration")
    choice = DecisionRecord(at=0.0, hook="h", action="migrate", detail="")
    moved = MigrationRecord(
        request_id=0,
        source=0,
        target=1,
        started_at=0.0,
        ended_at=2.0,
        stages=1,
        num_blocks=1,
        downtime=1.0,
        outcome="migrated",
        method="live",
        first_stage=1.0,
    )
    written.clear()
    for record in (pause, other, choice, moved):
        without_dispatches(written.append)(record)
    assert written == [other, moved]
