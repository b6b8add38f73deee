"""Events per second of the simulation kernel, SimClock.

    python benchmarks/kernel.py                 # about 10 s
    pytest benchmarks/kernel.py                 # the same loops under pytest-benchmark, to compare two commits

256 concurrent actors, each of which always has one event booked; handlers do nothing else, so what is measured is
booking, ordering and calling. An event is a callback that ran; cancelled timers are not counted.
"""

import argparse
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from measure import Rate, best_time

from serving.core.clock import FlowBody, SimClock, Timer, spawn

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

NUM_ACTORS = 256
FLOOR = 250_000
NUM_DELAYS = 4096


def _delays() -> list[float]:
    """Waits that are not in order, so that the heap has to work."""
    random = Random("benchmark/delays")
    return [random.expovariate(1.0) for _ in range(NUM_DELAYS)]


def callbacks(num_events: int) -> int:
    """Actors that book themselves again; returns the events that ran."""
    clock, delays = SimClock(), _delays()

    def act(left: int) -> None:
        if left:
            clock.call_later(delays[left % NUM_DELAYS], act, left - 1)

    for _ in range(NUM_ACTORS):
        clock.call_later(0.0, act, num_events // NUM_ACTORS - 1)
    clock.run()
    return clock.num_events


def timeouts(num_events: int) -> int:
    """Actors that also book a timeout with every event, and cancel the one before."""
    clock, delays = SimClock(), _delays()

    def expire() -> None:
        raise RuntimeError("a cancelled timer ran")

    def act(left: int, timeout: Timer) -> None:
        timeout.cancel()
        if left:
            later = clock.call_later(100.0, expire)
            clock.call_later(delays[left % NUM_DELAYS], act, left - 1, later)

    for _ in range(NUM_ACTORS):
        clock.call_later(0.0, act, num_events // NUM_ACTORS - 1, clock.call_later(100.0, expire))
    clock.run()
    return clock.num_events


def flows(num_events: int) -> int:
    """Actors that are generators which wait for seconds."""
    clock, delays = SimClock(), _delays()

    def live(steps: int) -> FlowBody:
        for step in range(steps):
            yield delays[step % NUM_DELAYS]

    for _ in range(NUM_ACTORS):
        spawn(clock, live(num_events // NUM_ACTORS - 1))
    clock.run()
    return clock.num_events


LOOPS: dict[str, Callable[[int], int]] = {
    "plain callbacks": callbacks,
    "callbacks with cancelled timers": timeouts,
    "spawn() flows": flows,
}


def rates(num_events: int, repeats: int) -> list[Rate]:
    """One rate per kind of actor."""
    num_served = num_events // NUM_ACTORS * NUM_ACTORS
    return [
        Rate(
            name=name,
            unit="events",
            per_second=num_served / best_time(partial(loop, num_events), repeats),
            floor=FLOOR,
        )
        for name, loop in LOOPS.items()
    ]


def test_plain_callbacks(benchmark: "BenchmarkFixture") -> None:
    """Under pytest-benchmark."""
    assert benchmark(callbacks, 51_200) == 51_200


def test_callbacks_with_cancelled_timers(benchmark: "BenchmarkFixture") -> None:
    """Under pytest-benchmark."""
    assert benchmark(timeouts, 51_200) == 51_200


def test_flows(benchmark: "BenchmarkFixture") -> None:
    """Under pytest-benchmark."""
    assert benchmark(flows, 51_200) == 51_200


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=512_000, help="events of one run (default: 512000)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the fastest counts (default: 5)")
    options = parser.parse_args()
    for rate in rates(options.events, options.repeats):
        print(rate)


if __name__ == "__main__":
    main()
