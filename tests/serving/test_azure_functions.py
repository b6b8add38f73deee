"""The published trace file: its rows as invocations, and one clear message for each way a file can be wrong."""

from pathlib import Path

import pytest

from serving.workload.azure_functions import read_azure_functions
from serving.workload.functions import DAY
from serving.workload.recordings import RecordingError
from serving.workload.serverless import fitted

HEADER = "app,func,end_timestamp,duration\n"
BY_HAND = HEADER + (
    "a,f,0.5,0.75\n"  # was under way when the trace began: 0
    "b,f,12,2\n"  # another app's function of that name
    "a,f,300.5,0.5\n"
    "a,f,210,10\n"  # ended earlier, so it stands later: 200
    "b,f,90000,1\n"
)


def test_an_invocation_arrives_when_it_ended_less_what_it_took(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(BY_HAND)
    found = read_azure_functions(path)
    assert [times.tolist() for times in found.arrived_at] == [[0.0, 200.0, 300.0], [10.0, 89_999.0]]
    assert found.span == 2 * DAY
    fits = fitted(found, 2)  # of the first function, gaps 200 and 100: mean 150, deviation 50
    assert (fits.model.tolist(), fits.rate.tolist()) == ([0], pytest.approx([1 / 150]))
    assert fits.cv.tolist() == pytest.approx([1 / 3])


def test_columns_may_stand_in_any_order_among_others(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("duration, more,func,end_timestamp,app\n1,x,f,3,a\n\n2,x,f,9,a\n")
    assert read_azure_functions(path).arrived_at[0].tolist() == [2.0, 7.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"",
            ", line 1, header: held '', expected app,func,end_timestamp,duration; app, func, "
            "end_timestamp, duration missing",
        ),
        (
            b"app,func,duration\n",
            ", line 1, header: held 'app,func,duration', expected app,func,end_timestamp,duration; "
            "end_timestamp missing",
        ),
        (HEADER.encode(), ", line 2, row: held nothing, expected at least one invocation"),
        (HEADER.encode() + b"a,f,1\n", ", line 2, row: held 3 fields, expected app,func,end_timestamp,duration"),
        (
            HEADER.encode() + b"a,f,1,0\na,f,soon,0\n",
            ", line 3, end_timestamp: held 'soon', expected seconds from the trace's start",
        ),
        (
            HEADER.encode() + b"a,f,nan,0\n",
            ", line 2, end_timestamp: held 'nan', expected seconds from the trace's start",
        ),
        (
            HEADER.encode() + b"a,f,1611446400,0\n",
            ", line 2, end_timestamp: held '1611446400', expected seconds from the trace's start",
        ),
        (HEADER.encode() + b"a,f,1,-2\n", ", line 2, duration: held '-2', expected seconds, a finite number from 0 on"),
        (
            b"Rar!\x1a\x07\x01\x00\xf3\xe1",
            ": not a text file in UTF-8. The trace is published packed; expected the unpacked .txt file",
        ),
        (HEADER.encode() + b'a,f,1,0\na,"f"x,1,0\n', ": held a broken field (',' expected after '\"'), expected CSV"),
    ],
)
def test_a_file_that_cannot_be_taken_gets_one_message(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "trace.txt"
    path.write_bytes(content)
    with pytest.raises(RecordingError) as refusal:
        read_azure_functions(path)
    assert str(refusal.value) == f"{path}{message}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"missing.txt: cannot be read \(No such file or directory\)"):
        read_azure_functions(tmp_path / "missing.txt")
