"""Line grid: small panels of lines, a row for each value of the panel key, a column for each metric; every panel
has its own y axis, the panels of a row their x values."""

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter

from aebench.errors import SpecError
from aebench.figure import METRIC, Cell, Figure, unit_of, values_in_order
from aebench.plotting import lines, style
from aebench.plotting.panels import Panel, panels

PANEL_WIDTH = 1.45  # inches
PANEL_HEIGHT = 1.2
EDGES = (0.6, 0.95)
"""Beside and above the panels."""


def draw(figure: Figure, found: Sequence[Cell], caption: str) -> Canvas:
    """The figure's canvas."""
    plot = figure.plot
    if not plot.metrics:
        raise SpecError(figure.figure_id, "plot.metrics", "missing: kind = 'line_grid' draws a column for each metric")
    rows, series = panels(plot, found), values_in_order(plot, plot.series, found)
    width, height = EDGES[0] + PANEL_WIDTH * len(plot.metrics), EDGES[1] + PANEL_HEIGHT * len(rows)
    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.subplots(len(rows), len(plot.metrics), squeeze=False)
    for row, (panel, axes_of_row) in enumerate(zip(rows, axes, strict=True)):
        for column, (metric, ax) in enumerate(zip(plot.metrics, axes_of_row, strict=True)):
            cells = [cell for cell in panel.cells if cell.keys[METRIC] == metric]
            _draw_panel(figure.of(metric), replace(panel, cells=cells), series, ax)
            ax.set_title(plot.label(metric) if row == 0 else "")
            if column == 0:
                ax.set_ylabel(plot.label(panel.value) if plot.panel else plot.y_label, fontweight="bold")
            ax.set_xlabel(plot.x_label if row == len(rows) - 1 else "")
    lines.legend(figure, canvas, series, found)
    style.caption(canvas, caption)
    return canvas


def _draw_panel(figure: Figure, panel: Panel, series: Sequence[str], ax: Axes) -> None:
    plot = figure.plot
    lines.name_axes(replace(plot, panel=None), panel, ax, _span(panel.cells))
    for line in lines.lines_of(figure, panel, series):
        if any(cell is not None for cell in line.cells):  # a row need not have every series
            lines.draw_line(line, ax)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    if unit_of(plot.y) == "%":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    ax.tick_params(labelsize=style.SMALL)
    labels = [plot.label(x) for x in sorted(panel.xs, key=float)]
    if sum(style.text_width(label, style.SMALL) for label in labels) > 0.8 * PANEL_WIDTH:
        for number, text in enumerate(ax.get_xticklabels()):
            text.set_visible(number % 2 == 0)


def _span(cells: Sequence[Cell]) -> tuple[float, float]:
    """Ends of the y axis: from 0, as far as whatever is shown reaches."""
    values = [cell.paper for cell in cells if cell.paper is not None]
    values += [cell.measured.high for cell in cells if cell.measured is not None]
    return 0.0, 1.08 * max(max(values, default=1.0), 1e-6)
