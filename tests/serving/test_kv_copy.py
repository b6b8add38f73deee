"""Copies of KV between instances: latency, rate, sharing, and the steps that they slow down."""

from dataclasses import replace

import pytest

from serving.core.clock import SimClock
from serving.core.worker import Worker
from serving.cost.engine import EngineCosts
from serving.sim.transport import SimTransport
from serving.testbed import Testbed
from serving.units import GB, Gbps, ms
from tests.build import A10, STARTUP, make_cluster, make_testbed, make_workers

COSTS = EngineCosts(copy_rate=2 * GB, copy_message=0.25 * ms)
LATENCY = 64 * 0.25 * ms
"""Two messages for each of 32 layers."""


class Bench:
    """A transport between GPUs of two servers."""

    def __init__(self, costs: EngineCosts | None = COSTS, nic_gbps: float = 64) -> None:
        self.clock = SimClock()
        kind = replace(A10, num_gpus=4, nic_rate=nic_gbps * Gbps, fetch_rate=nic_gbps * Gbps)
        testbed: Testbed = make_testbed(2, kind, exclusive=True)
        self.cluster = make_cluster(testbed=testbed)
        self.transport = SimTransport(self.clock, {"a10x1": STARTUP}, None, {} if costs is None else {"a10x1": costs})

    def worker(self, server: int, gpu: int) -> Worker:
        """One with the whole model."""
        (worker,) = make_workers(self.cluster)
        machine = self.cluster.inventory.servers[server]
        return replace(worker, server=machine, gpu=machine.gpus[gpu])


def test_a_copy_takes_its_latency_and_its_bytes_at_the_rate() -> None:
    bench = Bench()
    copy = bench.transport.move_kv(bench.worker(0, 0), bench.worker(1, 0), [], [], 1 * GB)
    ends: list[float] = []
    copy.done.wait(lambda _: ends.append(bench.clock.now))
    half = copy.reached(0.5 * GB)
    half.wait(lambda _: ends.append(bench.clock.now))
    bench.clock.run()
    assert ends == pytest.approx([LATENCY + 0.25, LATENCY + 0.5])


def test_copies_of_one_servers_gpus_share_its_nic() -> None:
    bench = Bench(nic_gbps=24)  # 3 GB/s for two copies that could take 2 GB/s each
    copies = [bench.transport.move_kv(bench.worker(0, gpu), bench.worker(1, gpu), [], [], 1.5 * GB) for gpu in (0, 1)]
    bench.clock.run()
    assert all(copy.done.fired for copy in copies)
    assert bench.clock.now == pytest.approx(LATENCY + 1.0)


def test_between_gpus_of_one_server_the_nic_is_not_used() -> None:
    bench = Bench(nic_gbps=1)
    bench.transport.move_kv(bench.worker(0, 0), bench.worker(0, 1), [], [], 1 * GB)
    bench.clock.run()
    assert bench.clock.now == pytest.approx(LATENCY + 0.5)
    assert not any(link.name.endswith(("/up", "/down")) for link in bench.transport.links.carried)


def test_both_ends_copy_from_the_start_to_the_end() -> None:
    bench = Bench()
    source, target, other = bench.worker(0, 0), bench.worker(1, 0), bench.worker(0, 1)
    is_copying = bench.transport.copies.is_copying
    copy = bench.transport.move_kv(source, target, [], [], 1 * GB)
    assert (is_copying(source), is_copying(target), is_copying(other)) == (True, True, False)
    bench.clock.run()
    assert copy.done.fired
    assert not is_copying(source)
    assert not is_copying(target)


@pytest.mark.parametrize("after", [0.0, LATENCY / 2, LATENCY + 0.1, 1.0], ids=["at once", "latent", "amid", "late"])
def test_a_cancelled_copy_ends_there_and_a_second_time_nothing_happens(after: float) -> None:
    bench = Bench()
    source, target = bench.worker(0, 0), bench.worker(1, 0)
    copy = bench.transport.move_kv(source, target, [], [], 1 * GB)
    bench.clock.call_at(after, copy.cancel)
    bench.clock.call_at(after, copy.cancel)
    bench.clock.run()
    assert copy.done.fired is (after == 1.0)
    assert not bench.transport.copies.is_copying(source)
    carried = sum(bench.transport.links.carried.values())
    assert carried == pytest.approx({LATENCY + 0.1: 0.2 * GB * 6, 1.0: 1 * GB * 6}.get(after, 0.0))


def test_where_copies_are_not_known_kv_moves_as_fast_as_the_links_let_it() -> None:
    bench = Bench(costs=None, nic_gbps=16)
    source = bench.worker(0, 0)
    bench.transport.move_kv(source, bench.worker(1, 0), [], [], 2 * GB)
    assert not bench.transport.copies.is_copying(source)
    bench.clock.run()
    assert bench.clock.now == pytest.approx(1.0)  # 2 GB/s of its NIC
