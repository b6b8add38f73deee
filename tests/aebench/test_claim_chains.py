"""Chains of orders and shares of groups: read, written back, judged by hand."""

from pathlib import Path

import pytest

from aebench.claim_parser import parse
from aebench.claims import Verdict
from aebench.errors import SpecError
from tests.aebench.test_claims import judge, make_summary, shown
from tests.aebench.test_coverage import judged

PATH = Path("figures/p/figure1.claim")
CHAIN = "value [system=a] < [system=b] < [system=c] for every gpu"
ROWS = {("a", "a10", 2): 1.0, ("b", "a10", 2): 2.0, ("c", "a10", 2): 3.0}
OTHER = {("a", "v100", 2): 4.0, ("b", "v100", 2): 6.0, ("c", "v100", 2): 5.0}

FORMS = {
    "value [s=a]<[s=b]  < [s=c] for every cv": "value [s=a] < [s=b] < [s=c] for every cv",
    "value [s=a] >= [s=b] >= [] >= [s=d]": "value [s=a] >= [s=b] >= [] >= [s=d]",
    "share value <= 1x >= 85%": "share value <= 1x >= 85%",
    "share value [s=a] > 2 s in 10..20% ±2pp": "share value [s=a] > 2 s in 10..20% ±2 pp",
    "share value [s=a] / [s=b] >= 1.5x = 100% for every cv": "share value [s=a] / [s=b] >= 1.5x = 100% for every cv",
    "share value < 1 in 0.5..1": "share value < 1 in 0.5..1",
    "share value < 1 increasing over cv": "share value < 1 increasing over cv",
}


@pytest.mark.parametrize(("written", "normal"), FORMS.items())
def test_a_chain_or_a_share_has_one_normal_form(written: str, normal: str) -> None:
    for text in (written, normal):
        (claim,) = parse(f"c1 {text} # Fig. 1\n", PATH).claims
        assert claim.text == normal


REFUSED = {
    "value [s=a] < [s=b] > [s=c]": "found '>', expected < as before it, because the signs of a chain are alike",
    "value [s=a] < [s=b] < 3": "found '3', expected a selector such as [system=hydraserve]",
    "share value [s=a] = 50%": "found '=', expected what the share is of: >, >=, <, <= and a number",
    "share value <= 1": "found the end of the claim, expected a relation: =, in, >, >=, <, <=, increasing over or "
    "decreasing over",
    "share value [s=a] <= 1 > [s=b]": "found '[s=b]', expected a number that the share is compared with",
    "share value [s=a] / [s=b] <= 1 s > 50%": "found 's', expected x, % or no unit, because a ratio has no unit of "
    "time",
}


@pytest.mark.parametrize(("body", "said"), REFUSED.items())
def test_what_is_neither_is_refused(body: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse(f"c1 {body} # Fig. 1\n", PATH)
    assert str(refused.value) == f"{PATH}, line 1: {said}"


def test_a_chain_holds_when_each_side_is_below_the_next() -> None:
    assert shown(CHAIN, make_summary(ROWS)) == ("2 of 2", "-33%", "pass", "worst: system=b/c 2 against 3")


def test_a_chain_fails_where_two_neighbours_are_the_wrong_way_round() -> None:
    assert shown(CHAIN, make_summary(ROWS | OTHER)) == (
        "3 of 4",
        "+20%",
        "fail",
        "worst: system=b/c gpu=v100 6 against 5",
    )


def test_a_chain_needs_every_one_of_its_sides() -> None:
    found = judge(CHAIN, make_summary({place: value for place, value in ROWS.items() if place[0] != "c"}))
    assert (found.verdict, found.detail) == (Verdict.ABSENT, "missing: system=c")


def test_a_chain_names_the_key_that_nobody_knows() -> None:
    with pytest.raises(SpecError, match=r"unknown grid key 'systm' in c1\. Did you mean system\?"):
        judge("value [system=a] < [system=b] < [systm=c]", make_summary(ROWS))


def test_a_chain_speaks_of_the_points_of_all_its_sides() -> None:
    values = {("a", "a10", 2): [1.0], ("b", "a10", 2): [2.0]}
    found = judged("value [system=x gpu=a10] < [system=y gpu=a10] < [system=b]", values | {("x", "a10", 2): [0.1]})
    assert found.verdict is Verdict.ABSENT
    whole = {("x", "a10", 2): [0.1], ("y", "a10", 2): [0.2], **values}
    assert (
        "system=b gpu=v100 cv=2" in judged("value [system=x gpu=a10] < [system=y gpu=a10] < [system=b]", whole).detail
    )


FOUR = make_summary({("a", "a10", cv): value for cv, value in ((1, 0.5), (2, 1.0), (3, 1.5), (4, 0.9))})


@pytest.mark.parametrize(
    ("body", "expected"),
    {
        "share value <= 1x >= 75%": ("75%", "0%", "pass", ""),  # 0.5, 1.0, 0.9 of four
        "share value < 1x >= 75%": ("50%", "-33%", "fail", ""),
        "share value > 1x in 20..30%": ("25%", "0%", "pass", ""),
        "share value >= 0.9 = 100%": ("75%", "-25%", "fail", ""),
        "mean value in 0.95..1x": ("0.975x", "0%", "pass", ""),
        "median value = 0.95x ±1%": ("0.95x", "0%", "pass", ""),
    }.items(),
)
def test_a_share_counts_the_groups_on_the_side_that_it_names(body: str, expected: tuple[str, str, str, str]) -> None:
    assert shown(body, FOUR) == expected


def test_a_share_of_quotients_counts_them_seed_by_seed() -> None:
    pairs = {("a", "a10", 1): [1.0, 1.0], ("b", "a10", 1): [2.0, 0.5], ("a", "a10", 2): 1.0, ("b", "a10", 2): 3.0}
    pairs[("a", "a10", 2)] = [1.0, 1.0]
    pairs[("b", "a10", 2)] = [3.0, 3.0]
    # quotients: 2 and 3 in seed 0, 0.5 and 3 in seed 1, so the shares above 1 are 1 and 1/2
    found = judge("share value [system=b] / [system=a] > 1x >= 50%", make_summary(pairs))
    assert (found.measured, found.verdict) == ("75%", Verdict.UNSURE)


def test_differences_in_percentage_points_and_trends_for_every_key() -> None:
    rates = {("a", "x", 1): 0.9, ("a", "x", 2): 0.8, ("b", "x", 1): 0.95, ("b", "x", 2): 0.82}
    assert shown("value [system=b] - [system=a] > 0 pp", make_summary(rates))[2] == "pass"
    assert shown("mean value [system=b] - [system=a] in 3..4 pp", make_summary(rates))[:3] == ("3.5 pp", "0 pp", "pass")
    assert shown("value decreasing over cv for every system, gpu", make_summary(rates))[2] == "pass"
