"""What the serverless controllers share: hand-out, wants, waits, retirement."""

from collections import deque

import pytest

from serving.core.actions import Dispatch, Retire
from serving.core.clock import SimClock
from serving.core.cluster import Cluster
from serving.core.instance import Instance, Phase
from serving.policies.autoscale import hand_out, oldest_wait, retire_idle, workers_wanted
from tests.build import hold, make_cluster, make_instance, make_sequence


def put_instance(cluster: Cluster, *, seats: int = 2, phase: Phase = Phase.READY, idle_since: float = 0.0) -> Instance:
    instance = make_instance(instance_id=len(cluster.instances), max_sequences=seats).instance
    instance.phase = phase
    instance.idle_since = idle_since if phase is Phase.READY else None
    cluster.instances.append(instance)
    return instance


def wait_until(cluster: Cluster, when: float) -> None:
    assert isinstance(cluster.clock, SimClock)
    cluster.clock.call_at(when, lambda: None)
    cluster.clock.run()


def test_held_sequences_go_oldest_first_to_ready_instances_in_order_of_launch() -> None:
    cluster = make_cluster()
    first, _, third = put_instance(cluster), put_instance(cluster, phase=Phase.STARTING), put_instance(cluster)
    first.waiting.append(make_sequence())  # one of its two seats is taken
    a, b, c, _ = hold(cluster, 4)
    given = [
        (action.sequence, action.instance) for action in hand_out("llama2-7b", cluster) if isinstance(action, Dispatch)
    ]
    assert given == [(a, first), (b, third), (c, third)]


def test_nothing_is_handed_out_of_an_empty_queue_or_to_another_model() -> None:
    cluster = make_cluster()
    put_instance(cluster)
    assert hand_out("llama2-7b", cluster) == []
    hold(cluster, 1, "opt-2.7b")
    assert hand_out("opt-2.7b", cluster) == []


@pytest.mark.parametrize(
    ("held", "handed_out", "starting_seats", "wanted"),
    [
        (1, 0, 0, 1),
        (8, 0, 0, 1),
        (9, 0, 0, 2),  # ceil(9 / 8)
        (9, 1, 0, 1),
        (20, 0, 8, 2),  # ceil((20 - 8) / 8)
        (5, 0, 8, 0),
        (0, 0, 0, 0),
        (33, 0, 0, 5),
    ],
)
def test_one_worker_is_wanted_per_eight_sequences_that_nobody_will_take(
    held: int, handed_out: int, starting_seats: int, wanted: int
) -> None:
    cluster = make_cluster()
    hold(cluster, held)
    if starting_seats:
        put_instance(cluster, seats=starting_seats, phase=Phase.STARTING)
    put_instance(cluster, seats=100)  # a ready one does not count: what it takes is handed out
    assert workers_wanted("llama2-7b", cluster, handed_out, 8) == wanted


def test_the_oldest_held_sequence_tells_the_wait() -> None:
    cluster = make_cluster()
    assert oldest_wait("llama2-7b", cluster) == 0.0
    hold(cluster, 1)
    wait_until(cluster, 4.0)
    hold(cluster, 1)
    assert oldest_wait("llama2-7b", cluster) == 4.0
    cluster.held["llama2-7b"] = deque()
    assert oldest_wait("llama2-7b", cluster) == 0.0


def test_instances_retire_when_idle_for_longer_than_the_grace_period() -> None:
    cluster = make_cluster()
    put_instance(cluster, idle_since=5.0)
    long_idle = put_instance(cluster, idle_since=4.9)
    put_instance(cluster, phase=Phase.STARTING)
    busy = put_instance(cluster, idle_since=0.0)
    busy.idle_since = None
    wait_until(cluster, 35.0)
    retired = [action.instance for action in retire_idle(cluster, 30.0) if isinstance(action, Retire)]
    assert retired == [long_idle]


def test_an_idle_instance_does_not_retire_under_sequences_that_it_could_serve() -> None:
    cluster = make_cluster()
    put_instance(cluster, idle_since=0.0)
    hold(cluster, 1)
    wait_until(cluster, 35.0)
    assert retire_idle(cluster, 30.0) == []
