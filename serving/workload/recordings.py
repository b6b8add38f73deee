"""Recorded traffic that others published: CSV read row by row, and one clear message for what cannot be taken."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


class RecordingError(ValueError):
    """A recording that cannot be taken: file, line, column, what it held, what was expected."""


def read_columns(path: Path, columns: Sequence[str], expected: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line number and the cells of those columns, of one row after another; the file is never held as a whole. Columns
    may stand in any order among others. ``expected`` says what a file that is no text should have been. Raises
    ``RecordingError``."""
    try:
        with reading(path, expected), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            places = _places(path, columns, next(reader, []))
            for cells in reader:
                if not cells:
                    continue
                if len(cells) <= max(places):
                    refuse(path, reader.line_num, "row", f"held {len(cells)} fields, expected {','.join(columns)}")
                yield reader.line_num, tuple(cells[place] for place in places)
    except csv.Error as error:
        raise RecordingError(f"{path}: held a broken field ({error}), expected CSV") from error


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turns what goes wrong while a text file is read into a ``RecordingError``."""
    try:
        yield
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path}: not a text file in UTF-8. {expected}") from error


def refuse(path: Path, line: int, column: str, message: str) -> NoReturn:
    """Raise the ``RecordingError`` about a cell."""
    raise RecordingError(f"{path}, line {line}, {column}: {message}")


def _places(path: Path, columns: Sequence[str], header: Sequence[str]) -> tuple[int, ...]:
    """Where each of the columns stands."""
    names = [name.strip() for name in header]
    missing = [name for name in columns if name not in names]
    if missing:
        shown = ",".join(names)[:60]
        refuse(path, 1, "header", f"held {shown!r}, expected {','.join(columns)}; {', '.join(missing)} missing")
    return tuple(names.index(name) for name in columns)
