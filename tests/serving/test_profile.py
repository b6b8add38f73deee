"""Measured profiles: interpolation by hand, and what the simulator makes of shared cores and busy neighbours."""

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core.clock import SimClock
from serving.core.plan import StepPlan, StepResult
from serving.core.stages import Loader, Stage
from serving.cost.profile import Profile, StepTable, interpolate
from serving.policies import SYSTEMS
from serving.policies.fixed_instances import FixedInstancesConfig
from serving.serve import Setup, serve
from serving.sim.executor import _SharedMachine
from serving.sim.processors import Processors
from serving.sim.provisioner import SimProvisioner
from serving.sim.transport import SimTransport
from serving.units import GB
from tests.build import (
    STARTUP,
    Outcome,
    make_cluster,
    make_deployment,
    make_instance,
    make_requests,
    make_sequence,
    make_testbed,
    make_workers,
    sent,
)

TABLE = StepTable(
    prefill=((1, 0.010), (10, 0.019), (100, 0.100)),
    decode=((1, 0.010), (8, 0.024)),
    context=1e-5,
    pairs=1e-6,
    hop=0.002,
    slowdown=(((1, 1.0),), ((1, 1.5), (10, 1.5), (100, 1.2))),
)


def plan_of(*chunks: tuple[int, int]) -> StepPlan:
    """A plan of (tokens to compute, tokens computed before) per sequence."""
    plan = StepPlan()
    for index, (num_tokens, num_computed) in enumerate(chunks):
        sequence = make_sequence(num_tokens + num_computed, 1, index)
        sequence.num_computed = num_computed
        plan.add(sequence, num_tokens)
    return plan


@pytest.mark.parametrize(("count", "seconds"), [(1, 0.010), (4, 0.013), (10, 0.019), (55, 0.0595), (200, 0.190)])
def test_times_are_linear_between_measurements_and_along_the_last_piece_beyond(count: int, seconds: float) -> None:
    assert interpolate(TABLE.prefill, count) == pytest.approx(seconds)


@given(st.floats(0, 1e6))
def test_no_count_has_a_negative_time(count: float) -> None:
    assert interpolate(((4, 0.001), (8, 0.1)), count) >= 0


def test_a_lone_prompt_costs_its_entry() -> None:
    assert TABLE.time(plan_of((100, 0)), 1) == pytest.approx(0.100)


def test_decodes_cost_their_entry_and_what_they_read() -> None:
    assert TABLE.time(plan_of(*[(1, 50)] * 8), 1) == pytest.approx(0.024 + 8 * 50 * 1e-5)


def test_a_chunk_beside_decodes_costs_all_rows_once_and_the_sampling_of_each() -> None:
    # 102 rows by the last piece: 0.100 + 2 x 0.0009; three sampled: decode(3) 0.014 less prefill(3) 0.012
    expected = 0.1018 + (0.014 - 0.012) + 1e-5 * (50 + 50 + 20) + 1e-6 * 99 * 20
    assert TABLE.time(plan_of((1, 50), (1, 50), (100, 20)), 1) == pytest.approx(expected)


def test_further_stages_cost_a_hop_and_busy_neighbours_a_factor() -> None:
    assert TABLE.time(plan_of((10, 0)), 3) == pytest.approx(0.019 + 0.004)
    assert TABLE.time(plan_of((10, 0)), 1, [10]) == TABLE.time(plan_of((10, 0)), 1, [10] * 4) == pytest.approx(0.0285)


@pytest.mark.parametrize(("rows", "factor"), [(1, 1.5), (10, 1.5), (55, 1.35), (100, 1.2), (1000, 1.2)])
def test_the_factor_goes_by_rows_and_stays_beyond_what_was_measured(rows: int, factor: float) -> None:
    assert TABLE.factor(rows, [rows]) == pytest.approx(factor)
    assert TABLE.factor(rows, []) == 1.0


BESIDE = replace(
    TABLE,
    slowdown=(((1, 1.0),), ((1, 1.5), (100, 1.1)), ((1, 3.0), (100, 2.0))),
    beside=((1, ((1, 1.5), (100, 1.3))), (100, ((1, 1.2), (100, 1.1)))),
)
"""A decode loses 1.5 beside a decode and 1.2 beside a prompt, a prompt 1.3 and 1.1."""


@pytest.mark.parametrize(
    ("rows", "others", "factor"),
    [
        (1, [], 1.0),
        (1, [1], 1.5),
        (1, [100], 1.2),
        (100, [1], 1.3),
        (500, [500], 1.1),
        (1, [50], 1.5 - 0.3 * 49 / 99),
        (1, [1, 100], 3.0 * (1.5 + 1.2) / 2 / 1.5),  # of three alike, by what the others do beside one
        (100, [1, 1], 2.0 * 1.3 / 1.1),
    ],
)
def test_the_factor_goes_by_the_rows_of_the_other_steps_too(rows: int, others: list[int], factor: float) -> None:
    assert BESIDE.factor(rows, others) == pytest.approx(factor)


@given(st.integers(1, 2000), st.lists(st.integers(1, 2000), max_size=4))
def test_company_never_makes_a_step_faster(rows: int, others: list[int]) -> None:
    assert BESIDE.factor(rows, others) >= 1.0


def test_what_steps_do_to_each_other_comes_back_from_a_file_and_may_be_missing() -> None:
    table = json.loads(json.dumps(replace(PROFILE, steps=BESIDE).to_json()))
    assert Profile.from_json(table).steps == BESIDE
    del table["steps"]["beside"]  # of an earlier calibration
    assert Profile.from_json(table).steps == replace(BESIDE, beside=())


def test_a_number_in_a_file_is_the_factor_of_steps_of_any_size() -> None:
    table = Profile.from_json(broken(steps={"slowdown": [1.0, 1.25]})).steps
    assert table.factor(1, [1]) == table.factor(500, [500, 1]) == 1.25


def two_instances(gap: float, steps: StepTable | None = TABLE) -> Outcome:
    system = SYSTEMS["fixed_instances"]
    records: list[Any] = []
    setup = Setup(
        testbed=make_testbed(2, exclusive=True),
        system=replace(system, config=FixedInstancesConfig(num_instances=2)),
        deployments=(make_deployment(),),
        seed=0,
        steps=steps,
    )
    requests = make_requests(4, 10, 1)  # the first two pay for each process's first step
    client = sent(list(zip((60.0, 60.0, 70.0, 70.0 + gap), requests, strict=True)))
    return Outcome(serve(setup, client, records.append), records)


def test_two_instances_that_compute_at_once_slow_each_other_down() -> None:
    def answers(gap: float) -> list[float]:
        records = two_instances(gap).requests[2:]
        return [(record.first_token_at or 0.0) - record.arrived_at for record in records]

    assert answers(5.0) == pytest.approx([0.019, 0.019])
    # 1 ms alone, 18 ms at two thirds of the speed: 28 ms; the second one has its last millisecond alone again
    assert answers(0.001) == pytest.approx([0.028, 0.028])


def test_a_step_slows_down_by_the_kind_of_the_other() -> None:
    steps = replace(TABLE, beside=((1, ((1, 1.5), (10, 2.0))), (10, ((10, 1.5),))))
    ends: list[float] = []
    clock = SimClock()
    machine = _SharedMachine(clock, steps)
    for chunks in ([(10, 0)], [(1, 50)]):
        result = StepResult(plan_of(*chunks), [1])
        machine.compute(result.plan, 1, 0.0, lambda _: ends.append(clock.now), result)
    clock.run()
    # the decode's 10.5 ms take 1.5 times as long; the prompt runs at half its speed for that time, then at its own
    assert ends == pytest.approx([0.01575, 0.01575 + 0.019 - 0.01575 / 2])


@pytest.mark.parametrize(("num_workers", "ends"), [(1, 2.0), (2, 2.0), (4, 4.0), (5, 5.0)])
def test_starts_on_one_machine_share_its_cores(num_workers: int, ends: float) -> None:
    clock, costs = SimClock(), {"a10x1": replace(STARTUP, host_cores=2.0)}
    provisioner = SimProvisioner(clock, costs, 0, TABLE, Processors(clock))
    workers = make_workers(make_cluster())
    starts = [
        provisioner.start(make_instance().instance, workers[0], Stage(name="libraries")) for _ in range(num_workers)
    ]
    clock.run()
    assert all(start.fired for start in starts)
    assert clock.now == pytest.approx(ends)  # 2 s of a core each


def test_copies_take_a_core_as_imports_do() -> None:
    clock, costs = SimClock(), {"a10x1": replace(STARTUP, host_cores=1.0)}
    processors = Processors(clock)
    provisioner = SimProvisioner(clock, costs, 0, TABLE, processors)
    transport = SimTransport(clock, costs, processors)
    (worker,) = make_workers(make_cluster())
    provisioner.start(make_instance().instance, worker, Stage(name="libraries"))
    copy = transport.load(worker, 4 * GB, Loader.DIRECT)  # 0.5 s of a core at 8 GB/s
    half = copy.reached(2 * GB)
    clock.run(0.75)
    assert (half.fired, copy.done.fired) == (True, False)
    clock.run(1.01)
    assert copy.done.fired
    clock.run()
    assert clock.now == pytest.approx(2.5)


PROFILE = Profile(
    hardware="2-core CPU",
    device="cpu",
    model="smollm2-135m",
    measured_at="2026-11-21T00:00:00+00:00",
    versions={"torch": "2.13.0"},
    startup=STARTUP,
    fetch_rate=3 * GB,
    load_rate=4 * GB,
    steps=TABLE,
)


def test_a_profile_reads_back_from_its_json() -> None:
    assert Profile.from_json(json.loads(json.dumps(PROFILE.to_json()))) == PROFILE


def broken(**changes: Any) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(json.dumps(PROFILE.to_json()))
    table["steps"].update(changes.pop("steps", {}))
    return {**table, **changes}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "expected a JSON object with schema 1"),
        (broken(schema=2), "expected a JSON object with schema 1"),
        ({"schema": 1}, "key 'steps' is missing"),
        (broken(startup={"container": 1.0}), "missing"),
        (broken(steps={"prefill": []}), "steps.prefill: expected counts that ascend"),
        (broken(steps={"decode": [[8, 1.0], [4, 1.0]]}), "steps.decode: expected counts that ascend"),
        (broken(steps={"slowdown": [0.5]}), "steps.slowdown: expected factors of at least 1"),
        (broken(steps={"slowdown": [1.0, [[8, 1.1], [1, 1.4]]]}), "steps.slowdown: expected counts that ascend"),
        (broken(steps={"slowdown": []}), "steps.slowdown: expected at least the factor of one instance"),
        (broken(steps={"beside": [[4, [[1, 1.2]]], [1, [[1, 1.2]]]]}), "steps.beside: expected counts that ascend"),
        (broken(steps={"beside": [[1, [[1, 0.9]]]]}), "steps.beside: expected factors of at least 1"),
        (broken(steps={"beside": [[1, []]]}), "steps.beside: expected counts that ascend"),
        (broken(fetch_rate="fast"), "fetch_rate: expected a finite number above 0, got 'fast'"),
        (broken(threads=0), "threads: expected a whole number of at least 1, got 0"),
        (broken(threads="two"), "threads: expected a whole number of at least 1, got 'two'"),
        (broken(steps={"prefill": 3}), "steps.prefill: expected a list of pairs, got 3"),
        (broken(steps={"prefill": [[1, 0.1, 2]]}), "steps.prefill: expected a list of pairs"),
        (broken(steps={"prefill": [[1.5, 0.1]]}), "steps.prefill: expected a whole number of at least 1, got 1.5"),
        (broken(startup={**PROFILE.to_json()["startup"], "speed": 1}), "unexpected keyword argument 'speed'"),
        (broken(startup=3), "startup: expected an object, got 3"),
    ],
)
def test_a_damaged_profile_is_refused_with_its_key(table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Profile.from_json(table)


NOT_NUMBERS = [math.nan, math.inf, -math.inf, -1.0, "2", None, True, [1.0]]
RATES = ["fetch_rate", "load_rate", "startup.engine_load_rate"]
OPTIONAL_RATES = ["startup.host_cores", "startup.build_rate"]
TIMES = [f"startup.{name}" for name in ("container", "libraries", "context", "engine", "first_step", "jitter")]
TIMES += [f"steps.{name}" for name in ("context", "pairs", "hop")]


def changed(key: str, value: Any) -> dict[str, Any]:
    """The profile with one number replaced."""
    table = broken()
    *tables, last = key.split(".")
    inner = table
    for name in tables:
        inner = inner[name]
    inner[last] = value
    return table


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 0, 0.0])
@pytest.mark.parametrize("key", [*RATES, *OPTIONAL_RATES])
def test_a_rate_is_finite_and_above_zero(key: str, value: Any) -> None:
    if value is None and key in OPTIONAL_RATES:
        assert Profile.from_json(changed(key, None)).startup == replace(
            PROFILE.startup, **{key.partition(".")[2]: None}
        )
        return
    with pytest.raises(ValueError, match=re.escape(f"{key}: expected a finite number above 0, got {value!r}")):
        Profile.from_json(changed(key, value))


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize("key", TIMES)
def test_a_time_is_finite_and_not_below_zero(key: str, value: Any) -> None:
    Profile.from_json(changed(key, 0))
    with pytest.raises(ValueError, match=re.escape(f"{key}: expected a finite number of at least 0, got {value!r}")):
        Profile.from_json(changed(key, value))


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize("name", ["prefill", "decode", "slowdown", "beside"])
def test_curves_hold_finite_numbers(name: str, value: Any) -> None:
    curves = {"slowdown": [[[1, value]]], "beside": [[1, [[1, value]]]]}
    with pytest.raises(ValueError, match=f"steps.{name}: expected"):
        Profile.from_json(broken(steps={name: curves.get(name, [[1, value]])}))
