"""HydraServe and the sequences that wait: how long they are taken to have waited, when they are tried again; and which
of those served its profile learns from."""

from collections import deque
from dataclasses import replace

from serving.core.actions import Dispatch, Launch
from serving.core.instance import Instance
from serving.core.request import Sequence
from serving.policies import SYSTEMS
from serving.policies.autoscale import oldest_wait
from serving.policies.hydraserve import HydraServe, HydraServeConfig
from serving.records import DecisionRecord
from serving.units import GB
from tests.build import (
    V100,
    hold,
    make_cluster,
    make_deployment,
    make_instance,
    make_requests,
    make_sequence,
    make_testbed,
    make_workers,
    run,
    sent,
)

ADAPTIVE = HydraServeConfig(sizing="adaptive")


def test_who_is_handed_out_now_waits_no_longer() -> None:
    cluster = make_cluster(make_deployment(ttft_slo=7.5))
    queue = cluster.held["llama2-7b"] = deque([Sequence(make_requests(1)[0], 0.0)])
    cluster.clock.call_at(6.0, lambda: None)
    cluster.clock.run()  # type: ignore[attr-defined]
    bench = make_instance(workers=make_workers(cluster), max_sequences=1, clock=cluster.clock)
    cluster.instances.append(bench.instance)
    hold(cluster, 8)
    assert oldest_wait("llama2-7b", cluster) == 6.0
    assert oldest_wait("llama2-7b", cluster, 1) == 0.0
    # The oldest gets the seat. The others have not waited: two workers meet 7.5 s, 13 / (2 x 2) + 2 = 5.25; after 6 s
    # nothing would, and one worker would be started.
    dispatch, launch = HydraServe(ADAPTIVE).on_arrival(queue[-1], cluster)
    assert isinstance(dispatch, Dispatch) and dispatch.sequence is queue[0]
    assert isinstance(launch, Launch) and len(launch.placements) == 2


def test_models_that_wait_for_bandwidth_are_tried_again_when_a_start_gives_its_back() -> None:
    # One server; either model fetches a planned 20 GB in 10 s at best, of 11 s that its SLO leaves: not two at once.
    deployments = [make_deployment(model, size=20 * GB, ttft_slo=13.0) for model in ("llama2-7b", "opt-6.7b")]
    first, second = make_requests(1)[0], make_requests(2, model="opt-6.7b")[1]
    outcome = run(
        replace(SYSTEMS["hydraserve"], config=ADAPTIVE),
        sent([(0.25, first), (0.5, second)]),
        *deployments,
        testbed=make_testbed(1, V100),
    )
    launched = [r.at for r in outcome.records if isinstance(r, DecisionRecord) and r.action == "launch"]
    ready_at = outcome.requests[0].dispatched_at
    assert ready_at is not None and ready_at % 1.0 != 0.0
    assert launched == [0.25, ready_at]


def observed(instance: Instance, dispatched_at: float) -> bool:
    """Whether a profile is learnt from a sequence that the instance has served."""
    cluster, controller = make_cluster(), HydraServe(ADAPTIVE)
    sequence = make_sequence()
    sequence.instance, sequence.dispatched_at = instance, dispatched_at
    sequence.token_times += [20.0, 20.5]
    controller.on_finish(sequence, cluster)
    return "llama2-7b" in controller.profiles


def test_a_profile_learns_from_what_began_on_a_whole_worker() -> None:
    bench = make_instance()
    bench.instance.opened_at = 10.0
    assert observed(bench.instance, 10.0)
    assert not observed(
        bench.instance, 9.5
    )  # it began in the pipeline that this worker comes from, and moved or began anew
    pipeline = make_instance(workers=make_workers(make_cluster(), 2))
    assert not observed(pipeline.instance, 10.0)
