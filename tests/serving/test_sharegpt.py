"""ShareGPT's published files: the first exchange of each conversation, and one message for each way to be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.workload.recordings import RecordingError
from serving.workload.sharegpt import read_sharegpt


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    """A conversation."""
    return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in turns]}


TALKS = [
    talk(("human", "Why?"), ("gpt", "Because."), ("human", "Really?"), ("gpt", "Yes.")),
    talk(("system", "Be short."), ("user", "How?"), ("assistant", "So.")),
    talk(("gpt", "Hello."), ("human", "Hi."), ("gpt", "What is it?")),
    talk(("human", "Nobody?")),
    talk(("human", "Twice?"), ("human", "Twice!"), ("gpt", "No.")),
    talk(("human", "Empty?"), ("gpt", "")),
    talk(),
]
READ = [("Why?", "Because."), ("How?", "So."), ("Hi.", "What is it?")]


@pytest.mark.parametrize(
    "text",
    [
        "".join(json.dumps(each) + "\n" for each in TALKS),
        "\n\n".join(json.dumps(each) for each in TALKS),
        json.dumps(TALKS),
        "\n  " + json.dumps(TALKS, indent=2),
        "\ufeff" + json.dumps(TALKS),
    ],
)
def test_the_first_question_and_its_answer_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "talks.json"
    path.write_text(text, encoding="utf-8")
    assert list(read_sharegpt(path)) == READ


TURNS = "conversations: expected a list of turns, each with the texts 'from' and 'value'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n', f", line 1, {TURNS}"),
        (json.dumps(TALKS[0]) + '\n{"conversations": [{"from": "human"}]}\n', f", line 2, {TURNS}"),
        ("[1]", f", conversation 1, {TURNS}"),
        (
            json.dumps(TALKS[0]) + '\n{"conversations": [',
            ", line 2: held broken JSON (Expecting value: line 1 column 20 (char 19)), "
            "expected a conversation a line, or an array of them",
        ),
        (
            "[{}",
            ": broken JSON (Expecting ',' delimiter: line 1 column 4 (char 3)), expected an array of conversations",
        ),
    ],
)
def test_a_file_that_cannot_be_taken_gets_one_message(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "talks.json"
    path.write_text(text)
    with pytest.raises(RecordingError) as refusal:
        list(read_sharegpt(path))
    assert str(refusal.value) == f"{path}{message}"


def test_an_empty_file_has_no_conversations(tmp_path: Path) -> None:
    (tmp_path / "talks.json").write_text("\n")
    assert list(read_sharegpt(tmp_path / "talks.json")) == []


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"none.json: cannot be read \(No such file or directory\)"):
        list(read_sharegpt(tmp_path / "none.json"))
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(RecordingError, match=r"not a text file in UTF-8. Expected ShareGPT's JSON, or JSON lines$"):
        list(read_sharegpt(tmp_path / "packed"))
