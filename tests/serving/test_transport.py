"""Transfers: fair shares against a reference, no link above capacity, every byte arrives, marks at their time."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.clock import SimClock
from serving.core.hardware import Link
from serving.core.stages import Loader
from serving.sim.transport import FairShare, SimTransfer, SimTransport, max_min_rates
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
