"""Lines drawn: what is joined and what is not, how measured, paper's, absent and shipped points look, and the axes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from aebench.errors import SpecError
from aebench.figure import PlotSpec, cells
from aebench.plotting import lines, style
from aebench.plotting.draw import describe_run, draw
from tests.aebench.test_plotting import make_figure, never

SYSTEMS = ["serverless_vllm", "hydraserve"]
PLOT = PlotSpec(
    kind="lines",
    x="rate",
    y="slo_attainment",
    series="system",
    panel="cv",
    x_label="requests per second",
    y_label="SLO attainment",
    labels={"2": "CV 2", "8": "CV 8"},
    order={"system": SYSTEMS, "cv": ["8", "2"]},
)
VALUES = {"serverless_vllm": (0.55, 0.5, 0.45), "hydraserve": (0.85, 0.8, 0.75)}
Calibrated = Callable[[Mapping[str, str]], bool]


def table(*cvs: int) -> pd.DataFrame:
    """Rates 0.6, 0.7 and 0.8 for both systems."""
    rows = [
        (cv, rate, system, value)
        for cv in cvs
        for system in SYSTEMS
        for rate, value in zip((0.6, 0.7, 0.8), VALUES[system], strict=True)
    ]
    return pd.DataFrame(rows, columns=["cv", "rate", "system", "slo_attainment"])


def nothing_printed() -> pd.DataFrame:
    return table().astype({"slo_attainment": float})


def drawn(summary: pd.DataFrame, paper: pd.DataFrame, calibrated: Calibrated = never, plot: PlotSpec = PLOT) -> Canvas:
    figure = make_figure(paper, plot=plot)
    with mpl.rc_context(style.RC):
        return lines.draw(figure, cells(figure, summary, calibrated), "caption")


def panel_of(canvas: Canvas, number: int = 0) -> Axes:
    return canvas.axes[number]


def joins(ax: Axes, look: Mapping[str, object]) -> list[tuple[list[float], list[float]]]:
    """Lines of a look that join two points, as x values and y values."""
    dashes = Line2D([], [], linestyle=look["linestyle"], linewidth=look["linewidth"])
    same = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == dashes.get_linestyle()]
    same = [line for line in same if line._unscaled_dash_pattern == dashes._unscaled_dash_pattern]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in same]


def points(ax: Axes, marker: str, face: str) -> list[tuple[float, float]]:
    """Single points of a shape and colour."""
    found = [line for line in ax.lines if line.get_marker() == marker and len(line.get_xdata()) == 1]
    return [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in found
        if to_hex(line.get_markerfacecolor()) == face.lower() and line.get_fillstyle() == "full"
    ]


def test_measured_points_are_filled_and_joined_by_solid_lines() -> None:
    ax = panel_of(drawn(table(8), nothing_printed()))
    assert points(ax, "o", style.PALETTE[0]) == [(0.6, 0.55), (0.7, 0.5), (0.8, 0.45)]
    assert points(ax, "s", style.PALETTE[1]) == [(0.6, 0.85), (0.7, 0.8), (0.8, 0.75)]
    assert joins(ax, style.MEASURED_LINE) == [
        ([0.6, 0.7], [0.55, 0.5]),
        ([0.7, 0.8], [0.5, 0.45]),
        ([0.6, 0.7], [0.85, 0.8]),
        ([0.7, 0.8], [0.8, 0.75]),
    ]


def test_the_papers_points_are_hollow_in_the_same_shape_and_joined_among_themselves() -> None:
    measured, paper = table(8), table(8)
    measured["slo_attainment"] += 0.02
    ax = panel_of(drawn(measured, paper))
    assert points(ax, "o", "#ffffff") == [(0.6, 0.55), (0.7, 0.5), (0.8, 0.45)]
    hollow = next(line for line in ax.lines if to_hex(line.get_markerfacecolor()) == "#ffffff")
    assert to_hex(hollow.get_markeredgecolor()) == style.PALETTE[0].lower()
    assert ([0.6, 0.7], [0.55, 0.5]) in joins(ax, style.PAPER_LINE)
    assert len(joins(ax, style.PAPER_LINE)) == 4
    ends = {value for _, ys in joins(ax, style.MEASURED_LINE) for value in ys}
    assert not ends & set(paper["slo_attainment"])


def test_nothing_is_joined_across_a_point_that_is_missing() -> None:
    without = table(8).query("not (rate == 0.7 and system == 'hydraserve')")
    ax = panel_of(drawn(without, without))
    assert joins(ax, style.MEASURED_LINE) == [([0.6, 0.7], [0.55, 0.5]), ([0.7, 0.8], [0.5, 0.45])]
    assert joins(ax, style.PAPER_LINE) == [([0.6, 0.7], [0.55, 0.5]), ([0.7, 0.8], [0.5, 0.45])]
    (mark,) = [line for line in ax.lines if line.get_marker() == "x"]
    assert mark.get_xdata()[0] == pytest.approx(0.7, abs=0.01)
    assert mark.get_ydata()[0] < 0.45


def test_the_paper_is_not_joined_across_what_it_did_not_print() -> None:
    ax = panel_of(drawn(table(8), table(8).query("rate != 0.7")))
    assert joins(ax, style.PAPER_LINE) == []
    assert len(joins(ax, style.MEASURED_LINE)) == 4


def test_points_of_the_paper_alone_leave_the_measured_line_absent() -> None:
    ax = panel_of(drawn(table(8).query("system == 'hydraserve'"), table(8)))
    assert len([line for line in ax.lines if line.get_marker() == "x"]) == 3
    assert len(joins(ax, style.PAPER_LINE)) == 4


def test_points_from_shipped_history_are_half_filled_and_joined_by_dots() -> None:
    summary = table(8).assign(history=[False, False, True, False, False, False])
    ax = panel_of(drawn(summary, nothing_printed()))
    assert joins(ax, style.HISTORY_LINE) == [([0.7, 0.8], [0.5, 0.45])]
    (half,) = [line for line in ax.lines if line.get_fillstyle() == "left"]
    assert (half.get_xdata()[0], half.get_ydata()[0]) == (0.8, 0.45)


def test_a_calibration_point_is_framed() -> None:
    canvas = drawn(table(8), table(8), lambda keys: (keys["system"], keys["rate"]) == ("hydraserve", "0.6"))
    frames = [line for line in panel_of(canvas).lines if line.get_markersize() == style.CALIBRATED_FRAME["markersize"]]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in frames] == [(0.6, 0.85)]
    assert "paper (used for calibration)" in texts(canvas)


def texts(canvas: Canvas) -> list[str]:
    return [text.get_text() for text in canvas.legends[0].get_texts() if text.get_text()]


def test_the_legend_names_what_occurs_and_nothing_else() -> None:
    assert sorted(texts(drawn(table(8), nothing_printed()))) == ["hydraserve", "serverless_vllm"]
    assert sorted(texts(drawn(table(8), table(8)))) == ["hydraserve", "paper", "serverless_vllm"]
    some = table(8).query("rate < 0.8").assign(history=True)
    assert sorted(texts(drawn(some, table(8)))) == [
        "absent", "from shipped history", "hydraserve", "paper", "serverless_vllm",
    ]  # fmt: skip


def test_the_legend_is_above_the_panels_and_inside_the_page() -> None:
    canvas = drawn(table(2, 8).assign(history=[True] + [False] * 11), table(2))
    with mpl.rc_context(style.RC):
        canvas.draw_without_rendering()
    legend = canvas.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= canvas.bbox.width
    assert all(legend.y0 >= ax.get_tightbbox().y1 for ax in canvas.axes)


def test_panels_told_apart_by_a_number_come_in_its_order() -> None:
    canvas = drawn(table(8, 2), nothing_printed())
    assert [ax.get_title() for ax in canvas.axes] == ["CV 2", "CV 8"]
    assert [ax.get_ylabel() for ax in canvas.axes] == ["SLO attainment", ""]


def test_x_values_are_placed_by_their_size_not_by_their_order() -> None:
    plot = PlotSpec(kind="lines", x="rate", y="slo_attainment", order={"rate": ["10", "9", "0.5"]})
    summary = pd.DataFrame({"rate": [10, 9, 0.5], "slo_attainment": [0.1, 0.2, 0.9]})
    ax = panel_of(drawn(summary, pd.DataFrame(columns=["rate", "slo_attainment"]), plot=plot))
    assert list(ax.get_xticks()) == [0.5, 9.0, 10.0]
    assert joins(ax, style.MEASURED_LINE) == [([0.5, 9.0], [0.9, 0.2]), ([9.0, 10.0], [0.2, 0.1])]


def test_whiskers_span_the_seeds() -> None:
    summary = pd.concat([table(8).assign(seed=0), table(8).assign(seed=1)], ignore_index=True)
    summary.loc[summary["seed"] == 1, "slo_attainment"] += 0.04
    ax = panel_of(drawn(summary, nothing_printed()))
    (bar, *_) = [collection for collection in ax.collections if len(collection.get_segments()) == 1]
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([0.55, 0.59])
    assert points(ax, "o", style.PALETTE[0])[0] == (0.6, pytest.approx(0.57))


@pytest.mark.parametrize(
    ("values", "ends"),
    [((0.45, 0.85), (0.4, 0.9)), ((0.51, 0.99), (0.4, 1.0)), ((0.0, 1.0), (0.0, 1.0)), ((0.4, 0.5), (0.3, 0.6))],
)
def test_fractions_have_an_axis_from_tenth_to_tenth_around_them(
    values: tuple[float, float], ends: tuple[float, float]
) -> None:
    plot = PlotSpec(kind="lines", x="rate", y="slo_attainment")
    summary = pd.DataFrame({"rate": [1, 2], "slo_attainment": values})
    ax = panel_of(drawn(summary, pd.DataFrame(columns=["rate", "slo_attainment"]), plot=plot))
    assert ax.get_ylim() == pytest.approx(ends)
    assert ax.yaxis.get_major_formatter()(0.5) == "50%"


@pytest.mark.parametrize(("values", "low"), [((1.0, 4.0), 0.0), ((3.0, 4.0), 2.92), ((-1.0, 1.0), -1.16)])
def test_other_metrics_start_at_zero_where_that_leaves_room(values: tuple[float, float], low: float) -> None:
    plot = PlotSpec(kind="lines", x="rate", y="ttft_mean")
    summary = pd.DataFrame({"rate": [1, 2], "ttft_mean": values})
    ax = panel_of(drawn(summary, pd.DataFrame(columns=["rate", "ttft_mean"]), plot=plot))
    assert ax.get_ylim()[0] == pytest.approx(low)


def test_words_on_the_x_axis_are_refused() -> None:
    plot = PlotSpec(kind="lines", x="system", y="slo_attainment")
    summary = pd.DataFrame({"system": ["a"], "slo_attainment": [0.5]})
    with pytest.raises(SpecError) as refusal:
        drawn(summary, pd.DataFrame(columns=["system", "slo_attainment"]), plot=plot)
    assert str(refusal.value) == (
        "hydraserve/figure7, plot.x: lines need numbers on the x axis, system has 'a'. Use kind = \"bars\""
    )


def test_every_format_is_the_same_for_the_same_input(tmp_path: Path) -> None:
    figure = make_figure(table(8), plot=PLOT)
    first = draw(figure, table(2, 8), tmp_path / "one", calibrated=never, caption="c")
    second = draw(figure, table(2, 8).sample(frac=1, random_state=1), tmp_path / "two", calibrated=never, caption="c")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_caption_speaks_of_points() -> None:
    assert describe_run(backend="sim", seeds=[0, 1], kind="lines") == (
        "Simulated; seeds 0, 1; points are means, whiskers the range of both seeds."
    )
