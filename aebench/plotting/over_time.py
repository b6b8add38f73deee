"""Over time: a metric at many moments of a run, a line a series; nothing marks a moment, or where a run ended."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from aebench.figure import Cell, Figure, values_in_order
from aebench.plotting import style
from aebench.plotting.panels import Panel, panel_axes, panels

PANEL_HEIGHT = 2.1  # inches


def draw(figure: Figure, found: Sequence[Cell], caption: str) -> Canvas:
    """The figure's canvas; panels stand above each other, with a common y axis."""
    plot = figure.plot
    shown, series = panels(plot, found), values_in_order(plot, plot.series, found)
    canvas = Canvas(figsize=(style.PAGE_WIDTH, 0.9 + PANEL_HEIGHT * len(shown)), layout="constrained")
    for panel, ax in zip(shown, panel_axes(canvas, len(shown), [1]), strict=True):
        _draw_panel(figure, panel, series, ax)
    colors = zip(series, style.PALETTE * len(series), strict=False)
    entries = [style.mark({**style.MEASURED_LINE, "color": color}, plot.label(name)) for name, color in colors]
    shipped = [style.mark({**style.HISTORY_LINE, "color": style.INK}, "from shipped history")]
    style.legend(canvas, entries, shipped if any(cell.history for cell in found) else [])
    style.caption(canvas, caption)
    return canvas


def _draw_panel(figure: Figure, panel: Panel, series: Sequence[str], ax: Axes) -> None:
    plot = figure.plot
    for index, name in enumerate(series):
        cells = [cell for cell in panel.cells if plot.series is None or cell.keys[plot.series] == name]
        points = sorted((float(cell.keys[plot.x]), cell.measured.mean) for cell in cells if cell.measured is not None)
        color = style.PALETTE[index % len(style.PALETTE)]
        joined = style.HISTORY_LINE if any(cell.history for cell in cells) else style.MEASURED_LINE
        ax.plot([at for at, _ in points], [value for _, value in points], color=color, **joined)
    ax.set_ylim(0, 1.08 * max((cell.measured.mean for cell in panel.cells if cell.measured), default=1.0) or 1.0)
    ax.set_xlim(0, max((float(x) for x in panel.xs if math.isfinite(float(x))), default=1.0) or 1.0)
    ax.set_xlabel(plot.x_label)
    ax.set_ylabel(plot.y_label)
    ax.grid(axis="y")
    if plot.panel is not None:
        ax.set_title(plot.label(panel.value))
    if plot.unit == "%":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
