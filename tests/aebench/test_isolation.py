"""Isolation: a testbed lends GPUs whole, in slices, or as each system needs them; a contradiction runs nothing."""

from pathlib import Path
from typing import Any

import pytest

from aebench.catalog import Catalog
from aebench.execute import execute, setup
from aebench.point import Point
from serving.records import Record
from serving.serve import IsolationMismatch
from tests.aebench.checkout import Cases, Checkout, make_checkout

STORES = "stores         = 2\n"
CELL = {"gpu": "v100", "model": "opt-2.7b"}

CONTRADICTIONS: Cases = [
    (
        STORES,
        f'isolation = "exclusive"\n{STORES}',
        "Error: ROOT/experiments/hydraserve/breakdown.toml, testbed: serverless_vllm needs shared GPUs, testbed_i has "
        "isolation = 'exclusive' in testbeds.toml. Expected 'shared' or 'follows_system'",
    ),
    (
        STORES,
        f'isolation = "whole"\n{STORES}',
        " with calibration.toml, testbed.testbed_i.isolation: expected 'shared', 'exclusive' or 'follows_system', got "
        "'whole'",
    ),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A copy to spoil."""
    return make_checkout(tmp_path)


def lend(checkout: Checkout, isolation: str) -> None:
    """Give the testbed this isolation."""
    path = checkout.path("testbeds.toml")
    text = path.read_text()
    assert STORES in text
    path.write_text(text.replace(STORES, f'isolation = "{isolation}"\n{STORES}'))


def resolved(checkout: Checkout, system: str) -> dict[str, Any]:
    return Catalog(checkout.root).experiment("hydraserve/cold_start").resolve({**CELL, "system": system})


@pytest.mark.parametrize("case", CONTRADICTIONS, ids=lambda case: case[1][:24])
def test_an_isolation_that_a_system_cannot_use_or_nobody_knows_is_refused(
    checkout: Checkout, case: tuple[str, str, str]
) -> None:
    checkout.check_case("testbeds.toml", case)


def test_a_shared_testbed_is_refused_when_one_system_of_the_grid_needs_whole_gpus(checkout: Checkout) -> None:
    lend(checkout, "shared")
    assert checkout.refusal(checkout.run("figure7", "--dry-run")) == (
        "Error: ROOT/experiments/hydraserve/cold_start.toml, testbed: serverlessllm needs exclusive GPUs, testbed_i "
        "has isolation = 'shared' in testbeds.toml. Expected 'exclusive' or 'follows_system'"
    )
    assert not checkout.logs.exists()


@pytest.mark.parametrize(("isolation", "system"), [("shared", "hydraserve"), ("exclusive", "serverlessllm")])
def test_a_testbed_with_the_isolation_that_the_system_needs_runs(
    checkout: Checkout, isolation: str, system: str
) -> None:
    lend(checkout, isolation)
    words = [f"grid.system={system}", "grid.gpu=v100", "grid.model=opt-2.7b"]
    result = checkout.run("figure7", *[word for setting in words for word in ("--set", setting)])
    assert "summary.csv" in [Path(name).name for name in checkout.written()], result.output


@pytest.mark.parametrize("isolation", ["shared", "exclusive", "follows_system"])
def test_a_point_carries_its_testbeds_isolation_into_its_digest(checkout: Checkout, isolation: str) -> None:
    lend(checkout, isolation)
    spec = resolved(checkout, "serverlessllm" if isolation == "exclusive" else "hydraserve")
    assert spec["isolation"] == isolation
    point = Point(experiment="hydraserve/cold_start", keys=CELL, seed=0, spec=spec)
    other = Point(experiment="hydraserve/cold_start", keys=CELL, seed=0, spec={**spec, "isolation": "other"})
    assert point.digest != other.digest


@pytest.mark.parametrize("system", ["hydraserve", "serverlessllm"])
def test_by_default_a_testbed_follows_the_system(checkout: Checkout, system: str) -> None:
    spec = resolved(checkout, system)
    assert spec["isolation"] == "follows_system"
    assert setup(spec, seed=0).testbed.exclusive == (system == "serverlessllm")


@pytest.mark.parametrize(("isolation", "system"), [("exclusive", "hydraserve"), ("shared", "serverlessllm")])
def test_a_worker_honours_the_isolation_of_its_point_and_refuses_a_contradiction(
    checkout: Checkout, isolation: str, system: str
) -> None:
    spec = {**resolved(checkout, system), "isolation": isolation}
    point = Point(experiment="hydraserve/cold_start", keys=CELL, seed=0, spec=spec)
    records: list[Record] = []
    with pytest.raises(IsolationMismatch, match=f"the testbed's are {isolation}"):
        execute(point, records.append)
    assert records == []


@pytest.mark.parametrize(
    ("isolation", "system", "needed"),
    [("shared", "serverlessllm", "exclusive"), ("exclusive", "hydraserve", "shared")],
)
def test_a_system_of_the_end_to_end_experiment_is_refused_on_a_testbed_set_to_the_other_mode(
    checkout: Checkout, isolation: str, system: str, needed: str
) -> None:
    path = checkout.path("testbeds.toml")
    mine = '[testbed.mine]\nservers = { a10x4 = 2, v100x4 = 4 }\nstores = 6\nstore_nic_gbps = 32\nsource = "ours"\n'
    path.write_text(f'{path.read_text()}\n{mine}isolation = "{isolation}"\n')
    words = ("hydraserve/end_to_end", "--set", f"grid.system={system}", "--set", "testbed=mine")
    assert checkout.refusal(checkout.run(*words)) == (
        f"Error: ROOT/experiments/hydraserve/end_to_end.toml with --set grid.system={system} --set testbed=mine, "
        f"testbed: {system} needs {needed} GPUs, mine has isolation = '{isolation}' in testbeds.toml. "
        f"Expected '{needed}' or 'follows_system'"
    )
    assert not checkout.logs.exists()
    other = {"serverlessllm": "hydraserve", "hydraserve": "serverlessllm"}[system]
    allowed = checkout.run(
        "hydraserve/end_to_end", "--set", f"grid.system={other}", "--set", "testbed=mine", "--dry-run"
    )
    assert allowed.exit_code == 0, allowed.output
