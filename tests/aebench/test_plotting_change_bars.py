"""Change bars: ratios to the first row, values beside the bars, one axis a column."""

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from aebench.errors import SpecError
from aebench.figure import PlotSpec, cells
from aebench.plotting import change_bars, style
from aebench.plotting.draw import KINDS, draw
from aebench.plotting.panels import panels
from tests.aebench.test_plotting import make_figure, never

PLOT = PlotSpec(
    kind="change_bars",
    x="change",
    y="prefill_p99",
    metrics=("prefill_p99", "num_migrations", "downtime_mean"),
    panel="trace",
    labels={"none": "nothing changed", "m-m": "M-M", "prefill_p99": "Prefill P99"},
)
NAN = float("nan")
ROWS = [
    ("m-m", "none", 2.0, 1000, 0.02),
    ("m-m", "no_migration", 16.0, 0, NAN),
    ("m-m", "often", 0.5, 4000, 0.02),
    ("s-l", "none", 10.0, 500, 0.02),
    ("s-l", "no_migration", 20.0, 0, NAN),
]
COLUMNS = ["trace", "change", "prefill_p99", "num_migrations", "downtime_mean"]


def summary(seeds: int = 1) -> pd.DataFrame:
    table = pd.DataFrame(ROWS, columns=COLUMNS)
    return pd.concat([table.assign(seed=seed, prefill_p99=table["prefill_p99"] * (1 + seed)) for seed in range(seeds)])


def canvas(found: pd.DataFrame, plot: PlotSpec = PLOT, grid: tuple[dict[str, str], ...] = ()) -> Canvas:
    figure = replace(make_figure(plot=plot), paper_points=None, grid=grid)
    with mpl.rc_context(style.RC):
        return KINDS["change_bars"](figure, cells(figure, found, never), "caption")


def bars(ax: Axes) -> list[tuple[float, float]]:
    """Where each bar begins and ends."""
    found = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in found]


def test_a_bar_reaches_from_unchanged_to_the_ratio() -> None:
    axes = canvas(summary()).axes  # row by row: M-M's three columns, then S-L's
    assert bars(axes[0]) == [(1.0, 1.0), (1.0, 8.0), (1.0, 0.25)]
    assert bars(axes[3]) == [(1.0, 1.0), (1.0, 2.0)]
    assert [text.get_text() for text in axes[0].texts] == ["2.00", "16.0", "0.5"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["nothing changed", "no_migration", "often"]
    assert (axes[0].get_ylabel(), axes[0].get_title(), axes[3].get_title()) == ("M-M", "Prefill P99", "")
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1]  # read from above


def test_nothing_has_a_bar_to_the_left_edge() -> None:
    axes = canvas(summary()).axes
    for ax, ends in ((axes[1], [1.0, 4.0]), (axes[4], [1.0])):
        edge = ax.get_xlim()[0]
        assert bars(ax) == [(1.0, 1.0), (1.0, pytest.approx(edge)), *((1.0, end) for end in ends[1:])]
        assert edge <= 0.5  # seen though nothing else is less
    assert [text.get_text() for text in axes[1].texts] == ["1000", "0", "4000"]
    assert to_hex(axes[1].patches[1].get_facecolor()) == change_bars.LESS.lower()


def test_nothing_is_less_than_the_least_of_the_others() -> None:
    table = summary()
    table.loc[2, "num_migrations"] = 250
    (_, nothing, (_, often)) = bars(canvas(table).axes[1])
    assert often == 0.25 and nothing[1] <= often / 2


def test_counts_are_whole_where_they_are() -> None:
    table = pd.concat([summary(), summary().assign(seed=1)])
    table["num_migrations"] = [3, 0, 5, 500, 0, 4, 0, 5, 501, 0]
    axes = canvas(table).axes
    assert [text.get_text() for text in axes[1].texts] == ["3.50", "0", "5"]
    assert [text.get_text() for text in axes[4].texts] == ["500", "0"]


def test_a_metric_that_a_point_has_not_is_not_absent() -> None:
    drawn = canvas(summary())
    assert [text.get_text() for text in drawn.axes[2].texts] == ["0.02", "–", "0.02"]  # no migration, no downtime
    assert not [line for ax in drawn.axes for line in ax.lines if line.get_marker() == "x"]
    assert "absent" not in [text.get_text() for text in drawn.legends[0].get_texts()]


def test_a_point_that_was_not_run_is_absent_in_every_column() -> None:
    grid = tuple({"trace": "m-m", "change": change} for change in ("none", "never", "often"))
    drawn = canvas(summary(), grid=grid)
    crosses = [[line.get_ydata()[0] for line in ax.lines if line.get_marker() == "x"] for ax in drawn.axes]
    assert crosses == [[3], [3], [3], [], [], []]
    assert "absent" in [text.get_text() for text in drawn.legends[0].get_texts()]


def test_the_panels_of_a_column_share_an_axis_that_holds_all_bars() -> None:
    axes = canvas(summary()).axes
    assert axes[0].get_xlim() == axes[3].get_xlim()
    low, high = axes[0].get_xlim()
    assert low < 0.25 and high > 8.0


def test_ratios_are_those_of_means_over_seeds() -> None:
    figure = replace(make_figure(plot=PLOT), paper_points=None)
    found = cells(figure, summary(seeds=3), never)
    block = panels(PLOT, found)[0]
    assert change_bars.ratios(PLOT, block, "prefill_p99") == {"none": 1.0, "no_migration": 8.0, "often": 0.25}
    assert change_bars.ratios(PLOT, block, "num_migrations") == {"none": 1.0, "no_migration": 0.0, "often": 4.0}


def test_without_the_first_row_there_is_nothing_to_compare_with() -> None:
    figure = replace(make_figure(plot=PLOT), paper_points=None, grid=({"trace": "m-m", "change": "none"},))
    plot = replace(PLOT, order={"change": ["none"]})
    found = cells(replace(figure, plot=plot), summary().query("change != 'none'"), never)
    assert change_bars.ratios(plot, panels(plot, found)[0], "prefill_p99") == {}


def test_without_metrics_it_is_refused() -> None:
    with pytest.raises(SpecError, match="kind = 'change_bars' draws a column for each metric"):
        canvas(summary(), replace(PLOT, metrics=()))


def test_the_same_input_gives_the_same_bars(tmp_path: Path) -> None:
    figure = replace(make_figure(plot=PLOT), paper_points=None)
    first, second = (draw(figure, summary(2), tmp_path / name, calibrated=never, caption="c") for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
