"""Grouped bars: x in groups, series side by side, the paper's points laid over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from aebench.figure import Cell, Figure, PlotSpec, Spread, value_text, values_in_order
from aebench.plotting import style
from aebench.plotting.panels import PANELS_PER_ROW, Panel, panel_axes, panels

MAX_LABELLED_BARS = 12
GROUP_WIDTH = 0.82
LONE_BAR_WIDTH = 0.62
WIDE_FROM_BARS = 16
MEASURED_SHARE = 0.62
"""Of a bar's place that the measured bar takes, where a paper's bar of other hardware stands beside it."""
AXES_SHARE = 0.88  # of the width; the rest is the y axis and its label


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the panels share the page, in inches."""

    rows: int
    ratios: Sequence[int]
    """Relative widths of the columns."""
    width: float
    slot: float
    """Width of one x value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Where one cell is drawn."""

    cell: Cell
    at: float
    width: float
    color: str

    @property
    def measured_place(self) -> tuple[float, float]:
        """Centre and width of the measured bar: all of the place, or its left where the paper's bar is beside it."""
        if not self.cell.orientation or self.cell.paper is None:
            return self.at, self.width
        width = self.width * MEASURED_SHARE
        return self.at - (self.width - width) / 2, width

    @property
    def paper_place(self) -> tuple[float, float]:
        """Centre and width of a paper's bar beside the measured one."""
        width = self.width * (1 - MEASURED_SHARE)
        return self.at + (self.width - width) / 2, width


def draw(figure: Figure, found: Sequence[Cell], caption: str) -> Canvas:
    """The figure's canvas; every panel shares the y axis."""
    plot = figure.plot
    shown, series = panels(plot, found), values_in_order(plot, plot.series, found)
    layout = _layout(plot, shown, len(series))
    canvas = Canvas(figsize=(layout.width, 0.75 + 1.95 * layout.rows), layout="constrained")
    axes = panel_axes(canvas, len(shown), layout.ratios)
    top = _top(found)
    for index, (panel, ax) in enumerate(zip(shown, axes, strict=True)):
        _draw_panel(plot, panel, series, ax, top)
        _name_axes(plot, panel, ax, layout.slot)
        ax.set_ylabel(plot.y_label if index % PANELS_PER_ROW == 0 else "")
    _legend(figure, canvas, series, found)
    style.caption(canvas, caption)
    return canvas


def _layout(plot: PlotSpec, shown: Sequence[Panel], num_series: int) -> Layout:
    """Narrow for a few bars whose labels fit, else the page's width."""
    columns = min(len(shown), PANELS_PER_ROW)
    one_row = len(shown) == columns
    num_xs = [len(panel.xs) for panel in shown]
    num_slots = sum(num_xs) if one_row else columns * max(num_xs)
    widest = max(style.text_width(plot.label(x)) for panel in shown for x in panel.xs)
    few = num_series * sum(num_xs) < WIDE_FROM_BARS and widest <= style.NARROW_WIDTH * AXES_SHARE / num_slots
    width = style.NARROW_WIDTH if few else style.PAGE_WIDTH
    return Layout(
        rows=-(-len(shown) // columns),
        ratios=num_xs if one_row else [1] * columns,
        width=width,
        slot=width * AXES_SHARE / num_slots,
    )


def _top(found: Sequence[Cell]) -> float:
    """Upper end of the y axis: room above the highest bar, whisker or mark for a value label."""
    heights = [cell.measured.high for cell in found if cell.measured is not None]
    heights += [cell.paper for cell in found if cell.paper is not None]
    return 1.1 * max([height for height in heights if height > 0], default=1.0)


def _draw_panel(plot: PlotSpec, panel: Panel, series: Sequence[str], ax: Axes, top: float) -> None:
    bars = _place(plot, panel, series)
    for bar in bars:
        _draw_measured(bar, ax, top)
        _draw_paper(bar, ax)
        if len(bars) <= MAX_LABELLED_BARS and bar.cell.measured is not None:
            _draw_value(plot, bar, bar.cell.measured, ax, top)
    ax.set_xlim(-0.55, len(panel.xs) - 0.45)
    ax.set_ylim(0, top)


def _place(plot: PlotSpec, panel: Panel, series: Sequence[str]) -> list[Bar]:
    """A bar for every x and series, in drawing order; a combination nobody has is an absent cell."""
    at = {(cell.keys[plot.x], cell.keys[plot.series] if plot.series else ""): cell for cell in panel.cells}
    width = GROUP_WIDTH / len(series) if len(series) > 1 else LONE_BAR_WIDTH
    return [
        Bar(
            cell=at.get((x, name), Cell(keys={}, measured=None, paper=None, calibrated=False, history=False)),
            at=group + (index - (len(series) - 1) / 2) * width,
            width=width,
            color=style.LONE_COLOR if len(series) == 1 else style.PALETTE[index % len(style.PALETTE)],
        )
        for group, x in enumerate(panel.xs)
        for index, name in enumerate(series)
    ]


def _draw_measured(bar: Bar, ax: Axes, top: float) -> None:
    measured = bar.cell.measured
    if measured is None:
        ax.plot([bar.at], [0.018 * top], clip_on=False, zorder=4, **style.ABSENT_MARK)
        return
    at, width = bar.measured_place
    ax.bar(
        at,
        measured.mean,
        width,
        facecolor="white" if bar.cell.history else bar.color,
        edgecolor=bar.color if bar.cell.history else style.INK,
        hatch=style.HISTORY_HATCH if bar.cell.history else None,
        linewidth=0.7 if bar.cell.history else 0.35,
        zorder=2,
    )
    if measured.num_seeds > 1:
        below, above = measured.mean - measured.low, measured.high - measured.mean
        ax.errorbar([at], [measured.mean], yerr=[[below], [above]], fmt="none", zorder=5, **style.WHISKER)


def _draw_paper(bar: Bar, ax: Axes) -> None:
    if bar.cell.paper is None:
        return
    if bar.cell.orientation:
        at, width = bar.paper_place
        ax.bar(at, bar.cell.paper, width, edgecolor=bar.color, zorder=2, **style.ORIENTATION_BAR)
    else:
        look = style.CALIBRATED_MARK if bar.cell.calibrated else style.PAPER_MARK
        ax.plot([bar.at], [bar.cell.paper], clip_on=False, zorder=4, **look)


def _draw_value(plot: PlotSpec, bar: Bar, measured: Spread, ax: Axes, top: float) -> None:
    """The value above the bar, and above the paper's mark where that is in the way."""
    base, paper = measured.high, bar.cell.paper
    if paper is not None and base - 0.02 * top <= paper <= base + 0.11 * top:
        base = max(base, paper + 0.015 * top)
    text = value_text(measured.mean, plot.unit).removesuffix(" s").removesuffix("%")
    ax.annotate(
        text,
        (bar.measured_place[0], base),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=style.SMALL,
        color=style.INK,
        zorder=6,
    )


def _name_axes(plot: PlotSpec, panel: Panel, ax: Axes, slot: float) -> None:
    labels = style.tick_labels([plot.label(x) for x in panel.xs], slot)
    fits = all(style.text_width(line) <= slot for label in labels for line in label.split("\n"))
    tilt: dict[str, Any] = {} if fits else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(panel.xs)), labels, **tilt)
    ax.set_xlabel(plot.x_label)
    ax.grid(axis="y")
    if plot.panel is not None:
        ax.set_title(plot.label(panel.value))
    if plot.unit == "%":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))


def _legend(figure: Figure, canvas: Canvas, series: Sequence[str], found: Sequence[Cell]) -> None:
    """Entries for what occurs, and for nothing else."""
    plot = figure.plot
    colors = zip(series, style.PALETTE * len(series), strict=False)
    entries = [style.patch(color, plot.label(name)) for name, color in colors] if len(series) > 1 else []
    printed = [cell for cell in found if cell.paper is not None]
    marks = []
    if printed and figure.orientation:
        marks.append(style.orientation_patch(figure.paper_label))
    elif any(not cell.calibrated for cell in printed):
        marks.append(style.mark(style.PAPER_MARK, figure.paper_label))
    if any(cell.measured is None for cell in found):
        marks.append(style.mark(style.ABSENT_MARK, "absent"))
    if any(cell.calibrated for cell in printed):
        marks.append(style.mark(style.CALIBRATED_MARK, "paper (used for calibration)"))
    if any(cell.history for cell in found):
        marks.append(style.history_patch())
    style.legend(canvas, entries, marks)
