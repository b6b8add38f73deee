"""What a run found, as text: the headline, the claim table, the error of prediction.

The same for machines is ``aebench.report_json``, and as a page ``aebench.report_html``.
"""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean

import pandas as pd

from aebench.claims import Judgement, Verdict
from aebench.figure import METRIC, Cell, Figure, IsCalibrated, PlotSpec, Spread, cells, unit_of, value_text

WIDTH = 110
MEASURED_WIDTH = 24
DEVIATION_WIDTH = 12
PAPERS_CLAIMS = "what the paper says"
OUR_CLAIMS = "our own claims (no paper printed this)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSummary:
    """Relative errors of some points, taken together."""

    num_points: int
    mape: float
    """Mean of the absolute relative errors."""
    bias: float
    """Mean of the signed ones: positive where measured values are higher than the paper's."""
    worst: Cell
    """The point with the largest absolute error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionError:
    """How far a figure's measured values are from the paper's: predictions, and calibration points apart.

    Points filled in from shipped history count in neither; they are in ``cells``, as is every other place.
    """

    metric: str
    predicted: ErrorSummary | None
    """None: no predicted point has both values."""
    calibration: ErrorSummary | None
    cells: Sequence[Cell]

    @property
    def text(self) -> str:
        """One line: how many points, the mean error, the worst point, the calibration points."""
        parts = [self._summary_text("prediction", self.predicted)]
        if self.calibration is not None:
            parts.append(self._summary_text("calibration", self.calibration))
        parts += self._by_metric()
        printed = [cell for cell in self.cells if cell.paper is not None]
        if absent := sum(cell.measured is None for cell in printed):
            parts.append(f"{absent} of {len(printed)} paper points absent here")
        return "; ".join(parts)

    def _by_metric(self) -> list[str]:
        """The mean error of each metric's predictions, where there are several metrics."""
        errors: dict[str, list[float]] = {}
        for cell in self.cells:
            if METRIC in cell.keys and cell.error is not None and not cell.history and not cell.calibrated:
                errors.setdefault(cell.keys[METRIC], []).append(abs(cell.error))
        shares = [f"{metric} {100 * fmean(found):.1f}%" for metric, found in errors.items()]
        return [f"MAPE by metric: {', '.join(shares)}"] if shares else []

    def _summary_text(self, name: str, summary: ErrorSummary | None) -> str:
        if summary is None:
            return f"{name}: no point to compare"
        worst = summary.worst
        where = " ".join(f"{key}={value}" for key, value in worst.keys.items())
        points = f"{summary.num_points} point{'s' if summary.num_points > 1 else ''}"
        return (
            f"{name}: MAPE {100 * summary.mape:.1f}% over {points}, bias {signed_percent(summary.bias)}, "
            f"worst {signed_percent(worst.error)} ({where})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureResult:
    """One figure after a run: what was claimed, what came of it, how far it is from the paper."""

    figure_id: str
    backend: str
    wall_seconds: float
    judgements: Sequence[Judgement]
    prediction: PredictionError | None
    hardware: str | None = None
    """What was measured, or simulated from a profile; None: the paper's machines."""
    is_own: bool = False
    """No paper printed it: its claims are ours."""

    @property
    def says(self) -> str:
        """Whose the claims are, above them."""
        return OUR_CLAIMS if self.is_own else PAPERS_CLAIMS


def prediction_error(figure: Figure, summary: pd.DataFrame, calibrated: IsCalibrated) -> PredictionError | None:
    """The figure's measured values beside the paper's points; None when the paper gives none to compare with."""
    if figure.paper_points is None or figure.orientation:
        return None
    found = cells(figure, summary, calibrated)
    compared = [cell for cell in found if cell.error is not None and not cell.history]
    return PredictionError(
        metric=figure.plot.y,
        predicted=_error_summary([cell for cell in compared if not cell.calibrated]),
        calibration=_error_summary([cell for cell in compared if cell.calibrated]),
        cells=found,
    )


def verdict_counts(judgements: Sequence[Judgement]) -> dict[Verdict, int]:
    """How many claims got each verdict, in the order of ``Verdict``, without those that none got."""
    counts = Counter(judgement.verdict for judgement in judgements)
    return {verdict: counts[verdict] for verdict in Verdict if counts[verdict]}


def finding(judgements: Sequence[Judgement]) -> str:
    """``9 of 11 claims pass, 1 shape, 1 absent``; every claim counts once, whatever became of it."""
    if not judgements:
        return "no claims"
    counts = verdict_counts(judgements)
    passed = counts.pop(Verdict.PASS, 0)
    others = [f"{count} {verdict}" for verdict, count in counts.items()]
    return ", ".join([f"{passed} of {len(judgements)} claims pass", *others])


def headline(figure_id: str, judgements: Sequence[Judgement], backend: str, wall_seconds: float) -> str:
    """``hydraserve/figure7  9 of 11 claims pass, 1 shape, 1 absent   [sim, 18 s]``."""
    return f"{figure_id}  {finding(judgements)}   [{backend}, {duration_text(wall_seconds)}]"


def claim_table(judgements: Sequence[Judgement], says: str = PAPERS_CLAIMS) -> str:
    """The claims with verdict, measurement and deviation; what explains a verdict stands below it."""
    if not judgements:
        return "no claims"
    header = ("verdict", "claim", "measured", "deviation", says)
    rows = [_claim_row(judgement) for judgement in judgements]
    limits = (WIDTH, WIDTH, MEASURED_WIDTH, DEVIATION_WIDTH)
    widths = [min(limit, max(len(row[column]) for row in (header, *rows))) for column, limit in enumerate(limits)]
    widths.append(WIDTH - sum(widths) - 2 * len(widths))
    lines = _wrapped(header, widths)
    for judgement, row in zip(judgements, rows, strict=True):
        lines += _wrapped(row, widths)
        if judgement.detail and judgement.verdict is not Verdict.PASS:
            indent = " " * (sum(widths[:2]) + 4)
            lines += textwrap.wrap(judgement.detail, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def unit_at(plot: PlotSpec, cell: Cell) -> str:
    """Unit of a cell's values: of its own metric, where the figure has several."""
    return unit_of(cell.keys[METRIC]) if METRIC in cell.keys and not plot.is_ratio else plot.unit


def point_table(points: Sequence[Cell], plot: PlotSpec) -> str:
    """Measured and paper value of every point, in columns."""
    names = list(points[0].keys) if points else []
    rows = [[*names, "measured", "paper", "error", ""]]
    for cell in points:
        unit = unit_at(plot, cell)
        paper = "-" if cell.paper is None else value_text(cell.paper, unit)
        measured = "-" if cell.measured is None else spread_text(cell.measured, unit)
        rows.append([*cell.keys.values(), measured, paper, signed_percent(cell.error), point_kind(cell)])
    return columns(rows, len(names), 3)


def columns(rows: Sequence[Sequence[str]], num_names: int, num_numbers: int) -> str:
    """Rows as aligned text: names to the left, then numbers to the right, then what is left to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rest = len(widths) - num_names - num_numbers
    pads = [str.ljust] * num_names + [str.rjust] * num_numbers + [str.ljust] * rest
    return "\n".join(
        "  ".join(pad(text, width) for pad, text, width in zip(pads, row, widths, strict=True)).rstrip() for row in rows
    )


def point_kind(cell: Cell) -> str:
    """What a point is: absent, history, calibration, other hardware, prediction; empty without a paper value."""
    if cell.measured is None:
        return "absent"
    if cell.history:
        return "history"
    if cell.calibrated:
        return "calibration"
    if cell.orientation and cell.paper is not None:
        return "other hardware"
    return "" if cell.paper is None else "prediction"


def spread_text(spread: Spread, unit: str) -> str:
    """A mean, with the ends of its whisker where there is one: ``8.19 s (8.02..8.36)``."""
    if spread.num_seeds == 1:
        return value_text(spread.mean, unit)
    low, high = (value_text(end, unit).removesuffix(unit).rstrip() for end in (spread.low, spread.high))
    return f"{value_text(spread.mean, unit)} ({low}..{high})"


def signed_percent(fraction: float | None) -> str:
    """``+3.1%``, ``-0.4%``; a dash for what cannot be said."""
    return "-" if fraction is None else f"{100 * fraction:+.1f}%"


def duration_text(seconds: float) -> str:
    """``0.4 s``, ``18 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _error_summary(compared: Sequence[Cell]) -> ErrorSummary | None:
    errors = [cell.error for cell in compared if cell.error is not None]
    if not errors:
        return None
    return ErrorSummary(
        num_points=len(errors),
        mape=fmean(map(abs, errors)),
        bias=fmean(errors),
        worst=max(compared, key=lambda cell: abs(cell.error or 0.0)),
    )


def _claim_row(judgement: Judgement) -> tuple[str, ...]:
    claim = judgement.claim
    text = f"{claim.text}  ({claim.source})" if claim.source else claim.text
    return judgement.verdict.value, claim.claim_id, judgement.measured, judgement.deviation, text


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The row's lines: every column wrapped to its width, words longer than that broken."""
    columns = [textwrap.wrap(text, width, break_on_hyphens=False) for text, width in zip(row, widths, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip_longest(*columns, fillvalue="")
    ]
