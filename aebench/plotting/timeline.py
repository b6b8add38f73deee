"""Timeline: a row a GPU, a bar a worker process, coloured by what it does; above it how many requests wait."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from aebench.plotting import style
from aebench.timeline import GpuRow, Interval, Phase, Timeline, WorkerBar
from serving.records import RequestRecord
from serving.units import Seconds

LANE_HEIGHT = (0.05, 0.125)
"""Least and greatest, inches."""
ROWS_HEIGHT = 7.6
"""What all rows may take before lanes get thinner, inches."""
REQUESTS_HEIGHT = 0.62
OTHER_HEIGHT = 1.15
"""Legend, time axis and caption, inches."""
ROW_GAP, SERVER_GAP = 0.3, 1.15
"""Room above a row, and above the first one of a server for its name; in lanes."""
LABEL_SIZE = 4.6
LABELLED_FROM = 0.085
"""Lanes at least this high have room for the names of models, inches."""
AXES_SHARE = 0.9
"""Of the page's width."""

LOOKS: dict[Phase, tuple[str, float, float]] = {
    Phase.STARTING: ("#cfcfcf", 0.0, 1.0),
    Phase.IDLE: ("#e8dfb5", 0.0, 0.35),
    Phase.BUSY: ("#8fc79a", 0.0, 1.0),
    Phase.FETCHING: ("#4aa3df", 0.0, 0.3),
    Phase.LOADING: ("#332288", 0.7, 0.3),
    Phase.MIGRATING: ("#CC6677", 0.3, 0.4),
}
"""Colour of a phase, where in its lane it is drawn (0 is the bottom), and how high: the heights tell phases apart in
grey, and show two at once. In this order, the later over the earlier."""
LABEL: dict[str, Any] = {"fontsize": LABEL_SIZE, "va": "center", "zorder": 4, "clip_on": True}
SETTLED = (Phase.IDLE, Phase.BUSY)
CONSOLIDATING: dict[str, Any] = {"facecolor": "none", "edgecolor": "#882255", "linewidth": 0.9}


def draw(shown: Timeline, window: Interval, caption: str) -> Canvas:
    """The window of a timeline."""
    rows = shown.rows(window)
    tops, total = _tops(rows)
    lane = min(max(ROWS_HEIGHT / total, LANE_HEIGHT[0]), LANE_HEIGHT[1])
    heights = (REQUESTS_HEIGHT, max(total * lane, 0.6))
    canvas = Canvas(figsize=(style.PAGE_WIDTH, sum(heights) + OTHER_HEIGHT), layout="constrained")
    above, ax = canvas.subplots(2, 1, sharex=True, height_ratios=heights)
    _draw_requests(shown.requests, window, above)
    named = lane >= LABELLED_FROM
    for row, top in zip(rows, tops, strict=True):
        ax.axhspan(top, top + _height(row), facecolor="#f5f5f5", zorder=0)
        for number, bars in enumerate(row.lanes):
            _draw_lane(bars, top + number, ax)
            if named:
                _name_models(bars, top + number, window, ax)
    _name_rows(rows, tops, ax)
    ax.set_ylim(total, 0)
    ax.set_xlim(*window)
    ax.set_xlabel("time since the run's start (s)")
    ax.tick_params(axis="x", length=2)
    ax.grid(axis="x")
    _legend(canvas, rows)
    style.caption(canvas, caption)
    return canvas


def _height(row: GpuRow) -> int:
    return max(len(row.lanes), 1)


def _tops(rows: Sequence[GpuRow]) -> tuple[list[float], float]:
    """Where each row begins, and where the last one ends, in lanes from the top."""
    tops, at, server = [], 0.0, None
    for row in rows:
        at += ROW_GAP if row.server == server or not _is_split(rows, row.server) else SERVER_GAP
        tops.append(at)
        at += _height(row)
        server = row.server
    return tops, at + ROW_GAP


def _is_split(rows: Sequence[GpuRow], server: str) -> bool:
    """Whether a server has several rows, so that its name stands above them."""
    return sum(row.server == server for row in rows) > 1


def _name_rows(rows: Sequence[GpuRow], tops: Sequence[float], ax: Axes) -> None:
    server, ticks, labels = None, [], []
    for row, top in zip(rows, tops, strict=True):
        split = _is_split(rows, row.server)
        if split and row.server != server:
            place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "bottom", "fontsize": style.SMALL}
            ax.text(0.0, top - 0.05, row.server, fontweight="bold", **place)
        server = row.server
        ticks.append(top + _height(row) / 2)
        labels.append(row.gpu if split else row.server)
    ax.set_yticks(ticks, labels, fontsize=style.SMALL)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _draw_lane(bars: Sequence[WorkerBar], top: float, ax: Axes) -> None:
    """One lane; its bottom is at ``top`` + 1, as the axis points down."""
    for phase, (color, bottom, height) in LOOKS.items():
        spans = _spans(bars, phase)
        if spans:
            low, high = 0.94 * bottom + 0.03, 0.94 * height
            order = 2 + list(LOOKS).index(phase) / 10
            ax.broken_barh(spans, (top + 1 - low - high, high), facecolor=color, linewidth=0, zorder=order)
    whole = _spans(bars, Phase.CONSOLIDATING)
    if whole:
        ax.broken_barh(whole, (top + 0.03, 0.94), zorder=3, **CONSOLIDATING)
    ends = [(bar.start, bar.end - bar.start) for bar in bars]
    ax.broken_barh(ends, (top + 0.03, 0.94), facecolor="none", edgecolor=style.FAINT, linewidth=0.3, zorder=2.9)


def _spans(bars: Sequence[WorkerBar], phase: Phase) -> list[tuple[Seconds, Seconds]]:
    """Starts and lengths of a phase's stretches."""
    found = [stretch for bar in bars for stretch in bar.stretches if stretch.phase is phase]
    return [(stretch.start, stretch.end - stretch.start) for stretch in found]


def _name_models(bars: Sequence[WorkerBar], top: float, window: Interval, ax: Axes) -> None:
    """The model and the instance, or the instance alone, in each bar that has room for it where it only serves."""
    per_inch = (window[1] - window[0]) / (style.PAGE_WIDTH * AXES_SHARE)
    for bar in bars:
        settled = max((each.end for each in bar.stretches if each.phase not in SETTLED), default=bar.start)
        start, end = max(settled, window[0]), min(bar.end, window[1])
        instance = f"#{bar.instance}.{bar.rank}"
        for text in (f"{bar.model} {instance}", instance):
            if style.text_width(text, LABEL_SIZE) <= 0.95 * (end - start) / per_inch:
                ax.text(start + 0.03 * per_inch, top + 0.53, text, **LABEL).set_in_layout(False)
                break


def _draw_requests(requests: Sequence[RequestRecord], window: Interval, ax: Axes) -> None:
    """How many requests are on an instance, and how many wait for one above these, as steps over time."""
    served, waiting = _counts(requests, window)
    instants = sorted({*window, *served, *waiting})
    lower, upper = _levels(served, instants), _levels(waiting, instants)
    both = [low + high for low, high in zip(lower, upper, strict=True)]
    color = LOOKS[Phase.BUSY][0]
    ax.fill_between(instants, lower, step="post", facecolor=color, linewidth=0, zorder=2)
    ax.fill_between(instants, lower, both, step="post", facecolor=style.INK, linewidth=0, zorder=2)
    ax.set_ylim(0, 1.05 * max(*both, 1))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    ax.set_ylabel("requests")
    ax.tick_params(axis="x", labelbottom=False)
    ax.grid(axis="y")


def _counts(requests: Sequence[RequestRecord], window: Interval) -> tuple[dict[Seconds, int], dict[Seconds, int]]:
    """By instant inside the window: how many more are served and how many more wait from then on."""
    served: dict[Seconds, int] = {}
    waiting: dict[Seconds, int] = {}
    never = window[1] + 1.0
    for request in requests:
        taken = never if request.dispatched_at is None else request.dispatched_at
        gone = never if request.finished_at is None else request.finished_at
        for steps, start, end in ((waiting, request.arrived_at, min(taken, gone)), (served, taken, gone)):
            start, end = max(start, window[0]), min(end, window[1])
            if end > start:
                steps[start] = steps.get(start, 0) + 1
                steps[end] = steps.get(end, 0) - 1
    return served, waiting


def _levels(steps: dict[Seconds, int], instants: Sequence[Seconds]) -> list[int]:
    level, levels = 0, []
    for instant in instants:
        level += steps.get(instant, 0)
        levels.append(level)
    return levels


def _legend(canvas: Canvas, rows: Sequence[GpuRow]) -> None:
    """Entries for what occurs, and for nothing else."""
    bars = [bar for row in rows for lane in row.lanes for bar in lane]
    seen = {stretch.phase for bar in bars for stretch in bar.stretches}  # membership only
    entries = [style.patch(color, phase.value) for phase, (color, _, _) in LOOKS.items() if phase in seen]
    if Phase.CONSOLIDATING in seen:
        entries.append(style.framed(CONSOLIDATING, Phase.CONSOLIDATING.value))
    entries.append(style.patch(style.INK, "requests waiting"))
    style.legend(canvas, entries, [])
