"""Log lines drawn: which axes are logarithmic, and what cannot be on one."""

from dataclasses import replace

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

from aebench.errors import SpecError
from aebench.figure import PlotSpec, cells
from aebench.plotting import log_lines, style
from tests.aebench.test_plotting import make_figure, never

PLOT = PlotSpec(
    kind="log_lines", x="seq_len", y="downtime_mean", series="method", panel="model", y_label="downtime (s)"
)


def drawn(values: list[float | None], lengths: tuple[int, ...] = (256, 512, 1024)) -> Canvas:
    rows = [
        (model, length, "live", value)
        for model in ("7b", "30b")
        for length, value in zip(lengths, values, strict=True)
        if value is not None
    ]
    summary = pd.DataFrame(rows, columns=["model", "seq_len", "method", "downtime_mean"])
    figure = make_figure(summary.iloc[:0], plot=PLOT)
    with mpl.rc_context(style.RC):
        return log_lines.draw(figure, cells(figure, summary.assign(seed=0), never), "caption")


def test_a_length_that_doubles_is_as_far_from_the_next_everywhere() -> None:
    for ax in drawn([0.02, 0.02, 0.03]).axes:
        assert ax.get_xscale() == "log"
        assert [text.get_text() for text in ax.get_xticklabels()] == ["256", "512", "1024"]
        assert not ax.xaxis.get_minorticklocs().size
        assert ax.get_xlim()[0] < 256 < 1024 < ax.get_xlim()[1]


def test_values_are_on_a_logarithmic_axis_where_they_differ_by_more_than_ten() -> None:
    near, far = drawn([0.02, 0.1, 0.2]), drawn([0.02, 0.1, 0.21])
    assert {ax.get_yscale() for ax in near.axes} == {"linear"}
    assert {ax.get_yscale() for ax in far.axes} == {"log"}
    assert all(0 < ax.get_ylim()[0] < 0.02 and ax.get_ylim()[1] > 0.21 for ax in far.axes)


@pytest.mark.parametrize("values", [(0.02, 0.1, 0.2), (0.02, 0.1, 0.3)])
def test_marks_of_absent_points_lie_side_by_side_at_the_foot_of_the_panel(values: tuple[float, ...]) -> None:
    methods = ("live", "blocking", "recompute")
    rows = [(256 * 2**at, method, value) for method in methods for at, value in enumerate(values)]
    paper = pd.DataFrame(rows, columns=["seq_len", "method", "downtime_mean"])
    figure = make_figure(paper, plot=replace(PLOT, panel=None))
    summary = paper[paper["seq_len"] != 512].assign(seed=0)
    with mpl.rc_context(style.RC):
        canvas = log_lines.draw(figure, cells(figure, summary, never), "caption")
        canvas.draw_without_rendering()
    (ax,) = canvas.axes
    marks = [line for line in ax.lines if line.get_marker() == "x"]
    seen = [line.get_transform().transform(line.get_xydata())[0] for line in marks]
    heights = {float(ax.transAxes.inverted().transform(place)[1]) for place in seen}
    assert [height for height in heights if height != pytest.approx(0.025)] == []
    left, middle, right = (float(x) for x, _ in seen)
    assert middle == pytest.approx(ax.transData.transform((512, 0.1))[0])
    width = style.ABSENT_MARK["markersize"] * canvas.dpi / 72
    assert middle - left == pytest.approx(right - middle) and middle - left > width


def test_a_length_of_nothing_has_no_place_on_a_logarithmic_axis() -> None:
    with pytest.raises(
        SpecError, match=r'a logarithmic axis needs numbers above 0, seq_len has 0\. Use kind = "lines"'
    ):
        drawn([1.0, 2.0], lengths=(0, 256))
