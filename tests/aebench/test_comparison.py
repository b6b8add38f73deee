"""Comparison of two logs: every metric of a figure, values that one side has not, and rounding."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from aebench.comparison import compare
from aebench.figure import PlotSpec
from aebench.report import FigureResult
from aebench.run_manifest import RunManifest
from aebench.view import View
from aebench.workflow import Drawn
from tests.aebench.test_plotting import make_figure, never

NAN = float("nan")
COLUMNS = ["rate", "seed", "request_p99", "prefill_p99", "downtime_mean"]
ROWS = [(1, 0, 4.0, 2.0, 0.02), (2, 0, 8.0, 3.0, NAN)]
PLOT = PlotSpec(kind="line_grid", x="rate", y="request_p99", metrics=("request_p99", "prefill_p99", "downtime_mean"))


def table(rows: list[tuple[float, ...]] = ROWS) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def drawn(summary: pd.DataFrame, folder: str, plot: PlotSpec = PLOT) -> Drawn:
    figure = replace(make_figure(plot=plot), paper_points=None, view=View(table_keys=("rate",), metrics=COLUMNS[2:]))
    manifest = RunManifest(experiment="toy/load", spec={}, seeds=(0,), backend="sim", grid_keys=("rate",))
    result = FigureResult(figure_id="toy/f", backend="sim", wall_seconds=1.0, judgements=(), prediction=None)
    log: Any = SimpleNamespace(manifest=manifest, folder=Path(folder))
    return Drawn(figure=figure, result=result, log=log, summary=summary, calibrated=never, caption="")


def compared(here: pd.DataFrame, there: pd.DataFrame, plot: PlotSpec = PLOT) -> list[str]:
    lines = compare(drawn(here, "here", plot), drawn(there, "there", plot)).splitlines()
    return [line.replace("hydraserve/figure7  ", "") for line in lines]


def test_every_metric_of_a_figure_is_compared() -> None:
    changed = table()
    changed["prefill_p99"] *= 10
    assert compared(changed, table()) == [
        "request_p99 against there: 0 of 2 points differ",
        "prefill_p99 against there: 2 of 2 points differ",
        "  rate=1 seed=0  2 -> 20  +900.0%",
        "  rate=2 seed=0  3 -> 30  +900.0%",
        "downtime_mean against there: 0 of 1 points differ",  # at rate 2 neither has one
    ]


def test_a_figure_of_one_metric_is_compared_in_that() -> None:
    one = replace(PLOT, y="prefill_p99", metrics=())
    assert compared(table(), table(), one) == ["prefill_p99 against there: 0 of 2 points differ"]


def test_a_value_that_one_side_has_not_is_a_difference_named_first() -> None:
    other = table([(1, 0, 4.0, NAN, NAN), (2, 0, 8.0, 6.0, 0.02)])
    assert compared(table(), other)[1:] == [
        "prefill_p99 against there: 2 of 2 points differ",
        "  rate=1 seed=0  absent -> 2  -",
        "  rate=2 seed=0  6 -> 3  -50.0%",
        "downtime_mean against there: 2 of 2 points differ",
        "  rate=1 seed=0  absent -> 0.02  -",
        "  rate=2 seed=0  0.02 -> absent  -",
    ]


@pytest.mark.parametrize(("factor", "differ"), [(1 + 1e-10, 0), (1 - 1e-10, 0), (1 + 1e-8, 1)])
def test_what_differs_in_the_last_digits_only_does_not_differ(factor: float, differ: int) -> None:
    other = table()
    other.loc[0, "request_p99"] *= factor
    assert compared(other, table())[0] == f"request_p99 against there: {differ} of 2 points differ"


def test_from_nothing_there_is_no_percentage() -> None:
    zero, some = table([(1, 0, 0.0, 2.0, 0.02), ROWS[1]]), table()
    assert compared(zero, zero)[0] == "request_p99 against there: 0 of 2 points differ"
    assert compared(some, zero)[1] == "  rate=1 seed=0  0 -> 4  -"
    assert compared(zero, some)[1] == "  rate=1 seed=0  4 -> 0  -100.0%"


def test_points_that_one_log_alone_has_are_counted() -> None:
    here, there = table([*ROWS, (3, 0, 1.0, 1.0, 1.0)]), table([*ROWS, (4, 0, 1.0, 1.0, 1.0), (5, 0, 1.0, 1.0, 1.0)])
    found = compared(here, there)[0]
    assert found == "request_p99 against there: 0 of 2 points differ, 1 have no counterpart there, 2 are only there"
    assert compared(here[2:], there[:2]) == ["hydraserve/figure7: the two logs have no point in common"]


def test_a_value_of_the_grid_is_the_same_however_the_table_types_it() -> None:
    texts = table().assign(rate=["1", "2"])
    assert compared(table(), texts)[0] == "request_p99 against there: 0 of 2 points differ"
    assert compared(table().assign(rate=[1.0, 2.0]), texts)[0] == "request_p99 against there: 0 of 2 points differ"


def test_the_largest_differences_come_first_and_the_rest_is_counted() -> None:
    rows = [(rate, 0, 100.0, 1.0, 1.0) for rate in range(12)]
    more = [(rate, 0, 100.0 + rate, 1.0, 1.0) for rate in range(12)]
    lines = compared(table(more), table(rows))
    assert lines[0] == "request_p99 against there: 11 of 12 points differ"
    assert (lines[1], lines[10], lines[11]) == (
        "  rate=11 seed=0  100 -> 111  +11.0%",
        "  rate=2 seed=0  100 -> 102  +2.0%",
        "  and 1 more",
    )
