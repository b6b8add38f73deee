"""Workload traces: exact round trips, and one clear message for each way a file can be wrong."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.workload.traces import TraceError, TraceRow, read_trace, write_trace

HEADER = "arrived_at,model,num_prompt_tokens,num_output_tokens"
ROW = TraceRow(arrived_at=0.25, model="opt-6.7b", num_prompt_tokens=128, num_output_tokens=64)

names = st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable() and text == text.strip())
slos = st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
tokens = st.integers(min_value=1, max_value=10**9 - 1)
rows_of_any_order = st.lists(
    st.builds(
        TraceRow,
        arrived_at=st.floats(min_value=0, allow_infinity=False, allow_nan=False),
        model=names,
        num_prompt_tokens=tokens,
        num_output_tokens=tokens,
        label=st.just("measured") | names,
        ttft_slo=slos,
        tpot_slo=slos,
        priority=st.integers(min_value=0, max_value=10**9 - 1),
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


def refusal_of(folder: Path, content: str | bytes) -> str:
    """What reading this content says, after the name of the file."""
    path = folder / "trace.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TraceError) as refusal:
        read_trace(path)
    assert str(refusal.value).startswith(str(path))
    return str(refusal.value).removeprefix(str(path)).removeprefix(", ")


@given(rows=rows_of_any_order)
def test_written_rows_read_back_exactly(folder: Path, rows: list[TraceRow]) -> None:
    rows.sort(key=lambda row: row.arrived_at)
    write_trace(folder / "round.csv", rows)
    assert read_trace(folder / "round.csv") == rows


@given(rows=rows_of_any_order, cut=st.integers(min_value=1, max_value=60))
def test_a_file_cut_short_is_refused_or_holds_fewer_whole_rows(folder: Path, rows: list[TraceRow], cut: int) -> None:
    rows.sort(key=lambda row: row.arrived_at)
    path = folder / "cut.csv"
    write_trace(path, rows)
    path.write_bytes(path.read_bytes()[:-cut])
    try:
        kept = read_trace(path)
    except TraceError:
        return
    assert kept == rows[: len(kept)]
    assert len(kept) < len(rows)


def test_a_plain_trace_has_only_the_required_columns(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.csv", [ROW, replace(ROW, arrived_at=0.1 + 0.2)])
    assert (tmp_path / "trace.csv").read_bytes() == (
        f"{HEADER}\n0.25,opt-6.7b,128,64\n0.30000000000000004,opt-6.7b,128,64\n".encode()
    )


def test_optional_columns_appear_when_a_row_needs_them(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.csv", [ROW, replace(ROW, label="chat, short", tpot_slo=0.04)])
    assert (tmp_path / "trace.csv").read_text() == (
        f'{HEADER},label,tpot_slo\n0.25,opt-6.7b,128,64,measured,\n0.25,opt-6.7b,128,64,"chat, short",0.04\n'
    )


def test_columns_come_in_any_order_and_empty_cells_mean_the_default(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(
        "label,num_output_tokens,num_prompt_tokens,ttft_slo,model,arrived_at\n,64,128,,opt-6.7b,0.25\n"
    )
    assert read_trace(tmp_path / "trace.csv") == [ROW]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_spreadsheets_byte_order_mark_newlines_and_blank_lines_are_taken(tmp_path: Path, newline: str) -> None:
    text = f"\ufeff{HEADER}\n\n0.25,opt-6.7b,128,64\n\n".replace("\n", newline)
    (tmp_path / "trace.csv").write_bytes(text.encode())
    assert read_trace(tmp_path / "trace.csv") == [ROW]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", f"line 1, header: held nothing, expected {HEADER}"),
        (f"{HEADER}\n", "line 2, row: held nothing, expected at least one request"),
        (
            "arrived_at,model,num_prompt_tokens\n0,m,1\n",
            "line 1, header: held 'arrived_at,model,num_prompt_tokens', expected num_output_tokens too",
        ),
        (
            f"{HEADER},slo\n0,m,1,1,2\n",
            "line 1, header: held the unknown column 'slo', expected some of arrived_at, model, "
            "num_prompt_tokens, num_output_tokens, label, ttft_slo, tpot_slo, priority",
        ),
        (f"{HEADER},model\n0,m,1,1,m\n", "line 1, header: held the column 'model' 2 times, expected it once"),
        (
            f"{HEADER}\n2,m,1,1\n1.5,m,1,1\n",
            "line 3, arrived_at: held 1.5, expected at least 2.0, the time of the row above",
        ),
        (
            f"{HEADER}\n-1,m,1,1\n",
            "line 2, arrived_at: held '-1', expected seconds, a finite number from 0 on",
        ),
        (
            f"{HEADER}\nnan,m,1,1\n",
            "line 2, arrived_at: held 'nan', expected seconds, a finite number from 0 on",
        ),
        (
            f"{HEADER}\n1_0,m,1,1\n",
            "line 2, arrived_at: held '1_0', expected seconds, a finite number from 0 on",
        ),
        (f"{HEADER}\n,m,1,1\n", "line 2, arrived_at: held '', expected seconds, a finite number from 0 on"),
        (
            f"{HEADER}\n0,m,1,1\n\n0,m,12.5,1\n",
            "line 4, num_prompt_tokens: held '12.5', expected a whole number of tokens, "
            "at least 1 and of at most 9 digits",
        ),
        (f"{HEADER}\n0,m,1,0\n", "line 2, num_output_tokens: held '0', expected a whole number of tokens"),
        (f"{HEADER}\n0,m,-4,1\n", "line 2, num_prompt_tokens: held '-4', expected a whole number of tokens"),
        (f"{HEADER}\n0,m,{'9' * 5000},1\n", "line 2, num_prompt_tokens: held '999"),
        (f"{HEADER}\n0,,1,1\n", "line 2, model: held '', expected a printable name without spaces around it"),
        (f"{HEADER}\n0, m,1,1\n", "line 2, model: held ' m', expected a printable name"),
        (
            f"{HEADER},ttft_slo\n0,m,1,1,0\n",
            "line 2, ttft_slo: held '0', expected seconds, a finite number above 0",
        ),
        (f"{HEADER}\n0,m\n", f"line 2, num_prompt_tokens: held '0,m', 2 fields, expected 4: {HEADER}"),
        (f"{HEADER}\n0,m,1,1,9\n", "line 2, num_output_tokens: held '0,m,1,1,9', 5 fields, expected 4"),
        (
            f"{HEADER}\n0,m,1,1\n0,m,1,12",
            "line 3, end of line: held '0,m,1,12' without a newline, expected one after the last row",
        ),
        (f'{HEADER}\n0,m,1,1\n0,"m,1,12\n', "line 3, quotes: held a broken field (unexpected end of data)"),
        (f"{HEADER}\n0,m".encode() + b"\xff,1,1\n", "line 2, byte 4: held b'\\xff', expected text in UTF-8"),
    ],
)
def test_a_wrong_file_says_where_what_it_held_and_what_is_expected(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    assert refusal_of(tmp_path, content).startswith(message)


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"{HEADER}\n{text}\n".encode()))
def test_no_content_raises_anything_but_a_trace_error(folder: Path, content: bytes) -> None:
    path = folder / "any.csv"
    path.write_bytes(content)
    try:
        rows = read_trace(path)
    except TraceError as refusal:
        assert str(refusal).startswith(f"{path}, line ")
        return
    assert rows


def test_a_missing_file_and_a_folder_are_trace_errors_too(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(TraceError, match="cannot be read"):
            read_trace(path)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [replace(ROW, arrived_at=2.0), ROW],
        [replace(ROW, num_output_tokens=0)],
        [replace(ROW, arrived_at=float("nan"))],
        [replace(ROW, label="")],
        [replace(ROW, model="two\nlines")],
        [replace(ROW, ttft_slo=float("inf"))],
    ],
)
def test_rows_that_would_not_read_back_are_refused_and_the_old_file_stays(tmp_path: Path, rows: list[TraceRow]) -> None:
    write_trace(tmp_path / "trace.csv", [ROW])
    with pytest.raises(TraceError):
        write_trace(tmp_path / "trace.csv", rows)
    assert read_trace(tmp_path / "trace.csv") == [ROW]
    assert os.listdir(tmp_path) == ["trace.csv"]


def test_a_trace_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(TraceError("trace.csv, line 2, model: held ''")))
    assert isinstance(error, ValueError)
    assert str(error) == "trace.csv, line 2, model: held ''"


def test_priorities_read_back_and_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = [
        TraceRow(arrived_at=0.0, model="m", num_prompt_tokens=1, num_output_tokens=1),
        TraceRow(arrived_at=0.5, model="m", num_prompt_tokens=1, num_output_tokens=1, priority=1),
    ]
    write_trace(path, rows)
    assert path.read_text().splitlines()[0].endswith(",priority")
    assert read_trace(path) == rows
    path.write_text("arrived_at,model,num_prompt_tokens,num_output_tokens,priority\n0,m,1,1,\n")
    assert read_trace(path)[0].priority == 0


@pytest.mark.parametrize("cell", ["-1", "high", "1.0", "1234567890"])
def test_a_priority_is_a_whole_number(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f"arrived_at,model,num_prompt_tokens,num_output_tokens,priority\n0,m,1,1,{cell}\n")
    with pytest.raises(TraceError) as refusal:
        read_trace(path)
    expected = "expected a whole number from 0 on (0 is normal, 1 high), of at most 9 digits"
    assert str(refusal.value) == f"{path}, line 2, priority: held {cell!r}, {expected}"
