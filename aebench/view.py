"""View: which rows of which table of a run a figure is about, and what is made of them before it draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aebench.claim_syntax import key_text
from aebench.errors import SpecError
from aebench.figure_tables import FigureFile
from aebench.point_checks import check_name

if TYPE_CHECKING:  # pandas takes 0.4 s to import
    import pandas as pd

HISTORY = "history"
"""The column that marks rows filled in from a shipped log."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Rows with one value of a key divided by those with another, where all else is equal."""

    key: str
    of: str
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a figure sees of a run."""

    table: str = "summary"
    table_keys: Sequence[str] = ()
    """Columns of the table that tell rows of one seed apart."""
    metrics: Sequence[str] = ()
    """The table's other columns."""
    where: Mapping[str, str] = field(default_factory=dict)
    ratio: Ratio | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of what is seen: of the table, less those that ``where`` and ``ratio`` settle."""
        settled = (*self.where, *([self.ratio.key] if self.ratio else []))
        return tuple(key for key in self.table_keys if key not in settled)

    def rows(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """What is seen of the table."""
        for key, text in self.where.items():
            frame = frame[frame[key].map(key_text) == text]
        if self.where:
            frame = frame.drop(columns=list(self.where)).reset_index(drop=True)
        return frame if self.ratio is None else self._quotients(frame, self.ratio)

    def points(self, cells: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        """Those cells of the grid, values as text, whose points make what is seen."""
        wanted: dict[str, tuple[str, ...]] = {key: (text,) for key, text in self.where.items()}
        if self.ratio is not None:
            wanted[self.ratio.key] = (self.ratio.of, self.ratio.to)
        return [cell for cell in cells if all(cell[key] in texts for key, texts in wanted.items() if key in cell)]

    def _quotients(self, frame: "pd.DataFrame", ratio: Ratio) -> "pd.DataFrame":
        """Rows of the two values meet where all other keys and the seed agree; of the others there is no quotient."""
        import pandas as pd

        on = [*self.keys, "seed"]
        texts = frame[ratio.key].map(key_text)
        both = frame[texts == ratio.of].merge(frame[texts == ratio.to], on=on, suffixes=("", " to"))
        rows = both[on].copy()
        for metric in frame.columns:
            if metric == HISTORY:
                rows[HISTORY] = both[HISTORY].astype(bool) | both[f"{HISTORY} to"].astype(bool)
            elif metric not in (*on, ratio.key):
                of, to = (pd.to_numeric(both[name], errors="coerce") for name in (metric, f"{metric} to"))
                rows[metric] = of / to
        return rows


def view_of(
    file: FigureFile, path: Path, table_keys: Sequence[str], metrics: Sequence[str], values: Mapping[str, Sequence[str]]
) -> View:
    """The view that a figure's file declares on a table; SpecError where it names a key or a value of a key that there
    is not."""
    ratio = None
    for key, value in file.where.items():
        check_name(str(path), f"where.{key}", "key", key, table_keys)
        check_name(str(path), f"where.{key}", key, key_text(value), values[key])
    if file.ratio is not None:
        ratio = Ratio(file.ratio.key, key_text(file.ratio.of), key_text(file.ratio.to))
        check_name(str(path), "ratio.key", "key", ratio.key, [key for key in table_keys if key not in file.where])
        for name, text in (("of", ratio.of), ("to", ratio.to)):
            check_name(str(path), f"ratio.{name}", ratio.key, text, values[ratio.key])
        if ratio.of == ratio.to:
            raise SpecError(path, "ratio", f"expected two values of {ratio.key}, got {ratio.of} twice")
    where = {key: key_text(value) for key, value in file.where.items()}
    return View(table=file.table or View().table, table_keys=table_keys, metrics=metrics, where=where, ratio=ratio)
