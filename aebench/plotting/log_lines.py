"""Log lines: lines over a number that doubles from point to point; its axis is logarithmic, and that of the values
where they differ by more than a factor of ten."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from aebench.errors import SpecError
from aebench.figure import Cell, Figure, PlotSpec, values_in_order
from aebench.plotting import lines, style
from aebench.plotting.panels import PANELS_PER_ROW, Panel, panel_axes, panels

DECADE = 10.0
"""Values that differ by more than this are on a logarithmic axis."""
MARGIN = 1.25
"""Factor on either end of a logarithmic axis."""


def draw(figure: Figure, found: Sequence[Cell], caption: str) -> Canvas:
    """The figure's canvas; every panel shares the y axis."""
    plot = figure.plot
    shown, series = panels(plot, found), values_in_order(plot, plot.series, found)
    columns = min(len(shown), PANELS_PER_ROW)
    rows = -(-len(shown) // columns)
    width = style.PAGE_WIDTH if columns > 1 else style.NARROW_WIDTH
    canvas = Canvas(figsize=(width, 0.9 + lines.PANEL_HEIGHT * rows), layout="constrained")
    is_log, span = _span(plot, found)
    for index, (panel, ax) in enumerate(zip(shown, panel_axes(canvas, len(shown), [1] * columns), strict=True)):
        drawn = lines.lines_of(figure, panel, series)
        lines.name_axes(plot, panel, ax, span)
        _double(figure, panel, ax)
        if is_log:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        for line in drawn:
            lines.draw_line(line, ax)
        ax.set_ylabel(plot.y_label if index % columns == 0 else "")
    lines.legend(figure, canvas, series, found)
    style.caption(canvas, caption)
    return canvas


def _double(figure: Figure, panel: Panel, ax: Axes) -> None:
    """Make the x axis logarithmic."""
    plot = figure.plot
    xs = sorted(panel.xs, key=float)
    numbers = [float(x) for x in xs]
    if numbers[0] <= 0:
        message = f'a logarithmic axis needs numbers above 0, {plot.x} has {xs[0]}. Use kind = "lines"'
        raise SpecError(figure.figure_id, "plot.x", message)
    ax.set_xlim(numbers[0] / MARGIN, numbers[-1] * MARGIN)
    ax.set_xscale("log")
    ax.set_xticks(numbers, [plot.label(x) for x in xs])
    ax.xaxis.set_minor_locator(NullLocator())


def _span(plot: PlotSpec, found: Sequence[Cell]) -> tuple[bool, tuple[float, float]]:
    """Whether the y axis is logarithmic, and its ends."""
    values = [cell.paper for cell in found if cell.paper is not None]
    values += [end for cell in found if cell.measured is not None for end in (cell.measured.low, cell.measured.high)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low > 0 and high > DECADE * low:
        return True, (low / MARGIN, high * MARGIN)
    return False, lines.span_of(plot, found)
