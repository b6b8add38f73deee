"""Ratio bars drawn: their order, colours and means, and the paper's bars as a distribution that is no cell's."""

from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas

from aebench.errors import LogError
from aebench.figure import PlotSpec, cells
from aebench.plotting import ratio_bars, style
from aebench.plotting.draw import draw
from tests.aebench.test_plotting import make_figure, never

PLOT = PlotSpec(
    kind="ratio_bars",
    x="model",
    y="tpot",
    series="application",
    x_label="deployed models",
    y_label="TPOT, relative",
    labels={"chatbot": "Chatbot", "code": "Code"},
    order={"application": ["chatbot", "code"]},
)
RATIOS = {
    ("code", "llama2-7b-code/3"): 0.9,
    ("chatbot", "llama2-7b-chatbot/10"): 1.3,
    ("chatbot", "llama2-7b-chatbot/9"): 1.2,
    ("code", "llama2-13b-code/40"): 1.1,
    ("chatbot", "llama2-13b-chatbot/2"): 1.0,
}
IN_ORDER = [1.0, 1.2, 1.3, 1.1, 0.9]
"""Chatbot before code, 13b before 7b as their names sort, 9 before 10."""
PAPER = pd.DataFrame(
    {"bar": ["0", "1", "2"], "application": ["chatbot", "chatbot", "code"], "tpot": [1.0, 2.0, 0.5], "source": "pdf"}
)


def table(ratios: dict[tuple[str, str], float] = RATIOS) -> pd.DataFrame:
    rows = [(application, model, 0, ratio) for (application, model), ratio in ratios.items()]
    return pd.DataFrame(rows, columns=["application", "model", "seed", "tpot"])


def drawn(summary: pd.DataFrame, paper_bars: pd.DataFrame | None = None) -> Canvas:
    figure = make_figure(plot=PLOT, paper_points=None, paper_bars=paper_bars)
    with mpl.rc_context(style.RC):
        return ratio_bars.draw(figure, cells(figure, summary, never), "caption")


def flat_lines(ax: Axes) -> list[tuple[float, float, float]]:
    """Horizontal lines of two points in the places of the bars: from, to, height."""
    found = [(line.get_xdata(), line.get_ydata()) for line in ax.lines if len(line.get_xdata()) == 2]
    return [(xs[0], xs[1], ys[0]) for xs, ys in found if ys[0] == ys[1] and xs[1] > 1]


def test_bars_come_by_application_then_model_then_number() -> None:
    bars, _ = drawn(table()).axes
    assert [patch.get_height() for patch in bars.patches] == IN_ORDER
    assert [to_hex(patch.get_facecolor()) for patch in bars.patches] == [
        *[style.PALETTE[0].lower()] * 3,
        *[style.PALETTE[1].lower()] * 2,
    ]
    assert [text.get_text() for text in bars.get_xticklabels()] == ["Chatbot\n(3)", "Code\n(2)"]


def test_groups_stand_side_by_side_with_a_gap() -> None:
    bars, _ = drawn(table()).axes
    middles = [patch.get_x() + patch.get_width() / 2 for patch in bars.patches]
    assert middles == pytest.approx([0.0, 1.0, 2.0, 5.5, 6.5])
    assert list(bars.get_xticks()) == pytest.approx([1.0, 6.0])


def test_the_axis_starts_at_zero_and_a_dashed_line_is_at_one() -> None:
    for ax in drawn(table()).axes:
        assert ax.get_ylim() == (0.0, pytest.approx(1.08 * 1.3))
        dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
        assert [list(line.get_ydata()) for line in dashed] == [[1.0, 1.0]]


def test_a_short_line_over_each_group_is_the_mean_of_its_bars() -> None:
    bars, _ = drawn(table()).axes
    spans = flat_lines(bars)
    starts = [patch.get_x() + patch.get_width() / 2 for patch in bars.patches]
    means = [span for span in spans if span[2] != 1.0]
    assert [height for _, _, height in means] == [pytest.approx(fmean([1.0, 1.2, 1.3]))]
    assert means[0][:2] == (pytest.approx(starts[0] - 0.5), pytest.approx(starts[2] + 0.5))
    assert (starts[3] - 0.5, starts[4] + 0.5, 1.0) in [tuple(map(pytest.approx, span)) for span in spans]


def test_the_papers_bars_are_boxes_beside_ours_and_no_bars() -> None:
    bars, boxes = drawn(table(), PAPER).axes
    assert len(bars.patches) == len(RATIOS)
    ours, papers = boxes.patches[:2]
    assert (ours.get_y(), ours.get_y() + ours.get_height()) == pytest.approx((1.1, 1.25))
    assert (papers.get_y(), papers.get_y() + papers.get_height()) == pytest.approx((1.25, 1.75))
    assert to_hex(papers.get_facecolor()) == "#ffffff"
    assert ours.get_x() + ours.get_width() <= papers.get_x()
    assert [text.get_text() for text in boxes.get_xticklabels()] == ["1.17", "1.50", "1.00", "0.50"]


def test_whiskers_reach_the_least_and_the_greatest() -> None:
    _, boxes = drawn(table(), PAPER).axes
    upright = [line.get_ydata() for line in boxes.lines if len(set(line.get_xdata())) == 1]
    assert [list(ends) for ends in upright if len(ends) == 2][:4] == [
        pytest.approx([1.0, 1.1]), pytest.approx([1.25, 1.3]), pytest.approx([1.0, 1.25]), pytest.approx([1.75, 2.0]),
    ]  # fmt: skip


def test_the_papers_bars_are_nobodys_paper_value() -> None:
    figure = make_figure(plot=PLOT, paper_points=None, paper_bars=PAPER)
    found = cells(figure, table(), never)
    assert len(found) == len(RATIOS)
    assert all(cell.paper is None and cell.error is None for cell in found)


def test_a_run_without_these_points_shows_the_paper_alone(tmp_path: Path) -> None:
    bars, boxes = drawn(table({}), PAPER).axes
    assert not bars.patches
    assert [text.get_text() for text in bars.texts] == ["absent: not run"]
    assert [text.get_text() for text in boxes.get_xticklabels()] == ["1.50", "0.50"]
    figure = make_figure(plot=PLOT, paper_points=None, paper_bars=None)
    with pytest.raises(LogError, match="nothing to draw"):
        draw(figure, table({}), tmp_path / "f", calibrated=never, caption="")


def test_an_application_that_only_the_paper_has_comes_last() -> None:
    more = pd.concat([pd.DataFrame({"bar": ["3"], "application": ["agents"], "tpot": [1.5], "source": "pdf"}), PAPER])
    bars, boxes = drawn(table(), more).axes
    assert [text.get_text() for text in bars.get_xticklabels()] == ["Chatbot\n(3)", "Code\n(2)"]
    assert [text.get_text() for text in boxes.get_xticklabels()][-1] == "1.50"


def test_seeds_are_a_thin_line_over_their_mean() -> None:
    two = pd.concat([table(), table().assign(seed=1, tpot=lambda rows: rows["tpot"] + 0.2)])
    bars, _ = drawn(two).axes
    assert bars.patches[0].get_height() == pytest.approx(1.1)
    upright = [list(line.get_ydata()) for line in bars.lines if len(set(line.get_xdata())) == 1]
    assert upright[0] == pytest.approx([1.0, 1.2])


def test_shipped_bars_are_hollow_and_hatched() -> None:
    canvas = drawn(table().assign(history=True))
    bar = canvas.axes[0].patches[0]
    assert (to_hex(bar.get_facecolor()), bar.get_hatch()) == ("#ffffff", style.HISTORY_HATCH)
    assert "from shipped history" in texts(canvas)


def test_the_legend_names_what_occurs_and_fits_the_page() -> None:
    assert texts(drawn(table())) == ["Chatbot", "mean of the bars", "Code"]
    canvas = drawn(table(), PAPER)
    assert sorted(texts(canvas)) == ["Chatbot", "Code", "mean of the bars", "paper, its own 3 bars"]
    with mpl.rc_context(style.RC):
        canvas.draw_without_rendering()
    legend = canvas.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= canvas.bbox.width
    assert all(legend.y0 >= ax.get_tightbbox().y1 for ax in canvas.axes)


def texts(canvas: Canvas) -> list[str]:
    return [text.get_text() for text in canvas.legends[0].get_texts() if text.get_text()]


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbered_names_sort_by_their_number(numbers: list[int]) -> None:
    names = sorted((f"llama2-7b/{number}" for number in numbers), key=ratio_bars.in_order)
    assert names == [f"llama2-7b/{number}" for number in sorted(numbers)]


def test_names_without_a_number_sort_as_they_are() -> None:
    assert sorted(["b/x", "a", "b/2", "b/10"], key=ratio_bars.in_order) == ["a", "b/2", "b/10", "b/x"]
