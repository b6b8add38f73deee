"""The paper's points: one row a bar, grid keys, the metric, and where the number comes from."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aebench.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd


def read_paper_points(path: Path, columns: Sequence[str], metrics: Sequence[str]) -> "pd.DataFrame":
    """The paper's points: one row a bar, grid keys, the metrics, and a source for each."""
    import pandas as pd

    rows = _csv_rows(path)
    if not rows:
        raise SpecError(path, "line 1", f"expected a header with {', '.join([*columns, 'source'])}, got an empty file")
    header, *lines = rows
    wanted = {*columns, "source"}
    for column in header:
        if column not in wanted:
            raise SpecError(path, "line 1", f"unknown column {column!r}. Known: {', '.join([*columns, 'source'])}")
    for column in [*columns, "source"]:
        if column not in header:
            raise SpecError(path, "line 1", f"column {column!r} is missing")
    seen: dict[tuple[str, ...], int] = {}
    points = []
    for number, cells in enumerate(lines, 2):
        point = _csv_row(path, number, header, cells, metrics)
        keys = tuple(str(point[column]) for column in columns if column not in metrics)
        if seen.setdefault(keys, number) != number:
            raise SpecError(path, f"line {number}", f"the same point as on line {seen[keys]}: {', '.join(keys)}")
        points.append(point)
    return pd.DataFrame(points, columns=header)


def _csv_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file, strict=True))
    except FileNotFoundError as error:
        raise SpecError(path, "", "there is no such file") from error
    except UnicodeDecodeError as error:
        raise SpecError(path, "", f"not UTF-8 text (byte {error.start})") from error
    except csv.Error as error:
        raise SpecError(path, "", f"not a CSV file: {error}") from error
    except OSError as error:
        raise SpecError(path, "", f"cannot be read: {error.strerror}") from error


def _csv_row(
    path: Path, number: int, header: list[str], cells: list[str], metrics: Sequence[str]
) -> dict[str, str | float]:
    if len(cells) != len(header):
        raise SpecError(path, f"line {number}", f"expected {len(header)} cells, got {len(cells)}")
    row: dict[str, str | float] = dict(zip(header, cells, strict=True))
    for metric in metrics:
        row[metric] = _number(path, f"line {number}, {metric}", str(row[metric]))
    if not row["source"]:
        raise SpecError(path, f"line {number}, source", "expected where the number comes from, got nothing")
    return row


def _number(path: Path, where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise SpecError(path, where, f"expected a number, got {text!r}") from error
    if not math.isfinite(value):
        raise SpecError(path, where, f"expected a finite number, got {value}")
    return value
