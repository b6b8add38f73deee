"""Ratio bars: a bar for each of many things, in groups, around a line at 1; beside them how each group is distributed.

The paper's bars are of other things than ours (other models were asked for), so they are shown as a distribution beside
ours and never bar by bar.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from aebench.figure import Cell, Figure, PlotSpec, values_in_order
from aebench.plotting import style

HEIGHT = 3.0  # inches
WIDTH_RATIOS = (4.0, 1.7)
"""Of the bars and of the distributions."""
GROUP_GAP = 2.5
"""Room between groups, in bars."""
BAR_WIDTH = 0.8
BOX_WIDTH = 0.34
BOX_SHIFT = 0.23
"""From the middle of a group to our box on its left, and to the paper's on its right."""
QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
MEAN_LINE: dict[str, Any] = {
    "color": style.INK,
    "linewidth": 1.1,
    "solid_capstyle": "butt",
    "path_effects": style.HALO,
}
MEAN_MARK: dict[str, Any] = {**style.PAPER_MARK, "marker": "D", "markersize": 2.6, "markeredgewidth": 0.6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The bars of one series, and the paper's numbers for it."""

    name: str
    color: str
    cells: Sequence[Cell]
    """Measured ones, in order."""
    paper: Sequence[float]
    start: float
    """Where its first bar is."""

    @property
    def values(self) -> list[float]:
        """What was measured, a number a bar."""
        return [cell.measured.mean for cell in self.cells if cell.measured is not None]

    @property
    def middle(self) -> float:
        """Where its middle is."""
        return self.start + (len(self.cells) - 1) / 2


def draw(figure: Figure, found: Sequence[Cell], caption: str) -> Canvas:
    """The figure's canvas: bars on the left, distributions on the right, on one y axis from 0."""
    groups = _groups(figure, found)
    canvas = Canvas(figsize=(style.PAGE_WIDTH, HEIGHT), layout="constrained")
    bars, boxes = canvas.subplots(1, 2, sharey=True, width_ratios=WIDTH_RATIOS)
    for ax in (bars, boxes):
        ax.axhline(1.0, color="white", linewidth=0.7, zorder=3)
        ax.axhline(1.0, color=style.INK, linewidth=0.7, linestyle=(0, (4, 2)), zorder=3)
        ax.grid(axis="y")
    bars.set_ylim(0, _top(found, groups))
    bars.set_ylabel(figure.plot.y_label)
    _draw_bars(figure.plot, groups, bars)
    _draw_boxes(groups, boxes)
    _legend(figure, canvas, groups)
    style.caption(canvas, caption)
    return canvas


def in_order(name: str) -> tuple[str, int]:
    """Sort key of names like ``llama2-7b-chatbot/17``: by the name, then by the number."""
    base, _, digits = name.rpartition("/")
    return (base, int(digits)) if re.fullmatch(r"[0-9]+", digits) else (name, 0)


def _groups(figure: Figure, found: Sequence[Cell]) -> list[Group]:
    plot, groups, start = figure.plot, [], 0.0
    for index, name in enumerate(_names(figure, found)):
        members = [cell for cell in found if plot.series is None or cell.keys[plot.series] == name]
        members = sorted(
            [cell for cell in members if cell.measured is not None], key=lambda cell: in_order(cell.keys[plot.x])
        )
        color = style.LONE_COLOR if plot.series is None else style.PALETTE[index % len(style.PALETTE)]
        paper = _paper_values(figure, name)
        groups.append(Group(name=name, color=color, cells=members, paper=paper, start=start))
        start += len(members) + GROUP_GAP
    return groups


def _names(figure: Figure, found: Sequence[Cell]) -> list[str]:
    """Groups in printed order; those that only the paper has come last."""
    plot = figure.plot
    ours = values_in_order(plot, plot.series, found)
    if plot.series is None or figure.paper_bars is None:
        return ours
    return list(dict.fromkeys([*ours, *figure.paper_bars[plot.series].astype(str)]))


def _paper_values(figure: Figure, name: str) -> list[float]:
    table, plot = figure.paper_bars, figure.plot
    if table is None:
        return []
    rows = table if plot.series is None else table[table[plot.series].astype(str) == name]
    return [float(value) for value in pd.to_numeric(rows[plot.y])]


def _top(found: Sequence[Cell], groups: Sequence[Group]) -> float:
    heights = [cell.measured.high for cell in found if cell.measured is not None]
    return 1.08 * max([1.0, *heights, *(value for group in groups for value in group.paper)])


def _draw_bars(plot: PlotSpec, groups: Sequence[Group], ax: Axes) -> None:
    for group in groups:
        for place, cell in enumerate(group.cells):
            _draw_bar(group, group.start + place, cell, ax)
        if group.cells:
            ends = [group.start - 0.5, group.start + len(group.cells) - 0.5]
            ax.plot(ends, [fmean(group.values)] * 2, zorder=6, **MEAN_LINE)
    shown = [group for group in groups if group.cells]
    if not shown:
        ax.text(0.5, 0.3, "absent: not run", transform=ax.transAxes, ha="center", color=style.FAINT)
    last = max((group.start + len(group.cells) for group in shown), default=1.0)
    ax.set_xlim(-1.5, last + 0.5)
    counts = [f"{plot.label(group.name) or 'all'}\n({len(group.cells)})" for group in shown]
    ax.set_xticks([group.middle for group in shown], counts)
    ax.set_xlabel(plot.x_label)


def _draw_bar(group: Group, at: float, cell: Cell, ax: Axes) -> None:
    spread = cell.measured
    assert spread is not None
    ax.bar(
        at,
        spread.mean,
        BAR_WIDTH,
        facecolor="white" if cell.history else group.color,
        edgecolor=group.color,
        hatch=style.HISTORY_HATCH if cell.history else None,
        linewidth=0.3,
        zorder=2,
    )
    if spread.num_seeds > 1:
        ax.plot([at, at], [spread.low, spread.high], color=style.INK, linewidth=0.4, zorder=5)


def _draw_boxes(groups: Sequence[Group], ax: Axes) -> None:
    """Ours and the paper's side by side, the mean below each."""
    means: dict[float, str] = {}
    for place, group in enumerate(groups):
        looks = {"facecolor": group.color, "edgecolor": style.INK}, {**style.ORIENTATION_BAR, "edgecolor": group.color}
        for shift, values, look in zip((-BOX_SHIFT, BOX_SHIFT), (group.values, group.paper), looks, strict=True):
            if values:
                _draw_box(ax, place + shift, values, look)
                means[place + shift] = f"{fmean(values):.2f}"
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.set_xticks(list(means), list(means.values()), fontsize=style.SMALL)
    ax.set_xlabel("means; boxes are quartiles,\nwhiskers reach least and greatest", fontsize=style.SMALL)


def _draw_box(ax: Axes, at: float, values: Sequence[float], look: dict[str, Any]) -> None:
    """Quartiles as a box, least and greatest as its whiskers, the mean as a diamond."""
    least, low, middle, high, greatest = pd.Series(list(values)).quantile(list(QUARTILES)).tolist()
    for ends in ((least, low), (high, greatest)):
        ax.plot([at, at], ends, color=style.INK, linewidth=0.7, zorder=4)
    ax.bar(at, high - low, BOX_WIDTH, bottom=low, zorder=4, **{"linewidth": 0.5, **look})
    ax.plot([at - BOX_WIDTH / 2, at + BOX_WIDTH / 2], [middle] * 2, color=style.INK, linewidth=0.9, zorder=5)
    ax.plot([at], [fmean(values)], zorder=6, **MEAN_MARK)


def _legend(figure: Figure, canvas: Canvas, groups: Sequence[Group]) -> None:
    """Entries for what occurs, and for nothing else."""
    plot = figure.plot
    measured = [group for group in groups if group.cells]
    entries = [style.patch(group.color, plot.label(group.name)) for group in groups] if plot.series else []
    marks = []
    if measured:
        marks.append(style.mark(MEAN_LINE, "mean of the bars"))
    if figure.paper_bars is not None:
        marks.append(style.orientation_patch(f"{figure.paper_label}, its own {len(figure.paper_bars)} bars"))
    if any(cell.history for group in groups for cell in group.cells):
        marks.append(style.history_patch())
    style.legend(canvas, entries, marks)
