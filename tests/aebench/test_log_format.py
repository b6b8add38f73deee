"""The format of a point's log: columns follow the record types, and a log from before a field existed is read."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aebench.errors import LogError
from aebench.log_format import arrow_schema, encode
from aebench.logs import RunLog
from aebench.point_log import PointWriter, lines_path, read_point, sealed_path
from aebench.record_columns import decode
from serving.records import DecisionRecord, PauseRecord, Record, RequestRecord, StageRecord, WorkerRecord
from tests.aebench.fake_execute import make_point, make_request, make_stage
from tests.aebench.test_logs import make_log, seal, write_lines

LATER = ("request_id", "instance", "model", "servers", "memory", "from_cache")
"""Fields of a DecisionRecord that the first logs lack; three are columns of other kinds of records too."""

OLD = DecisionRecord(at=0.5, hook="arrival", action="launch", detail="instance 0 of opt-2.7b on s0/gpu0 8 GB")
NEW = dataclasses.replace(
    OLD, instance=0, model="opt-2.7b", servers=("s0", "s1"), memory=(8e9, 2.5e9), from_cache=False
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
finite = st.floats(allow_nan=False, allow_infinity=False)


def drop_later_columns(log: RunLog) -> None:
    """Rewrite the sealed point as it was before the columns were added."""
    path = sealed_path(log.points_folder, make_point())
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.drop_columns(["servers", "memory", "from_cache"]), path)


def drop_later_fields(log: RunLog) -> None:
    """Rewrite the lines of the unfinished point as they were before the fields were added."""
    path = lines_path(log.points_folder, make_point())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{key: value for key, value in row.items() if row["kind"] != "decision" or key not in LATER} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in old))


def test_columns_of_lists_have_the_type_of_their_items() -> None:
    types = {name: str(arrow_schema().field(name).type) for name in ("servers", "memory", "from_cache", "request_id")}
    assert types == {
        "servers": "list<item: string>",
        "memory": "list<item: double>",
        "from_cache": "bool",
        "request_id": "int64",
    }


def test_fields_that_were_appended_are_the_last_columns() -> None:
    names = arrow_schema().names
    before = ["at", "hook", "action", "detail", "servers", "memory", "from_cache"]
    assert names[names.index("at") :][:7] == before
    worker = ["gpu", "worker_memory", "ready_at", "last_busy_at"]  # a decision's memory is a list
    pause = ["paused_at", "resumed_at", "reason"]
    migration = ["source", "target", "stages", "num_blocks", "downtime", "outcome", "method", "first_stage"]
    sample = ["num_instances", "num_running", "num_waiting", "num_free_blocks", "num_fragmented_blocks"]
    assert names[names.index("from_cache") + 1 :] == [*worker, *pause, *migration, *sample]


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        DecisionRecord,
        at=finite,
        hook=texts,
        action=texts,
        detail=texts,
        request_id=st.none() | st.integers(0, 2**63 - 1),
        instance=st.none() | st.integers(0, 99),
        model=st.none() | texts,
        servers=st.lists(texts).map(tuple),
        memory=st.lists(finite).map(tuple),
        from_cache=st.none() | st.booleans(),
    )
)
def test_every_decision_comes_back_exactly_from_both_formats(
    tmp_path_factory: pytest.TempPathFactory, decision: DecisionRecord
) -> None:
    assert decode(json.loads(encode(decision)), "here") == decision
    log = make_log(tmp_path_factory.mktemp("exact"))
    records: list[Record] = [make_stage(), decision, make_request(), NEW]
    seal(log, make_point(), records)
    assert log.records(make_point()) == records
    assert log.records_of(make_point(), DecisionRecord) == [decision, NEW]


def test_a_sealed_point_without_the_later_columns_is_read_with_their_defaults(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    seal(log, make_point(), [OLD, make_request(), make_stage()])
    drop_later_columns(log)
    assert log.is_sealed(make_point())
    assert log.records(make_point()) == [OLD, make_request(), make_stage()]
    assert log.records_of(make_point(), DecisionRecord) == [OLD]
    assert (OLD.request_id, OLD.servers, OLD.memory, OLD.from_cache) == (None, (), (), None)
    assert log.requests(make_point()) == [make_request()]


def test_an_unfinished_point_without_the_later_fields_is_read_with_their_defaults(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    write_lines(log, make_point())
    drop_later_fields(log)
    (decision,) = log.records_of(make_point(), DecisionRecord)
    assert (decision.request_id, decision.instance, decision.model, decision.servers) == (None, None, None, ())


def test_a_record_without_a_field_that_every_log_has_is_damaged() -> None:
    row = {"kind": "decision", "at": 0.5, "hook": "arrival", "action": "launch"}
    with pytest.raises(LogError, match=r"here: a decision record lacks \['detail'\] and has unknown \[\]"):
        decode(row, "here")
    request = {key: value for key, value in json.loads(encode(make_request())).items() if key != "token_gaps"}
    with pytest.raises(LogError, match=r"a request record lacks \['token_gaps'\]"):
        decode(request, "here")
    assert isinstance(decode({**request, "token_gaps": []}, "here"), RequestRecord)


WORKER = WorkerRecord(
    instance=1,
    rank=0,
    model="m",
    server="s",
    gpu="s/gpu0",
    memory=18e9,
    started_at=0.5,
    ready_at=4.0,
    last_busy_at=None,
    ended_at=None,
)
PAUSE = PauseRecord(request_id=3, instance=1, paused_at=1.0, resumed_at=1.25, num_bytes=1e6, reason="kv migration")


def test_workers_and_pauses_come_back_exactly_from_both_formats(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    records = [WORKER, make_request(), PAUSE, NEW, dataclasses.replace(WORKER, rank=1, ended_at=9.5)]
    with PointWriter(log.points_folder, make_point()) as writer:
        for record in records:
            writer.write(record)
        writer._flush()
        assert log.records(make_point()) == records
        writer.seal()
    assert log.records(make_point()) == records


@pytest.mark.parametrize("sealed", [False, True])
def test_of_rows_that_have_a_column_only_some_are_read_and_rows_without_it_all(tmp_path: Path, sealed: bool) -> None:
    log = make_log(tmp_path)
    with PointWriter(log.points_folder, make_point()) as writer:
        for record in (make_stage(stage="load"), make_request(), make_stage(stage="consolidation"), NEW):
            writer.write(record)
        writer._flush()
        if sealed:
            writer.seal()
    wanted = (StageRecord, RequestRecord)
    found = read_point(log.points_folder, make_point(), wanted, {"stage": ["consolidation"]})
    assert found == [make_request(), make_stage(stage="consolidation")]
