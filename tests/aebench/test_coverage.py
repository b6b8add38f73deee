"""A claim about points that were not run is absent."""

from pathlib import Path

import pytest

from aebench.claims import Judgement, Verdict, evaluate, parse
from aebench.coverage import covered
from tests.aebench.test_claims import make_summary


def judged(text: str, values: dict[tuple[str, str, int], list[float]]) -> Judgement:
    claims = parse(f"c1  {text}  # here\n", Path("x.claim")).claims
    keys = ("system", "gpu", "cv")
    (found,) = evaluate(claims, make_summary(values), grid_keys=keys, calibrated=lambda _: False, path=Path("x.claim"))
    declared = [{"system": s, "gpu": g, "cv": "2"} for s in ("a", "b") for g in ("a10", "v100")]
    run = [dict(zip(keys, map(str, place), strict=True)) for place in values]
    return covered(found, declared, run)


A10 = {("a", "a10", 2): [2.0], ("b", "a10", 2): [1.0]}
BOTH = {**A10, ("a", "v100", 2): [4.0], ("b", "v100", 2): [3.0]}


@pytest.mark.parametrize("text", ["value [system=a] > [system=b] for every gpu", "value [system=a] / [system=b] > 1x"])
def test_a_claim_about_everything_does_not_pass_on_a_part_of_the_grid(text: str) -> None:
    assert judged(text, BOTH).verdict is Verdict.PASS
    found = judged(text, A10)
    assert found.verdict is Verdict.ABSENT
    assert found.detail == (
        "pass on what was run, but 2 of the 4 points that it speaks of were not: "
        "system=a gpu=v100 cv=2, system=b gpu=v100 cv=2"
    )


def test_a_claim_about_the_part_that_was_run_is_judged() -> None:
    assert judged("value [system=a gpu=a10] > [system=b gpu=a10]", A10).verdict is Verdict.PASS
