"""ServerlessLLM: ticks, whole GPUs, the fastest server, and cold starts by hand."""

from dataclasses import replace
from math import ceil

import pytest

from serving.core.actions import Action, Launch
from serving.core.cluster import Cluster
from serving.policies.serverlessllm import ServerlessLLM, ServerlessLLMConfig
from serving.records import DecisionRecord, StageRecord
from serving.units import GB
from tests.build import A10, hold, make_cluster, make_deployment, make_requests, make_testbed, run, sent, with_cache

CACHED = make_testbed(1, with_cache(A10, 16.0), exclusive=True)


def tick(cluster: Cluster) -> list[Action]:
    return ServerlessLLM(ServerlessLLMConfig()).on_interval(cluster)


def launches(actions: list[Action]) -> list[Launch]:
    return [action for action in actions if isinstance(action, Launch)]


def test_a_first_start_fetches_and_a_second_one_finds_the_weights_in_the_pool() -> None:
    first, second = make_requests(2, 64, 1)
    outcome = run("serverlessllm_with_cached_model", sent([(0.25, first), (60.25, second)]), testbed=CACHED)
    # The tick at 1: libraries to 3, context to 3.5. Up to 1 s in the load queue, then 13.4768 GB / 2 = 6.7384 s of
    # fetch; the last tensor (262.1 MB at 8 GB/s) 0.0328; profile 3072 tokens, 41.40 TFLOP / 62.5 = 0.6624; engine 0.25;
    # up to 1 s until the load balancer sees it; first step 0.125 + 13.4768 / 450 = 0.15495.
    stages = outcome.stages(0)
    assert stages["fetch"][0] == pytest.approx(3.5)
    assert 10.2384 < stages["fetch"][1] < 11.2384
    assert stages["engine"][1] - stages["fetch"][1] == pytest.approx(0.0328 + 0.6624 + 0.25, abs=1e-4)
    assert 0.0 < stages["load balancer"][1] - stages["engine"][1] < 1.0
    assert outcome.requests[0].first_token_at == pytest.approx(stages["load balancer"][1] + 0.15495, abs=1e-4)
    # Retired 30 s after the answer. The tick at 61: to 63.5 as before, nothing to fetch; load 13.4768 / 8 = 1.6846;
    # profile 0.6624; engine 0.25: ready at 66.0970, and seen within a second.
    stages = outcome.stages(1)
    assert stages["fetch"] == pytest.approx((63.5, 63.5))
    assert stages["load"] == pytest.approx((63.5, 65.1846), abs=1e-4)
    assert stages["engine"][1] == pytest.approx(66.0970, abs=1e-4)
    assert outcome.requests[1].first_token_at == pytest.approx(stages["load balancer"][1] + 0.15495, abs=1e-4)


def test_a_request_that_comes_as_the_grace_period_ends_is_served_by_the_idle_instance() -> None:
    first, second = make_requests(2, 64, 1)
    answered_at = run("serverlessllm", sent([(0.25, first)]), testbed=CACHED).requests[0].finished_at
    assert answered_at is not None
    tick_of_retirement = ceil(answered_at + 30.0)
    # at that tick it has been idle for more than 30 s, but a request came just before
    outcome = run("serverlessllm", sent([(0.25, first), (tick_of_retirement - 0.01, second)]), testbed=CACHED)
    assert [record.instance for record in outcome.requests] == [0, 0]
    assert outcome.requests[1].dispatched_at == tick_of_retirement


def test_nothing_happens_between_ticks() -> None:
    cluster = make_cluster(testbed=make_testbed(exclusive=True))
    controller = ServerlessLLM(ServerlessLLMConfig())
    (sequence,) = hold(cluster, 1)
    assert controller.on_arrival(sequence, cluster) == []
    assert controller.on_finish(sequence, cluster) == []
    assert controller.interval == 1.0


def test_a_launch_takes_a_whole_gpu() -> None:
    cluster = make_cluster(make_deployment("opt-2.7b"), testbed=make_testbed(exclusive=True))
    hold(cluster, 1, "opt-2.7b")
    (launch,) = launches(tick(cluster))
    assert (launch.placements[0].memory, launch.max_sequences) == (22 * GB, 8)
    assert launch.keep_in_host_memory


@pytest.mark.parametrize(("num_held", "num_launches"), [(0, 0), (1, 1), (8, 1), (9, 1), (100, 1)])
def test_at_most_one_instance_of_a_model_starts_per_tick(num_held: int, num_launches: int) -> None:
    cluster = make_cluster(testbed=make_testbed(exclusive=True))
    hold(cluster, num_held)
    assert len(launches(tick(cluster))) == num_launches


def test_two_models_start_in_one_tick_on_two_servers() -> None:
    cluster = make_cluster(make_deployment(), make_deployment("opt-2.7b"), testbed=make_testbed(exclusive=True))
    hold(cluster, 1)
    hold(cluster, 1, "opt-2.7b")
    started = launches(tick(cluster))
    assert [launch.placements[0].server.name for launch in started] == ["a10x1-0", "a10x1-1"]


def test_the_server_that_holds_the_weights_is_the_fastest() -> None:
    cluster = make_cluster(testbed=make_testbed(kind=with_cache(A10, 16.0), exclusive=True))
    cache = cluster.servers[2].cache
    assert cache is not None
    cache.open("llama2-7b", 13 * GB).complete = True
    hold(cluster, 1)
    (launch,) = launches(tick(cluster))  # 13 / 8 = 1.6 s there, 13 / 2 = 6.5 s elsewhere
    assert launch.placements[0].server is cluster.servers[2]
    assert launch.placements[0].from_cache


def test_what_a_server_is_loading_already_counts_as_its_queue() -> None:
    kind = replace(with_cache(A10, 40.0), num_gpus=2)
    deployments = (make_deployment(), make_deployment("opt-2.7b"), make_deployment("opt-6.7b"))
    outcome = run(
        "serverlessllm",
        sent([(0.25, make_requests(1)[0]), (1.25, make_requests(2, model="opt-2.7b")[1])]),
        *deployments,
        testbed=make_testbed(2, kind, exclusive=True),
    )
    # the second model would wait for 13 GB on the first server, (7 + 13) / 2 = 10 s, and has 3.5 s on the other
    second = [record for record in outcome.records if isinstance(record, StageRecord) and record.instance == 1]
    assert {record.server for record in second} == {"a10x1-1"}


def test_without_a_free_gpu_sequences_stay_held() -> None:
    cluster = make_cluster(testbed=make_testbed(1, exclusive=True))
    cluster.servers[0].gpus[0].memory.claim("tenant", 1 * GB)
    hold(cluster, 3)
    assert tick(cluster) == []


def test_the_load_balancer_hands_out_before_the_autoscaler_counts() -> None:
    first, second = make_requests(2, 64, 300)
    outcome = run("serverlessllm", sent([(0.25, first), (13.5, second)]), testbed=CACHED)
    # the second comes while the first is served: 2 requests, one instance, no other is started
    assert [record.instance for record in outcome.requests] == [0, 0]
    assert outcome.requests[1].dispatched_at == 14.0
    assert outcome.control.num_launched == 1


def test_requests_that_are_being_served_count_towards_the_instances_wanted() -> None:
    kind = with_cache(A10, 16.0)
    requests = make_requests(9, 64, 600)
    timed = [*[(0.25, request) for request in requests[:8]], (14.0, requests[8])]
    outcome = run("serverlessllm", sent(timed), testbed=make_testbed(2, kind, exclusive=True))
    # eight fill the first instance; the ninth makes ceil(9 / 8) = 2
    assert outcome.control.num_launched == 2
    assert outcome.requests[8].instance == 1


def test_a_model_that_the_pool_has_no_room_for_waits_until_what_loads_there_can_be_evicted() -> None:
    kind = replace(with_cache(A10, 16.0), num_gpus=2)
    llama, opt = make_requests(1)[0], make_requests(2, model="opt-6.7b")[1]
    outcome = run(
        "serverlessllm",
        sent([(0.25, llama), (0.5, opt)]),
        make_deployment(),
        make_deployment("opt-6.7b"),
        testbed=make_testbed(1, kind, exclusive=True),
    )
    # 13.5 and 13.3 GB do not fit 16 GiB together: the second launch comes when the first has loaded
    assert all(record.finished_at is not None for record in outcome.requests)
    assert outcome.stages(1)["libraries"][0] >= outcome.stages(0)["engine"][1]


def test_two_models_start_in_one_tick_on_two_gpus_of_one_server() -> None:
    kind = replace(with_cache(A10, 40.0), num_gpus=2)
    cluster = make_cluster(
        make_deployment(), make_deployment("opt-2.7b"), testbed=make_testbed(1, kind, exclusive=True)
    )
    hold(cluster, 1)
    hold(cluster, 1, "opt-2.7b")
    hold(cluster, 1, "llama2-7b")  # a second sequence wants no second instance
    gpus = [launch.placements[0].gpu.name for launch in launches(tick(cluster))]
    assert gpus == ["a10x1-0/gpu0", "a10x1-0/gpu1"]


def test_what_a_tick_starts_counts_as_queue_for_its_other_models() -> None:
    kind = replace(with_cache(A10, 40.0), num_gpus=2)
    models = ("llama2-7b", "opt-6.7b", "opt-2.7b")
    cluster = make_cluster(*map(make_deployment, models), testbed=make_testbed(2, kind, exclusive=True))
    for model in models:
        hold(cluster, 1, model)
    servers = [launch.placements[0].server.name for launch in launches(tick(cluster))]
    assert servers == ["a10x1-0", "a10x1-1", "a10x1-0"]  # 13 / 2 s on either; the third behind 13 GB on either


def test_a_tick_does_not_promise_more_of_a_pool_than_there_is() -> None:
    kind = replace(with_cache(A10, 16.0), num_gpus=2)
    cluster = make_cluster(
        make_deployment(), make_deployment("opt-6.7b"), testbed=make_testbed(1, kind, exclusive=True)
    )
    cache = cluster.servers[0].cache
    assert cache is not None
    entry = cache.open("opt-6.7b", 13.3 * GB)
    entry.complete = True
    cache.close(entry)
    hold(cluster, 1)
    hold(cluster, 1, "opt-6.7b")  # is there, but must make room for the other, which is read then
    assert [launch.model for launch in launches(tick(cluster))] == ["llama2-7b"]


def test_the_gpu_of_a_retiring_instance_is_free_at_the_same_tick() -> None:
    first, second = make_requests(1)[0], make_requests(2, model="opt-2.7b")[1]
    outcome = run(
        "serverlessllm",
        sent([(0.25, first), (20.0, second)]),
        make_deployment(),
        make_deployment("opt-2.7b"),
        testbed=make_testbed(1, with_cache(A10, 40.0), exclusive=True),
    )
    decided = [(r.action, r.at) for r in outcome.records if isinstance(r, DecisionRecord) and r.action != "dispatch"]
    retired_at = decided[1][1]
    assert decided[1:] == [("retire", retired_at), ("launch", retired_at)]
