"""RealClock: the laws of time on the wall's clock, and the order that a SimClock repeats."""

import time
from itertools import pairwise
from math import inf, nan, nextafter
from random import Random
from threading import Thread, get_ident

import pytest

from serving.core.clock import FlowBody, SimClock, spawn
from serving.live.clock import RealClock
from serving.units import Seconds, ms


def test_timers_run_at_their_own_instants_in_order_of_time_then_of_booking() -> None:
    clock = RealClock()
    ran: list[tuple[str, Seconds]] = []
    for name, when in (("late", 0.02), ("first", 0.01), ("second", 0.01), ("now", 0.0)):
        clock.call_at(when, lambda name=name: ran.append((name, clock.now)))
    clock.call_at(0.03, clock.stop)
    clock.run()
    assert ran == [("now", 0.0), ("first", 0.01), ("second", 0.01), ("late", 0.02)]


def test_time_stands_still_in_a_callback_and_follows_the_wall_between_them() -> None:
    clock = RealClock()
    seen: list[Seconds] = []

    def slow() -> None:
        seen.append(clock.now)
        time.sleep(0.03)
        seen.append(clock.now)
        clock.post(lambda: (seen.append(clock.now), clock.stop()))

    clock.call_at(0.01, slow)
    clock.run()
    assert seen[:2] == [0.01, 0.01]
    assert 0.04 <= seen[2] < 5.0


@pytest.mark.parametrize("when", [-inf, -1.0, nan])
def test_booking_in_the_past_raises(when: float) -> None:
    with pytest.raises(ValueError, match=r"it is already t=0\.0"):
        RealClock().call_at(when, print)


def test_posts_of_many_threads_run_on_the_clocks_thread_each_at_an_instant_of_its_own() -> None:
    clock = RealClock()
    heard: list[tuple[int, int, Seconds, int]] = []

    def hear(thread: int, serial: int) -> None:
        heard.append((thread, serial, clock.now, get_ident()))
        if len(heard) == 400:
            clock.stop()

    def talk(thread: int) -> None:
        for serial in range(100):
            clock.post(hear, thread, serial)

    threads = [Thread(target=talk, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    clock.run()
    times = [now for _, _, now, _ in heard]
    assert all(earlier < later for earlier, later in pairwise(times))
    assert {ident for _, _, _, ident in heard} == {get_ident()}
    for thread_number in range(4):
        assert [serial for thread, serial, _, _ in heard if thread == thread_number] == list(range(100))


def test_a_post_never_shares_an_instant_with_a_timer_and_due_timers_go_first() -> None:
    clock = RealClock()
    ran: list[tuple[str, Seconds]] = []

    def note(name: str) -> None:
        ran.append((name, clock.now))

    def crowd() -> None:
        clock.post(note, "post")
        clock.call_later(0.0, note, "at once")
        clock.call_later(1 * ms, note, "soon")
        time.sleep(5 * ms)  # both timers are due before the post is taken up

    clock.call_at(0.01, crowd)
    clock.call_at(0.05, clock.stop)
    clock.run()
    assert [name for name, _ in ran] == ["at once", "soon", "post"]
    assert ran[2][1] > ran[1][1] == pytest.approx(0.011)


def test_posts_that_the_wall_cannot_tell_apart_have_instants_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.live.clock.monotonic", lambda: 1000.0)
    clock = RealClock()
    ran: list[tuple[str, Seconds]] = []

    def note(name: str) -> None:
        ran.append((name, clock.now))
        clock.call_at(nextafter(clock.now, inf), ran.append, (f"{name}'s timer", nextafter(clock.now, inf)))

    for name in "ab":
        clock.post(note, name)
    clock.post(clock.stop)
    clock.run()
    assert [name for name, _ in ran] == ["a", "a's timer", "b", "b's timer"]
    times = [now for _, now in ran]
    assert all(earlier < later for earlier, later in pairwise(times))


def test_a_wait_ends_when_a_post_comes() -> None:
    clock = RealClock()
    clock.call_at(60.0, pytest.fail, "the post was not heard")
    thread = Thread(target=lambda: (time.sleep(0.02), clock.post(clock.stop)))
    clock.call_at(0.0, thread.start)  # the clock's time has begun by then
    clock.run()
    assert 0.02 <= clock.now < 30.0


def test_a_cancelled_timer_does_not_run_nor_keep_the_clock_waiting() -> None:
    clock = RealClock()
    timer = clock.call_at(0.01, pytest.fail, "it was cancelled")
    clock.call_at(0.02, clock.stop)
    timer.cancel()
    clock.run()
    assert clock.num_events == 1


def test_an_exception_ends_the_run_and_the_clock_can_be_run_on() -> None:
    clock = RealClock()
    ran: list[str] = []
    clock.call_at(0.0, [].pop)
    clock.call_at(0.0, ran.append, "later")
    clock.call_at(0.01, clock.stop)
    with pytest.raises(IndexError):
        clock.run()
    clock.run()
    assert ran == ["later"]


def test_a_stop_lets_the_instant_end() -> None:
    clock = RealClock()
    ran: list[str] = []
    clock.call_at(0.01, clock.stop)
    clock.call_at(0.01, clock.call_later, 0.0, ran.append, "same instant")
    clock.call_at(0.5, pytest.fail, "another instant")
    clock.run()
    assert ran == ["same instant"]


def test_a_condition_ends_the_run() -> None:
    clock = RealClock()

    def body() -> FlowBody:
        yield 0.01
        yield 0.01

    flow = spawn(clock, body())
    clock.run(until=lambda: flow.done.fired)
    assert clock.now == 0.02


def test_lag_tells_how_late_timers_ran() -> None:
    clock = RealClock()
    assert clock.lag(0.99) == 0.0
    clock.call_at(0.01, time.sleep, 0.05)
    clock.call_at(0.02, clock.stop)
    clock.run()
    assert 0.03 < clock.lag(0.99) < 5.0
    assert clock.lag(0.0) < 0.03


def test_what_was_posted_replays_on_a_sim_clock_in_the_same_order() -> None:
    real, heard = RealClock(), []

    def hear(serial: int) -> None:
        heard.append((real.now, serial))
        if serial == 199:
            real.stop()

    def talk() -> None:
        draws = Random(1)
        for serial in range(200):
            real.post(flow_of, real, live, hear, serial)
            if draws.random() < 0.2:
                time.sleep(draws.random() * ms)

    live: list[tuple[Seconds, str, int]] = []
    tick(real, live)
    Thread(target=talk).start()
    real.run()
    ended_at = real.now

    sim, replayed = SimClock(), []
    tick(sim, replayed)
    for at, serial in heard:
        sim.call_at(at, flow_of, sim, replayed, lambda _: None, serial)
    sim.run(until=ended_at)
    assert len(live) > 400
    assert live == replayed


def tick(clock: "RealClock | SimClock", log: list[tuple[Seconds, str, int]]) -> None:
    """A loop with a period that hardly fits the wall's clock."""
    log.append((clock.now, "tick", 0))
    clock.call_later(0.1 * ms, tick, clock, log)


def flow_of(clock: "RealClock | SimClock", log: list[tuple[Seconds, str, int]], hear: object, serial: int) -> None:
    """What a post sets off: something now, at once and later."""
    hear(serial)  # type: ignore[operator]
    log.append((clock.now, "post", serial))
    clock.call_later(0.0, lambda: log.append((clock.now, "at once", serial)))
    clock.call_later(0.25 * ms, lambda: log.append((clock.now, "later", serial)))
