"""World: what an experiment declares for this machine is merged in order, and never reaches the paper's machines."""

from typing import Any

import pytest

from aebench.catalog import Catalog
from aebench.errors import SpecError
from aebench.logs import RunLog, find_runs
from aebench.world import PAPER, World, tables_for

CPU, CUDA = World("live", "cpu"), World("live", "cuda")
TABLES: dict[str, Any] = {
    "testbed": "paper",
    "grid": {"gpu": ["a10", "v100"], "system": ["a", "b"]},
    "deployments": {"opt-2.7b": {"size_gb": 7}},
    "sources": {"workload.gap": "paper"},
    "scale": {"smoke": {"grid.gpu": ["a10"]}},
    "live": {
        "workload": {"gap": 3.0},
        "sources": {"workload.gap": "ours"},
        "cpu": {"testbed": "here", "deployments": {"tiny-0.1b": {"size_gb": 1}}, "grid": {"gpu": ["cpu"]}},
        "cuda": {"testbed": "there"},
        "smoke": {"grid.system": ["a"]},
    },
}


def test_the_papers_machines_know_nothing_of_the_live_tables() -> None:
    tables = tables_for(PAPER, TABLES, "smoke")
    assert "live" not in tables
    assert (tables["testbed"], tables["grid"]) == ("paper", {"gpu": ["a10"], "system": ["a", "b"]})


def test_the_device_goes_over_the_live_tables_and_smoke_over_both() -> None:
    tables = tables_for(CPU, TABLES, "smoke")
    assert (tables["testbed"], tables["workload"]) == ("here", {"gap": 3.0})
    assert tables["grid"] == {"gpu": ["cpu"], "system": ["a"]}
    assert tables_for(CUDA, TABLES, "paper")["grid"] == TABLES["grid"]


def test_deployments_are_replaced_and_names_with_dots_stay_whole() -> None:
    tables = tables_for(CPU, TABLES, "paper")
    assert tables["deployments"] == {"tiny-0.1b": {"size_gb": 1}}
    assert tables["sources"] == {"workload.gap": "ours"}
    assert tables_for(CUDA, TABLES, "paper")["deployments"] == TABLES["deployments"]


def test_merging_leaves_the_declared_tables_alone() -> None:
    before = repr(TABLES)
    tables_for(CPU, TABLES, "smoke")["grid"]["gpu"].append("x")
    assert repr(TABLES) == before


@pytest.mark.parametrize("name", ["cold_start", "breakdown", "hello"])
def test_shipped_simulations_are_still_those_of_the_points_as_declared(name: str) -> None:
    catalog = Catalog()
    runs = find_runs(catalog.root / "history_logs", f"hydraserve/{name}")
    (log,) = [RunLog.open(run) for run in runs if "-sim-" in run.name]
    points = catalog.experiment(f"hydraserve/{name}").points(log.manifest.seeds)
    assert log.missing(points) == []


@pytest.mark.parametrize(("world", "gpu"), [(CPU, "cpu"), (CUDA, "h200")])
def test_figure_7_has_five_live_points_with_a_second_model_to_evict_the_first(world: World, gpu: str) -> None:
    points = Catalog().experiment("hydraserve/cold_start", world=world).points([0])
    assert [point.keys["system"] for point in points] == [
        "serverless_vllm",
        "serverlessllm",
        "serverlessllm_with_cached_model",
        "hydraserve_with_single_worker",
        "hydraserve",
    ]
    spec = points[1].spec
    assert (spec["backend"], spec["device"], spec["gpu"]) == ("live", world.device, gpu)
    assert [table.get("architecture") for table in spec["deployments"].values()] == [None, spec["model"]]


def test_machines_that_nobody_measured_are_not_simulated() -> None:
    experiment = Catalog().experiment("hydraserve/cold_start", settings=["testbed=live_cpu", "grid.gpu=cpu"])
    with pytest.raises(
        SpecError, match=r"cpu_process of testbeds.toml has no start-up times .* Expected --backend live"
    ):
        experiment.points([0])
