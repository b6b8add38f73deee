"""ShareGPT: the first question and the first answer of each conversation.

    {"conversations": [{"from": "human", "value": "Why ...?"}, {"from": "gpt", "value": "Because ..."}, ...]}

One such object a line (sharegpt_gpt4.jsonl), or an array of them (ShareGPT_V3_unfiltered_cleaned_split.json).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.workload.recordings import RecordingError, reading

ASKING = ("human", "user")
NOT_ANSWERING = (*ASKING, "system")


def read_sharegpt(path: Path) -> Iterator[tuple[str, str]]:
    """The texts of one conversation after another, in file order; those without an answer, or with an empty one, are
    left out. Raises ``RecordingError``."""
    for place, conversation in _conversations(path):
        if (found := _first_exchange(path, place, conversation)) is not None:
            yield found


def _conversations(path: Path) -> Iterator[tuple[str, Any]]:
    """The objects of the file, each with its line, or its number in the array, in words."""
    with reading(path, "Expected ShareGPT's JSON, or JSON lines"), path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        if first.lstrip().startswith("["):
            found = _array(path, file.read())
            yield from ((f"conversation {number}", each) for number, each in enumerate(found, 1))
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", _decoded(path, number, line)


def _array(path: Path, text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordingError(f"{path}: broken JSON ({error}), expected an array of conversations") from error
    return list(found)  # a text that begins with a bracket is an array


def _decoded(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        message = f"held broken JSON ({error}), expected a conversation a line, or an array of them"
        raise RecordingError(f"{path}, line {number}: {message}") from error


def _first_exchange(path: Path, place: str, conversation: Any) -> tuple[str, str] | None:
    """The first question and what was said to it; None: there is none, or one of them is empty."""
    turns = conversation.get("conversations") if isinstance(conversation, dict) else None
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        expected = "expected a list of turns, each with the texts 'from' and 'value'"
        raise RecordingError(f"{path}, {place}, conversations: {expected}")
    asked = next((index for index, turn in enumerate(turns) if turn["from"] in ASKING), len(turns))
    if asked + 1 >= len(turns) or turns[asked + 1]["from"] in NOT_ANSWERING:
        return None
    question, answer = turns[asked]["value"], turns[asked + 1]["value"]
    return (question, answer) if question and answer else None


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)
