"""KV on its way between two processes: all of it, or none that comes late; neither end hangs when the other goes."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from serving.live.activations import NeighbourError
from serving.live.kv_move import PREFIX, KvTraffic, Outcome, Views
from serving.live.token_bucket import BURST
from serving.units import MB

SIZE = 2_000_000
PATIENCE = 20.0
"""Seconds; nothing here waits for so long unless it hangs."""


@dataclass(eq=False)
class Bytes:
    """Rows that are a piece of memory, in pieces of the given size."""

    memory: bytearray
    piece: int = 300_000
    hold: Callable[[], object] = field(default=lambda: None)
    """Called between pieces."""

    @property
    def num_bytes(self) -> int:
        return len(self.memory)

    def give(self, send: Callable[[Views], object]) -> None:
        view = memoryview(self.memory)
        for start in range(0, len(view), self.piece):
            send([view[start : start + 1000], view[start + 1000 : start + self.piece]])
            self.hold()

    take = give


def some(size: int = SIZE, first: int = 1) -> Bytes:
    return Bytes(bytearray((first + i) % 251 for i in range(size)))


def empty(size: int = SIZE) -> Bytes:
    return Bytes(bytearray(size))


@dataclass
class Ends:
    """Two processes' traffic, each with the thread that carries moves out."""

    path: str
    giver: KvTraffic = field(default_factory=KvTraffic)
    taker: KvTraffic = field(default_factory=KvTraffic)
    giving: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    taking: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def give(self, number: int, rows: Bytes, patience: float = PATIENCE) -> "Future[Outcome]":
        self.giver.expect(number)
        return self.giving.submit(self.giver.give, number, self.path, rows, patience)

    def take(
        self, number: int, rows: Bytes, rate: float | None = None, patience: float = PATIENCE
    ) -> "Future[Outcome]":
        self.taker.expect(number)
        return self.taking.submit(self.taker.take, number, rows, rate, patience)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(str(tmp_path / "kv"))
    made.taker.listen(made.path)
    yield made
    made.giving.shutdown()
    made.taking.shutdown()
    made.taker.close()
    assert not made.giver._moves and not made.taker._moves
    assert not Path(made.path).exists()


def waits(holds: Callable[[], Any]) -> None:
    give_up = monotonic() + PATIENCE
    while not holds():
        assert monotonic() < give_up
        sleep(0.001)


@pytest.mark.parametrize("first", ["give", "take"])
def test_all_bytes_arrive_in_their_places_whoever_comes_first(ends: Ends, first: str) -> None:
    source, target = some(), empty()
    asked: dict[str, Future[Outcome]] = {}
    for what in (first, "take" if first == "give" else "give"):
        asked[what] = ends.give(0, source) if what == "give" else ends.take(0, target)
        sleep(0.02)
    assert [future.result(PATIENCE) for future in asked.values()] == [Outcome.WHOLE] * 2
    assert target.memory == source.memory


def test_moves_follow_one_another_also_when_their_givers_call_in_another_order(ends: Ends) -> None:
    targets = [empty(), empty()]
    other = KvTraffic()
    with ThreadPoolExecutor(1) as thread:
        later = thread.submit(other.give, 1, ends.path, some(first=9), PATIENCE)
        waits(lambda: 1 in ends.taker._called)
        taken = [ends.take(number, rows) for number, rows in enumerate(targets)]
        assert ends.give(0, some()).result(PATIENCE) == Outcome.WHOLE
        assert [future.result(PATIENCE) for future in (*taken, later)] == [Outcome.WHOLE] * 3
    assert [rows.memory for rows in targets] == [some().memory, some(first=9).memory]


def test_a_rate_is_kept(ends: Ends) -> None:
    began_at = monotonic()
    taken = ends.take(0, empty(200_000), rate=2 * MB)
    ends.give(0, some(200_000))
    assert taken.result(PATIENCE) == Outcome.WHOLE
    assert monotonic() - began_at >= 0.1 - BURST


def test_nothing_is_written_after_a_drop(ends: Ends) -> None:
    target = empty()
    taken, given = ends.take(0, target, rate=4 * MB), ends.give(0, some())
    waits(lambda: target.memory[100_000])
    ends.taker.drop(0)
    ends.taker.await_end(0)
    target.memory[:] = bytes(SIZE)  # other sequences' by now
    assert taken.result(PATIENCE) == Outcome.DROPPED
    assert given.result(PATIENCE) in (Outcome.GONE, Outcome.DROPPED)
    sleep(0.05)
    assert target.memory == bytes(SIZE)


def test_the_end_of_a_move_is_awaited_as_long_as_it_may_write(ends: Ends) -> None:
    """As on a GPU, where bytes that came are still on their way to their blocks."""
    written, go_on = threading.Event(), threading.Event()
    target = empty()
    target.hold = lambda: (written.set(), go_on.wait(PATIENCE))
    taken = ends.take(0, target)
    ends.give(0, some())
    assert written.wait(PATIENCE)
    ends.taker.drop(0)
    waiter = threading.Thread(target=ends.taker.await_end, args=(0,))
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    go_on.set()
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    assert taken.result(PATIENCE) == Outcome.DROPPED


def test_a_move_that_was_dropped_before_its_turn_is_never_begun(ends: Ends) -> None:
    blocked = ends.take(0, empty())  # nobody gives
    target = empty()
    waiting, given = ends.take(1, target), ends.give(1, some())
    ends.taker.drop(1)
    ends.taker.await_end(1)  # at once, though the thread has not come to it
    ends.taker.drop(0)
    assert blocked.result(PATIENCE) == waiting.result(PATIENCE) == Outcome.DROPPED
    assert given.result(PATIENCE) == Outcome.GONE  # its call is hung up on
    assert target.memory == bytes(SIZE)


def test_a_caller_of_a_move_that_is_over_is_told_from_the_next_one(ends: Ends) -> None:
    dropped = ends.take(5, empty())
    ends.taker.drop(5)
    assert dropped.result(PATIENCE) == Outcome.DROPPED
    target = empty()
    taken = ends.take(6, target)
    assert ends.give(5, some(first=9)).result(PATIENCE) == Outcome.GONE
    assert ends.give(6, some()).result(PATIENCE) == Outcome.WHOLE
    assert taken.result(PATIENCE) == Outcome.WHOLE
    assert target.memory == some().memory


def test_a_drop_of_what_has_ended_does_nothing(ends: Ends) -> None:
    taken, given = ends.take(0, empty()), ends.give(0, some())
    assert taken.result(PATIENCE) == given.result(PATIENCE) == Outcome.WHOLE
    for end in (ends.giver, ends.taker):
        end.drop(0)
        end.await_end(0)


def test_a_giver_that_is_dropped_stops_though_nobody_takes(ends: Ends) -> None:
    given = ends.give(0, some())
    waits(lambda: 0 in ends.taker._called)
    ends.giver.drop(0)
    ends.giver.await_end(0)
    assert given.result(PATIENCE) == Outcome.DROPPED
    assert ends.take(0, empty()).result(PATIENCE) == Outcome.GONE


@pytest.mark.parametrize("sent", [0, 5, PREFIX.size, PREFIX.size + 1000])
def test_a_giver_that_dies_leaves_a_taker_that_goes_on(ends: Ends, sent: int) -> None:
    with socket.socket(socket.AF_UNIX) as dying:
        dying.connect(ends.path)
        dying.sendall((PREFIX.pack(0, SIZE) + bytes(1000))[:sent])
    taken = ends.take(0, empty(), patience=PATIENCE if sent >= PREFIX.size else 0.1)
    assert taken.result(PATIENCE) == (Outcome.GONE if sent >= PREFIX.size else Outcome.STALLED)
    again, target = ends.give(1, some()), empty()
    assert ends.take(1, target).result(PATIENCE) == again.result(PATIENCE) == Outcome.WHOLE
    assert target.memory == some().memory


def test_a_taker_that_dies_leaves_a_giver_that_goes_on(ends: Ends, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "dying"))
        listener.listen()
        given = ends.giving.submit(ends.giver.give, 0, str(tmp_path / "dying"), some(), PATIENCE)
        listener.accept()[0].close()
        assert given.result(PATIENCE) == Outcome.GONE
    assert ends.giver.give(1, str(tmp_path / "dying"), some(), PATIENCE) == Outcome.GONE
    assert ends.giver.give(2, str(tmp_path / "never"), some(), PATIENCE) == Outcome.GONE


def test_one_that_says_nothing_has_stalled(ends: Ends) -> None:
    assert ends.take(0, empty(), patience=0.05).result(PATIENCE) == Outcome.STALLED
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.connect(ends.path)
        stopped.sendall(PREFIX.pack(1, SIZE) + bytes(1000))
        assert ends.take(1, empty(), patience=0.05).result(PATIENCE) == Outcome.STALLED
    assert ends.give(2, some(), patience=0.05).result(PATIENCE) == Outcome.STALLED


def test_another_number_of_bytes_than_there_are_blocks_for_is_an_error(ends: Ends) -> None:
    taken = ends.take(0, empty(1000))
    ends.give(0, some(999))
    with pytest.raises(NeighbourError, match="expected 1000 bytes, 999 are given"):
        taken.result(PATIENCE)
