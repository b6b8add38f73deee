"""The laws of time: order, ties, cancelled timers, signals, flows, and what stops a run that stands still."""

from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.clock import FlowBody, Livelock, Signal, SimClock, spawn

delays = st.lists(st.integers(0, 5).map(float), max_size=30)


@given(delays)
@settings(max_examples=60)
def test_callbacks_run_in_order_of_time_and_ties_in_booking_order(whens: list[float]) -> None:
    clock = SimClock()
    ran: list[tuple[float, int]] = []

    def note(index: int) -> None:
        ran.append((clock.now, index))

    for index, when in enumerate(whens):
        clock.call_at(when, note, index)
    clock.run()
    assert ran == sorted((when, index) for index, when in enumerate(whens))


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=20))
@settings(max_examples=60)
def test_now_never_goes_back_though_callbacks_book_more(pairs: list[tuple[float, float]]) -> None:
    clock = SimClock()
    seen: list[float] = []

    def note_and_book(delay: float) -> None:
        seen.append(clock.now)
        clock.call_later(delay, lambda: seen.append(clock.now))

    for when, delay in pairs:
        clock.call_at(when, note_and_book, delay)
    clock.run()
    assert seen == sorted(seen)
    assert len(seen) == 2 * len(pairs)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
@settings(max_examples=60)
def test_cancelled_timers_never_run_and_all_others_do(booked: list[tuple[int, bool]]) -> None:
    clock = SimClock()
    ran: list[int] = []
    timers = [clock.call_at(when, ran.append, index) for index, (when, _) in enumerate(booked)]
    for timer, (_, cancelled) in zip(timers, booked, strict=True):
        if cancelled:
            timer.cancel()
            timer.cancel()
    clock.run()
    assert sorted(ran) == [index for index, (_, cancelled) in enumerate(booked) if not cancelled]
    assert clock.num_events == len(ran)


def test_a_timer_cancelled_by_an_earlier_callback_of_the_same_instant_does_not_run() -> None:
    clock = SimClock()
    ran: list[str] = []
    clock.call_at(1.0, lambda: later.cancel())
    later = clock.call_at(1.0, ran.append, "later")
    clock.run()
    assert ran == []


@pytest.mark.parametrize("when", [0.5, -inf, nan])
def test_booking_in_the_past_raises(when: float) -> None:
    clock = SimClock()
    clock.call_at(1.0, lambda: None)
    clock.run()
    with pytest.raises(ValueError, match=r"it is already t=1\.0"):
        clock.call_at(when, lambda: None)


def test_run_until_stops_the_clock_there_and_a_second_run_goes_on() -> None:
    clock = SimClock()
    ran: list[float] = []
    for when in (1.0, 2.0, 3.0):
        clock.call_at(when, ran.append, when)
    clock.run(until=2.0)
    assert ran == [1.0, 2.0]
    clock.run(until=2.5)
    assert clock.now == 2.5
    clock.run()
    assert ran == [1.0, 2.0, 3.0]


def test_now_and_posted_callbacks_run_after_what_is_booked_for_this_instant() -> None:
    clock = SimClock()
    ran: list[str] = []
    clock.call_at(0.0, clock.post, ran.append, "posted")
    clock.call_at(0.0, ran.append, "first")
    clock.call_at(0.0, ran.append, "second")
    clock.run()
    assert ran == ["first", "second", "posted"]


def test_a_signal_gives_its_value_to_early_and_late_waiters_in_order() -> None:
    clock = SimClock()
    signal = Signal(clock)
    heard: list[tuple[str, int]] = []
    signal.wait(lambda value: heard.append(("early", value)))
    signal.wait(lambda value: heard.append(("second", value)))
    signal.fire(7)
    assert heard == []  # waiters are events of their own
    signal.wait(lambda value: heard.append(("late", value)))
    clock.run()
    assert heard == [("early", 7), ("second", 7), ("late", 7)]


def test_a_signal_that_fires_twice_raises() -> None:
    signal = Signal(SimClock())
    signal.fire()
    with pytest.raises(RuntimeError, match="fires once"):
        signal.fire()


def test_a_flow_waits_for_seconds_signals_and_flows_and_returns_its_value() -> None:
    clock = SimClock()
    signal = Signal(clock)
    clock.call_at(5.0, signal.fire, "signal")
    times: list[tuple[float, object]] = []

    def child() -> FlowBody:
        yield 1.5
        return "child"

    def parent() -> FlowBody:
        yield 2
        times.append((clock.now, None))
        times.append(((yield signal), clock.now))
        times.append(((yield spawn(clock, child())), clock.now))
        return "parent"

    flow = spawn(clock, parent())
    clock.run()
    assert times == [(2.0, None), ("signal", 5.0), ("child", 6.5)]
    assert flow.done.value == "parent"


@pytest.mark.parametrize("wait_for_signal", [True, False])
def test_a_cancelled_flow_cleans_up_and_is_never_resumed(wait_for_signal: bool) -> None:
    clock = SimClock()
    signal = Signal(clock)
    seen: list[str] = []

    def body() -> FlowBody:
        try:
            yield signal if wait_for_signal else 5.0
            seen.append("resumed")
        finally:
            seen.append("cleaned up")

    flow = spawn(clock, body())
    clock.call_at(1.0, flow.cancel)
    clock.call_at(2.0, signal.fire)
    clock.run()
    assert seen == ["cleaned up"]
    assert not flow.done.fired


def test_an_exception_in_a_flow_ends_the_run() -> None:
    clock = SimClock()

    def body() -> FlowBody:
        yield 1.0
        raise KeyError("lost")

    spawn(clock, body())
    with pytest.raises(KeyError, match="lost"):
        clock.run()


def test_events_without_end_at_one_instant_are_a_livelock_that_names_the_last_callback() -> None:
    clock = SimClock(max_events_per_instant=100)

    def spin() -> None:
        clock.call_later(0.0, spin)

    clock.call_at(3.0, spin)
    with pytest.raises(Livelock, match=r"101 events at t=3\.0 without progress.*spin"):
        clock.run()


def test_many_events_at_different_instants_are_no_livelock() -> None:
    clock = SimClock(max_events_per_instant=3)
    for index in range(100):
        clock.call_at(float(index // 3), lambda: None)
    clock.run()
    assert clock.num_events == 100
