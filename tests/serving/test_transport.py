"""Transfers: fair shares against a reference, no link above capacity, every byte arrives, marks at their time; one that
is cancelled stops, and who shares no link with it notices nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.clock import Callback, SimClock, Timer
from serving.core.hardware import Link
from serving.core.stages import Loader
from serving.sim.fair_share import FairShare, SimTransfer, max_min_rates
from serving.sim.transport import SimTransport
from serving.units import GB, MB
from tests.build import STARTUP, make_cluster, make_workers

Paths = list[list[Link]]


@st.composite
def flows_over_links(draw: st.DrawFn) -> Paths:
    """Up to 8 paths over up to 5 links."""
    capacities = draw(st.lists(st.integers(1, 50), min_size=1, max_size=5))
    links = [Link(f"link{index}", float(capacity)) for index, capacity in enumerate(capacities)]
    path = st.lists(st.sampled_from(links), min_size=1, max_size=3, unique_by=id)
    return draw(st.lists(path, min_size=1, max_size=8))


def links_of(paths: Sequence[Sequence[Link]]) -> list[Link]:
    return list(dict.fromkeys(link for path in paths for link in path))


def load(link: Link, paths: Sequence[Sequence[Link]], rates: Sequence[float]) -> float:
    return sum(rate for path, rate in zip(paths, rates, strict=True) if link in path)


def rates_by_bisection(paths: Paths) -> list[float]:
    """The slow way: find the highest level that all unfrozen flows can have, freeze those that a full link stops."""
    frozen: dict[int, float] = {}
    while len(frozen) < len(paths):
        low, high = 0.0, 100.0
        for _ in range(60):
            level = (low + high) / 2
            rates = [frozen.get(index, level) for index in range(len(paths))]
            if all(load(link, paths, rates) <= link.capacity for link in links_of(paths)):
                low = level
            else:
                high = level
        rates = [frozen.get(index, low) for index in range(len(paths))]
        full = [link for link in links_of(paths) if load(link, paths, rates) >= link.capacity * (1 - 1e-9)]
        for index, path in enumerate(paths):
            if index not in frozen and any(link in path for link in full):
                frozen[index] = low
    return [frozen[index] for index in range(len(paths))]


@given(flows_over_links())
@settings(max_examples=150)
def test_rates_agree_with_filling_by_bisection(paths: Paths) -> None:
    assert max_min_rates(paths) == pytest.approx(rates_by_bisection(paths), rel=1e-6)


@given(flows_over_links())
@settings(max_examples=150)
def test_every_flow_has_a_full_link_on_which_none_is_faster(paths: Paths) -> None:
    rates = max_min_rates(paths)
    for link in links_of(paths):
        assert load(link, paths, rates) <= link.capacity * (1 + 1e-9)
    for path, rate in zip(paths, rates, strict=True):
        assert any(
            load(link, paths, rates) >= link.capacity * (1 - 1e-9)
            and all(other <= rate * (1 + 1e-9) for far, other in zip(paths, rates, strict=True) if link in far)
            for link in path
        )


def test_the_textbook_line_network_has_the_textbook_rates() -> None:
    # A long flow over both links, two on the first (6), one on the second (10):
    # the first link gives 6 / 3 = 2 to each of its three; the second has 10 - 2 = 8 for its own flow.
    first, second = Link("first", 6.0), Link("second", 10.0)
    assert max_min_rates([[first, second], [first], [first], [second]]) == pytest.approx([2, 2, 2, 8])


def test_a_link_that_a_path_names_twice_counts_once() -> None:
    link = Link("loop", 6.0)
    assert max_min_rates([[link, link], [link]]) == [3.0, 3.0]


@given(flows_over_links(), st.data())
@settings(max_examples=60, deadline=None)
def test_links_stay_below_capacity_and_carry_exactly_what_was_sent(paths: Paths, data: st.DataObject) -> None:
    clock = SimClock()
    shared = FairShare(clock)
    sizes = [data.draw(st.floats(0.5, 200), label="size") for _ in paths]
    starts = [data.draw(st.floats(0, 10), label="start") for _ in paths]
    transfers: list[SimTransfer] = []
    ended: list[tuple[SimTransfer, float]] = []

    def check() -> None:
        moving = [transfer for transfer in transfers if transfer.sent < transfer.size]
        for link in links_of(paths):
            used = load(link, [transfer.path for transfer in moving], [transfer.rate for transfer in moving])
            assert used <= link.capacity * (1 + 1e-9)

    def end(transfer: SimTransfer) -> None:
        ended.append((transfer, clock.now))
        check()

    def start(size: float, path: list[Link]) -> None:
        transfer = shared.move(size, path)
        transfers.append(transfer)
        transfer.done.wait(lambda _: end(transfer))
        check()  # rates change only when a transfer starts or ends

    for at, size, path in zip(starts, sizes, paths, strict=True):
        clock.call_at(at, start, size, path)
    clock.run()
    assert len(ended) == len(paths)
    assert all(transfer.sent == transfer.size for transfer in transfers)
    for link in links_of(paths):
        routed = sum(size for size, path in zip(sizes, paths, strict=True) if link in path)
        assert shared.carried[link] == pytest.approx(routed, rel=1e-6)
        busy_until = max(at for transfer, at in ended if link in transfer.path)
        assert routed <= link.capacity * (busy_until - min(starts)) * (1 + 1e-6)


@given(st.lists(st.floats(0, 120), min_size=1, max_size=12), st.floats(0, 12))
@settings(max_examples=100)
def test_marks_of_a_lone_flow_fire_in_order_at_size_over_rate(marks: list[float], asked_at: float) -> None:
    clock = SimClock()
    transfer = FairShare(clock).move(100.0, [Link("wire", 10.0)])
    fired: list[tuple[float, float]] = []

    def ask() -> None:
        for mark in marks:
            transfer.reached(mark).wait(lambda _, mark=mark: fired.append((clock.now, mark)))

    clock.call_at(asked_at, ask)
    clock.run()
    # 100 bytes at 10 a second: byte m is there at m / 10, no mark is later than the end, none before it is asked for
    assert [at for at, _ in fired] == sorted(at for at, _ in fired)
    assert sorted(mark for _, mark in fired) == sorted(marks)
    for at, mark in fired:
        assert at == pytest.approx(max(asked_at, min(mark, 100.0) / 10), abs=1e-6)
    awaited = [mark for at, mark in fired if at > asked_at]
    assert all(min(a, 100.0) <= min(b, 100.0) for a, b in pairwise(awaited))


def test_two_flows_that_share_a_link_fire_their_marks_at_the_hand_computed_times() -> None:
    clock = SimClock()
    shared = FairShare(clock)
    wire = Link("wire", 10.0)
    fired: dict[str, float] = {}

    def note(name: str, transfer: SimTransfer, marks: tuple[float, ...]) -> None:
        for mark in marks:
            transfer.reached(mark).wait(lambda _, mark=mark: fired.setdefault(f"{name}{mark:.0f}", clock.now))
        transfer.done.wait(lambda _: fired.setdefault(name, clock.now))

    note("a", shared.move(100.0, [wire]), (10.0, 50.0, 90.0))
    clock.call_at(2.0, lambda: note("b", shared.move(30.0, [wire]), (20.0,)))
    clock.run()
    # a alone until t=2 at 10/s: byte 10 at 1, and 20 sent. Then 5/s each: b has byte 20 at 2 + 20/5 = 6 and ends at
    # 2 + 30/5 = 8, when a has 20 + 6*5 = 50. Then a alone: byte 90 at 8 + 40/10 = 12, end at 13.
    assert fired == pytest.approx({"a10": 1, "b20": 6, "a50": 8, "b": 8, "a90": 12, "a": 13})


def test_equal_marks_asked_for_at_different_times_all_fire() -> None:
    clock = SimClock()
    transfer = FairShare(clock).move(10.0, [Link("wire", 1.0)])
    fired: list[str] = []
    transfer.reached(3.0).wait(lambda _: fired.append("three"))
    transfer.reached(5.0).wait(lambda _: fired.append("five"))
    clock.call_at(4.0, lambda: transfer.reached(5.0).wait(lambda _: fired.append("five again")))
    clock.run()
    assert fired == ["three", "five", "five again"]


@pytest.mark.parametrize("started_at", [0.0, 3600.0, 1.2e6])
def test_small_transfers_end_however_late_in_a_run_they_start(started_at: float) -> None:
    # After two weeks an instant is known to 2e-10 s, in which a fast link moves more than a byte.
    clock = SimClock(max_events_per_instant=1000)
    shared = FairShare(clock)
    wire = Link("pcie", 6.74 * GB)
    ended: list[float] = []
    for index in range(200):
        size = 0.5 * MB + 1237.0 * index
        clock.call_at(started_at + index * 1e-3, lambda size=size: shared.move(size, [wire]).done.wait(ended.append))
    clock.run()
    assert len(ended) == 200


def test_nothing_to_move_is_there_at_once() -> None:
    clock = SimClock()
    transfer = FairShare(clock).move(0.0, [Link("wire", 1.0)])
    clock.run()
    assert transfer.done.fired
    assert clock.now == 0.0


def test_a_transfer_needs_a_path_and_no_negative_size() -> None:
    shared = FairShare(SimClock())
    with pytest.raises(ValueError, match="size >= 0 and a path"):
        shared.move(1.0, [])
    with pytest.raises(ValueError, match="size >= 0 and a path"):
        shared.move(-1.0, [Link("wire", 1.0)])


def test_fetches_to_one_server_share_its_nic_and_the_engine_loader_is_narrower_than_pcie() -> None:
    cluster = make_cluster()
    clock = SimClock()
    transport = SimTransport(clock, {"a10x1": STARTUP})
    worker, rival = make_workers(cluster, 1)[0], make_workers(cluster, 1)[0]
    ends: dict[str, float] = {}
    for name, transfer in (
        ("fetch", transport.fetch(worker)),
        ("rival", transport.fetch(rival)),
        ("direct", transport.load(worker, 14 * GB, Loader.DIRECT)),
        ("engine", transport.load(rival, 4 * GB, Loader.ENGINE)),
    ):
        transfer.done.wait(lambda _, name=name: ends.setdefault(name, clock.now))
    clock.run()
    # Two fetches of W bytes over 2 GB/s end together at 2W / 2 GB/s. The loads share 8 GB/s of PCIe: the engine's
    # takes 1 GB/s (4 s), the other has the remaining 7 GB/s (2 s).
    both = worker.weights / GB
    assert ends == pytest.approx({"fetch": both, "rival": both, "direct": 2.0, "engine": 4.0})


@dataclass(frozen=True, slots=True)
class Move:
    """A transfer to come, and when to cancel it, if ever: maybe before its end, maybe after."""

    start: float
    size: float
    path: list[Link]
    cancel_after: float | None


@st.composite
def moves_over_links(draw: st.DrawFn) -> list[Move]:
    """Some transfers, of which some are cancelled."""
    instants = st.integers(0, 10).map(float) | st.floats(0, 10)
    sizes = st.integers(1, 200).map(float) | st.floats(0.5, 200)
    patience = st.none() | st.integers(0, 20).map(float) | st.floats(0, 20)
    return [Move(draw(instants), draw(sizes), path, draw(patience)) for path in draw(flows_over_links())]


class Course:
    """What became of some moves."""

    def __init__(self, moves: Sequence[Move], peeks: Sequence[float] = ()) -> None:
        self.clock = SimClock()
        self.shared = FairShare(self.clock)
        self.transfers: list[SimTransfer] = []
        self.ended_at: dict[SimTransfer, float] = {}
        self.passed: list[tuple[SimTransfer, float, float]] = []
        """Transfer, mark, time."""
        self.cancelled: list[SimTransfer] = []
        for move in moves:
            self.clock.call_at(move.start, self.start, move)
        for at in peeks:
            self.clock.call_at(at, lambda: (self.shared.carried, [transfer.sent for transfer in self.transfers]))
        self.clock.run()

    def start(self, move: Move) -> None:
        transfer = self.shared.move(move.size, move.path)
        self.transfers.append(transfer)
        for mark in (move.size / 3, move.size):
            transfer.reached(mark).wait(lambda _, mark=mark: self.passed.append((transfer, mark, self.clock.now)))
        transfer.done.wait(lambda _: self.end(transfer))
        if move.cancel_after is not None:
            self.clock.call_later(move.cancel_after, self.cancel, transfer)
        self.check()

    def end(self, transfer: SimTransfer) -> None:
        self.ended_at[transfer] = self.clock.now
        self.check()

    def cancel(self, transfer: SimTransfer) -> None:
        if not transfer.done.fired:
            self.cancelled.append(transfer)
        transfer.cancel()
        self.check()

    def check(self) -> None:
        """Sharing anew only what is connected gives what sharing everything anew gives."""
        moving = [t for t in self.transfers if not t.done.fired and t not in self.cancelled]
        assert [transfer.rate for transfer in moving] == max_min_rates([transfer.path for transfer in moving])


@given(moves_over_links())
@settings(max_examples=100, deadline=None)
def test_with_random_cancels_links_carry_what_was_sent_and_the_rest_still_arrives(moves: list[Move]) -> None:
    course = Course(moves)
    assert len(course.transfers) == len(moves)
    for transfer in course.transfers:
        marks = [mark for passed, mark, _ in course.passed if passed is transfer]
        if transfer in course.cancelled:
            assert not transfer.done.fired
            assert transfer not in course.ended_at
            assert 0 <= transfer.sent <= transfer.size
            assert all(mark <= transfer.sent * (1 + 1e-6) for mark in marks)
        else:
            assert transfer.sent == transfer.size
            assert transfer in course.ended_at
            assert len(marks) == 2
    for link in links_of([move.path for move in moves]):
        sent = sum(transfer.sent for transfer in course.transfers if link in transfer.path)
        assert course.shared.carried[link] == pytest.approx(sent)


@given(moves_over_links(), st.lists(st.floats(0, 30), max_size=10))
@settings(max_examples=60, deadline=None)
def test_looking_at_transfers_moves_no_mark_and_no_end(moves: list[Move], peeks: list[float]) -> None:
    alone, watched = Course(moves), Course(moves, peeks)
    assert list(watched.ended_at.values()) == list(alone.ended_at.values())
    assert [(mark, at) for _, mark, at in watched.passed] == [(mark, at) for _, mark, at in alone.passed]


@given(moves_over_links(), moves_over_links())
@settings(max_examples=60, deadline=None)
def test_who_shares_no_link_has_the_very_same_course(moves: list[Move], others: list[Move]) -> None:
    alone, beside = Course(moves), Course([*moves, *others])
    mine = [t for t in beside.transfers if any(t.path[0] in move.path for move in moves)]
    assert sorted(beside.ended_at[t] for t in mine if t in beside.ended_at) == sorted(alone.ended_at.values())


class CountingClock(SimClock):
    """Counts what is booked."""

    num_booked = 0

    def call_at(self, when: float, fn: Callback, *args: Any) -> Timer:
        self.num_booked += 1
        return super().call_at(when, fn, *args)


def test_a_copy_that_shares_no_link_books_one_timer_and_leaves_those_of_others() -> None:
    clock = CountingClock()
    shared = FairShare(clock)
    nic = Link("nic", 10.0)
    fetches = [shared.move(100.0, [nic, Link(f"server{index}", 10.0)]) for index in range(10)]
    booked = clock.num_booked
    shared.move(1.0, [Link("pcie", 1.0)])
    clock.run(until=2.0)
    assert clock.num_booked == booked + 1
    assert [fetch.rate for fetch in fetches] == [1.0] * 10


def test_who_keeps_its_rate_keeps_its_timer() -> None:
    # Three fetches at 2 each leave 4 of the NIC's 10; the fourth takes 3 of them and slows down none.
    clock = CountingClock()
    shared = FairShare(clock)
    nic = Link("nic", 10.0)
    for index in range(3):
        shared.move(100.0, [nic, Link(f"server{index}", 2.0)])
    booked = clock.num_booked
    assert shared.move(100.0, [nic, Link("server3", 3.0)]).rate == 3.0
    assert clock.num_booked == booked + 1


def test_a_transfer_alone_runs_at_its_narrowest_link() -> None:
    clock = SimClock()
    transfer = FairShare(clock).move(12.0, [Link("wide", 9.0), Link("narrow", 3.0), Link("middle", 6.0)])
    clock.run()
    assert transfer.done.fired
    assert clock.now == 4.0


def test_bytes_arrive_between_events_too() -> None:
    clock = SimClock()
    shared = FairShare(clock)
    wire = Link("wire", 10.0)
    transfer = shared.move(100.0, [wire])
    clock.run(until=3.0)
    assert transfer.sent == 30.0
    assert shared.carried == {wire: 30.0}


def test_the_share_of_a_cancelled_transfer_goes_to_the_others() -> None:
    clock = SimClock()
    shared = FairShare(clock)
    wire = Link("wire", 10.0)
    kept, dropped = shared.move(100.0, [wire]), shared.move(100.0, [wire])
    fired: list[tuple[str, float]] = []
    for name, signal in (
        ("kept", kept.done),
        ("dropped", dropped.done),
        ("byte 10", dropped.reached(10.0)),
        ("byte 60", dropped.reached(60.0)),
    ):
        signal.wait(lambda _, name=name: fired.append((name, clock.now)))
    clock.call_at(4.0, dropped.cancel)
    clock.run()
    # 5 each until t=4: byte 10 of the dropped one is there at 2, and both have 20. Then 10 for the other's 80: 8 s.
    assert fired == [("byte 10", 2.0), ("kept", 12.0)]
    assert dropped.sent == 20.0
    assert dropped.rate == 0.0
    assert shared.carried == {wire: 120.0}


def test_of_a_cancelled_transfer_only_marks_that_were_reached_still_fire() -> None:
    clock = SimClock()
    transfer = FairShare(clock).move(100.0, [Link("wire", 10.0)])
    asked_before = transfer.reached(50.0)
    clock.run(until=4.0)
    transfer.cancel()
    there, never = transfer.reached(40.0), transfer.reached(41.0)
    clock.run()
    assert there.fired
    assert not asked_before.fired
    assert not never.fired
    assert not transfer.done.fired
    assert clock.now == 4.0  # nothing was left to wait for


def test_cancelling_twice_or_after_the_end_does_nothing() -> None:
    clock = SimClock()
    shared = FairShare(clock)
    wire = Link("wire", 10.0)
    ended, empty, twice = shared.move(20.0, [wire]), shared.move(0.0, [wire]), shared.move(40.0, [wire])
    clock.run(until=5.0)  # 5 a second each, so the first ends at 4 with 20 sent of the other, which has 30 at 5
    for transfer in (ended, empty, twice, twice):
        transfer.cancel()
    clock.run()
    assert (ended.sent, empty.sent, twice.sent) == (20.0, 0.0, 30.0)
    assert [transfer.cancelled for transfer in (ended, empty, twice)] == [False, False, True]
    assert shared.carried == {wire: 50.0}


def test_transfers_that_end_together_end_at_one_instant_in_the_order_they_started() -> None:
    clock = SimClock()
    shared = FairShare(clock)
    wire = Link("wire", 0.3)
    ended: list[tuple[str, float]] = []
    for name in ("first", "second", "third"):
        transfer = shared.move(0.1, [wire, Link(name, 1.0)])
        transfer.done.wait(lambda _, name=name: ended.append((name, clock.now)))
    clock.run()
    assert ended == [(name, clock.now) for name in ("first", "second", "third")]
    assert clock.now == pytest.approx(1.0)


def test_a_mark_reached_when_a_neighbour_ends_fires_at_that_instant() -> None:
    clock = SimClock()
    shared = FairShare(clock)
    wire = Link("wire", 10.0)
    short, long = shared.move(20.0, [wire]), shared.move(40.0, [wire])
    fired: list[tuple[str, float]] = []
    for name, signal in (("short", short.done), ("half", long.reached(20.0)), ("long", long.done)):
        signal.wait(lambda _, name=name: fired.append((name, clock.now)))
    clock.run()
    # 5 a second each until 4, then 10 for the 20 bytes left
    assert sorted(fired) == [("half", 4.0), ("long", 6.0), ("short", 4.0)]
