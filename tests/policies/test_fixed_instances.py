"""Fixed instances: so many are started, each sequence goes to the emptiest, and the lost are started again."""

from dataclasses import replace

import pytest

from serving.core.actions import Dispatch, Launch
from serving.core.instance import Phase
from serving.core.kv import BlockPool
from serving.policies.fixed_instances import FixedInstances, FixedInstancesConfig
from tests.build import hold, make_cluster, make_instance, make_requests, make_sequence, make_testbed, run, sent


def controller(**knobs: int) -> FixedInstances:
    return FixedInstances(replace(FixedInstancesConfig(), **knobs))  # type: ignore[arg-type]


def test_instances_start_without_being_asked_for_each_stage_on_a_gpu_of_its_own() -> None:
    cluster = make_cluster(testbed=make_testbed(5, exclusive=True))
    actions = controller(num_instances=2, num_stages=2).on_interval(cluster)
    launches = [action for action in actions if isinstance(action, Launch)]
    names = [[placement.gpu.name for placement in launch.placements] for launch in launches]
    assert names == [["a10x1-0/gpu0", "a10x1-1/gpu0"], ["a10x1-2/gpu0", "a10x1-3/gpu0"]]


def test_no_more_instances_start_than_find_gpus() -> None:
    cluster = make_cluster(testbed=make_testbed(3, exclusive=True))
    assert len(controller(num_instances=2, num_stages=2).on_interval(cluster)) == 1


def test_held_sequences_fill_the_emptiest_instance_first_and_the_rest_stay_held() -> None:
    cluster = make_cluster()
    instances = [make_instance(instance_id=index, max_sequences=2).instance for index in range(2)]
    for instance in instances:
        instance.open(BlockPool(8, 16))
        cluster.instances.append(instance)
    instances[0].add(make_sequence(16, 1, 99))
    hold(cluster, 5)
    actions = controller().on_ready(instances[0], cluster)
    assert [action.instance.instance_id for action in actions if isinstance(action, Dispatch)] == [1, 0, 1]


def test_all_requests_are_answered_by_both_instances() -> None:
    requests = make_requests(8, 64, 50)
    system = replace(_system(), config=FixedInstancesConfig(num_instances=2))
    outcome = run(system, sent([(60.0, request) for request in requests]))
    assert [record.instance for record in outcome.requests] == [0, 1] * 4
    assert outcome.control.num_launched == 2


def test_starts_that_keep_failing_wait_for_a_request() -> None:
    cluster = make_cluster(testbed=make_testbed(1, exclusive=True))
    chosen = controller()
    for _ in range(3):
        assert len(chosen.on_interval(cluster)) == 1
        starting = make_instance(phase=Phase.STARTING).instance
        starting.pool = None
        assert chosen.on_change("llama2-7b", cluster, starting) == []  # not at once
    assert chosen.on_interval(cluster) == []
    (sequence,) = hold(cluster, 1)
    assert len(chosen.on_arrival(sequence, cluster)) == 1
    assert len(chosen.on_interval(cluster)) == 1


@pytest.mark.parametrize("name", ["num_instances", "num_stages", "max_sequences", "max_step_tokens"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        controller(**{name: 0})


def _system():  # type: ignore[no-untyped-def]
    from serving.policies import SYSTEMS

    return SYSTEMS["fixed_instances"]
