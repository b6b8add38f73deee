"""Verdicts: every relation beside a summary small enough to be judged by hand."""

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aebench.claims import Judgement, Verdict, evaluate, exit_code, measured_text, parse

PATH = Path("figures/p/figure1.claim")
GRID = ("system", "gpu", "cv")


def nothing_calibrated(_keys: Mapping[str, str]) -> bool:
    return False


def all_calibrated(_keys: Mapping[str, str]) -> bool:
    return True


def make_summary(values: Mapping[tuple[object, ...], float | list[float]], history=()) -> pd.DataFrame:
    """Rows of ``value`` by (system, gpu, cv); a list holds one value for each seed."""
    rows = []
    for keys, found in values.items():
        for seed, value in enumerate(found if isinstance(found, list) else [found]):
            row = dict(zip(GRID, keys, strict=True))
            rows.append({**row, "seed": seed, "history": keys in history, "value": value, "num_finished": 5})
    return pd.DataFrame(rows, columns=[*GRID, "seed", "history", "value", "num_finished"])


def judge(body: str, summary: pd.DataFrame, calibrated=nothing_calibrated) -> Judgement:
    claims = parse(f"c1 {body} # Fig. 1\n", PATH).claims
    (judgement,) = evaluate(claims, summary, grid_keys=GRID, calibrated=calibrated, path=PATH)
    return judgement


def shown(body: str, summary: pd.DataFrame, calibrated=nothing_calibrated) -> tuple[str, str, str, str]:
    found = judge(body, summary, calibrated)
    return found.measured, found.deviation, found.verdict.value, found.detail


ONE = make_summary({("a", "v100", 2): 8.0})
PAIRS = make_summary(  # b / a: 2, 4; 3, 1.5
    {("a", "a10", 2): 5.0, ("a", "a10", 8): 4.0, ("a", "v100", 2): 2.0, ("a", "v100", 8): 4.0}
    | {("b", "a10", 2): 10.0, ("b", "a10", 8): 16.0, ("b", "v100", 2): 6.0, ("b", "v100", 8): 6.0}
)
SHARES = make_summary({("a", "a10", 2): 0.95, ("b", "a10", 2): 0.90, ("a", "v100", 2): 0.80, ("b", "v100", 2): 0.79})
STEPS = make_summary({("a", "a10", 8): 9.0, ("a", "a10", 2): 6.0, ("a", "a10", 4): 3.0})


@pytest.mark.parametrize(
    ("body", "expected"),
    {
        "value [system=a] = 8.5 s ±10%": ("8 s", "-6%", "pass", ""),
        "value [system=a] = 6 s ±10%": ("8 s", "+33%", "fail", ""),
        "value = 6 s ±2 s": ("8 s", "+33%", "pass", ""),
        "value = 5 s ±1 s": ("8 s", "+60%", "fail", ""),
        "value = 8000 ms": ("8000 ms", "0%", "pass", ""),
        "value = 0 s": ("8 s", "+8 s", "fail", ""),
        "value in 8.5..9 s": ("8 s", "-6%", "fail", ""),
        "value in 8.5..9 s ±10%": ("8 s", "-6%", "pass", ""),
        "value in 7..9 s": ("8 s", "0%", "pass", ""),
        "value > 8 s": ("8 s", "0%", "fail", ""),
        "value >= 8 s": ("8 s", "0%", "pass", ""),
        "value < 10 s": ("8 s", "0%", "pass", ""),
        "value <= 4 s": ("8 s", "+100%", "fail", ""),
        "value [gpu=v100 cv=2.0] = 8": ("8", "0%", "pass", ""),
    }.items(),
)
def test_one_value_is_judged_against_the_papers_number(body: str, expected: tuple[str, ...]) -> None:
    assert shown(body, ONE) == expected


@pytest.mark.parametrize(
    ("relation", "expected"),
    {
        "in 1.5..4x": ("1.5..4x (4)", "0%", "pass", "worst: gpu=a10 cv=8 4x"),
        "in 1.7..4.7x": ("1.5..4x (4)", "-12%", "shape", "worst: gpu=v100 cv=8 1.5x"),
        "in 1.7..4.7x ±20%": ("1.5..4x (4)", "-12%", "pass", "worst: gpu=v100 cv=8 1.5x"),
        "in 1..2x": ("1.5..4x (4)", "+100%", "shape", "worst: gpu=a10 cv=8 4x"),
        "in 0.5..3x": ("1.5..4x (4)", "+33%", "fail", "worst: gpu=a10 cv=8 4x"),
        "in 0.5..0.9x": ("1.5..4x (4)", "+344%", "fail", "worst: gpu=a10 cv=8 4x"),
        "> 1x": ("1.5..4x (4)", "0%", "pass", "worst: gpu=v100 cv=8 1.5x"),
        "> 2x": ("1.5..4x (4)", "-25%", "shape", "worst: gpu=v100 cv=8 1.5x"),
        "< 3x": ("1.5..4x (4)", "+33%", "fail", "worst: gpu=a10 cv=8 4x"),
        "< 300%": ("150..400% (4)", "+33%", "fail", "worst: gpu=a10 cv=8 400%"),
    }.items(),
)
def test_a_ratio_is_judged_in_every_group(relation: str, expected: tuple[str, ...]) -> None:
    assert shown(f"value [system=b] / [system=a] {relation}", PAIRS) == expected


@pytest.mark.parametrize(
    ("aggregate", "measured"),
    [("mean", "2.62x"), ("geomean", "2.45x"), ("median", "2.5x"), ("min", "1.5x"), ("max", "4x")],
)
def test_an_aggregate_is_taken_over_the_matched_groups(aggregate: str, measured: str) -> None:
    assert shown(f"{aggregate} value [system=b] / [system=a] > 1x", PAIRS) == (measured, "0%", "pass", "")


def test_for_every_keeps_a_key_out_of_an_aggregate() -> None:
    found = shown("mean value [system=b] / [system=a] = 2.5x ±20% for every gpu", PAIRS)
    assert found == ("2.25..3x (2)", "+20%", "pass", "worst: gpu=a10 3x")


@pytest.mark.parametrize(
    ("body", "expected"),
    {
        "value [system=a] > [system=b] for every gpu": (
            "2 of 2", "+1%", "pass", "worst: gpu=v100 0.8 against 0.79",
        ),
        "value [system=a] < [system=b]": ("0 of 2", "+6%", "fail", "worst: gpu=a10 0.95 against 0.9"),
        "value [system=a] >= [system=a]": ("2 of 2", "0%", "pass", "worst: gpu=a10 0.95 against 0.95"),
        "value [system=a] <= [system=a]": ("2 of 2", "0%", "pass", "worst: gpu=a10 0.95 against 0.95"),
        "value [system=a] > [system=a]": ("0 of 2", "0%", "fail", "worst: gpu=a10 0.95 against 0.95"),
        "value [gpu=a10] > [gpu=v100 system=a]": (
            "2 of 2", "+12%", "pass", "worst: system=b/a 0.9 against 0.8",
        ),
        "mean value [system=a] > [system=b]": ("0.875 against 0.845", "+4%", "pass", ""),
    }.items(),
)  # fmt: skip
def test_an_order_is_judged_in_every_group(body: str, expected: tuple[str, ...]) -> None:
    assert shown(body, SHARES) == expected


@pytest.mark.parametrize(
    ("relation", "expected"),
    {
        "in 1..5 pp": ("1..5 pp (2)", "0 pp", "pass", "worst: gpu=a10 5 pp"),
        "= 2 pp ±1 pp": ("1..5 pp (2)", "+3 pp", "shape", "worst: gpu=a10 5 pp"),
        "= -2 pp ±1 pp": ("1..5 pp (2)", "+7 pp", "fail", "worst: gpu=a10 5 pp"),
        "= 0 pp ±1 pp": ("1..5 pp (2)", "+5 pp", "fail", "worst: gpu=a10 5 pp"),
        "> 2 pp": ("1..5 pp (2)", "-1 pp", "shape", "worst: gpu=v100 1 pp"),
    }.items(),
)
def test_a_difference_is_judged_in_its_unit(relation: str, expected: tuple[str, ...]) -> None:
    assert shown(f"value [system=a] - [system=b] {relation}", SHARES) == expected


def test_the_direction_holds_at_the_neutral_value_only_where_the_paper_includes_it() -> None:
    level = make_summary({("a", "a10", 2): 1.0, ("b", "a10", 2): 1.0, ("a", "v100", 2): 1.0, ("b", "v100", 2): 4.0})
    assert judge("value [system=b] / [system=a] in 1..3x", level).verdict is Verdict.SHAPE
    assert judge("value [system=b] / [system=a] in 1.1..3x ±20%", level).verdict is Verdict.FAIL
    assert judge("value [system=a] / [system=b] in 0.5..1x", level).verdict is Verdict.SHAPE


def test_rounding_errors_do_not_fail_an_exact_claim() -> None:
    assert judge("value = 0.3 s", make_summary({("a", "a10", 2): 0.1 + 0.2})).verdict is Verdict.PASS


def test_a_trend_follows_the_order_of_the_summary() -> None:
    assert shown("value decreasing over cv", STEPS) == ("2 of 2", "-33%", "pass", "worst: cv=8..2 9 then 6")
    assert shown("value increasing over cv", STEPS) == ("0 of 2", "-50%", "fail", "worst: cv=2..4 6 then 3")
    assert shown("value [cv=2|8] decreasing over cv", STEPS) == ("9 then 6", "-33%", "pass", "")
    falling = STEPS.iloc[[1, 0, 2]]
    assert judge("value decreasing over cv", falling).verdict is Verdict.FAIL


def test_a_trend_of_a_ratio_or_an_aggregate_is_judged_along_its_key() -> None:
    assert shown("value [system=b] / [system=a] increasing over cv for every gpu", PAIRS) == (
        "1 of 2", "-50%", "fail", "worst: gpu=v100 3 then 1.5",
    )  # fmt: skip
    assert shown("mean value [system=b] increasing over cv", PAIRS) == ("8 then 11", "+38%", "pass", "")


def test_a_group_decides_by_its_interval_from_two_seeds_on() -> None:
    one = make_summary({("a", "a10", 2): [8.0]})
    two = make_summary({("a", "a10", 2): [7.9, 8.1]})
    three = make_summary({("a", "a10", 2): [7.0, 8.0, 9.0]})
    assert shown("value = 8 s ±20%", one) == ("8 s", "0%", "pass", "")
    assert shown("value = 8 s ±10%", two)[2:] == ("unsure", "95% interval 6.73..9.27 s")  # 12.71 x 0.1414 / √2
    assert shown("value = 8 s ±20%", two)[2:] == ("pass", "95% interval 6.73..9.27 s")
    assert shown("value = 8 s ±20%", three) == (
        "8 s",
        "0%",
        "unsure",
        "95% interval 5.52..10.5 s",
    )  # 4.303/√3
    assert shown("value = 8 s ±50%", three) == ("8 s", "0%", "pass", "95% interval 5.52..10.5 s")
    assert shown("value = 5.6 s ±1%", three) == ("8 s", "+43%", "unsure", "95% interval 5.52..10.5 s")
    assert shown("value = 4 s ±10%", three) == ("8 s", "+100%", "fail", "95% interval 5.52..10.5 s")


def test_a_certain_failure_outweighs_an_unsure_group() -> None:
    values = {("a", "a10", 2): [5.0, 8.0, 11.0], ("a", "v100", 2): [3.0, 3.1, 3.2]}
    found = judge("value > 4 s", make_summary(values))
    assert (found.verdict, found.detail) == (Verdict.FAIL, "worst: gpu=v100 3.1 s; 95% interval 2.85..3.35 s")
    values[("a", "v100", 2)] = [4.9, 5.0, 5.1]
    found = judge("value > 4 s", make_summary(values))
    assert (found.verdict, found.detail) == (Verdict.UNSURE, "worst: gpu=a10 8 s; 95% interval 0.548..15.5 s")


def test_ratios_and_orders_are_formed_seed_by_seed() -> None:
    noisy = make_summary({("a", "a10", 2): [1.0, 10.0, 100.0], ("b", "a10", 2): [2.0, 20.0, 200.0]})
    assert shown("value [system=b] / [system=a] = 2x ±1%", noisy) == ("2x", "0%", "pass", "95% interval 2x")
    assert judge("value [system=b] > [system=a]", noisy).verdict is Verdict.UNSURE
    assert judge("value [system=b] / [system=a] > 1x", noisy).verdict is Verdict.PASS


def test_a_pass_on_calibration_points_alone_is_calibrated() -> None:
    body = "value [system=b] / [system=a] > {}x"
    only_two = "2 of 4 groups rest on calibration points"
    worst = "worst: gpu=v100 cv=8 1.5x"

    def at_cv_2(keys: Mapping[str, str]) -> bool:
        return keys["cv"] == "2"

    assert shown(body.format(1), PAIRS, at_cv_2) == ("1.5..4x (4)", "0%", "pass", f"{worst}; {only_two}")
    assert judge(body.format(1), PAIRS, all_calibrated).verdict is Verdict.CALIBRATED
    assert judge(body.format(2), PAIRS, all_calibrated).verdict is Verdict.SHAPE
    assert judge("value = 6 s ±10%", ONE, all_calibrated).verdict is Verdict.FAIL


def test_calibration_is_asked_with_the_whole_combination_as_text() -> None:
    asked: list[dict[str, str]] = []
    judge("value = 8", ONE, lambda keys: bool(asked.append(dict(keys))))
    assert asked == [{"system": "a", "gpu": "v100", "cv": "2"}]


def test_a_claim_on_shipped_history_says_so_and_how_it_was_judged() -> None:
    summary = make_summary({("a", "v100", 2): 8.0, ("b", "v100", 2): 4.0}, history=[("a", "v100", 2)])
    detail = "would be fail; points from shipped history: 1"
    assert shown("value [system=a] < [system=b]", summary) == ("8 against 4", "+100%", "history", detail)
    assert judge("value [system=b] = 4", summary).verdict is Verdict.PASS


def test_an_absent_claim_names_the_first_three_missing_rows() -> None:
    detail = "missing: gpu=t4 cv=1, gpu=t4 cv=2, gpu=v100 cv=1 and 1 more"
    assert shown("value [gpu=v100|t4 cv=1|2] > 1", STEPS) == ("-", "-", "absent", detail)


def test_an_empty_summary_makes_every_claim_absent() -> None:
    assert shown("value > 1", make_summary({})) == ("-", "-", "absent", "missing: all rows")


def test_a_ratio_to_zero_is_infinite_and_zero_to_zero_undefined() -> None:
    summary = make_summary({("a", "v100", 2): 1.0, ("b", "v100", 2): 0.0})
    assert shown("value [system=a] / [system=b] in 2..3x", summary) == ("infx", "+inf%", "shape", "")
    detail = "missing: system=b gpu=v100 cv=2 (undefined)"
    assert shown("value [system=b] / [system=b] = 1x", summary) == ("-", "-", "absent", detail)


def test_for_every_may_name_a_key_that_this_run_did_not_vary() -> None:
    assert judge("value [system=a] > [system=b] for every gpu, cv", SHARES).verdict is Verdict.PASS


def test_the_measured_file_holds_a_result_beneath_each_claim() -> None:
    text = "# Figure 1\n\nc1  value [system=b] / [system=a] in 1.7..4.7x   # Sec. 8\nc2 value > 1 s # Sec. 9\n\n# end\n"
    claim_file = parse(text, PATH)
    judgements = evaluate(claim_file.claims, PAIRS, grid_keys=GRID, calibrated=nothing_calibrated, path=PATH)
    measured = measured_text(claim_file, judgements)
    assert measured == (
        "# Figure 1\n\n"
        "c1  value [system=b] / [system=a] in 1.7..4.7x   # Sec. 8\n"
        "    -> 1.5..4x (4)  -12%  shape  worst: gpu=v100 cv=8 1.5x\n"
        "c2 value > 1 s # Sec. 9\n"
        "    -> 2..16 s (8)  0%  pass  worst: system=a gpu=v100 cv=2 2 s\n"
        "\n# end\n"
    )
    assert parse(measured, PATH) == claim_file
    assert measured_text(parse(measured, PATH), judgements) == measured


def test_only_a_failed_claim_fails_the_command() -> None:
    passed, failed = judge("value = 8", ONE), judge("value = 6", ONE)
    shape = judge("value [system=b] / [system=a] > 2x", PAIRS)
    assert exit_code([passed, shape]) == 0
    assert exit_code([passed, failed]) == 1
    assert exit_code([]) == 0


BODIES = (
    "value [system=a] = 5 s ±30%",
    "value [system=b] / [system=a] in 1..2x",
    "value [system=b] - [system=a] > 0 s",
    "value [system=a] < [system=b]",
    "mean value [system=b] / [system=a] = 1.5x ±10%",
    "geomean value > 3 s for every system",
)
NUMBERS = st.floats(0.5, 9.5, allow_nan=False) | st.just(math.nan)


@given(st.lists(NUMBERS, min_size=12, max_size=12), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_judgements_do_not_depend_on_the_order_of_rows(values: list[float], random) -> None:
    points = product("ab", ["a10", "v100"])
    summary = make_summary({(*point, 2): values[3 * n : 3 * n + 3] for n, point in enumerate(points)})
    order = list(range(len(summary)))
    random.shuffle(order)
    for body in BODIES:
        assert judge(body, summary) == judge(body, summary.iloc[order])
