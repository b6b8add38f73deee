"""The picture of a workload trace: requests over time by application, and how the models share them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from aebench.plotting.draw import write_canvas
from aebench.plotting.style import PAGE_WIDTH, PALETTE, legend, patch
from serving.workload.traces import TraceRow

NUM_BINS = 120


def draw_trace(rows: Sequence[TraceRow], out_stem: Path) -> list[Path]:
    """The picture's files."""
    return write_canvas(lambda: _canvas(rows), out_stem)


def _canvas(rows: Sequence[TraceRow]) -> Canvas:
    canvas = Canvas(figsize=(PAGE_WIDTH, 2.4), layout="constrained")
    over_time, by_model = canvas.subplots(1, 2, width_ratios=[2, 1])
    labels = sorted({row.label for row in rows})
    colors = {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(labels)}
    _over_time(over_time, rows, colors)
    _by_model(by_model, rows, colors)
    legend(canvas, [patch(color, label) for label, color in colors.items()], [])
    return canvas


def _over_time(axes: Axes, rows: Sequence[TraceRow], colors: dict[str, str]) -> None:
    """Requests a second in bins of equal length, stacked."""
    end = max(rows[-1].arrived_at, 1e-9)
    edges = np.linspace(0.0, end, NUM_BINS + 1)
    times = [[row.arrived_at for row in rows if row.label == label] for label in colors]
    weights = [np.full(len(each), NUM_BINS / end) for each in times]
    axes.hist(times, bins=edges.tolist(), weights=weights, stacked=True, color=list(colors.values()), linewidth=0)
    axes.set(xlabel="Time (s)", ylabel="Requests per second", xlim=(0.0, end))
    axes.set_title(f"Arrivals, in bins of {end / NUM_BINS:.3g} s")


def _by_model(axes: Axes, rows: Sequence[TraceRow], colors: dict[str, str]) -> None:
    """Requests of each model, busiest first, on a logarithmic scale."""
    label_of = {row.model: row.label for row in rows}
    counts = Counter(row.model for row in rows).most_common()
    axes.bar(
        np.arange(1, len(counts) + 1),
        [count for _, count in counts],
        width=1.0,
        color=[colors[label_of[model]] for model, _ in counts],
    )
    axes.set(xlabel="Model, by its requests", ylabel="Requests", yscale="log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{len(counts)} models")
