"""Striped: hand-computed instants at which bytes that come over two storage servers have arrived."""

from dataclasses import replace

import pytest

from serving.core.clock import SimClock
from serving.core.hardware import Link
from serving.sim.fair_share import FairShare, SimTransfer
from serving.sim.striped import Striped
from serving.sim.transport import SimTransport
from serving.units import GB, Gbps
from tests.build import A10, STARTUP, make_cluster, make_testbed, make_workers


def make(rates: tuple[float, ...], down: float, size: float) -> tuple[SimClock, list[SimTransfer], Striped]:
    """A transfer striped over storage servers of these rates, towards a server that takes in ``down``."""
    clock = SimClock()
    links = FairShare(clock)
    downlink = Link("down", down)
    share = size / len(rates)
    stripes = [links.move(share, (Link(f"up{i}", rate), downlink)) for i, rate in enumerate(rates)]
    return clock, stripes, Striped(clock, tuple(stripes))


def instants(clock: SimClock, striped: Striped, *marks: float) -> list[float]:
    """When each mark is reached, then when all is done."""
    seen: dict[object, float] = {}
    for signal in [*(striped.reached(mark) for mark in marks), striped.done]:
        signal.wait(lambda _, signal=signal: seen.setdefault(signal, clock.now))
    clock.run()
    return list(seen.values())


def test_two_stores_of_32_fill_a_server_of_64() -> None:
    # 8 units at 2 x 4 a second: half of it after 0.5 s, all after 1 s; one store alone would take 2 s
    clock, _, striped = make((4.0, 4.0), 8.0, 8.0)
    assert instants(clock, striped, 4.0) == [0.5, 1.0]


def test_the_first_bytes_are_there_when_the_slower_stripe_has_its_share() -> None:
    # 4 units a stripe, at 4 and at 1 a second: of the first 4 bytes the slow stripe has its 2 after 2 s, all after 4 s
    clock, _, striped = make((4.0, 1.0), 8.0, 8.0)
    assert instants(clock, striped, 4.0) == [2.0, 4.0]


def test_what_has_arrived_is_said_at_once_and_more_than_the_size_is_the_size() -> None:
    clock, _, striped = make((4.0, 4.0), 8.0, 8.0)
    assert striped.reached(0.0).fired
    beyond = striped.reached(100.0)
    clock.run()
    assert beyond.fired
    assert striped.reached(8.0).fired


def test_cancelling_stops_every_stripe_and_nothing_fires_any_more() -> None:
    clock, stripes, striped = make((4.0, 1.0), 8.0, 8.0)
    mark = striped.reached(8.0)
    clock.run(until=1.5)  # the fast stripe is through
    striped.cancel()
    clock.run()
    assert [stripe.sent for stripe in stripes] == [4.0, 1.5]
    assert not striped.done.fired
    assert not mark.fired


def test_cancelling_what_is_done_changes_nothing() -> None:
    clock, _, striped = make((4.0, 4.0), 8.0, 8.0)
    clock.run()
    striped.cancel()
    assert striped.done.fired


@pytest.mark.parametrize(("store_gbps", "seconds_per_gb"), [(64, 1 / 8), (32, 1 / 8), (16, 1 / 4)])
def test_a_server_of_64_fetches_at_its_nic_or_at_what_two_stores_give(store_gbps: int, seconds_per_gb: float) -> None:
    wide = replace(A10, nic_rate=64 * Gbps, fetch_rate=8 * GB)  # from one store of 64, or halves from two of 32 or 16
    testbed = replace(make_testbed(1, wide), store_nic_rate=store_gbps * Gbps)
    cluster = make_cluster(testbed=testbed)
    (worker,) = make_workers(cluster)
    clock = SimClock()
    fetch = SimTransport(clock, {"a10x1": STARTUP}).fetch(worker)
    clock.run()
    assert fetch.done.fired
    assert clock.now == pytest.approx(worker.weights / GB * seconds_per_gb)
