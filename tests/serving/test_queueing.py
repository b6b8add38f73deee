"""Waiting times agree with queueing theory: an instance that serves one sequence at a time is a server.

The sampling error comes from batch means: waits of neighbours are alike, those of long batches are not.
"""

import statistics
from collections import deque
from itertools import islice
from math import factorial, sqrt
from random import Random

import pytest

from serving.core.clock import Signal, SimClock, spawn
from serving.core.instance import Instance, Phase
from serving.core.kv import BlockPool
from serving.core.request import Request, Sequence
from serving.cost.models import MODELS
from serving.policies.continuous import Batching, ContinuousBatching
from serving.units import Seconds
from serving.workload.arrivals import Arrivals, Fixed, Poisson
from serving.workload.clients import open_loop
from tests.build import TableExecutor, make_cluster, make_requests, make_workers

NUM_REQUESTS = 30_000
NUM_BATCHES = 30
MEAN_SERVICE: Seconds = 1.0
LARGEST_ERROR = 0.1
"""Standard error over the expected wait, above which agreement would say too little."""


def serve_waits(arrivals: Arrivals, num_servers: int, seed: int, *, exponential: bool) -> list[Seconds]:
    """How long each request waited for one of ``num_servers`` instances, first come, first served."""
    clock = SimClock()
    draws = Random(f"{seed}/service")
    executor = TableExecutor(clock, lambda _: draws.expovariate(1 / MEAN_SERVICE) if exponential else MEAN_SERVICE)
    queue: deque[Sequence] = deque()
    waits: list[Seconds] = []

    def hand_out(_: object = None) -> None:
        for instance in instances:
            if queue and instance.num_sequences == 0:
                sequence = queue.popleft()
                waits.append(clock.now - sequence.arrived_at)
                instance.add(sequence)

    def send(request: Request) -> Signal:
        queue.append(Sequence(request, clock.now))
        hand_out()
        return Signal(clock)

    workers = make_workers(make_cluster())
    instances = [
        Instance(
            instance_id=index,
            model="llama2-7b",
            spec=MODELS["llama2-7b"],
            workers=workers,
            max_sequences=1,
            max_step_tokens=64,
            clock=clock,
            scheduler=ContinuousBatching(Batching(watermark=0.0)),
            executor=executor,
            on_finish=lambda _: clock.post(hand_out),
            phase=Phase.READY,
            pool=BlockPool(2, 16),
        )
        for index in range(num_servers)
    ]
    times = islice(arrivals.times(seed), NUM_REQUESTS)
    spawn(clock, open_loop(zip(times, make_requests(NUM_REQUESTS, 1, 1), strict=True))(send))
    clock.run()
    assert len(waits) == NUM_REQUESTS
    return waits


def check(waits: list[Seconds], expected: Seconds) -> None:
    """Agreement within four standard errors, themselves a small part of the expected wait."""
    size = len(waits) // NUM_BATCHES
    means = [statistics.fmean(waits[start : start + size]) for start in range(0, size * NUM_BATCHES, size)]
    error = statistics.stdev(means) / sqrt(NUM_BATCHES)
    assert error <= LARGEST_ERROR * expected
    assert abs(statistics.fmean(means) - expected) <= 4 * error


def erlang_c(num_servers: int, load: float) -> float:
    """Probability that an arrival at M/M/k finds all servers busy; ``load`` is arrival rate x service time."""
    busy = load**num_servers / factorial(num_servers) * num_servers / (num_servers - load)
    return busy / (sum(load**n / factorial(n) for n in range(num_servers)) + busy)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waits_of_one_exponential_server_are_those_of_m_m_1(load: float, seed: int) -> None:
    # Wq = rho / (1 - rho) service times: 0.429 at 0.3, 2.333 at 0.7
    check(serve_waits(Poisson(rate=load), 1, seed, exponential=True), load / (1 - load))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waits_of_one_even_server_are_those_of_m_d_1(load: float, seed: int) -> None:
    # Pollaczek-Khinchine without variance, half of M/M/1: 0.214 at 0.3, 1.167 at 0.7
    check(serve_waits(Poisson(rate=load), 1, seed, exponential=False), load / (1 - load) / 2)


@pytest.mark.parametrize(("num_servers", "load"), [(2, 1.4), (4, 3.0)])
def test_waits_of_several_exponential_servers_are_those_of_m_m_k(num_servers: int, load: float) -> None:
    # Wq = C(k, a) / (k - a) service times: 0.9608 for 2 servers at 1.4, 0.5094 for 4 at 3.0
    expected = erlang_c(num_servers, load) / (num_servers - load)
    assert expected == pytest.approx({2: 0.9608, 4: 0.5094}[num_servers], rel=1e-3)
    check(serve_waits(Poisson(rate=load), num_servers, 0, exponential=True), expected)


def test_nobody_waits_for_an_even_server_that_is_faster_than_even_arrivals() -> None:
    assert max(serve_waits(Fixed(gap=1.25), 1, 0, exponential=False)) == 0.0
