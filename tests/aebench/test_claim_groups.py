"""Which rows a claim is about, what is missing of them, and which names are refused."""

import math
from pathlib import Path

import pandas as pd
import pytest

from aebench.claim_groups import Evidence, Summary, gather
from aebench.claim_parser import parse
from aebench.errors import SpecError

PATH = Path("figures/p/figure1.claim")
GRID = ("system", "gpu", "cv")
NAN = math.nan


def make_frame(*rows: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*GRID, "seed", "value"]).assign(num_finished=5)


def evidence(body: str, frame: pd.DataFrame) -> Evidence:
    (claim,) = parse(f"c1 {body} # Fig. 1\n", PATH).claims
    return gather(claim, Summary(frame, GRID, lambda keys: keys["cv"] == "2"), PATH)


def values(body: str, frame: pd.DataFrame) -> list[tuple[str, dict[int, tuple[float, ...]]]]:
    """Keys of each group in one word, and its samples."""
    return [(" ".join(group.keys.values()), dict(group.samples)) for group in evidence(body, frame).groups]


FULL = make_frame(
    ("a", "a10", 2, 0, 2.0),
    ("a", "v100", 2, 0, 4.0),
    ("b", "a10", 2, 0, 8.0),
    ("b", "v100", 2, 0, 12.0),
    ("c", "a10", 2, 0, 10.0),
    ("c", "v100", 2, 0, 40.0),
)


def test_sides_meet_on_the_keys_that_neither_selects() -> None:
    found = values("value [system=b] / [system=a] > 1", FULL)
    assert found == [("b/a a10 2", {0: (4.0,)}), ("b/a v100 2", {0: (3.0,)})]


def test_sides_meet_on_a_key_that_both_select_alike() -> None:
    found = values("value [system=b gpu=a10|v100] - [system=a gpu=a10|v100] > 1", FULL)
    assert found == [("b/a a10 2", {0: (6.0,)}), ("b/a v100 2", {0: (8.0,)})]


def test_a_key_that_one_side_selects_is_paired_freely() -> None:
    found = values("value [system=b] / [system=a gpu=a10] > 1", FULL)
    assert found == [("b/a a10/a10 2", {0: (4.0,)}), ("b/a v100/a10 2", {0: (6.0,)})]


def test_several_systems_are_each_compared_with_one() -> None:
    found = values("value [system=b|c gpu=a10] > [system=a gpu=a10]", FULL)
    assert found == [("b/a a10 2", {0: (8.0, 2.0)}), ("c/a a10 2", {0: (10.0, 2.0)})]


def test_an_aggregate_of_an_order_is_taken_on_each_side() -> None:
    assert values("max value [system=a] < [system=b]", FULL) == [("", {0: (4.0, 12.0)})]


def test_a_trend_compares_each_value_with_the_one_before() -> None:
    found = values("value [gpu=a10] increasing over system", FULL)
    assert found == [("a10 2 a..b", {0: (8.0, 2.0)}), ("a10 2 b..c", {0: (10.0, 8.0)})]


def test_cells_know_whether_they_were_calibrated_on() -> None:
    frame = make_frame(("a", "a10", 2.0, 0, 1.0), ("a", "a10", 4.0, 0, 1.0))
    assert [group[0].calibrated for group in evidence("value > 0", frame).cells] == [True, False]


def test_only_seeds_of_both_sides_count() -> None:
    rows = [("a", "a10", 2, seed, 1.0) for seed in range(3)]
    frame = make_frame(*rows, ("b", "a10", 2, 1, 2.0), ("b", "a10", 2, 2, NAN))
    assert values("value [system=b] / [system=a] > 1", frame) == [("b/a a10 2", {1: (2.0,)})]


def test_an_aggregate_counts_the_seeds_that_every_group_has() -> None:
    frame = make_frame(("a", "a10", 2, 0, 1.0), ("a", "a10", 2, 1, 9.0), ("a", "v100", 2, 0, 3.0))
    assert values("mean value > 1", frame) == [("", {0: (2.0,)})]


HOLED = make_frame(
    ("a", "a10", 2, 0, NAN),
    ("a", "v100", 2, 0, 1.0),
    ("b", "a10", 4, 0, 1.0),
    ("b", "a10", 2, 0, 1.0),
    ("c", "v100", 2, 1, 1.0),
)


@pytest.mark.parametrize(
    ("body", "missing"),
    {
        "value [system=z] = 8": ["system=z"],
        "value [system=a|z] = 8": ["system=z"],
        "value [system=a gpu=a10] / [system=b gpu=t4] = 8": ["system=b gpu=t4"],
        "value [gpu=a10] = 8": ["system=a gpu=a10 cv=2 (no value)"],
        "value [system=b] / [system=a] = 8": [
            "system=a gpu=a10 cv=2 (no value)",
            "system=a gpu=a10 cv=4",
            "system=b gpu=v100 cv=2",
        ],
        "value [system=c] / [system=a gpu=v100] = 8": ["system=c/a gpu=v100/v100 cv=2 (no common seed)"],
        "value [system=a] decreasing over gpu": ["system=a gpu=a10 cv=2 (no value)"],
        "value [system=b] decreasing over gpu": ["a second value of gpu"],
        "value [gpu=a10] decreasing over cv": [
            "system=a gpu=a10 cv=2 (no value)",
            "system=a gpu=a10 cv=4",
        ],
        "num_finished [system=a|b gpu=a10 cv=2|4] > 1": ["system=a gpu=a10 cv=4"],
    }.items(),
)
def test_rows_that_a_claim_needs_are_named_when_they_are_missing(body: str, missing: list[str]) -> None:
    found = evidence(body, HOLED)
    assert (found.groups, sorted(found.missing)) == ((), sorted(missing))


def test_a_geometric_mean_of_negative_values_is_undefined() -> None:
    frame = make_frame(("a", "a10", 2, 0, -1.0), ("a", "v100", 2, 0, 1.0))
    assert evidence("geomean value > 1", frame).missing == ("(undefined)",)


OVER = "c1 runs over 'cv', expected a key that no side selects one value of"
ERRORS = {
    "valu = 8": "unknown metric 'valu' in c1. Did you mean value? Known: value, num_finished",
    "seed = 8": "unknown metric 'seed' in c1. Known: value, num_finished",
    "value [gpus=a10] = 8": "unknown grid key 'gpus' in c1. Did you mean gpu? Known: system, gpu, cv",
    "value increasing over rate": "unknown grid key 'rate' in c1. Known: system, gpu, cv",
    "value = 8 for every rate": "unknown grid key 'rate' in c1. Known: system, gpu, cv",
    "value = 8 for every cv": "c1 says for every cv, expected the keys that remain: system, gpu",
    "value [gpu=a10] = 8 for every gpu": "c1 says for every gpu, expected the keys that remain: system",
    "value [system=a gpu=a10] = 8 for every gpu": ("c1 says for every gpu, expected the keys that remain: none"),
    "value [cv=2] decreasing over cv": OVER,
    "value [cv=2] / [] decreasing over cv": OVER,
}


@pytest.mark.parametrize(("body", "message"), ERRORS.items())
def test_a_name_that_does_not_fit_the_summary_is_an_error(body: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        evidence(body, FULL)
    assert str(caught.value) == f"figures/p/figure1.claim, line 1: {message}"


def test_two_rows_of_one_point_and_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows of system=a gpu=a10 cv=2 seed=0"):
        evidence("value = 8", pd.concat([FULL, FULL]))
