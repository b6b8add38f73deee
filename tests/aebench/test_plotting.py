"""Figures drawn: what is on the canvas, what is written, and that it is the same every time."""

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from aebench.claim_syntax import ClaimFile
from aebench.errors import LogError, SpecError
from aebench.figure import Cell, Figure, PlotSpec, cells, value_text
from aebench.plotting import bars, style
from aebench.plotting.draw import describe_run, draw, draw_svg

SYSTEMS = {"serverless_vllm": "Serverless vLLM", "hydraserve": "HydraServe"}
PLOT = PlotSpec(
    kind="bars",
    x="model",
    y="ttft_mean",
    series="system",
    panel="gpu",
    y_label="TTFT (s)",
    labels={**SYSTEMS, "opt-2.7b": "OPT-2.7B", "opt-13b": "OPT-13B", "v100": "V100", "a10": "A10"},
    order={"gpu": ["v100", "a10"], "model": ["opt-2.7b", "opt-13b"], "system": list(SYSTEMS)},
)
ROWS = [
    ("v100", "opt-2.7b", "serverless_vllm", 16.8),
    ("v100", "opt-2.7b", "hydraserve", 7.9),
    ("v100", "opt-13b", "serverless_vllm", 40.3),
    ("v100", "opt-13b", "hydraserve", 8.5),
    ("a10", "opt-2.7b", "serverless_vllm", 10.1),
    ("a10", "opt-2.7b", "hydraserve", 4.7),
]


def table(rows: list[tuple[str, str, str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["gpu", "model", "system", "ttft_mean"])


def make_figure(paper: pd.DataFrame | None = None, **changes: object) -> Figure:
    fields: dict[str, object] = {
        "figure_id": "hydraserve/figure7",
        "paper": "hydraserve",
        "shows": "Cold-start TTFT",
        "experiment": "hydraserve/cold_start",
        "plot": PLOT,
        "paper_points": table(ROWS) if paper is None else paper,
        "claims": ClaimFile(path=Path("figure7.claim"), lines=(), claims=()),
        "notes": None,
        "folder": Path("figures/hydraserve"),
    }
    return Figure(**{**fields, **changes})  # type: ignore[arg-type]  # a mixed dict of keyword arguments


def make_summary(seeds: int = 1, factor: float = 1.1) -> pd.DataFrame:
    parts = [table(ROWS).assign(seed=seed) for seed in range(seeds)]
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(ttft_mean=frame["ttft_mean"] * factor + frame["seed"])


def never(_keys: Mapping[str, str]) -> bool:
    return False


def canvas_axes(figure: Figure, summary: pd.DataFrame, calibrated=never) -> list[Axes]:
    with mpl.rc_context(style.RC):
        return bars.draw(figure, cells(figure, summary, calibrated), "caption").axes


def marks(ax: Axes, marker: str) -> list[tuple[float, float]]:
    return [tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == marker]


def test_every_format_is_the_same_for_the_same_input(tmp_path):
    first = draw(make_figure(), make_summary(), tmp_path / "one", calibrated=never, caption="c")
    shuffled = make_summary().sample(frac=1, random_state=1)
    second = draw(make_figure(), shuffled, tmp_path / "two", calibrated=never, caption="c")
    assert [path.suffix for path in first] == [".pdf", ".png", ".svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in first + second)


def test_a_figure_for_a_page_is_the_svg_file(tmp_path):
    (*_, svg) = draw(make_figure(), make_summary(), tmp_path / "one", calibrated=never, caption="c")
    assert draw_svg(make_figure(), make_summary(), calibrated=never, caption="c") == svg.read_text(encoding="utf-8")


def test_the_users_matplotlibrc_does_not_change_a_figure(tmp_path):
    before = draw(make_figure(), make_summary(), tmp_path / "one", calibrated=never, caption="c")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        after = draw(make_figure(), make_summary(), tmp_path / "two", calibrated=never, caption="c")
        assert mpl.rcParams["font.size"] == 30
    assert before[1].read_bytes() == after[1].read_bytes()


def test_a_bar_is_as_high_as_the_mean_over_seeds():
    panel = canvas_axes(make_figure(), make_summary(seeds=3, factor=1.0))[0]
    assert [bar.get_height() for bar in panel.patches] == pytest.approx([17.8, 8.9, 41.3, 9.5])


def test_a_panel_shows_only_the_x_values_it_has():
    v100, a10 = canvas_axes(make_figure(), make_summary())
    assert [text.get_text().replace("\n", "-") for text in v100.get_xticklabels()] == ["OPT-2.7B", "OPT-13B"]
    assert [text.get_text().replace("\n", "-") for text in a10.get_xticklabels()] == ["OPT-2.7B"]
    assert (v100.get_title(), a10.get_title()) == ("V100", "A10")


def test_paper_points_are_circles_and_calibration_points_squares():
    panel = canvas_axes(make_figure(), make_summary(), lambda keys: keys["model"] == "opt-13b")[0]
    assert [height for _, height in marks(panel, "o")] == [16.8, 7.9]
    assert [height for _, height in marks(panel, "s")] == [40.3, 8.5]


def test_a_point_that_was_not_run_leaves_a_gap_with_a_mark():
    summary = make_summary()
    panel = canvas_axes(make_figure(), summary[summary["ttft_mean"] < 40])[0]
    assert len(panel.patches) == 3
    assert len(marks(panel, "x")) == 1
    assert (marks(panel, "x")[0][0], 40.3) in marks(panel, "o")


def test_a_cell_of_the_grid_that_nobody_has_is_absent_too():
    cell = {"gpu": "a10", "model": "opt-13b", "system": "hydraserve"}
    a10 = canvas_axes(make_figure(grid=[cell]), make_summary())[1]
    assert len(a10.get_xticks()) == 2
    assert len(marks(a10, "x")) == 2


def test_an_undefined_metric_is_absent():
    summary = make_summary()
    summary.loc[0, "ttft_mean"] = math.nan
    assert cells(make_figure(), summary, never)[0].measured is None


def test_history_bars_are_hollow_and_hatched():
    summary = make_summary().assign(history=[True] + [False] * 5)
    filled, fresh = canvas_axes(make_figure(), summary)[0].patches[:2]
    assert (to_hex(filled.get_facecolor()), filled.get_hatch()) == ("#ffffff", style.HISTORY_HATCH)
    assert (to_hex(fresh.get_facecolor()), fresh.get_hatch()) == (style.PALETTE[1].lower(), None)


def test_the_legend_names_what_occurs_and_nothing_else():
    with mpl.rc_context(style.RC):
        canvas = bars.draw(make_figure(), cells(make_figure(), make_summary(), never), "")
    texts = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert sorted(filter(None, texts)) == ["HydraServe", "Serverless vLLM", "paper"]


def test_the_legend_stays_above_the_panels_and_inside_the_page():
    with mpl.rc_context(style.RC):
        canvas = bars.draw(make_figure(), cells(make_figure(), make_summary(), never), "caption")
        canvas.draw_without_rendering()
    legend = canvas.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= canvas.bbox.width
    assert all(legend.y0 >= ax.get_tightbbox().y1 for ax in canvas.axes)


def test_value_labels_stand_above_few_bars_only():
    few = canvas_axes(make_figure(), make_summary(factor=1.0))[0]
    assert [text.get_text() for text in few.texts] == ["16.8", "7.90", "40.3", "8.50"]
    many = [(gpu, f"m{number}", system, 5.0) for gpu in ("v100",) for number in range(7) for system in SYSTEMS]
    panel = canvas_axes(make_figure(table(many)), table(many).assign(seed=0))[0]
    assert len(panel.patches) == 14 and not panel.texts


def test_fractions_are_drawn_in_percent():
    plot = PlotSpec(kind="bars", x="model", y="slo_attainment", y_label="SLO attainment")
    frame = pd.DataFrame({"model": ["a", "b"], "slo_attainment": [0.5, 0.975], "seed": [0, 0]})
    (panel,) = canvas_axes(make_figure(frame.drop(columns="seed"), plot=plot), frame)
    assert [text.get_text() for text in panel.texts] == ["50.0", "97.5"]
    assert panel.yaxis.get_major_formatter()(0.5) == "50%"


def test_three_seeds_give_a_t_interval_and_two_their_range():
    (three, *_) = cells(make_figure(), make_summary(seeds=3, factor=1.0), never)
    (two, *_) = cells(make_figure(), make_summary(seeds=2, factor=1.0), never)
    assert three.measured is not None and two.measured is not None
    assert three.measured.high - three.measured.mean == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert (two.measured.low, two.measured.high) == (16.8, 17.8)


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=8))
def test_the_mean_lies_within_its_spread(values):
    frame = pd.DataFrame({"gpu": "a10", "model": "m", "system": "s", "seed": range(len(values))})
    (cell,) = cells(make_figure(table([])), frame.assign(ttft_mean=values), never)
    assert cell.measured is not None
    assert cell.measured.low <= cell.measured.mean * (1 + 1e-12)
    assert cell.measured.mean <= cell.measured.high * (1 + 1e-12)


def test_cells_come_in_declared_order_and_match_numbers_written_differently():
    plot = PlotSpec(kind="bars", x="cv", y="ttft_mean", order={"cv": ["8.0", "2"]})
    paper = pd.DataFrame({"cv": [2.0, 8.0, 4.0], "ttft_mean": [1.0, 2.0, 3.0], "source": "Fig. 9"})
    summary = pd.DataFrame({"cv": [4, 2, 8], "seed": 0, "ttft_mean": [3.3, 1.1, 2.2]})
    found = cells(make_figure(paper, plot=plot), summary, never)
    assert [(cell.keys["cv"], cell.paper) for cell in found] == [("8", 2.0), ("2", 1.0), ("4", 3.0)]
    assert [cell.error for cell in found] == pytest.approx([0.1, 0.1, 0.1])


def test_error_has_the_sign_of_the_difference():
    cell = Cell(keys={}, measured=None, paper=2.0, calibrated=False, history=False)
    assert cell.error is None
    assert all(cell.error == pytest.approx(-0.5) for cell in cells(make_figure(), make_summary(factor=0.5), never))


def test_two_rows_for_one_bar_are_refused():
    summary = pd.concat([make_summary(), make_summary()], ignore_index=True)
    with pytest.raises(SpecError) as refusal:
        cells(make_figure(), summary, never)
    assert str(refusal.value) == (
        "hydraserve/figure7, summary: two rows for gpu=v100, model=opt-2.7b, system=serverless_vllm, seed 0; "
        "a figure shows one value there"
    )


def test_a_missing_column_is_named():
    with pytest.raises(SpecError, match="the log's summary has no column 'gpu'"):
        cells(make_figure(), make_summary().drop(columns="gpu"), never)
    with pytest.raises(SpecError, match="the paper's points lack the column 'ttft_mean'"):
        cells(make_figure(table(ROWS).drop(columns="ttft_mean")), make_summary(), never)


def test_an_unknown_kind_names_the_known_ones(tmp_path):
    plot = PlotSpec(kind="bar", x="model", y="ttft_mean")
    with pytest.raises(SpecError, match=r"unknown kind 'bar'\. Did you mean bars\? Known: .*bars"):
        draw(make_figure(plot=plot), make_summary(), tmp_path / "f", calibrated=never, caption="")


def test_nothing_to_draw_says_what_to_run(tmp_path):
    with pytest.raises(LogError, match="Run: aebench run hydraserve/figure7"):
        draw(make_figure(table([])), pd.DataFrame(), tmp_path / "f", calibrated=never, caption="")


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="--log-path"):
        draw(make_figure(), make_summary(), tmp_path / "file" / "f", calibrated=never, caption="")


def test_captions_say_backend_seeds_and_variant():
    assert describe_run(backend="sim", seeds=[0]) == "Simulated; seed 0."
    assert describe_run(backend="live", seeds=[1, 0], variant="artifact") == (
        "Measured on the live backend; seeds 0, 1; bars are means, whiskers the range of both seeds; "
        "variant “artifact”."
    )
    assert describe_run(backend="sim", seeds=[0, 1, 2]) == (
        "Simulated; seeds 0–2; bars are means, whiskers the 95% t-interval of the mean."
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(8.194, "s", "8.19 s"), (40.26, "s", "40.3 s"), (0.0312, "s", "0.0312 s"), (0.975, "%", "97.5%"),
     (1240.4, "", "1240"), (0.0, "s", "0.00 s")],
)  # fmt: skip
def test_values_keep_three_digits(value, unit, text):
    assert value_text(value, unit) == text
