"""HydraServe: stage graphs by technique, cold starts by hand, placement and claims of worked examples."""

from dataclasses import replace

import pytest

from serving.core.actions import Action, Launch
from serving.core.cluster import Cluster
from serving.core.stages import Loader, Work
from serving.policies import SYSTEMS, configured
from serving.policies.hydraserve import HydraServe, HydraServeConfig, start_graph
from serving.policies.hydraserve_size import Profile
from serving.records import DecisionRecord
from serving.testbed import Testbed
from serving.units import GB, Gbps
from tests.build import A10, V100, hold, make_cluster, make_deployment, make_requests, make_testbed, run, sent

SERIAL = HydraServeConfig(prefetch=False, stream=False, overlap=False, parallel=False)
ADAPTIVE = HydraServeConfig(sizing="adaptive")
MIXED = Testbed(servers=((A10, 2), (V100, 2)), num_stores=2, store_nic_rate=64 * Gbps, exclusive=False)


def waits(config: HydraServeConfig) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.after for stage in start_graph(config).stages}


def launches(actions: list[Action]) -> list[Launch]:
    return [action for action in actions if isinstance(action, Launch)]


def launch_one(config: HydraServeConfig, cluster: Cluster, num_held: int = 1, model: str = "llama2-7b") -> list[Launch]:
    sequences = hold(cluster, num_held, model)
    return launches(HydraServe(config).on_arrival(sequences[-1], cluster))


def slices(launch: Launch) -> list[tuple[str, float]]:
    return [(placement.server.name, placement.memory / GB) for placement in launch.placements]


def test_without_any_technique_every_stage_waits_for_the_one_before() -> None:
    assert waits(SERIAL) == {
        "container": (),
        "libraries": ("container",),
        "context": ("libraries",),
        "fetch": ("context",),
        "load": ("context", "fetch"),
        "profile": ("libraries", "load"),
        "engine": ("profile",),
    }


def test_without_any_technique_a_worker_starts_as_serverless_vllms_does() -> None:
    client = sent([(0.25, make_requests(1, 64, 4)[0])])
    ours = run(replace(SYSTEMS["hydraserve"], config=SERIAL), client)
    theirs = run("serverless_vllm", sent([(0.25, make_requests(1, 64, 4)[0])]))
    assert ours.records == theirs.records


def test_prefetch_starts_the_fetch_at_once_and_changes_nothing_else() -> None:
    assert waits(replace(SERIAL, prefetch=True)) == {**waits(SERIAL), "fetch": ()}


def test_stream_lets_the_load_follow_the_fetch_and_drops_the_profile_run() -> None:
    graph = start_graph(replace(SERIAL, prefetch=True, stream=True))
    load = next(stage for stage in graph.stages if stage.work is Work.LOAD)
    assert (load.after, load.streams, load.loader) == (("context",), "fetch", Loader.ENGINE)
    assert [stage.name for stage in graph.stages] == ["container", "libraries", "context", "fetch", "load", "engine"]
    assert graph.stages[-1].after == ("libraries", "load")


def test_overlap_makes_the_context_beside_the_imports_and_loads_directly() -> None:
    graph = start_graph(HydraServeConfig())
    load = next(stage for stage in graph.stages if stage.work is Work.LOAD)
    assert waits(HydraServeConfig())["context"] == ("container",)
    assert (load.streams, load.loader) == ("fetch", Loader.DIRECT)


def test_a_single_worker_with_a_large_model_is_bound_by_its_fetch() -> None:
    outcome = run("hydraserve_with_single_worker", sent([(0.25, make_requests(1, 64, 1)[0])]))
    # 13.4768 GB / 2 GB/s = 6.7384; last tensor 0.0328; engine 0.25; first step 0.125 + 13.4768 / 450 = 0.0299
    assert outcome.stages()["fetch"][0] == 0.25
    assert outcome.stages()["load"] == pytest.approx((1.75, 0.25 + 6.7712), abs=1e-4)
    assert outcome.requests[0].first_token_at == pytest.approx(0.25 + 7.0212 + 0.1549, abs=2e-4)


def test_a_single_worker_with_a_small_model_is_bound_by_its_runtime() -> None:
    request = make_requests(1, 64, 1, model="opt-2.7b")[0]
    outcome = run("hydraserve_with_single_worker", sent([(0.25, request)]), make_deployment("opt-2.7b"))
    # container 1 and libraries 2 outlast 5.30 GB / 2 = 2.65 s; engine 0.25; 7 + 5 = 12 of 22 GB are 54 %, floored to 50
    assert outcome.stages()["load"][1] < outcome.stages()["libraries"][1] == 3.25
    assert outcome.stages()["engine"] == (3.25, 3.5)
    assert outcome.requests[0].first_token_at == pytest.approx(3.5 + 0.125 + 5.303 / 450 / 0.5, abs=1e-4)


def test_a_group_of_four_starts_in_parallel_and_infers_stage_by_stage() -> None:
    outcome = run("hydraserve", sent([(0.25, make_requests(1, 64, 1)[0])]))
    # 3.5003 GB at the ends take 1.7501 s, so the runtime decides: engine from 3 to 3.25. First steps 4 x 0.125; 5 of
    # 22 GB are 22 %, floored to 20: 13.4768 / 450 / 0.2 = 0.1497 over all stages; 3 hops of 1 ms.
    assert [outcome.stages(rank=rank)["engine"] for rank in range(4)] == [(3.25, 3.5)] * 4
    assert outcome.stages(rank=3)["fetch"] == pytest.approx((0.25, 2.0001), abs=1e-4)
    assert outcome.requests[0].first_token_at == pytest.approx(3.5 + 0.5 + 0.1497 + 0.003, abs=1e-4)


def test_static_sizing_takes_four_low_memory_workers_and_one_for_small_models() -> None:
    (group,) = launch_one(HydraServeConfig(), make_cluster())
    assert slices(group) == [(f"a10x1-{index}", 5) for index in range(4)]  # ceil(18 / 4); 17 GB stay free
    assert group.max_sequences == 32
    cluster = make_cluster(make_deployment("opt-2.7b"))  # 7 GB are not above 10
    (single,) = launch_one(HydraServeConfig(), cluster, model="opt-2.7b")
    assert slices(single) == [("a10x1-0", 12)]
    assert single.max_sequences == 8


def test_full_workers_take_the_best_servers_that_hold_the_model_and_low_ones_the_next() -> None:
    cluster = make_cluster(make_deployment("llama2-13b", ttft_slo=12.0), testbed=MIXED)
    (group,) = launch_one(ADAPTIVE, cluster, model="llama2-13b")
    # 25 / 2 + 2 = 14.5 s is late, 25 / 4 + 2 = 8.25 s is not: s = 2, w = 1. 30 GB fit V100 only and leave 2, which are
    # taken; 15 GB go to the first server, whose 22 GB leave 7, which stay.
    assert slices(group) == [("v100x4-0", 32), ("a10x1-0", 15)]


def test_no_two_stages_share_a_server() -> None:
    cluster = make_cluster(testbed=make_testbed(3, V100))
    assert launch_one(HydraServeConfig(), cluster) == []  # four stages, three servers, twelve GPUs


def test_a_launch_claims_the_nics_so_that_the_next_goes_elsewhere() -> None:
    deployment = make_deployment(ttft_slo=7.5)
    cluster = make_cluster(deployment, make_deployment("opt-6.7b", ttft_slo=7.5))
    controller = HydraServe(ADAPTIVE)
    (first,) = launches(controller.on_arrival(hold(cluster, 1)[0], cluster))
    assert [server for server, _ in slices(first)] == ["a10x1-0", "a10x1-1"]
    # 13 / 2 / 0.9 = 7.22 GB within 7.5 - 2 = 5.5 s: one more fetch would leave 1 GB/s, too little
    (second,) = launches(controller.on_arrival(hold(cluster, 1, "opt-6.7b")[0], cluster))
    assert [server for server, _ in slices(second)] == ["a10x1-2", "a10x1-3"]


@pytest.mark.parametrize(("ttft_slo", "num_launches"), [(5.5, 0), (5.7, 1)])
def test_a_stage_claims_a_ninth_more_than_its_part_since_stages_are_not_equally_large(
    ttft_slo: float, num_launches: int
) -> None:
    # 13 / 4 / 0.9 = 3.61 GB at a shared 1 GB/s: 5.5 - 2 s are too few, 5.7 - 2 s are enough
    deployments = (make_deployment(ttft_slo=ttft_slo), make_deployment("opt-6.7b"))
    cluster = make_cluster(*deployments, testbed=make_testbed(4, V100))
    controller = HydraServe(HydraServeConfig())
    assert len(launches(controller.on_arrival(hold(cluster, 1)[0], cluster))) == 1
    assert len(launches(controller.on_arrival(hold(cluster, 1, "opt-6.7b")[0], cluster))) == num_launches


def test_claims_are_given_back_when_the_group_is_ready() -> None:
    # Fetches are faster than the NIC is believed to be, so the group is ready at 3.25 s, before the 7.22 / 2 = 3.6 s
    # after which its claims would be believed to have ended.
    first, second = make_requests(1, 64, 1)[0], make_requests(2, 64, 1, model="opt-6.7b")[1]
    outcome = run(
        replace(SYSTEMS["hydraserve"], config=ADAPTIVE),
        sent([(0.0, first), (3.4, second)]),
        make_deployment(ttft_slo=7.5),
        make_deployment("opt-6.7b", ttft_slo=7.5),
        testbed=make_testbed(4, replace(V100, fetch_rate=8 * GB)),
    )
    details = [record.detail for record in outcome.records if isinstance(record, DecisionRecord)]
    assert [detail for detail in details if " on " in detail] == [
        "instance 0 of llama2-7b on v100x4-0/gpu0 18 GB, v100x4-1/gpu0 9 GB",
        "instance 1 of opt-6.7b on v100x4-0/gpu1 18 GB, v100x4-1/gpu0 9 GB",
    ]


@pytest.mark.parametrize(
    ("num_held", "sizes"),
    # ceil(n / 8) workers in groups of at most 4, each with as many full-memory workers as required
    [(8, [1]), (9, [2]), (32, [4]), (40, [4, 1]), (64, [4, 4])],
)
def test_workers_start_in_groups_of_at_most_four(num_held: int, sizes: list[int]) -> None:
    cluster = make_cluster(make_deployment(ttft_slo=60.0), testbed=make_testbed(8))
    started = launch_one(ADAPTIVE, cluster, num_held)
    assert [len(launch.placements) for launch in started] == sizes
    assert all(placement.memory == 22 * GB for launch in started for placement in launch.placements)


def test_only_warm_unpipelined_service_is_profiled() -> None:
    grouped = run("hydraserve", sent([(0.0, make_requests(1, 64, 5)[0])])).control.controller
    single = run("hydraserve_with_single_worker", sent([(0.0, make_requests(1, 64, 5)[0])])).control.controller
    assert isinstance(grouped, HydraServe)
    assert isinstance(single, HydraServe)
    assert grouped.profiles == {}
    learned = single.profiles["llama2-7b"]
    assert learned.tpot == pytest.approx(13.4768 / 450, rel=1e-2)  # a little more: KV is read as well


@pytest.mark.parametrize(("variant", "num_workers"), [("paper", 3), ("artifact", 2)])
def test_the_artifact_forgets_the_prefill_in_its_prediction(variant: str, num_workers: int) -> None:
    # two stages take 3.25 + 2 s; 2 s of prefill more, slowed down by 1.5, or by 1 when both are full, are too many
    # for an SLO of 7 s; three stages take 2.167 + 2 + 2 s with three full workers
    controller = HydraServe(replace(ADAPTIVE, variant=variant))
    controller.profiles["llama2-7b"] = Profile(num_prefills=1, prefill=2.0)
    cluster = make_cluster(make_deployment(ttft_slo=7.0))
    (launch,) = launches(controller.on_arrival(hold(cluster, 1)[0], cluster))
    assert len(launch.placements) == num_workers


@pytest.mark.parametrize(("name", "value"), [("sizing", "dynamic"), ("variant", "code")])
def test_an_unknown_choice_is_refused_with_the_known_ones(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected \w+( or \w+)+, got '{value}'"):
        configured("hydraserve", {name: value})
