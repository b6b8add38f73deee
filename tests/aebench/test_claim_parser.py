"""The language of .claim files: what is read, what is written back, and every message for what is neither."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aebench.claim_parser import parse
from aebench.claim_syntax import Bound, Near, Order, Quantity, Selector, Trend, digits, key_text, span
from aebench.errors import SpecError

PATH = Path("figures/hydraserve/figure9.claim")

EXAMPLES = {
    "ttft_mean  [system=h gpu=a10] = 8.1 s ±20%": "ttft_mean [system=h gpu=a10] = 8.1 s ±20%",
    "ttft_mean [system=b] / [system=a] in 1.7..4.7x +-10 %": ("ttft_mean [system=b] / [system=a] in 1.7..4.7x ±10%"),
    "slo [system=a] > [system=b] for every cv,rate": "slo [system=a] > [system=b] for every cv, rate",
    "mean ttft_mean [system=b]/[system=a] = 3.110x": "mean ttft_mean [system=b] / [system=a] = 3.11x",
    "ttft_mean [system=b] / [] >= 1": "ttft_mean [system=b] / [] >= 1",
    "ttft_mean [] / [system=b] < 100%": "ttft_mean [] / [system=b] < 100%",
    "ttft_mean decreasing over step": "ttft_mean decreasing over step",
    "ttft_mean [ model = a | b ] increasing over step": "ttft_mean [model=a|b] increasing over step",
    "slo [s=a] - [s=b] = -1.9..8.7 pp ±1 pp": "slo [s=a] - [s=b] in -1.9..8.7 pp ±1 pp",
    "ttft_p99 <= 250 ms": "ttft_p99 <= 250 ms",
}


def read(body: str):
    (claim,) = parse(f"c1 {body} # Fig. 1\n", PATH).claims
    return claim


@pytest.mark.parametrize(("written", "normal"), EXAMPLES.items())
def test_a_claim_has_one_normal_form(written: str, normal: str) -> None:
    assert read(written).text == normal
    assert read(normal).text == normal


def test_a_claim_keeps_id_source_and_line() -> None:
    claim_file = parse("# head\n\nfig7-c1 ttft_mean = 8 s   # Fig. 7a, #3\n", PATH)
    (claim,) = claim_file.claims
    assert (claim.claim_id, claim.metric, claim.source, claim.line) == (
        "fig7-c1",
        "ttft_mean",
        "Fig. 7a, #3",
        3,
    )


def test_relations_become_values() -> None:
    assert read("m = 8.1 s ±20%").relation == Near(Quantity(8.1, "s"), Quantity(8.1, "s"), Quantity(20.0, "%"))
    assert read("m in 1..2x").relation == Near(Quantity(1.0, "x"), Quantity(2.0, "x"), None)
    assert read("m < -3 pp").relation == Bound("<", Quantity(-3.0, "pp"))
    assert read("m [a=1] <= [a=2]").relation == Order("<=")
    assert read("m increasing over step").relation == Trend("increasing", "step")


def test_units_scale_to_seconds_and_fractions() -> None:
    bases = [Quantity(5.0, unit).base for unit in ("", "s", "ms", "x", "%", "pp")]
    assert bases == [5.0, 5.0, 0.005, 5.0, 0.05, 0.05]


def test_selected_values_are_compared_as_text() -> None:
    assert [key_text(value) for value in (8, 8.0, "8", "8.0", 0.6, "0.60")] == [
        "8",
        "8",
        "8",
        "8",
        "0.6",
        "0.6",
    ]
    assert [key_text(value) for value in (True, "True", "true")] == ["true"] * 3
    assert [key_text(value) for value in ("llama2-7b", "007", "infaas++")] == ["llama2-7b", "007", "infaas++"]
    assert read("m [cv=8.0 s=infaas++|x] = 1").left == Selector({"cv": ("8",), "s": ("infaas++", "x")})


def test_numbers_show_three_significant_digits() -> None:
    shown = [digits(value) for value in (7.6, 0.98765, 12345.0, 1234.0, -0.0, 1e-7, float("inf"))]
    assert shown == ["7.6", "0.988", "12300", "1230", "0", "1e-07", "inf"]
    assert span(0.0076, 0.0081, "ms") == "7.6..8.1 ms"
    assert span(1.0, 1.0001, "x") == "1x"


SYNTAX_ERRORS = {
    "c1 m = 8 s": "found the end of the claim, expected '#' and the source of the claim, such as # Fig. 7a",
    "c1 m = 8 #  ": "found the end of the claim, expected '#' and the source of the claim, such as # Fig. 7a",
    "7 ttft_mean = 8 s # F": "found '7', expected an id such as c1",
    "c1 # F": "found the end of the claim, expected a metric such as ttft_mean",
    "c1 mean [a=1] = 8 s # F": "found '[a=1]', expected a metric such as ttft_mean",
    "c1 m [a=1 = 8 s # F": "found '[', expected a closing ']' before the end or the next '['",
    "c1 m [a=1] / > 8 # F": "found '>', expected a selector such as [system=hydraserve]",
    "c1 m [a=1,b=2] = 8 # F": "found 'a=1,b=2', expected key=value or key=value|value, separated by blanks",
    "c1 m [a=1 a=2] = 8 # F": "found 'a=2', expected each key once in a selector",
    "c1 m [a=1] about 8 # F": (
        "found 'about', expected a relation: =, in, >, >=, <, <=, increasing over or decreasing over"
    ),
    "c1 m [a=1] / [a=2] > [a=3] # F": "found '[a=3]', expected a number",
    "c1 m = s # F": "found 's', expected a number",
    "c1 m = 1e999 # F": "found '1e999', expected a finite number",
    "c1 m = 8 sec # F": "found 'sec', expected a unit (s, ms, x, %, pp) or none",
    "c1 m [a=1] / [] = 8 s # F": "found 's', expected x, % or no unit, because a ratio has no unit of time",
    "c1 m in 8 s # F": "found 's', expected '..'",
    "c1 m in 8..7 s # F": "found '8..7', expected the lower end first",
    "c1 m = 8 s ±20 # F": "found '±20', expected a tolerance in % of the value, or in the unit of the value",
    "c1 m = 8 s ±-20% # F": "found '-', expected a number",
    "c1 m > 8 s ±20% # F": "found '±', expected 'for every' with keys, or '#' and the source",
    "c1 m decreasing step # F": "found 'step', expected 'over'",
    "c1 m decreasing over # F": "found the end of the claim, expected the grid key that it runs over",
    "c1 m = 8 s for cv # F": "found 'cv', expected 'every'",
    "c1 m = 8 s for every cv, # F": "found the end of the claim, expected a grid key",
    "c1 m = 8 s ! # F": "found '!', expected 'for every' with keys, or '#' and the source",
}


@pytest.mark.parametrize(("line", "message"), SYNTAX_ERRORS.items())
def test_a_syntax_error_names_the_line_what_was_found_and_what_was_expected(line: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(f"# head\n\n{line}\n", PATH)
    assert str(caught.value) == f"figures/hydraserve/figure9.claim, line 3: {message}"


def test_an_id_may_be_used_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse("c1 m = 8 # F\n    -> 8  0%  pass\nc1 m = 9 # F\n", PATH)
    message = "found a second claim 'c1', expected another id than on line 1"
    assert str(caught.value) == f"figures/hydraserve/figure9.claim, line 3: {message}"


def test_comments_and_blank_lines_are_kept_and_evaluations_dropped() -> None:
    text = "# head\n\nc1  m   = 8 s   # F\n\n# tail\n"
    measured = "# head\n\nc1  m   = 8 s   # F\n    -> 7.6 s  -6%  pass\n\n# tail\n"
    assert parse(text, PATH).render() == text
    assert parse(measured, PATH) == parse(text, PATH)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\n\n"])
def test_a_file_may_have_no_claims(text: str) -> None:
    assert parse(text, PATH).claims == ()
    assert parse(text, PATH).render() == text


def test_line_ends_of_windows_are_read() -> None:
    assert parse("# head\r\nc1 m = 8 s # F\r\n", PATH) == parse("# head\nc1 m = 8 s # F\n", PATH)


KEYS = st.sampled_from(["system", "gpu", "cv", "k.v"])
TEXTS = st.sampled_from(["a", "a100-80g", "0.6", "8", "infaas++", "x/y"])
SELECTORS = st.dictionaries(KEYS, st.lists(TEXTS, min_size=1, max_size=3, unique=True), max_size=3).map(
    lambda texts: "[" + " ".join(f"{key}={'|'.join(values)}" for key, values in texts.items()) + "]"
)
NUMBERS = st.one_of(st.integers(-999, 999).map(str), st.decimals(-99, 99, places=3).map(str))
UNIT = st.sampled_from(["", "x", " %", "pp"])
SIGN = st.sampled_from([">", ">=", "<", "<="])
RELATIONS = st.one_of(
    st.builds("= {}{}".format, NUMBERS, UNIT),
    st.builds("= {}{} ±{}%".format, NUMBERS, UNIT, st.integers(0, 50)),
    st.builds("in {}..{}{}".format, st.integers(-99, 0), st.integers(0, 99), UNIT),
    st.builds("{} {}{}".format, SIGN, NUMBERS, UNIT),
    st.builds("decreasing over {}".format, KEYS),
)
VALUES = st.one_of(SELECTORS, st.just(""), st.builds("{} {} {}".format, SELECTORS, st.sampled_from("/-"), SELECTORS))
BODIES = st.one_of(
    st.builds("{} ttft_mean {} {}".format, st.sampled_from(["", "mean", "max"]), VALUES, RELATIONS),
    st.builds("ttft_mean {} {} {} for every cv".format, SELECTORS, SIGN, SELECTORS),
)
COMMENTS = st.sampled_from(["", "# words", "   # more", "    -> 7.6 s  -6%  pass"])


@given(st.lists(st.tuples(COMMENTS, BODIES), max_size=4))
def test_reading_what_was_written_gives_the_same_file(parts: list[tuple[str, str]]) -> None:
    lines = [line for n, (comment, body) in enumerate(parts) for line in (comment, f"c{n} {body}  # Fig. {n}")]
    once = parse("".join(f"{line}\n" for line in lines), PATH)
    assert parse(once.render(), PATH) == once
    assert len(once.claims) == len(parts)
    for claim in once.claims:
        again = read(claim.text)
        assert (again.text, again.relation, again.left) == (claim.text, claim.relation, claim.left)


@given(st.text(alphabet="c1 m[]=|/-<>.±%#sx,8e\n", max_size=40))
def test_any_text_is_a_claim_file_or_a_spec_error(text: str) -> None:
    try:
        parse(text, PATH)
    except SpecError as error:
        assert ": found " in str(error) and ", expected " in str(error)
