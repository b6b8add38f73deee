"""How long a step waits for its scheduler, by hand and by the law of a closed queue."""

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aebench.catalog import ROOT

FOLDER = ROOT / "benchmarks"


@dataclass(frozen=True, kw_only=True)
class Costs:
    num_instances: int = 1
    dispatch: float = 0.0
    report: float = 2e-3
    pairing: float = 0.0
    scaling: float = 0.0
    step: float = 1e-3
    exchange: float = 0.0
    send_report: float = 0.5e-3
    receive_report: float = 0.0


@pytest.fixture(scope="module")
def stall() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "scheduler_stall.py"))


def test_alone_a_step_takes_what_it_takes(stall: dict[str, Any]) -> None:
    assert stall["centralized"](Costs()).step == pytest.approx(1e-3)
    assert stall["centralized"](Costs(exchange=4e-3)).step == pytest.approx(5e-3)
    assert stall["llumnix"](Costs()).step == pytest.approx(3.5e-3)  # the step, a look at its load, the report


def test_a_busy_core_lets_all_wait_for_all_others(stall: dict[str, Any]) -> None:
    # 100 instances, 1 ms each: a round takes 100 ms, of which each computes 40.
    waits = stall["centralized"](Costs(num_instances=100))
    assert waits.step == pytest.approx(0.1 - 0.04, rel=1e-3)
    assert stall["centralized"](Costs(num_instances=20)).step < 2e-3
    assert stall["llumnix"](Costs(num_instances=100)).step == pytest.approx(3.5e-3)


def test_requests_wait_among_the_steps_or_the_ticks(stall: dict[str, Any]) -> None:
    costs = Costs(num_instances=100, dispatch=1e-5, step=1e-3)
    assert stall["centralized"](costs).request > 0.05  # behind the steps
    assert stall["llumnix"](costs).request < 1e-4
    # A tick of 16 ms each 160 ms: a tenth of the requests waits 8 ms in the mean.
    waits = stall["llumnix"](Costs(num_instances=100, dispatch=1e-9, pairing=16e-3))
    assert waits.request == pytest.approx(0.8e-3, rel=0.25)


def test_the_benchmark_measures_a_small_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    program = runpy.run_path(str(FOLDER / "scheduler.py"))
    costs = program["costs_of"](8, 0.5)
    assert costs.migrations_per_tick > 0
    assert 7 < costs.sequences_per_step < 14  # 2.25 requests/s, 128 tokens and 40 ms each: 11.5
    assert 0 < costs.report < costs.dispatch
    assert Path(program["NUMBERS"]).exists()
    assert [row.num_instances for row in program["read"]()] == [16, 64, 256, 1024]
    assert program["table"](program["read"]()).count("\n") == 5
