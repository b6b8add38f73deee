"""Serverless vLLM: a strictly serial cold start by hand, and first-fit placement."""

import pytest

from serving.core.actions import Launch
from serving.core.cluster import Cluster
from serving.policies.serverless_vllm import ServerlessVllm, ServerlessVllmConfig
from serving.units import GB
from tests.build import V100, hold, make_cluster, make_requests, make_testbed, run, sent


def launches(cluster: Cluster) -> list[Launch]:
    actions = ServerlessVllm(ServerlessVllmConfig()).on_interval(cluster)
    return [action for action in actions if isinstance(action, Launch)]


def test_a_cold_start_is_the_sum_of_its_stages() -> None:
    outcome = run("serverless_vllm", sent([(0.25, make_requests(1, 64, 1)[0])]))
    # container 1, libraries 2, context 0.5, fetch 13.4768 GB / 2 = 6.7384, the engine's loader at 1 GB/s 13.4768,
    # profile on a whole A10 41.40 TFLOP / 62.5 = 0.6624, engine 0.25; then the first step, 0.125 + 13.4768 / 450.
    ends = {"container": 1, "libraries": 3, "context": 3.5, "fetch": 10.2384, "load": 23.7152, "profile": 24.3777}
    for stage, end in {**ends, "engine": 24.6277}.items():
        assert outcome.stages()[stage][1] == pytest.approx(0.25 + end, abs=1e-4)
    record = outcome.requests[0]
    assert record.first_token_at is not None
    assert record.first_token_at - record.arrived_at == pytest.approx(24.6277 + 0.15495, abs=1e-4)


def test_a_slice_of_a_gpu_profiles_with_its_share_of_the_compute() -> None:
    outcome = run("serverless_vllm", sent([(0.0, make_requests(1, 64, 1)[0])]), testbed=make_testbed(1, V100))
    # 18 of 32 GB are 56 %, floored to 55: 41.40 / 62.5 / 0.55 = 1.2044
    start, end = outcome.stages()["profile"]
    assert end - start == pytest.approx(1.2044, abs=1e-4)


def test_a_warm_instance_serves_the_next_request_at_once() -> None:
    first, second = make_requests(2, 64, 1)
    outcome = run("serverless_vllm", sent([(0.0, first), (40.0, second)]))
    assert outcome.requests[1].first_token_at == pytest.approx(40.0 + 13.4768 / 450, abs=1e-4)
    assert outcome.control.num_launched == 1


def test_after_the_grace_period_the_next_request_is_cold_again() -> None:
    first, second = make_requests(2, 64, 1)
    # the first answer ends at 24.78; the reaper's tick at 55 finds 30.2 s of idleness
    assert run("serverless_vllm", sent([(0.0, first), (54.9, second)])).control.num_launched == 1
    assert run("serverless_vllm", sent([(0.0, first), (55.1, second)])).control.num_launched == 2


def test_the_first_server_in_order_that_holds_the_model_is_taken_whatever_its_network_does() -> None:
    cluster = make_cluster()
    hold(cluster, 1)
    cluster.servers[0].gpus[0].memory.claim("tenant", 5 * GB)  # 17 GB left, 18 needed
    (launch,) = launches(cluster)
    assert launch.placements[0].server is cluster.servers[1]
    assert launch.placements[0].memory == 22 * GB


@pytest.mark.parametrize(("num_held", "servers"), [(8, [0]), (9, [0, 1]), (17, [0, 1, 2]), (100, [0, 1, 2, 3])])
def test_one_worker_starts_per_eight_held_sequences_while_there_is_room(num_held: int, servers: list[int]) -> None:
    cluster = make_cluster()
    hold(cluster, num_held)
    assert [launch.placements[0].server for launch in launches(cluster)] == [cluster.servers[i] for i in servers]


def test_two_workers_share_a_server_on_two_of_its_gpus() -> None:
    cluster = make_cluster(testbed=make_testbed(2, V100))
    hold(cluster, 16)
    gpus = [launch.placements[0].gpu for launch in launches(cluster)]
    assert gpus == list(cluster.servers[0].gpus[:2])  # 32 - 18 = 14 GB hold no second worker
