"""Transfers per second of the simulated transport.

    python benchmarks/transport.py              # about 1 s
    pytest benchmarks/transport.py              # the same loads under pytest-benchmark, to compare two commits

Streaming cold starts, as many as there are GPUs: each fetches its weights over its server's NIC and copies them to its
GPU one tensor at a time, each copy as soon as the tensor's bytes have arrived. Four GPUs share their server's NIC,
three servers their store's. The second load is fetches alone, one after another on every GPU, so that each start and
end changes the shares of others.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from measure import Rate, best_time

from serving.core.clock import FlowBody, SimClock, spawn
from serving.core.hardware import Link
from serving.sim.fair_share import FairShare
from serving.units import GB, MB, Gbps

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

NUM_GPUS = 24
GPUS_PER_SERVER = 4
SERVERS_PER_STORE = 3
NUM_TENSORS = 300
TENSOR = 45 * MB
NUM_FETCHES = 40
"""Of each GPU, in the second load."""


class Wires:
    """The links of a small cluster, and the transfers on them."""

    def __init__(self) -> None:
        self.clock = SimClock()
        self.links = FairShare(self.clock)
        self.num_transfers = 0
        num_servers = NUM_GPUS // GPUS_PER_SERVER
        self._pcie = [Link(f"pcie{gpu}", 8 * GB) for gpu in range(NUM_GPUS)]
        self._nics = [Link(f"server{server}", 16 * Gbps) for server in range(num_servers)]
        self._stores = [Link(f"store{store}", 24 * Gbps) for store in range(num_servers // SERVERS_PER_STORE)]

    def cold_start(self, gpu: int) -> FlowBody:
        """Fetch, and copy each tensor when it is there."""
        fetch = self.links.move(NUM_TENSORS * TENSOR, self._way(gpu))
        for tensor in range(NUM_TENSORS):
            yield fetch.reached((tensor + 1) * TENSOR)
            yield self.links.move(TENSOR, [self._pcie[gpu]]).done
        self.num_transfers += NUM_TENSORS + 1

    def fetches(self, gpu: int) -> FlowBody:
        """Fetch again and again; sizes differ, so that no two end together."""
        for index in range(NUM_FETCHES):
            yield self.links.move((gpu + index + 1) * TENSOR, self._way(gpu)).done
        self.num_transfers += NUM_FETCHES

    def _way(self, gpu: int) -> list[Link]:
        server = gpu // GPUS_PER_SERVER
        return [self._stores[server // SERVERS_PER_STORE], self._nics[server]]


def run(flow: Callable[[Wires, int], FlowBody]) -> int:
    """Run the flow on every GPU at once; returns the transfers that ended."""
    wires = Wires()
    for gpu in range(NUM_GPUS):
        spawn(wires.clock, flow(wires, gpu))
    wires.clock.run()
    return wires.num_transfers


LOADS: dict[str, Callable[[Wires, int], FlowBody]] = {
    "streaming cold starts": Wires.cold_start,
    "fetches that share NICs": Wires.fetches,
}


def rates(repeats: int) -> list[Rate]:
    """One rate per load."""
    return [
        Rate(name=name, unit="transfers", per_second=run(flow) / best_time(partial(run, flow), repeats))
        for name, flow in LOADS.items()
    ]


def test_streaming_cold_starts(benchmark: "BenchmarkFixture") -> None:
    """Under pytest-benchmark."""
    assert benchmark(run, Wires.cold_start) == NUM_GPUS * (NUM_TENSORS + 1)


def test_fetches_that_share_nics(benchmark: "BenchmarkFixture") -> None:
    """Under pytest-benchmark."""
    assert benchmark(run, Wires.fetches) == NUM_GPUS * NUM_FETCHES


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the fastest counts (default: 5)")
    options = parser.parse_args()
    for rate in rates(options.repeats):
        print(rate)


if __name__ == "__main__":
    main()
