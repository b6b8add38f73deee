"""Lines: a metric over a number, a line a series; the paper's points hollow beside them, joined by thin dashes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from aebench.errors import SpecError
from aebench.figure import Cell, Figure, PlotSpec, Spread, values_in_order
from aebench.plotting import style
from aebench.plotting.panels import PANELS_PER_ROW, Panel, panel_axes, panels

PANEL_HEIGHT = 2.1  # inches
MARGIN_SHARE = 0.12
"""Of the x range, left free on either side."""
ABSENT_STEP = 0.25 * MARGIN_SHARE / (1 + 2 * MARGIN_SHARE)
"""From the marks of absent points of one series to those of the next; of the panel's width."""
ABSENT_HEIGHT = 0.025
"""Of these marks, above the foot of the panel; of its height."""
TENTH_MARGIN = 0.02
"""Least distance of a fraction from the end of an axis that ends at a tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series in one panel: a cell for every x, None where nobody has one."""

    xs: Sequence[float]
    cells: Sequence[Cell | None]
    color: str
    marker: str
    shift: float
    """Where this series' marks of absent points are, beside x; of the panel's width."""

    def places(self) -> Iterator[tuple[float, Cell | None]]:
        """Its x values with their cells."""
        return zip(self.xs, self.cells, strict=True)


def draw(figure: Figure, found: Sequence[Cell], caption: str) -> Canvas:
    """The figure's canvas; every panel shares the y axis, panels told apart by a number come in its order."""
    plot = figure.plot
    shown, series = panels(plot, found), values_in_order(plot, plot.series, found)
    if all(_is_number(panel.value) for panel in shown):
        shown = sorted(shown, key=lambda panel: float(panel.value))
    columns = min(len(shown), PANELS_PER_ROW)
    rows = -(-len(shown) // columns)
    width = style.PAGE_WIDTH if columns > 1 else style.NARROW_WIDTH
    canvas = Canvas(figsize=(width, 0.9 + PANEL_HEIGHT * rows), layout="constrained")
    span = span_of(plot, found)
    for index, (panel, ax) in enumerate(zip(shown, panel_axes(canvas, len(shown), [1] * columns), strict=True)):
        lines = lines_of(figure, panel, series)
        name_axes(plot, panel, ax, span)
        for line in lines:
            draw_line(line, ax)
        ax.set_ylabel(plot.y_label if index % columns == 0 else "")
    legend(figure, canvas, series, found)
    style.caption(canvas, caption)
    return canvas


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def lines_of(figure: Figure, panel: Panel, series: Sequence[str]) -> list[Line]:
    """A panel's line for each series; SpecError where an x value is no number."""
    plot = figure.plot
    for x in panel.xs:
        if not _is_number(x):
            message = f'lines need numbers on the x axis, {plot.x} has {x!r}. Use kind = "bars"'
            raise SpecError(figure.figure_id, "plot.x", message)
    at = {(cell.keys[plot.x], cell.keys[plot.series] if plot.series else ""): cell for cell in panel.cells}
    xs = sorted(panel.xs, key=float)
    return [
        Line(
            xs=[float(x) for x in xs],
            cells=[at.get((x, name)) for x in xs],
            color=style.LONE_COLOR if len(series) == 1 else style.PALETTE[index % len(style.PALETTE)],
            marker=style.MARKERS[index % len(style.MARKERS)],
            shift=(index - (len(series) - 1) / 2) * ABSENT_STEP,
        )
        for index, name in enumerate(series)
    ]


def _width(xs: Sequence[float]) -> float:
    return (max(xs) - min(xs)) or abs(xs[0]) or 1.0


def span_of(plot: PlotSpec, found: Sequence[Cell]) -> tuple[float, float]:
    """Ends of the y axis, from what is shown: fractions end at tenths, other values start at 0 unless that would waste
    half of the panel."""
    values = [cell.paper for cell in found if cell.paper is not None]
    values += [end for cell in found if cell.measured is not None for end in (cell.measured.low, cell.measured.high)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if plot.unit == "%":
        below = math.floor(round(10 * (low - TENTH_MARGIN), 6)) / 10
        above = math.ceil(round(10 * (high + TENTH_MARGIN), 6)) / 10
        return max(below, 0.0), min(above, 1.0)
    margin = 0.08 * ((high - low) or abs(high) or 1.0)
    return (0.0 if 0 <= low < 0.5 * high else low - margin), high + margin


def name_axes(plot: PlotSpec, panel: Panel, ax: Axes, span: tuple[float, float]) -> None:
    """Limits, ticks, title and grid of a panel."""
    xs = sorted(panel.xs, key=float)
    numbers = [float(x) for x in xs]
    margin = MARGIN_SHARE * _width(numbers)
    ax.set_xlim(numbers[0] - margin, numbers[-1] + margin)
    ax.set_ylim(*span)
    ax.set_xticks(numbers, [plot.label(x) for x in xs])
    ax.set_xlabel(plot.x_label)
    ax.grid(axis="y")
    if plot.panel is not None:
        ax.set_title(plot.label(panel.value))
    if plot.unit == "%":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def draw_line(line: Line, ax: Axes) -> None:
    """One series: measured, the paper's, absent."""
    _draw_measured(line, ax)
    _draw_paper(line, ax)
    _draw_absent(line, ax)


def _draw_measured(line: Line, ax: Axes) -> None:
    """Points with whiskers, joined where they are neighbours; by dots where one of them is from shipped history."""
    for (x, cell), (next_x, next_cell) in pairwise(line.places()):
        if cell is None or next_cell is None or cell.measured is None or next_cell.measured is None:
            continue
        joined = style.HISTORY_LINE if cell.history or next_cell.history else style.MEASURED_LINE
        heights = [cell.measured.mean, next_cell.measured.mean]
        ax.plot([x, next_x], heights, color=line.color, zorder=2, **joined)
    for x, cell in line.places():
        if cell is not None and cell.measured is not None:
            look = style.history_point if cell.history else style.measured_point
            _draw_spread(x, cell.measured, ax)
            ax.plot([x], [cell.measured.mean], zorder=4, **look(line.color, line.marker))


def _draw_spread(x: float, spread: Spread, ax: Axes) -> None:
    if spread.num_seeds > 1:
        ends = [[spread.mean - spread.low], [spread.high - spread.mean]]
        ax.errorbar([x], [spread.mean], yerr=ends, fmt="none", zorder=3, **style.WHISKER)


def _draw_paper(line: Line, ax: Axes) -> None:
    """The paper's points, joined where they are neighbours."""
    for (x, cell), (next_x, next_cell) in pairwise(line.places()):
        if cell is None or next_cell is None or cell.paper is None or next_cell.paper is None:
            continue
        ax.plot([x, next_x], [cell.paper, next_cell.paper], color=line.color, zorder=2, **style.PAPER_LINE)
    for x, cell in line.places():
        if cell is not None and cell.paper is not None:
            ax.plot([x], [cell.paper], zorder=5, **style.paper_point(line.color, line.marker))
            if cell.calibrated:
                ax.plot([x], [cell.paper], clip_on=False, zorder=5, **style.CALIBRATED_FRAME)


def _draw_absent(line: Line, ax: Axes) -> None:
    """Marks at the foot of the panel, whatever the scale of its axes."""
    low, high = ax.get_xlim()
    look = {**style.ABSENT_MARK, "markeredgecolor": line.color, "transform": ax.get_xaxis_transform()}
    for x, cell in line.places():
        if cell is None or cell.measured is None:
            is_log = ax.get_xscale() == "log"
            at = x * (high / low) ** line.shift if is_log else x + line.shift * (high - low)
            ax.plot([at], [ABSENT_HEIGHT], clip_on=False, zorder=4, **look)


def legend(figure: Figure, canvas: Canvas, series: Sequence[str], found: Sequence[Cell]) -> None:
    """Entries for what occurs, and for nothing else."""
    plot = figure.plot
    looks = zip(series, style.PALETTE * len(series), style.MARKERS * len(series), strict=False)
    entries = [
        style.mark({**style.measured_point(color, marker), **style.MEASURED_LINE, "color": color}, plot.label(name))
        for name, color, marker in looks
    ]
    marks = []
    if any(cell.paper is not None for cell in found):
        look = {**style.paper_point(style.INK, "o"), **style.PAPER_LINE, "color": style.INK}
        marks.append(style.mark(look, figure.paper_label))
    if any(cell.calibrated for cell in found):
        marks.append(style.mark(style.CALIBRATED_FRAME, "paper (used for calibration)"))
    if any(cell.measured is None for cell in found):
        marks.append(style.mark(style.ABSENT_MARK, "absent"))
    if any(cell.history for cell in found):
        look = {**style.history_point(style.INK, "o"), **style.HISTORY_LINE, "color": style.INK}
        marks.append(style.mark(look, "from shipped history"))
    style.legend(canvas, entries if len(series) > 1 else [], marks)
