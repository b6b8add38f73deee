"""BurstGPT: the token counts of its conversations with GPT-4.

    Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
    5,ChatGPT,472,18,490,Conversation log
    45,GPT-4,1087,230,1317,Conversation log

BurstGPT_1.csv and its successors, which have more columns: one row a request; a failed one has no response tokens.
"""

from collections.abc import Sequence
from pathlib import Path

from serving.units import Tokens
from serving.workload.recordings import read_columns, refuse

COLUMNS = ("Model", "Request tokens", "Response tokens", "Log Type")
MODEL = "GPT-4"
LOG_TYPE = "Conversation log"


def read_burstgpt(path: Path, max_tokens: Tokens) -> list[tuple[Tokens, Tokens]]:
    """Prompt and output tokens of the conversations with GPT-4 that got an answer, in file order, each cut to
    ``max_tokens``; at least one. Raises ``RecordingError``."""
    found = []
    line = 1
    for line, (model, *counts, log_type) in read_columns(path, COLUMNS, "Expected BurstGPT's CSV"):
        if model.strip() == MODEL and log_type.strip() == LOG_TYPE:
            num_prompt, num_output = _counts(path, line, counts)
            if num_prompt and num_output:
                found.append((min(max_tokens, num_prompt), min(max_tokens, num_output)))
    if not found:
        refuse(path, line + 1, "row", f"held nothing, expected an answered {LOG_TYPE} of {MODEL} at least")
    return found


def _counts(path: Path, line: int, cells: Sequence[str]) -> list[Tokens]:
    for name, cell in zip(COLUMNS[1:3], cells, strict=True):
        if not (cell.strip().isascii() and cell.strip().isdigit() and len(cell) < 10):
            refuse(path, line, name, f"held {cell[:40]!r}, expected a whole number of tokens")
    return [int(cell) for cell in cells]
