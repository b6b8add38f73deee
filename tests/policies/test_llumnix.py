"""Llumnix and its baselines in whole runs: dispatch, migration, priorities, scaling, faults."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from serving.control import Control
from serving.core.clock import SimClock
from serving.core.instance import Phase
from serving.core.request import Request
from serving.policies import SYSTEMS, configured
from serving.records import DecisionRecord, MigrationRecord, Record, RequestRecord, StageRecord
from serving.serve import Setup, build_control, simulated_backend
from serving.units import Seconds
from tests.build import make_deployment, make_requests, make_testbed
from tests.serving.test_decode_run import Scarce


@dataclass(slots=True, eq=False)
class Run:
    """A cluster of four A10, an instance each, and its clock."""

    control: Control
    clock: SimClock
    records: list[Record]

    def arrive(self, at: Seconds, request: Request) -> None:
        """Send a request."""
        self.clock.call_at(at, self.control.arrive, request)

    def finish(self, at: Seconds = 0.0) -> None:
        """Serve until all is answered."""
        self.control.start()
        self.clock.call_at(at, setattr, self.control, "draining", True)
        self.clock.run()
        self.control.close()

    def of(self, action: str) -> list[DecisionRecord]:
        """Decisions of a kind."""
        return [r for r in self.records if isinstance(r, DecisionRecord) and r.action == action]

    @property
    def requests(self) -> dict[int, RequestRecord]:
        """Records of requests by id."""
        return {r.request_id: r for r in self.records if isinstance(r, RequestRecord)}

    @property
    def migrations(self) -> list[MigrationRecord]:
        """Those that succeeded."""
        return [r for r in self.records if isinstance(r, MigrationRecord) and r.outcome == "migrated"]


def make_run(system: str, num_blocks: int = 10_000, num_servers: int = 4, **knobs: Any) -> Run:
    """Instances with so many KV blocks."""
    testbed = make_testbed(num_servers, exclusive=True)
    clock, backend = simulated_backend(testbed, 0)
    records: list[Record] = []
    setup = Setup(testbed=testbed, system=configured(system, knobs), deployments=(make_deployment(),), seed=0)
    scarce: Any = Scarce(backend.provisioner, num_blocks)
    return Run(build_control(setup, replace(backend, provisioner=scarce), records.append), clock, records)


def requests(
    n: int, num_prompt_tokens: int, num_output_tokens: int, first: int = 0, priority: int = 0
) -> list[Request]:
    """Alike, with ids from ``first`` on."""
    return [
        replace(request, request_id=first + request.request_id)
        for request in make_requests(n, num_prompt_tokens, num_output_tokens, priority=priority)
    ]


def test_instances_are_there_when_the_first_request_comes() -> None:
    run = make_run("llumnix")
    for request in requests(4, 64, 4):
        run.arrive(2.0, request)
    run.finish(3.0)
    assert [decision.at for decision in run.of("launch")] == [0.16] * 4
    assert not any(isinstance(record, StageRecord) for record in run.records)
    assert [run.requests[i].instance for i in range(4)] == [0, 1, 2, 3]  # each where nothing is yet


def test_requests_go_where_most_memory_per_request_is_free() -> None:
    # Two instances of 100 blocks. The first request takes 63 of one; (100 - 1) / 1 beats (100 - 64) / 1 thrice.
    run = make_run("infaas++", num_blocks=100, num_servers=2)
    run.arrive(2.0, requests(1, 1000, 100)[0])
    for index, request in enumerate(requests(2, 16, 100, first=1)):
        run.arrive(2.5 + index, request)
    run.finish(5.0)
    assert [run.requests[i].instance for i in range(3)] == [0, 1, 1]


def test_round_robin_goes_by_numbers_alone() -> None:
    run = make_run("round-robin", num_blocks=100, num_servers=2)
    for index, request in enumerate([*requests(1, 1000, 100), *requests(3, 16, 100, first=1)]):
        run.arrive(2.0 + index / 10, request)
    run.finish(5.0)
    assert [run.requests[i].instance for i in range(4)] == [0, 1, 0, 1]


def crowded(system: str, **knobs: Any) -> Run:
    """Three sequences on one instance of 60 blocks, which they outgrow, beside an empty one."""
    run = make_run(system, num_blocks=60, num_servers=2, dispatch="first", **knobs)
    for request in requests(3, 200, 260):
        run.arrive(2.0, request)
    run.finish(3.0)
    assert all(record.num_output_tokens == 260 for record in run.requests.values())
    return run


def test_migration_spares_a_preemption() -> None:
    with_it, without = crowded("llumnix"), crowded("llumnix", migration=False)
    assert sum(record.num_preemptions for record in with_it.requests.values()) == 0
    assert sum(record.num_preemptions for record in without.requests.values()) > 0
    assert len(with_it.migrations) == len(with_it.of("migrate")) > 0
    assert with_it.migrations[0].source == 0
    assert without.of("migrate") == []
    assert max(r.finished_at or 0.0 for r in with_it.requests.values()) < max(
        r.finished_at or 0.0 for r in without.requests.values()
    )


def test_the_artifact_moves_the_last_that_came_in_two_stages() -> None:
    run = crowded("llumnix", variant="artifact")
    assert (run.migrations[0].request_id, run.migrations[0].stages) == (2, 2)


def test_a_request_of_high_priority_jumps_the_queue() -> None:
    # Two at a time: 25 blocks of 60 each.
    order = {}
    for system in ("llumnix", "llumnix-base"):
        run = make_run(system, num_blocks=60, num_servers=1)
        for request in [*requests(4, 400, 60), *requests(1, 400, 60, first=4, priority=1)]:
            run.arrive(2.0, request)
        run.finish(3.0)
        ttft = {i: record.first_token_at or 0.0 for i, record in run.requests.items()}
        order[system] = sorted(ttft, key=lambda i: (ttft[i], i))
        assert ttft[order[system][0]] == ttft[order[system][1]] < ttft[order[system][2]]
    assert order == {"llumnix-base": [0, 1, 2, 3, 4], "llumnix": [0, 4, 1, 2, 3]}


@pytest.mark.parametrize(("system", "order"), [("llumnix", [2, 0, 1]), ("llumnix-base", [0, 1, 2])])
def test_a_request_of_high_priority_is_dispatched_first(system: str, order: list[int]) -> None:
    run = make_run(system, num_servers=1, there_at_start=False)
    for request in [*requests(2, 64, 4), *requests(1, 64, 4, first=2, priority=1)]:
        run.arrive(2.0, request)  # and waits for the instance
    run.finish(3.0)
    assert [decision.request_id for decision in run.of("dispatch")] == order


def test_room_is_made_around_a_request_of_high_priority() -> None:
    # All five begin on one instance, whose 1,500 tokens of normal requests leave with the headroom of the sixth.
    moved = {}
    for system in ("llumnix", "llumnix-base"):
        run = make_run(system, num_blocks=400, num_servers=2, dispatch="first")
        for request in [*requests(1, 600, 400, priority=1), *requests(5, 300, 400, first=1)]:
            run.arrive(2.0, request)
        run.finish(3.0)
        moved[system] = [record.request_id for record in run.migrations]
    assert moved["llumnix-base"] == []
    assert len(moved["llumnix"]) >= 2
    assert 0 not in moved["llumnix"]


def test_a_request_of_high_priority_stays_with_its_headroom() -> None:
    # Alone on an instance of 60 blocks, which is full by 60 - 160 / 16 = 50 of headroom from 11 blocks on.
    moved = {}
    for target_load in (160, 960):
        run = make_run("llumnix", num_blocks=60, num_servers=2, target_load=target_load)
        run.arrive(2.0, requests(1, 300, 200, priority=1)[0])
        run.finish(3.0)
        moved[target_load] = len(run.migrations)
    assert moved == {160: 0, 960: 0}


def test_requests_of_high_priority_leave_when_memory_is_short_without_any_headroom() -> None:
    # Three that outgrow 60 blocks, as in ``crowded``: their headroom of none is no reason, their KV is.
    for target_load in (160, 960):
        run = make_run("llumnix", num_blocks=60, num_servers=2, dispatch="first", target_load=target_load)
        for request in requests(3, 200, 260, priority=1):
            run.arrive(2.0, request)
        run.finish(3.0)
        assert run.migrations
        assert sum(record.num_preemptions for record in run.requests.values()) == 0


SCALING: dict[str, Any] = {
    "scaling": True,
    "num_instances": 2,
    "max_instances": 4,
    "scale_first_check": 5.0,
    "scale_interval": 5.0,
}


def test_instances_are_added_when_freeness_is_low_and_start_like_any_engine() -> None:
    run = make_run("llumnix", num_blocks=200, **SCALING)
    for index, request in enumerate(requests(24, 200, 600)):
        run.arrive(2.0 + index / 10, request)
    run.finish(60.0)
    launches = run.of("launch")
    assert [decision.at for decision in launches[:2]] == [0.16, 0.16]
    assert len(launches) == 4
    assert launches[2].at == pytest.approx(5.12)  # the first tick after the first check
    stages = [r.stage for r in run.records if isinstance(r, StageRecord) and r.instance == 2]
    assert stages == ["container", "libraries", "context", "fetch", "load", "profile", "engine"]


def test_no_more_instances_are_wanted_than_find_gpus() -> None:
    # Two GPUs and a load for more; then a sequence alone, for which the second instance goes and stays away.
    run = make_run("llumnix", num_blocks=200, num_servers=2, **SCALING)
    for index, request in enumerate([*requests(24, 200, 600), *requests(1, 100, 3000, first=24)]):
        run.arrive(2.0 + index / 10, request)
    run.finish(200.0)
    assert [len(run.of(action)) for action in ("launch", "retire")] == [2, 1]


@pytest.mark.parametrize("system", ["llumnix", "infaas++"])
def test_a_draining_instance_loses_nothing(system: str) -> None:
    # A long sequence on each of two instances of 10,000 blocks: one instance is enough.
    run = make_run(system, num_servers=2, **SCALING)
    for request in requests(2, 100, 1500):
        run.arrive(2.0, request)
    run.finish(100.0)
    (retired,) = run.of("retire")
    assert [record.num_output_tokens for record in run.requests.values()] == [1500, 1500]
    assert [record.num_preemptions for record in run.requests.values()] == [0, 0]
    if system == "llumnix":  # the sequence leaves, and the instance at once
        assert retired.at < 6.0
        assert [migration.source for migration in run.migrations] == [retired.instance]
    else:
        assert run.migrations == []
        ends = [r.finished_at for r in run.requests.values() if r.instance == retired.instance]
        assert retired.at == pytest.approx(ends[0], abs=1.0)
    assert run.control.cluster.instances[0].phase is Phase.READY


def test_who_has_lost_its_instance_goes_elsewhere_and_another_is_started() -> None:
    run = make_run("llumnix", num_servers=2)
    for request in requests(4, 64, 400):
        run.arrive(2.0, request)
    run.clock.call_at(5.0, lambda: run.control.lose(run.control.cluster.instances[0], "struck"))
    run.finish(30.0)
    assert [record.num_output_tokens for record in run.requests.values()] == [400] * 4
    assert {record.instance for record in run.requests.values()} == {1}
    assert [decision.at for decision in run.of("launch")] == [0.16, 0.16, 5.0]
    assert [instance.instance_id for instance in run.control.cluster.instances] == [1, 2]


def test_without_the_global_scheduler_requests_go_in_turn_and_nothing_moves() -> None:
    down: dict[str, Any] = {"scheduler_down_from": 1.0, "scheduler_down_until": 1000.0}
    run = make_run("llumnix", num_blocks=60, num_servers=2, **down)
    for index, request in enumerate([*requests(1, 700, 100), *requests(3, 16, 100, first=1)]):
        run.arrive(2.0 + index / 10, request)
    run.finish(5.0)
    assert [run.requests[i].instance for i in range(4)] == [0, 1, 0, 1]
    assert run.of("migrate") == []


@pytest.mark.parametrize(
    "knobs", [{"max_stages": 1}, {"interval": 0.0}, {"num_instances": 0}, {"last_stage_blocks": 0}]
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        configured("llumnix", knobs)


def test_the_baselines_differ_from_llumnix_in_what_they_lack() -> None:
    base, infaas, robin = (SYSTEMS[name].config for name in ("llumnix-base", "infaas++", "round-robin"))
    assert (base.migration, base.scheduling_priority, base.execution_priority) == (True, False, False)
    assert (infaas.migration, infaas.dispatch, infaas.scheduling_priority) == (False, "freeness", False)
    assert (robin.migration, robin.dispatch) == (False, "round_robin")
