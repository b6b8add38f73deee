"""Panels: the panels of a figure, and their axes in rows on one page."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from aebench.figure import Cell, PlotSpec, values_in_order

PANELS_PER_ROW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel: its cells, and the x values that occur among them."""

    value: str
    xs: Sequence[str]
    cells: Sequence[Cell]


def panels(plot: PlotSpec, found: Sequence[Cell]) -> list[Panel]:
    """The panels in printed order; one when nothing tells panels apart."""
    made = []
    for value in values_in_order(plot, plot.panel, found):
        cells = [cell for cell in found if plot.panel is None or cell.keys[plot.panel] == value]
        made.append(Panel(value=value, xs=values_in_order(plot, plot.x, cells), cells=cells))
    return made


def panel_axes(canvas: Canvas, count: int, ratios: Sequence[int]) -> list[Axes]:
    """Axes of ``count`` panels with a common y axis, in rows of as many as there are ``ratios`` (relative widths)."""
    rows = -(-count // len(ratios))
    grid = canvas.subplots(rows, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)
    flat: list[Axes] = list(grid.flat)
    for unused in flat[count:]:
        unused.remove()
    return flat[:count]
