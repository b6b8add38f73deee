"""Llumnix's testbed: calibrated values reach the engines of both kinds of servers, and the fit program finds them."""

import runpy
from pathlib import Path

import pytest

from aebench.calibration import Calibration
from aebench.errors import SpecError
from aebench.execute import server_kind
from aebench.testbed_tables import TestbedsFile, take_after
from aebench.toml_files import check, read_toml
from serving.cost.engine import EngineCosts
from serving.units import GB

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "llumnix"


def engine(name: str) -> EngineCosts:
    """Of a server, calibrated."""
    tables = Calibration.read(FOLDER / "calibration.toml").apply(read_toml(FOLDER / "testbeds.toml"))
    file = check(TestbedsFile, take_after(tables, "testbeds.toml"), FOLDER / "testbeds.toml")
    kind = server_kind(name, file.server[name].model_dump(), 0.0)
    assert kind.engine is not None
    return kind.engine


def test_the_larger_models_server_has_what_it_does_not_give_from_the_smaller_ones() -> None:
    small, large = engine("a10x4"), engine("a10x4_tp4")
    assert (small.tensor_parallel, small.kv_blocks, small.all_reduce_rate) == (1, 792, None)
    assert (large.tensor_parallel, large.kv_blocks) == (4, 725)
    assert large.sequence == small.sequence == 0.0002742
    assert (small.copy_rate, large.copy_rate) == (2.5779 * GB, 4.7933 * GB)


def test_declared_parameters_are_those_that_the_points_give() -> None:
    program = runpy.run_path(str(ROOT / "benchmarks" / "calibrate_llumnix.py"))
    downtime, step = (program["paper_points"](figure) for figure in ("figure10a", "figure10b"))
    small = program["fit_7b"](downtime, step)
    large = program["fit_30b"](downtime, step, small)
    for found, name in ((small, "a10x4"), (large, "a10x4_tp4")):
        declared = engine(name)
        for field in ("sequence", "kv_read_share", "all_reduce", "copy_message", "copy_slowdown"):
            assert getattr(found.costs, field) == pytest.approx(getattr(declared, field), rel=1e-9), field
        assert found.costs.copy_rate == pytest.approx(declared.copy_rate, rel=1e-9)
    assert large.costs.all_reduce_rate == pytest.approx(engine("a10x4_tp4").all_reduce_rate, rel=1e-9)


def test_every_number_that_no_point_set_says_where_it_is_from() -> None:
    calibrated = {p.name for p in Calibration.read(FOLDER / "calibration.toml").file.parameter}  # type: ignore[union-attr]
    tables = take_after(read_toml(FOLDER / "testbeds.toml"), "testbeds.toml")
    for name, server in tables["server"].items():
        flat = {key for key, value in server.items() if not isinstance(value, dict)}
        flat |= {f"{part}.{key}" for part in ("startup", "engine") for key in server.get(part, {})}
        assert {key for key in flat if f"server.{name}.{key}" not in calibrated} <= set(server["sources"]), name


def test_a_misspelt_engine_key_is_named() -> None:
    tables = read_toml(FOLDER / "testbeds.toml")
    tables["server"]["a10x4"]["engine"]["kv_block"] = 3
    with pytest.raises(SpecError, match=r"server.a10x4.engine.kv_block: unknown key. Did you mean kv_blocks"):
        check(TestbedsFile, take_after(tables, "testbeds.toml"), "testbeds.toml")
