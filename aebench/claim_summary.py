"""Summary: the rows that claims are about, indexed by grid values as text."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from aebench.claim_syntax import key_text


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One point of the summary: its grid values and its row in each seed."""

    keys: Mapping[str, str]
    rows: dict[int, int]
    history: bool
    calibrated: bool


class Summary:
    """A summary table, indexed by grid values as text."""

    def __init__(
        self,
        frame: pd.DataFrame,
        grid_keys: Sequence[str],
        calibrated: Callable[[Mapping[str, str]], bool],
    ) -> None:
        self.frame = frame
        self.grid_keys = tuple(grid_keys)
        self.metrics = tuple(str(name) for name in frame.columns if name not in (*grid_keys, "seed", "history"))
        self.cells: list[Cell] = []
        history = frame["history"].tolist() if "history" in frame.columns else [False] * len(frame)
        for texts, rows in _rows(frame, grid_keys).items():
            keys = dict(zip(grid_keys, texts, strict=True))
            filled = any(bool(history[row]) for row in rows.values())
            self.cells.append(Cell(keys, dict(sorted(rows.items())), filled, calibrated(keys)))
        self.order = {key: list(dict.fromkeys(cell.keys[key] for cell in self.cells)) for key in grid_keys}
        """Values of each grid key in the order in which they appear."""

    def samples(self, metric: str) -> Callable[[Cell], dict[int, float]]:
        """A function from a cell to the metric's value in each seed that has one."""
        numbers = pd.to_numeric(self.frame[metric], errors="coerce")
        column: list[float] = numbers.to_numpy(dtype=float, na_value=math.nan).tolist()

        def of(cell: Cell) -> dict[int, float]:
            return {seed: column[row] for seed, row in cell.rows.items() if not math.isnan(column[row])}

        return of


def _rows(frame: pd.DataFrame, grid_keys: Sequence[str]) -> dict[tuple[str, ...], dict[int, int]]:
    """Row numbers by grid values and seed."""
    rows: dict[tuple[str, ...], dict[int, int]] = {}
    columns = [frame[key].tolist() for key in (*grid_keys, "seed")]
    for number, (*values, seed) in enumerate(zip(*columns, strict=True)):
        texts = tuple(key_text(value) for value in values)
        if rows.setdefault(texts, {}).setdefault(int(seed), number) != number:
            point = label(dict(zip(grid_keys, texts, strict=True)))
            raise ValueError(f"the summary has two rows of {point} seed={seed}")
    return rows


def label(keys: Mapping[str, str]) -> str:
    """Grid values in a message: ``system=hydraserve cv=8``."""
    return " ".join(f"{key}={text}" for key, text in keys.items())
