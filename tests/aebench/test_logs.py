"""Logs: what is written comes back, what is damaged is named, and nothing is ever half there."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aebench import log_format, run_manifest
from aebench.errors import LogError
from aebench.log_format import arrow_schema, encode
from aebench.logs import RunLog, find_runs
from aebench.point import Point
from aebench.point_log import PointWriter, lines_path, sealed_path
from aebench.record_columns import decode
from aebench.run_manifest import RunManifest
from serving.records import Record, RequestRecord, StageRecord
from tests.aebench.fake_execute import make_decision, make_point, make_request, make_stage

RECORDS: list[Record] = [make_decision(), make_request(), make_stage(), make_request(1, token_gaps=())]


def make_manifest(**changes: object) -> RunManifest:
    fields: dict[str, object] = {
        "experiment": "paper/tiny",
        "spec": {"duration": 1.0},
        "seeds": (0,),
        "backend": "sim",
        "grid_keys": ("index",),
    }
    return RunManifest(**{**fields, **changes})  # type: ignore[arg-type]  # checked by the dataclass


def make_log(folder: Path) -> RunLog:
    return RunLog.create(folder / "logs", make_manifest())


def seal(log: RunLog, point: Point, records: list[Record] | None = None) -> Path:
    with PointWriter(log.points_folder, point) as writer:
        for record in RECORDS if records is None else records:
            writer.write(record)
        writer.seal()
    return sealed_path(log.points_folder, point)


def write_lines(log: RunLog, point: Point) -> Path:
    with PointWriter(log.points_folder, point) as writer:
        for record in RECORDS:
            writer.write(record)
    return lines_path(log.points_folder, point)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Points


def test_sealed_records_come_back_in_order_and_the_lines_are_gone(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    seal(log, make_point())
    assert log.records(make_point()) == RECORDS
    assert log.requests(make_point()) == [RECORDS[1], RECORDS[3]]
    assert log.records_of(make_point(), StageRecord) == [RECORDS[2]]
    assert files(log.folder) == ["points/index=0.parquet", "run.json"]


def test_a_point_without_records_can_be_sealed(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    seal(log, make_point(), [])
    assert log.records(make_point()) == []
    assert log.is_sealed(make_point())


def test_records_span_several_chunks_of_a_sealed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_format, "_CHUNK_BYTES", 1000)
    log = make_log(tmp_path)
    records: list[Record] = [make_request(number, token_gaps=(0.1,) * number) for number in range(200)]
    seal(log, make_point(), records)
    assert log.records(make_point()) == records


def test_the_columns_are_kind_and_then_the_fields_of_all_record_types() -> None:
    names = arrow_schema().names
    assert names[:3] == ["kind", "request_id", "model"]
    assert set(names) >= {field.name for field in dataclasses.fields(StageRecord)}
    assert str(arrow_schema().field("token_gaps").type) == "list<item: double>"


times = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        make_request,
        st.integers(-(2**63), 2**63 - 1),
        label=st.text(st.characters(exclude_categories=["Cs"])),
        arrived_at=times,
        first_token_at=st.none() | times,
        instance=st.none() | st.integers(0, 99),
        token_gaps=st.lists(times).map(tuple),
    )
)
def test_every_request_comes_back_exactly_from_both_formats(
    tmp_path_factory: pytest.TempPathFactory, request_record: RequestRecord
) -> None:
    assert decode(json.loads(encode(request_record)), "here") == request_record
    log = make_log(tmp_path_factory.mktemp("exact"))
    seal(log, make_point(), [request_record])
    assert log.records(make_point()) == [request_record]


def test_an_unfinished_point_cut_anywhere_gives_the_records_that_are_whole(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    path = write_lines(log, make_point())
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    for size in range(header, len(content), 7):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n") - 1
        assert log.records(make_point()) == RECORDS[:whole]


def test_line_1_is_the_header_of_the_point(tmp_path: Path) -> None:
    point = make_point(3, seed=1, rate=0.5)
    line = write_lines(make_log(tmp_path), point).read_text().splitlines()[0]
    keys = {"index": 3}
    assert json.loads(line) == {"kind": "point", "schema": 1, "digest": point.digest, "keys": keys, "seed": 1}


@pytest.mark.parametrize(
    ("number", "line", "said"),
    [
        (1, "{}", "line 1: expected the header of a point, got kind None"),
        (2, '{"kind": "requ', "line 2: not JSON"),
        (3, "[]", "line 3: expected a JSON object, got list"),
        (3, '{"kind": "meteor"}', "line 3: unknown kind 'meteor'. Known: request, stage, decision"),
        (4, '{"kind": "decision", "at": 0}', "line 4: a decision record lacks ['hook', 'action', 'detail']"),
    ],
)
def test_a_damaged_line_is_named_by_file_and_number(tmp_path: Path, number: int, line: str, said: str) -> None:
    log = make_log(tmp_path)
    path = write_lines(log, make_point())
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LogError) as error:
        log.records(make_point())
    assert str(error.value).startswith(f"{path}, {said}")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_sealed_point_says_what_to_do(tmp_path: Path, share: float) -> None:
    log = make_log(tmp_path)
    path = seal(log, make_point())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(LogError) as error:
        log.records(make_point())
    assert str(path) in str(error.value)
    assert str(error.value).endswith("Delete it and run again with --resume")


def test_a_flipped_byte_in_a_sealed_point_is_noticed(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    path = seal(log, make_point())
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(LogError, match="Delete it and run again with --resume"):
        log.records(make_point())


def test_a_point_of_a_newer_aebench_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log(tmp_path)
    monkeypatch.setattr(log_format, "SCHEMA", 2)
    seal(log, make_point())
    monkeypatch.undo()
    with pytest.raises(LogError, match=r"written by a newer aebench \(schema 2, this one reads up to 1\)"):
        log.records(make_point())


def test_an_older_log_is_upgraded_one_step_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log(tmp_path)
    seal(log, make_point(0))
    write_lines(log, make_point(1))

    def step(row: dict[str, object]) -> dict[str, object]:
        return {**row, "detail": f"{row['detail']}+"} if row["kind"] == "decision" else row

    monkeypatch.setattr(log_format, "SCHEMA", 3)
    monkeypatch.setattr(run_manifest, "SCHEMA", 3)
    monkeypatch.setattr(log_format, "UPGRADES", {1: step, 2: step})
    upgraded = dataclasses.replace(make_decision(), detail=make_decision().detail + "++")
    assert log.records(make_point(0)) == [upgraded, *RECORDS[1:]]
    assert log.records(make_point(1)) == [upgraded, *RECORDS[1:]]
    assert RunLog.open(log.folder).manifest.schema == 3


def test_a_full_disk_is_an_error_with_the_path_and_leaves_no_trace(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(LogError, match=r"index=0\.jsonl: File too large"):
            seal(log, make_point(), [make_request(number) for number in range(5000)])
        with pytest.raises(LogError, match=r"figure1\.pdf: File too large"):
            log.write("figure1.pdf", b"x" * 50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(log.folder) == ["run.json"]


def test_a_disk_that_fills_up_while_sealing_leaves_no_half_sealed_point(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(LogError, match=r"index=0\.parquet: File too large"),
        PointWriter(log.points_folder, make_point()) as writer,
    ):
        writer.write(make_request())
        writer._flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            writer.seal()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(log.folder) == ["run.json"]


def test_a_record_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        seal(log, make_point(), [make_request(arrived_at=float("nan"))])


# Which points are missing


def test_points_that_are_absent_unfinished_or_stale_are_missing(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    seal(log, make_point(0, rate=1))
    seal(log, make_point(1, rate=1))
    write_lines(log, make_point(2))
    points = [make_point(0, rate=1), make_point(1, rate=2), make_point(2), make_point(3)]
    assert log.missing(points) == points[1:]


def test_running_a_point_anew_discards_what_was_left_of_it(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    write_lines(log, make_point())
    seal(log, make_point(), [make_stage()])
    assert log.records(make_point()) == [make_stage()]
    with PointWriter(log.points_folder, make_point()):
        assert files(log.points_folder) == ["index=0.jsonl"]


def test_a_writer_never_seals_what_its_successor_has_begun(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with PointWriter(log.points_folder, make_point()) as orphan:
        for record in RECORDS:
            orphan.write(record)
        with PointWriter(log.points_folder, make_point()):
            orphan.seal()
            assert log.records(make_point()) == RECORDS


# The run


def test_a_new_run_is_named_by_time_backend_and_commit_and_says_what_it_is(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    stamp, backend, commit = log.folder.name.split("-")
    assert log.folder.parent == tmp_path / "logs" / "paper" / "tiny"
    assert (len(stamp), stamp[8], stamp[-1], backend) == (16, "T", "Z", "sim")
    assert commit == (log.manifest.commit or "nogit")[:7]
    written = json.loads((log.folder / "run.json").read_text())
    assert (written["schema"], written["status"], written["spec"]) == (1, "started", {"duration": 1.0})
    assert written["host"]["cpus"] == os.cpu_count()
    assert written["versions"]["pyarrow"]
    assert RunLog.open(log.folder).manifest == log.manifest


def test_runs_of_the_same_second_get_folders_of_their_own_and_the_newest_comes_first(tmp_path: Path) -> None:
    runs = [make_log(tmp_path).folder for _ in range(12)]
    assert len(set(runs)) == 12
    assert find_runs(tmp_path / "logs", "paper/tiny") == runs[::-1]
    assert find_runs(tmp_path / "logs", "paper/other") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"schema": 2}', "written by a newer aebench (schema 2, this one reads up to 1)"),
        ('{"schema": "1"}', "schema is '1', expected a number from 1 to 1"),
        ('{"schema": 1, "experiment": 3}', "experiment: "),
    ],
)
def test_a_damaged_run_json_is_an_error_that_names_it(tmp_path: Path, content: str, said: str) -> None:
    log = make_log(tmp_path)
    (log.folder / "run.json").write_text(content)
    with pytest.raises(LogError) as error:
        RunLog.open(log.folder)
    assert str(log.folder / "run.json") in str(error.value)
    assert said in str(error.value)


def test_a_folder_without_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"not the folder of a run, it has no run\.json"):
        RunLog.open(tmp_path)


def test_a_log_root_is_made_with_the_folders_above_it(tmp_path: Path) -> None:
    log = RunLog.create(tmp_path / "no" / "logs", make_manifest())
    assert log.folder.is_relative_to(tmp_path / "no" / "logs")


def test_a_log_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    with pytest.raises(LogError, match="Choose another folder with --log-path"):
        make_log(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_log_root_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LogError, match=r"Permission denied\. Choose another folder with --log-path"):
        make_log(tmp_path)


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_one_lasts(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with (
        log.locked(),
        pytest.raises(LogError, match=rf"another run is writing here \(process {os.getpid()}\)"),
        RunLog.open(log.folder).locked(),
    ):
        pass
    with RunLog.open(log.folder).locked():
        pass


def test_the_lock_of_a_run_that_was_killed_is_free_and_its_leftovers_are_swept(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    program = (
        "import os, sys; from pathlib import Path; from aebench.logs import RunLog\n"
        "log = RunLog.open(Path(sys.argv[1]))\n"
        "with log.locked():\n"
        "    (log.points_folder / '.7.tmp').touch(); os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", program, str(log.folder)], check=False)
    assert died.returncode == -9
    with log.locked():
        assert files(log.folder) == [".lock", "run.json"]


# The summary


def test_the_summary_reads_back_exactly_and_absent_is_an_empty_cell(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    frame = pd.DataFrame({"system": ["none", "NA"], "ttft_mean": [0.1 + 0.2, None], "n": [1, 2]})
    log.write_table("summary", frame)
    assert log.read("summary.csv") == "system,ttft_mean,n\nnone,0.30000000000000004,1\nNA,,2\n"
    pd.testing.assert_frame_equal(log.summary(), frame, check_dtype=False, check_exact=True)


def test_a_summary_that_is_absent_or_damaged_is_an_error_that_names_it(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with pytest.raises(LogError, match=r"summary\.csv: No such file"):
        log.summary()
    log.write("summary.csv", "a,b\n1,2,3\n4,5,6,7\n")
    with pytest.raises(LogError, match=r"summary\.csv: "):
        log.summary()
