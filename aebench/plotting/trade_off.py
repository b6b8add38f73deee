"""Trade-off: one metric against another, a point for each value of a knob, a line a series; the paper's hollow.

A measured point is named by its knob in its series' colour, above it or below it by turns of the series.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from aebench.errors import SpecError
from aebench.figure import METRIC, Cell, Figure, PlotSpec, values_in_order
from aebench.plotting import lines, log_lines, style

HEIGHT = 3.4  # inches
LABEL_GAP = 3.5
"""From the middle of a point to the name above or below it, in points."""
FOOT = 0.08
"""Room for names below 0, as a share of what is above."""
MARGIN = (1.4, 1.15)
"""Room below the least value and above the greatest on a logarithmic axis, as factors."""


@dataclass(frozen=True, slots=True)
class Point:
    """What the two metrics are at one value of the knob."""

    knob: str
    horizontal: Cell
    vertical: Cell


def draw(figure: Figure, found: Sequence[Cell], caption: str) -> Canvas:
    """The figure's canvas: the first metric to the right, the second upwards."""
    plot = figure.plot
    if len(plot.metrics) != 2:
        message = f"expected two, one for each axis, got {len(plot.metrics)}"
        raise SpecError(figure.figure_id, "plot.metrics", message)
    canvas = Canvas(figsize=(style.NARROW_WIDTH, HEIGHT), layout="constrained")
    ax = canvas.subplots()
    series = values_in_order(plot, plot.series, found)
    for index, name in enumerate(series):
        look = (style.PALETTE[index % len(style.PALETTE)], style.MARKERS[index % len(style.MARKERS)])
        points = _points(plot, found, name)
        _draw_series(points, look, ax)
        _name_points(points, look[0], index % 2 == 0, ax)
    _scale_upwards([cell for cell in found if cell.keys[METRIC] == plot.metrics[1]], ax)
    ax.set_xlabel(plot.x_label or plot.label(plot.metrics[0]))
    ax.set_ylabel(plot.y_label or plot.label(plot.metrics[1]))
    ax.grid()
    lines.legend(figure, canvas, series, found)
    style.caption(canvas, caption)
    return canvas


def _scale_upwards(found: Sequence[Cell], ax: Axes) -> None:
    """An axis from 0, but a logarithmic one for values that differ by more than a factor of ten."""
    values = [cell.paper for cell in found if cell.paper is not None]
    values += [end for cell in found if cell.measured is not None for end in (cell.measured.low, cell.measured.high)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low <= 0 or high <= log_lines.DECADE * low:
        ax.set_ylim(bottom=-FOOT * ax.get_ylim()[1])
        return
    ax.set_yscale("log")
    ax.set_ylim(low / MARGIN[0], high * MARGIN[1])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _points(plot: PlotSpec, found: Sequence[Cell], name: str) -> list[Point]:
    """A series' points in order of the knob."""
    cells = [cell for cell in found if plot.series is None or cell.keys[plot.series] == name]
    at = {(cell.keys[plot.x], cell.keys[METRIC]): cell for cell in cells}
    knobs = values_in_order(plot, plot.x, cells)
    across, up = plot.metrics
    pairs = [(knob, at.get((knob, across)), at.get((knob, up))) for knob in knobs]
    return [Point(knob, one, other) for knob, one, other in pairs if one is not None and other is not None]


def _draw_series(points: Sequence[Point], look: tuple[str, str], ax: Axes) -> None:
    """Measured points and the paper's, each joined among themselves; a point that was not run is absent where the paper
    has it."""
    paper = [
        (point.horizontal.paper, point.vertical.paper)
        for point in points
        if point.horizontal.paper is not None and point.vertical.paper is not None
    ]
    ax.plot([x for x, _ in paper], [y for _, y in paper], color=look[0], zorder=2, **style.PAPER_LINE)
    for x, y in paper:
        ax.plot([x], [y], zorder=3, **style.paper_point(*look))
    before: tuple[float, float] | None = None
    for point in points:
        before = _draw_measured(point, before, look, ax)


def _draw_measured(
    point: Point, before: tuple[float, float] | None, look: tuple[str, str], ax: Axes
) -> tuple[float, float] | None:
    """The point with its name and whiskers, joined to the one before; where it is, if it was measured."""
    across, up = point.horizontal.measured, point.vertical.measured
    if across is None or up is None:
        if point.horizontal.paper is not None and point.vertical.paper is not None:
            ax.plot([point.horizontal.paper], [point.vertical.paper], zorder=4, **style.ABSENT_MARK)
        return None
    is_history = point.vertical.history or point.horizontal.history
    if before is not None:
        joined = style.HISTORY_LINE if is_history else style.MEASURED_LINE
        ax.plot([before[0], across.mean], [before[1], up.mean], color=look[0], zorder=2, **joined)
    if up.num_seeds > 1:
        xs, ys = ([[one.mean - one.low], [one.high - one.mean]] for one in (across, up))
        ax.errorbar([across.mean], [up.mean], xerr=xs, yerr=ys, fmt="none", zorder=3, **style.WHISKER)
    mark = style.history_point if is_history else style.measured_point
    ax.plot([across.mean], [up.mean], zorder=4, **mark(*look))
    return across.mean, up.mean


def _name_points(points: Sequence[Point], color: str, is_above: bool, ax: Axes) -> None:
    """The knob's value above each measured point, or below it: points of two series may lie on each other."""
    look: dict[str, Any] = {"fontsize": style.SMALL, "color": style.text_color(color), "path_effects": style.HALO}
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom" if is_above else "top"}
    for point in points:
        across, up = point.horizontal.measured, point.vertical.measured
        if across is not None and up is not None:
            offset = (0, LABEL_GAP if is_above else -LABEL_GAP)
            ax.annotate(point.knob, (across.mean, up.mean), xytext=offset, zorder=6, **look, **place)
