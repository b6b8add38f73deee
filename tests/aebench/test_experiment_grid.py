"""Grids: which cells there are, and keys whose values are those of a field."""

from pathlib import Path

import pytest

from aebench.catalog import Catalog
from aebench.errors import SpecError
from aebench.experiment import Experiment
from tests.aebench.checkout import Checkout, make_checkout

TOML = """
title   = "Lengths that each have rates of their own"
testbed = "testbed_i"
system  = "serverless_vllm"
model   = "llama2-7b"
include = [{ load = "light", rate = [1.0, 2.0] }, { load = "heavy", rate = 4.0 }]
exclude = [{ load = "light", rate = 2.0, cv = 2.0 }]

[workload]
kind     = "open_loop"
arrivals = { kind = "gamma", rate = 9.0, cv = 1.0 }
prompt   = { kind = "fixed", tokens = 8 }
output   = { kind = "fixed", tokens = 8 }

[grid]
load = ["light", "heavy"]
rate = [1.0, 2.0, 4.0]
cv   = [1.0, 2.0]

[sets]
rate = "workload.arrivals.rate"
cv   = "workload.arrivals.cv"

[when.load.light]
[when.load.heavy]
workload.num_requests = 7

[deployments]
"llama2-7b" = { size_gb = 13, ttft_slo = 9.0, tpot_slo = 0.2 }
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make_checkout(tmp_path_factory.mktemp("grid"))


def read(checkout: Checkout, *changes: tuple[str, str], settings: tuple[str, ...] = ()) -> Experiment:
    text = TOML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = checkout.root / "experiments" / "hydraserve" / "grid.toml"
    path.write_text(text)
    return Catalog(checkout.root).experiment("hydraserve/grid", settings=settings)


def test_cells_are_those_that_a_rule_includes_and_none_excludes(checkout: Checkout) -> None:
    cells = [tuple(cell.values()) for cell in read(checkout).cells()]
    assert cells == [
        ("light", 1.0, 1.0),
        ("light", 1.0, 2.0),
        ("light", 2.0, 1.0),
        ("heavy", 4.0, 1.0),
        ("heavy", 4.0, 2.0),
    ]


def test_a_key_that_sets_a_field_needs_no_table_for_each_value(checkout: Checkout) -> None:
    specs = [point.spec["workload"] for point in read(checkout).points([0])]
    assert [(spec["arrivals"]["rate"], spec["arrivals"]["cv"], spec["num_requests"]) for spec in specs] == [
        (1.0, 1.0, 100), (1.0, 2.0, 100), (2.0, 1.0, 100), (4.0, 1.0, 7), (4.0, 2.0, 7),
    ]  # fmt: skip
    assert "include" not in read(checkout).points([0])[0].spec


def test_a_grid_restricted_to_cells_that_are_not_included_is_empty(checkout: Checkout) -> None:
    with pytest.raises(SpecError, match="no point is left: every cell of the grid is excluded or not included"):
        read(checkout, settings=("grid.rate=3.0",)).points([0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ('load = "heavy", rate', 'laod = "heavy", rate'),
            r"include\[1\]: unknown grid key 'laod'. Did you mean load\?",
        ),
        (('cv   = "workload.arrivals.cv"', 'vc = "workload.arrivals.cv"'), "sets: unknown grid key 'vc'. Known: load"),
        (
            ('"workload.arrivals.rate"', '"workload.arrivals.rat"'),
            "workload.arrivals.rat: unknown key. Did you mean rate",
        ),
        (("cv   = [1.0, 2.0]", "cv   = [1.0, 0.0]"), "workload.arrivals.cv: "),
    ],
)
def test_what_is_misspelt_is_named(checkout: Checkout, change: tuple[str, str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        read(checkout, change).points([0])


def test_llumnix_grids_have_the_points_of_its_figures() -> None:
    root = Path(__file__).parent.parent.parent
    sizes = {
        path.stem: len(Experiment.read(path, Catalog(root).calibration("llumnix")).cells())
        for path in sorted((root / "experiments" / "llumnix").glob("*.toml"))
        if path.stem in ("serving", "priorities", "autoscaling", "scaling_threshold", "hello")
    }
    # 7 kinds of lengths x 5 rates x 2 systems and Round-Robin in two; 2 x (6 + 5); 2 x 5; 4 x 2; 3
    assert sizes == {"serving": 80, "autoscaling": 22, "scaling_threshold": 10, "priorities": 8, "hello": 3}
