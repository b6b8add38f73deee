"""A cluster whose engines are known, and whose steps slow down beside copies: step by step or in runs, the records are
the same."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.core.ports import Executor
from serving.cost.engine import EngineCosts
from serving.policies import configured
from serving.records import MigrationRecord, Record
from serving.serve import Setup, build_control, simulated_backend
from serving.units import GB, Seconds, ms
from tests.build import A10, make_deployment, make_requests, make_testbed

ENGINE = EngineCosts(
    kv_blocks=100,
    kv_read_share=0.5,
    sequence=0.3 * ms,
    copy_rate=2 * GB,
    copy_message=0.25 * ms,
    copy_slowdown=1.5,
)
"""Few blocks, so that sequences are preempted; copies that slow steps down so much that nobody overlooks it."""


@dataclass(slots=True, eq=False)
class Blind:
    """An Executor that computes as another does and knows nothing beforehand."""

    inner: Executor

    def submit(self, instance: Instance, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        self.inner.submit(instance, plan, done)

    def step_ends(self, instance: Instance, plan: StepPlan) -> list[Seconds] | None:
        del instance, plan
        return None


def served(seed: int, engine: EngineCosts, method: str, *, foresees: bool) -> list[Record]:
    """All records of three instances that exchange sequences all the time."""
    system = configured(
        "llumnix",
        {
            "migrate_threshold": inf,
            "migrate_in_threshold": -inf,
            "num_instances": 3,
            "dispatch": "first",
            "method": method,
        },
    )
    testbed = make_testbed(3, replace(A10, engine=engine), exclusive=True)
    setup = Setup(testbed=testbed, system=system, deployments=(make_deployment(),), seed=seed)
    clock, backend = simulated_backend(testbed, seed)
    records: list[Record] = []
    executor = backend.executor if foresees else Blind(backend.executor)
    control = build_control(setup, replace(backend, executor=executor), records.append)
    draws = Random(f"{seed}/engine runs")
    for request in make_requests(20):
        shape = replace(request, num_prompt_tokens=draws.randint(1, 300), num_output_tokens=draws.randint(1, 300))
        clock.call_at(draws.uniform(0.0, 10.0), control.arrive, shape)
    control.start()
    clock.call_at(10.0, setattr, control, "draining", True)
    clock.run()
    control.close()
    return records


@pytest.mark.parametrize("method", ["live", "blocking", "recompute"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_runs_of_steps_change_no_record_where_copies_slow_steps_down(method: str, seed: int) -> None:
    in_runs = served(seed, ENGINE, method, foresees=True)
    assert in_runs == served(seed, ENGINE, method, foresees=False)
    assert any(isinstance(record, MigrationRecord) for record in in_runs)


def test_copies_that_slow_steps_down_are_noticed() -> None:
    assert served(1, ENGINE, "live", foresees=True) != served(
        1, replace(ENGINE, copy_slowdown=1.0), "live", foresees=True
    )
