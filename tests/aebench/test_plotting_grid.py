"""Figures of several metrics: cells and errors metric by metric, the grid of panels, the trade-off, a run over time."""

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure as Canvas

from aebench.errors import SpecError
from aebench.figure import METRIC, PlotSpec, cells
from aebench.plotting import line_grid, over_time, style, trade_off
from aebench.plotting.draw import KINDS, describe_run, draw
from aebench.report import prediction_error
from tests.aebench.test_plotting import make_figure, never

PLOT = PlotSpec(
    kind="line_grid",
    x="rate",
    y="prefill_p99",
    metrics=("prefill_p99", "preemption_loss", "avg_instances"),
    near_zero=("preemption_loss",),
    series="system",
    panel="trace",
    x_label="requests per second",
    labels={"s-s": "S-S", "prefill_p99": "Prefill P99"},
    order={"trace": ["s-s", "l-l"], "system": ["llumnix", "infaas++", "round-robin"]},
)
COLUMNS = ["trace", "rate", "system", "prefill_p99", "preemption_loss", "avg_instances"]
ROWS = [
    ("s-s", 32, "llumnix", 1.0, 0.001, 16),
    ("s-s", 33, "llumnix", 2.0, 0.0, 16),
    ("s-s", 32, "infaas++", 4.0, 0.5, 16),
    ("s-s", 33, "infaas++", 8.0, 0.6, 16),
    ("s-s", 32, "round-robin", 9.0, 0.7, 16),
    ("l-l", 2.6, "llumnix", 3.0, 0.0, 15),
    ("l-l", 2.7, "llumnix", 5.0, 0.0, 15),
]


def table() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=COLUMNS)


def canvas(kind: str = "line_grid", summary: pd.DataFrame | None = None, plot: PlotSpec = PLOT) -> Canvas:
    figure = make_figure(table(), plot=replace(plot, kind=kind))
    summary = table() if summary is None else summary
    with mpl.rc_context(style.RC):
        return KINDS[kind](figure, cells(figure, summary, never), "caption")


def test_cells_come_metric_by_metric_with_the_papers_values_of_that_metric() -> None:
    found = cells(make_figure(table(), plot=PLOT), table(), never)
    assert [cell.keys[METRIC] for cell in found] == [name for name in PLOT.metrics for _ in ROWS]
    assert [cell.paper for cell in found[:3]] == [1.0, 4.0, 9.0]
    assert {cell.paper for cell in found if cell.keys[METRIC] == "avg_instances"} == {15.0, 16.0}


def test_a_metric_near_zero_is_in_no_error_of_prediction() -> None:
    summary = table()
    summary["prefill_p99"] *= 1.1
    summary["preemption_loss"] += 1.0
    prediction = prediction_error(make_figure(table(), plot=PLOT), summary, never)
    assert prediction is not None and prediction.predicted is not None
    assert prediction.predicted.num_points == 14
    assert prediction.predicted.mape == pytest.approx(0.05)
    assert prediction.text.endswith("MAPE by metric: prefill_p99 10.0%, avg_instances 0.0%")


def test_units_are_told_of_metrics_that_share_one() -> None:
    assert PLOT.unit == ""  # seconds and instances
    assert replace(PLOT, metrics=PLOT.metrics[:2]).unit == "s"
    assert PlotSpec(kind="over_time", x="time", y="fragmentation").unit == "%"


def test_rows_are_values_of_the_panel_key_and_columns_are_metrics() -> None:
    axes = canvas().axes
    assert len(axes) == 2 * 3
    assert [ax.get_title() for ax in axes] == ["Prefill P99", "preemption_loss", "avg_instances", "", "", ""]
    assert [ax.get_ylabel() for ax in axes] == ["S-S", "", "", "l-l", "", ""]
    assert [ax.get_xlabel() for ax in axes] == ["", "", "", *["requests per second"] * 3]
    assert list(axes[0].get_xticks()) == [32.0, 33.0]
    assert list(axes[3].get_xticks()) == [2.6, 2.7]
    assert axes[0].get_ylim() == pytest.approx((0.0, 1.08 * 9))
    assert axes[3].get_ylim() == pytest.approx((0.0, 1.08 * 5))


def marks(ax: mpl.axes.Axes, marker: str) -> list[tuple[float, float]]:
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == marker]


def test_a_point_that_was_not_run_is_absent_and_a_series_that_a_row_has_not_is_not() -> None:
    axes = canvas(summary=table().query("not (rate == 33 and system == 'infaas++')")).axes
    absent = [at for at, _ in marks(axes[0], "x")]
    # infaas++ at 33 was printed, round-robin at 33 is nowhere but its series is in this row
    assert absent == pytest.approx([33.0, 33.03], abs=0.06)
    assert marks(axes[3], "x") == []


def test_a_grid_without_metrics_is_refused() -> None:
    with pytest.raises(SpecError, match="kind = 'line_grid' draws a column for each metric"):
        canvas(plot=PlotSpec(kind="line_grid", x="rate", y="prefill_p99"))


TRADE_OFF = PlotSpec(
    kind="trade_off",
    x="rate",
    y="avg_instances",
    metrics=("avg_instances", "prefill_p99"),
    series="system",
    x_label="instances",
    y_label="prefill P99 (s)",
)


def knobs() -> pd.DataFrame:
    rows = [(5, "llumnix", 10.0, 11.0), (25, "llumnix", 11.0, 4.0), (5, "infaas++", 12.0, 40.0)]
    return pd.DataFrame(rows, columns=["rate", "system", "avg_instances", "prefill_p99"])


def trade(summary: pd.DataFrame) -> mpl.axes.Axes:
    figure = make_figure(knobs(), plot=TRADE_OFF)
    with mpl.rc_context(style.RC):
        return trade_off.draw(figure, cells(figure, summary, never), "").axes[0]


def test_one_metric_is_drawn_against_the_other_and_named_by_the_knob() -> None:
    ax = trade(knobs())
    assert [text.get_text() for text in ax.texts] == ["5", "25", "5"]
    joined = [line.get_xydata().tolist() for line in ax.lines if len(line.get_xdata()) == 2]
    assert joined == [[[10.0, 11.0], [11.0, 4.0]]] * 2  # the paper's and ours
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("instances", "prefill P99 (s)")


@pytest.mark.parametrize(("lowest", "scale"), [(0.0, "linear"), (0.5, "log")])
def test_names_of_points_are_in_their_series_hue_on_its_side_and_inside_the_panel(lowest: float, scale: str) -> None:
    rows = [(5, "llumnix", 10.0, 1.0), (25, "llumnix", 11.0, 0.9), (5, "infaas++", 10.02, 1.0)]
    rows.append((85, "infaas++", 12.0, lowest))
    ax = trade(pd.DataFrame(rows, columns=["rate", "system", "avg_instances", "prefill_p99"]))
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == ["5", "25", "5", "85"]
    at = [ax.transData.transform(row[2:])[1] for row in rows]
    assert boxes[0].y0 > at[0] and boxes[1].y0 > at[1]
    assert boxes[2].y1 < at[2] and boxes[3].y1 < at[3]
    assert not any(one.overlaps(two) for place, one in enumerate(boxes) for two in boxes[:place])
    assert all(box.y0 >= ax.get_window_extent().y0 for box in boxes)  # also of a value of 0
    assert ax.get_yscale() == scale
    hues = [rgb_to_hsv(to_rgb(text.get_color()))[0] for text in ax.texts]
    assert hues == pytest.approx([rgb_to_hsv(to_rgb(style.PALETTE[index]))[0] for index in (0, 0, 1, 1)], abs=0.01)
    assert all(tick >= 0 for tick in ax.get_yticks() if tick >= ax.get_ylim()[0])


@pytest.mark.parametrize("color", style.PALETTE)
def test_text_in_a_series_colour_can_be_read_on_white(color: str) -> None:
    assert contrast_on_white(style.text_color(color)) >= 4.5
    assert style.text_color("#332288") == "#332288"  # dark enough already


def contrast_on_white(color: str) -> float:
    """Contrast ratio of WCAG 2.1."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_a_knob_that_was_not_run_is_absent_where_the_paper_has_it() -> None:
    ax = trade(knobs().query("rate == 5"))
    assert marks(ax, "x") == [(11.0, 4.0)]
    assert [text.get_text() for text in ax.texts] == ["5", "5"]


def test_a_trade_off_is_between_two_metrics() -> None:
    with pytest.raises(SpecError, match="expected two, one for each axis, got 3"):
        canvas("trade_off", plot=replace(PLOT, kind="trade_off"))


def test_the_course_of_a_run_is_a_line_a_series_that_ends_with_the_run() -> None:
    plot = PlotSpec(kind="over_time", x="time", y="fragmentation", series="system", y_label="share")
    rows = [(10.0 * i, name, 0.1) for name, n in (("infaas++", 5), ("llumnix", 3)) for i in range(n)]
    summary = pd.DataFrame(rows, columns=["time", "system", "fragmentation"])
    figure = replace(make_figure(plot=plot), paper_points=None)
    with mpl.rc_context(style.RC):
        (ax,) = over_time.draw(figure, cells(figure, summary, never), "").axes
    assert [list(line.get_xdata()) for line in ax.lines] == [[0.0, 10.0, 20.0, 30.0, 40.0], [0.0, 10.0, 20.0]]
    assert ax.yaxis.get_major_formatter()(0.5) == "50.0%"
    assert ax.get_xlim() == (0.0, 40.0)
    assert describe_run(backend="sim", seeds=[0, 1], kind="over_time") == "Simulated; seeds 0, 1; lines are means."


def test_the_same_input_gives_the_same_grid(tmp_path: Path) -> None:
    figure = make_figure(table(), plot=PLOT)
    first, second = (draw(figure, table(), tmp_path / name, calibrated=never, caption="c") for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert line_grid.PANEL_WIDTH * 3 < 7
