"""Change bars: a row for each change of one thing, a column for each metric, a block of rows for each panel.

The first row of a block is the unchanged thing. A bar reaches from there to what the change makes of the metric, as a
ratio on a logarithmic axis, to the left edge where it makes nothing of it; the value itself is written beside it.
"""

from collections.abc import Sequence
from math import log2
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from aebench.errors import SpecError
from aebench.figure import METRIC, Cell, Figure, PlotSpec, Spread, unit_of, value_text
from aebench.plotting import style
from aebench.plotting.panels import Panel, panels

ROW_HEIGHT = 0.145  # inches
EDGES = 1.0
"""Inches above and below the rows."""
BAR_WIDTH = 0.62
"""Of a row."""
MORE, LESS = style.PALETTE[4], style.PALETTE[5]
ROOM = 0.75
"""Beside the longest bar, for the values, as a share of what all bars take."""
COUNTS = "num_"
"""Begins the names of metrics that count."""
BESIDE: dict[str, Any] = {"xytext": (2, 0), "textcoords": "offset points", "va": "center", "fontsize": style.SMALL}
"""Where the text of a row is: right of a place."""
LEAST_SPAN = 2.0
"""Doublings that a column shows at least."""
NOTHING = 1.0
"""Doublings by which a bar of 0 is longer than any other to the left."""
UNDEFINED = "–"
"""In place of a value that a point which ran does not have."""


def draw(figure: Figure, found: Sequence[Cell], caption: str) -> Canvas:
    """The figure's canvas."""
    plot = figure.plot
    if not plot.metrics:
        message = "missing: kind = 'change_bars' draws a column for each metric"
        raise SpecError(figure.figure_id, "plot.metrics", message)
    blocks = panels(plot, found)
    heights = [len(block.xs) for block in blocks]
    canvas = Canvas(figsize=(style.PAGE_WIDTH, EDGES + ROW_HEIGHT * sum(heights)), layout="constrained")
    axes = canvas.subplots(len(blocks), len(plot.metrics), squeeze=False, height_ratios=heights)
    for column, metric in enumerate(plot.metrics):
        _share_axis([ratios(plot, block, metric) for block in blocks], list(axes[:, column]))
        for block, ax in zip(blocks, axes[:, column], strict=True):
            _draw_column(plot, block, metric, ax)
        axes[0, column].set_title(plot.label(metric))
    for block, ax in zip(blocks, axes[:, 0], strict=True):
        ax.set_yticks(range(len(block.xs)), [plot.label(x) for x in block.xs])
        ax.set_ylabel(plot.label(block.value) if plot.panel else "", fontweight="bold")
    all_ran = all(x in _ran(plot, block) for block in blocks for x in block.xs)
    _legend(figure, canvas, found, all_ran)
    style.caption(canvas, caption)
    return canvas


def ratios(plot: PlotSpec, block: Panel, metric: str) -> dict[str, float]:
    """The metric of each change / that of the first row, if that is above 0; of those that are not below 0."""
    values = {x: cell.measured.mean for x, cell in _cells(plot, block, metric).items() if cell.measured is not None}
    base = values.get(block.xs[0], 0.0)
    return {x: value / base for x, value in values.items() if value >= 0} if base > 0 else {}


def _cells(plot: PlotSpec, block: Panel, metric: str) -> dict[str, Cell]:
    """The block's cells of one metric, by the change."""
    return {cell.keys[plot.x]: cell for cell in block.cells if cell.keys[METRIC] == metric}


def _ran(plot: PlotSpec, block: Panel) -> set[str]:
    """Changes of which anything was measured."""
    return {cell.keys[plot.x] for cell in block.cells if cell.measured is not None}


def _draw_column(plot: PlotSpec, block: Panel, metric: str, ax: Axes) -> None:
    cells, found, ran = _cells(plot, block, metric), ratios(plot, block, metric), _ran(plot, block)
    for at, x in enumerate(block.xs):
        cell = cells.get(x)
        if cell is not None and cell.measured is not None:
            _draw_row(cell, cell.measured, found.get(x, 1.0), at, ax)
        elif x in ran:
            ax.annotate(UNDEFINED, (1.0, at), color=style.FAINT, **BESIDE)
        else:
            ax.plot([1.0], [at], zorder=4, **style.ABSENT_MARK)
    ax.axvline(1.0, color=style.INK, linewidth=0.6, zorder=3)
    ax.axhline(0.5, color=style.FAINT, linewidth=0.5, linestyle=(0, (2, 2)))
    ax.set_ylim(len(block.xs) - 0.4, -0.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.tick_params(labelsize=style.SMALL)


def _draw_row(cell: Cell, spread: Spread, ratio: float, at: int, ax: Axes) -> None:
    """A bar from 1 to the ratio, and the value at its right end."""
    color = MORE if ratio > 1 else LESS
    ax.barh(
        at,
        (ratio or ax.get_xlim()[0]) - 1.0,
        BAR_WIDTH,
        left=1.0,
        facecolor="white" if cell.history else color,
        edgecolor=color if cell.history else style.INK,
        hatch=style.HISTORY_HATCH if cell.history else None,
        linewidth=0.35,
        zorder=2,
    )
    end = max(1.0, ratio)
    if spread.num_seeds > 1 and spread.mean > 0:
        ends = [max(spread.low, 0.1 * spread.mean) * ratio / spread.mean, spread.high * ratio / spread.mean]
        ax.plot(ends, [at, at], color=style.INK, linewidth=0.6, zorder=5)
        end = max(end, ends[1])
    ax.annotate(_text(cell.keys[METRIC], spread.mean), (end, at), **BESIDE)


def _text(metric: str, value: float) -> str:
    """The value without its unit; counts without decimals where they have none."""
    if metric.startswith(COUNTS) and value.is_integer():
        return f"{value:.0f}"
    return value_text(value, unit_of(metric)).removesuffix(" s")


def _share_axis(found: Sequence[dict[str, float]], column: Sequence[Axes]) -> None:
    """One logarithmic axis for all blocks, with room for the values; ticks at powers of 2, 4 or 16."""
    shown = [ratio for each in found for ratio in each.values()]
    exponents = [0.0, *(log2(ratio) for ratio in shown if ratio > 0)]
    low, high = min(exponents), max(max(exponents), min(exponents) + LEAST_SPAN)
    step = 1 if high - low < 3 else 2 if high - low < 6 else 4
    ticks = [2.0**power for power in range(-24, 25) if power % step == 0 and low <= power <= high]
    below = NOTHING if 0 in shown else 0.1
    for ax in column:
        ax.set_xscale("log", base=2)
        ax.set_xlim(2 ** (low - below), 2 ** (high + ROOM * (high - low)))
        ax.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        ax.minorticks_off()


def _legend(figure: Figure, canvas: Canvas, found: Sequence[Cell], all_ran: bool) -> None:
    """Entries for what occurs, and for nothing else."""
    entries = [style.patch(MORE, f"more than with {figure.plot.x_label or 'the first row'}"), style.patch(LESS, "less")]
    marks = [] if all_ran else [style.mark(style.ABSENT_MARK, "absent")]
    if any(cell.history for cell in found):
        marks.append(style.history_patch())
    style.legend(canvas, entries, marks)
