"""BurstGPT's published file: answered conversations with GPT-4, and one message for each way a file can be wrong."""

from pathlib import Path

import pytest

from serving.workload.burstgpt import read_burstgpt
from serving.workload.recordings import RecordingError

HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BY_HAND = HEADER + (
    "5,ChatGPT,472,18,490,Conversation log\n"  # another model
    "45,GPT-4,1087,230,1317,Conversation log\n"
    "118,GPT-4,417,276,693,API log\n"
    "120,GPT-4,50,0,50,Conversation log\n"  # failed
    "200,GPT-4,7000,90000,97000,Conversation log\n"  # cut
)


def test_conversations_that_got_an_answer_are_read_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(BY_HAND)
    assert read_burstgpt(path, 6144) == [(1087, 230), (6144, 6144)]


def test_the_newer_file_with_more_columns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    path.write_text(header + "1,9,2.5,GPT-4,10,20,30,Conversation log\n")
    assert read_burstgpt(path, 6144) == [(10, 20)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Timestamp,Model,Request tokens\n",
            ", line 1, header: held 'Timestamp,Model,Request tokens', expected Model,Request tokens,Response tokens,"
            "Log Type; Response tokens, Log Type missing",
        ),
        (HEADER, ", line 2, row: held nothing, expected an answered Conversation log of GPT-4 at least"),
        (
            HEADER + "1,GPT-4,10,ten,20,Conversation log\n",
            ", line 2, Response tokens: held 'ten', expected a whole number of tokens",
        ),
        (
            HEADER + "1,GPT-4,-1,3,20,Conversation log\n",
            ", line 2, Request tokens: held '-1', expected a whole number of tokens",
        ),
        (
            HEADER + "1,GPT-4,10\n",
            ", line 2, row: held 3 fields, expected Model,Request tokens,Response tokens,Log Type",
        ),
    ],
)
def test_a_file_that_cannot_be_taken_gets_one_message(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(text)
    with pytest.raises(RecordingError) as refusal:
        read_burstgpt(path, 6144)
    assert str(refusal.value) == f"{path}{message}"


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv.gz"
    path.write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(RecordingError, match=r"not a text file in UTF-8. Expected BurstGPT's CSV$"):
        read_burstgpt(path, 6144)
