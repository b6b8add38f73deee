"""Workload traces: requests with their arrival times and lengths, as a CSV file.

    arrived_at,model,num_prompt_tokens,num_output_tokens[,label][,ttft_slo][,tpot_slo][,priority]
    0.25,opt-6.7b,128,64,chat,0.5,0.04

Seconds and tokens; rows sorted by ``arrived_at``; columns in any order. An empty cell of an optional
column means that column's default. The last line has to end in a newline, because a file cut off
inside its last number would otherwise read as another workload.
"""

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from serving.units import Seconds, Tokens

MAX_DIGITS = 9
"""Of a token count; more is a mistake, not a prompt."""


class TraceError(ValueError):
    """A trace file that cannot be taken: file, line, column, what it held, what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One request of a trace."""

    arrived_at: Seconds
    model: str
    num_prompt_tokens: Tokens
    num_output_tokens: Tokens
    label: str = "measured"
    ttft_slo: Seconds | None = None
    tpot_slo: Seconds | None = None
    priority: int = 0


class _Unfit(Exception):
    """A cell that its column cannot hold; says what was expected."""


def read_trace(path: Path) -> list[TraceRow]:
    """The rows of a trace file, at least one; raises ``TraceError``."""
    return _parse(path, _read_text(path))


def write_trace(path: Path, rows: Sequence[TraceRow]) -> None:
    """Write a trace that reads back exactly, whole or not at all; raises ``TraceError`` where it would not.

    An optional column is written when some row departs from its default.
    """
    varied = [name for name in _DEFAULTS if any(getattr(row, name) != _DEFAULTS[name] for row in rows)]
    columns = [*_REQUIRED, *varied]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(getattr(row, name)) for name in columns] for row in rows)
    for row, read_back in zip(rows, _parse(path, text.getvalue()), strict=True):
        if row != read_back:
            raise TraceError(f"{path}: held {row}, which would read back as {read_back}")
    _replace(path, text.getvalue())


def _cell(value: float | str | None) -> str:
    """A value as text; floats with every digit that tells them apart."""
    if value is None:
        return ""
    return value if isinstance(value, str) else repr(value)


def _replace(path: Path, text: str) -> None:
    """Put the text in place of the file in one step, so that a crash leaves the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_text(path: Path) -> str:
    """The file as text; a byte order mark, as spreadsheets write it, is dropped."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        column = len(before) - before.rfind(b"\n")
        _refuse(
            path,
            before.count(b"\n") + 1,
            f"byte {column}",
            f"held {error.object[error.start : error.start + 1]!r}, expected text in UTF-8",
        )
    if text and not text.endswith(("\n", "\r")):
        last = text.splitlines()[-1]
        _refuse(
            path,
            text.count("\n") + 1,
            "end of line",
            f"held {last[-60:]!r} without a newline, expected one after the last row "
            "(was the file cut off? if it is whole, add the newline)",
        )
    return text


def _parse(path: Path, text: str) -> list[TraceRow]:
    """The rows of a trace's text."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[TraceRow] = []
    columns: list[str] | None = None
    previous_line = 0
    try:
        for cells in reader:
            line, previous_line = previous_line + 1, reader.line_num
            if columns is None:
                columns = _header(path, cells)
            elif cells:
                rows.append(_row(path, line, columns, cells))
                _require_order(path, line, rows)
    except csv.Error as error:
        _refuse(path, previous_line + 1, "quotes", f"held a broken field ({error}), expected CSV")
    if columns is None:
        _refuse(path, 1, "header", f"held nothing, expected {','.join(_REQUIRED)}")
    if not rows:
        _refuse(path, previous_line + 1, "row", "held nothing, expected at least one request")
    return rows


def _header(path: Path, cells: list[str]) -> list[str]:
    """The names of the columns, each known, none twice, none missing."""
    known = ", ".join(_PARSERS)
    for name in cells:
        if name not in _PARSERS:
            _refuse(path, 1, "header", f"held the unknown column {name!r}, expected some of {known}")
        if cells.count(name) > 1:
            _refuse(path, 1, "header", f"held the column {name!r} {cells.count(name)} times, expected it once")
    missing = [name for name in _REQUIRED if name not in cells]
    if missing:
        _refuse(path, 1, "header", f"held {','.join(cells)!r}, expected {', '.join(missing)} too")
    return cells


def _row(path: Path, line: int, columns: list[str], cells: list[str]) -> TraceRow:
    """One line as a row."""
    if len(cells) != len(columns):
        _refuse(
            path,
            line,
            columns[min(len(cells), len(columns) - 1)],
            f"held {','.join(cells)!r}, {len(cells)} fields, expected {len(columns)}: {','.join(columns)}",
        )
    values: dict[str, Any] = {}
    for name, cell in zip(columns, cells, strict=True):
        if not cell and name in _DEFAULTS:
            continue
        try:
            values[name] = _PARSERS[name](cell)
        except _Unfit as unfit:
            _refuse(path, line, name, f"held {cell!r}, expected {unfit}")
    return TraceRow(**values)


def _require_order(path: Path, line: int, rows: list[TraceRow]) -> None:
    """Refuse a last row that arrives before the one above it."""
    if len(rows) > 1 and rows[-1].arrived_at < rows[-2].arrived_at:
        earlier, later = rows[-2].arrived_at, rows[-1].arrived_at
        expected = f"expected at least {earlier!r}, the time of the row above"
        _refuse(path, line, "arrived_at", f"held {later!r}, {expected}")


def _refuse(path: Path, line: int, column: str, message: str) -> NoReturn:
    raise TraceError(f"{path}, line {line}, {column}: {message}") from None


def _number(cell: str, expected: str) -> float:
    """A finite number in plain notation."""
    try:
        value = float(cell)
    except ValueError:
        raise _Unfit(expected) from None
    if not math.isfinite(value) or not cell.isascii() or "_" in cell or cell != cell.strip():
        raise _Unfit(expected)
    return value


def _instant(cell: str) -> Seconds:
    expected = "seconds, a finite number from 0 on"
    value = _number(cell, expected)
    if value < 0:
        raise _Unfit(expected)
    return value


def _slo(cell: str) -> Seconds:
    expected = "seconds, a finite number above 0, or nothing"
    value = _number(cell, expected)
    if value <= 0:
        raise _Unfit(expected)
    return value


def _tokens(cell: str) -> Tokens:
    if not (cell.isascii() and cell.isdigit() and len(cell) <= MAX_DIGITS and int(cell) > 0):
        raise _Unfit(f"a whole number of tokens, at least 1 and of at most {MAX_DIGITS} digits")
    return int(cell)


def _priority(cell: str) -> int:
    if not (cell.isascii() and cell.isdigit() and len(cell) <= MAX_DIGITS):
        raise _Unfit(f"a whole number from 0 on (0 is normal, 1 high), of at most {MAX_DIGITS} digits")
    return int(cell)


def _name(cell: str) -> str:
    if not cell or not cell.isprintable() or cell != cell.strip():
        raise _Unfit("a printable name without spaces around it")
    return cell


_PARSERS: dict[str, Callable[[str], float | str]] = {
    "arrived_at": _instant,
    "model": _name,
    "num_prompt_tokens": _tokens,
    "num_output_tokens": _tokens,
    "label": _name,
    "ttft_slo": _slo,
    "tpot_slo": _slo,
    "priority": _priority,
}
_DEFAULTS = {field.name: field.default for field in fields(TraceRow) if field.default is not MISSING}
_REQUIRED = [name for name in _PARSERS if name not in _DEFAULTS]
