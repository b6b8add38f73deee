"""What control tells two processes to move, whom it blames when nothing comes, and which bytes blocks are."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")

from serving.core.clock import SimClock  # noqa: E402
from serving.core.hardware import Link, Server  # noqa: E402
from serving.core.instance import Instance  # noqa: E402
from serving.core.worker import Worker  # noqa: E402
from serving.live.arrival import Arrival  # noqa: E402
from serving.live.fleet import Fleet, WorkerOptions  # noqa: E402
from serving.live.kv_move import KvTraffic, Outcome, Views  # noqa: E402
from serving.live.kv_moves import KvMoves  # noqa: E402
from serving.live.kv_rows import GROUP_SIZE, DeviceRows, HostRows, Staging  # noqa: E402
from serving.live.recording import KvMoved, Recording  # noqa: E402
from serving.live.worker_link import Reply  # noqa: E402
from serving.units import MB  # noqa: E402
from tests.build import make_cluster, make_instance, make_workers  # noqa: E402


@dataclass
class Process:
    """What a living one is known by."""

    name: str
    pid: int


@dataclass
class FakeLink:
    """A process that notes what it is told and answers when a test says so."""

    live: Process
    told: list[dict[str, Any]] = field(default_factory=list)
    replies: list[Any] = field(default_factory=list)
    longer: list[float] = field(default_factory=list)
    """Beyond the answer limit, what each command may take."""

    def call(
        self, header: dict[str, Any], on_reply: Any, buffers: Sequence[memoryview] = (), longer: float = 0.0
    ) -> None:
        assert not buffers
        self.told.append(header)
        self.replies.append(on_reply)
        self.longer.append(longer)

    def answer(self, outcome: str, number: int = 0) -> None:
        self.replies[number](Reply(header={"outcome": outcome}, payload=b""))


class FakeFleet(Fleet):
    """Two instances of one worker each."""

    def __init__(self, answer_limit: float = 30.0, dtype: str | None = None) -> None:
        options = WorkerOptions(answer_limit=answer_limit, dtype=dtype)
        super().__init__(SimClock(), options, Path("kv"), Recording())
        self.cluster = make_cluster()
        servers = self.cluster.inventory.servers
        self.instances = [self._instance(number, server) for number, server in enumerate(servers[:2])]
        self.cluster.instances += self.instances
        self.fakes = [FakeLink(Process(f"worker {number}.0", 70 + number)) for number in range(2)]
        self.faults: list[tuple[Worker, str]] = []

    def _instance(self, number: int, server: Server) -> Instance:
        (worker,) = make_workers(self.cluster)  # type: ignore[arg-type]
        there = replace(worker, server=server, gpu=server.gpus[0])
        return make_instance(instance_id=number, workers=(there,)).instance

    def link(self, worker: Worker) -> Any:
        found = [fake for one, fake in zip(self.instances, self.fakes, strict=True) if worker in one.workers]
        return found[0] if found else None

    def fault(self, worker: Worker, reason: str) -> None:
        self.faults.append((worker, reason))

    @property
    def ends(self) -> tuple[Worker, Worker]:
        return self.instances[0].workers[0], self.instances[1].workers[0]


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


def begin(fleet: FakeFleet, moves: KvMoves | None = None) -> Arrival:
    return (moves or KvMoves(fleet)).start(*fleet.ends, [5, 6], [1, 9], 100.0)


def test_each_process_is_told_its_own_blocks(fleet: FakeFleet) -> None:
    begin(fleet)
    giver, taker = fleet.fakes
    both = {"move": 0, "num_stages": 1, "layers": [0, 32], "patience": 15.0}
    rate = min(fleet.ends[0].server.uplink.capacity, fleet.ends[1].server.downlink.capacity)
    assert giver.told == [{"op": "kv_give", "blocks": [5, 6], "to": "kv-71.kv", **both}]
    assert taker.told == [{"op": "kv_take", "blocks": [1, 9], "rate": rate, **both}]


def test_a_link_without_a_limit_has_no_rate(fleet: FakeFleet) -> None:
    source, target = fleet.ends
    source.server.uplink, target.server.downlink = Link("up", inf), Link("down", inf)
    begin(fleet)
    assert fleet.fakes[1].told[0]["rate"] is None


def test_it_has_arrived_when_the_taker_says_so(fleet: FakeFleet) -> None:
    moves = KvMoves(fleet)
    first, second = begin(fleet, moves), begin(fleet, moves)
    giver, taker = fleet.fakes
    giver.answer("whole")
    assert first.under_way
    taker.answer("whole")
    assert first.done.fired and second.under_way
    taker.answer("whole", 1)
    assert fleet.recording is not None
    assert fleet.recording.events == [KvMoved(at=0.0, worker=(0, 0), serial=serial) for serial in (0, 1)]
    first.cancel()
    assert len(giver.told) == len(taker.told) == 2


def test_a_cancelled_move_is_dropped_at_both_ends_and_what_they_say_then_is_ignored(fleet: FakeFleet) -> None:
    arrival = begin(fleet)
    arrival.cancel()
    giver, taker = fleet.fakes
    assert giver.told[1] == taker.told[1] == {"op": "kv_drop", "move": 0}
    for outcome in ("dropped", "stalled", "whole"):
        giver.answer(outcome)
        taker.answer(outcome)
    assert (fleet.faults, arrival.done.fired) == ([], False)


@pytest.mark.parametrize(
    ("who", "reason"),
    [(1, "worker 0.0 (process 70) gave no KV for 15 s"), (0, "worker 1.0 (process 71) took no KV for 15 s")],
    ids=["the taker waited", "the giver waited"],
)
def test_who_stalls_is_lost(fleet: FakeFleet, who: int, reason: str) -> None:
    begin(fleet)
    fleet.fakes[who].answer("stalled")
    assert fleet.faults == [(fleet.ends[1 - who], reason)]


@pytest.mark.parametrize("who", [0, 1])
def test_one_whose_other_end_is_gone_is_not_to_blame(fleet: FakeFleet, who: int) -> None:
    arrival = begin(fleet)
    fleet.fakes[who].answer("gone")
    assert (fleet.faults, arrival.under_way) == ([], True)


def test_a_move_from_or_to_a_dead_process_never_arrives(fleet: FakeFleet) -> None:
    (other,) = make_workers(make_cluster())
    source, target = fleet.ends
    for ends in ((source, other), (other, target)):
        arrival = KvMoves(fleet).start(*ends, [1], [2], 10.0)
        assert arrival.under_way
        arrival.cancel()
    assert [op["op"] for fake in fleet.fakes for op in fake.told] == ["kv_drop"] * 2


@dataclass
class SlowLink:
    """Moves between a fleet's two workers at a rate that makes them long."""

    fleet: FakeFleet
    rate: float = 0.1 * MB
    moves: KvMoves = field(init=False)

    def __post_init__(self) -> None:
        self.moves = KvMoves(self.fleet)
        for worker in self.fleet.ends:
            worker.server.uplink = worker.server.downlink = Link("slow", self.rate)

    def begin(self, size: float, *, back: bool = False) -> Arrival:
        """A move to the second worker, or back to the first."""
        source, target = reversed(self.fleet.ends) if back else self.fleet.ends
        return self.moves.start(source, target, [5, 6], [1, 9], size)

    def patience(self, who: int) -> list[float]:
        """Of a process in its moves, as it was told."""
        return [told["patience"] for told in self.fleet.fakes[who].told if "patience" in told]

    def longer(self, who: int) -> list[float]:
        """What it was given beyond the answer limit."""
        fake = self.fleet.fakes[who]
        return [more for told, more in zip(fake.told, fake.longer, strict=True) if "patience" in told]


def test_each_move_may_take_as_long_as_its_link_needs_for_it_and_for_those_that_go_before(fleet: FakeFleet) -> None:
    slow = SlowLink(fleet)
    for size in (1 * MB, 2 * MB, 0.5 * MB):
        slow.begin(size)
    for who in (0, 1):
        assert slow.patience(who) == pytest.approx([15.0, 25.0, 45.0])
    assert slow.longer(1) == pytest.approx([10.0, 30.0, 35.0])
    assert slow.longer(0) == pytest.approx([10.0, 40.0, 65.0])  # it reports the other before it is missed


def test_a_move_waits_for_none_that_is_over(fleet: FakeFleet) -> None:
    slow = SlowLink(fleet)
    arrivals = [slow.begin(1 * MB) for _ in range(4)]
    fleet.fakes[1].answer("whole", 0)
    arrivals[1].cancel()
    fleet.fakes[1].answer("gone", 2)  # and the move is still wanted
    fleet.fakes[0].answer("whole", 3)  # which the taker has not taken yet
    slow.begin(2 * MB)
    for who in (0, 1):
        assert slow.patience(who)[4] == pytest.approx(25.0)
        assert slow.longer(who)[4] == pytest.approx(30.0 if who else 40.0)


def test_a_move_waits_for_none_to_another_process(fleet: FakeFleet) -> None:
    slow = SlowLink(fleet)
    slow.begin(1 * MB)
    slow.begin(2 * MB, back=True)
    assert slow.patience(0) == slow.patience(1) == [15.0, 15.0]
    assert slow.longer(0) == slow.longer(1) == pytest.approx([10.0, 20.0])


def test_a_move_over_a_link_without_a_limit_may_take_no_longer(fleet: FakeFleet) -> None:
    slow = SlowLink(fleet, inf)
    slow.begin(1 * MB)
    slow.begin(1 * MB)
    assert slow.patience(0) == slow.patience(1) == [15.0, 15.0]
    assert slow.longer(0) == slow.longer(1) == [0.0, 0.0]


def test_kv_is_as_large_as_it_is_kept_and_not_as_the_checkpoint_is() -> None:
    """In values of 4 bytes, of a model that is stored in 2."""
    fleet = FakeFleet(dtype="float32")
    assert fleet.instances[0].spec.bytes_per_value == 2
    slow = SlowLink(fleet)
    slow.begin(1 * MB)
    assert slow.longer(0) == slow.longer(1) == pytest.approx([20.0])


def test_patience_outlasts_what_a_socket_holds(fleet: FakeFleet) -> None:
    """256 KiB at 10 kB/s take 26 s, in which the giver may not give a byte; 50 kB are over after 5 s."""
    slow = SlowLink(fleet, 10_000.0)
    slow.begin(0.05 * MB)
    slow.begin(1 * MB)
    assert slow.patience(0) == slow.patience(1) == pytest.approx([15.0, 5.0 + 26.2144 + 7.5])


def test_who_stalls_is_told_how_long_the_other_waited(fleet: FakeFleet) -> None:
    slow = SlowLink(fleet)
    slow.begin(1 * MB)
    slow.begin(1 * MB)
    fleet.fakes[0].answer("stalled", 1)
    assert fleet.faults == [(fleet.ends[1], "worker 1.0 (process 71) took no KV for 25 s")]


@dataclass
class Memory:
    """KV of so many bytes."""

    data: bytearray

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def give(self, send: Callable[[Views], object]) -> None:
        send([memoryview(self.data)])

    def take(self, fill: Callable[[Views], object]) -> None:
        self.give(fill)


@pytest.fixture
def inlet(tmp_path: Path) -> Iterator[tuple[KvTraffic, str]]:
    taker, path = KvTraffic(), str(tmp_path / "inlet")
    taker.listen(path)
    yield taker, path
    taker.close()


def test_all_who_give_at_once_to_one_that_takes_slowly_are_served(inlet: tuple[KvTraffic, str]) -> None:
    """The third's turn comes after 2.4 s, and nobody is patient for more than 1 s with a process that does nothing."""
    slow = SlowLink(FakeFleet(answer_limit=2.0), 0.5 * MB)
    sent = [Memory(bytearray([number] * 600_000)) for number in range(3)]
    for memory in sent:
        slow.begin(memory.num_bytes)
    taker, path = inlet
    taken = [Memory(bytearray(600_000)) for _ in sent]
    with ThreadPoolExecutor(3) as givers, ThreadPoolExecutor(1) as side:
        ends: list[Future[Outcome]] = []
        for number, (memory, empty) in enumerate(zip(sent, taken, strict=True)):
            take, give = slow.fleet.fakes[1].told[number], slow.fleet.fakes[0].told[number]
            ends.append(side.submit(taker.take, number, empty, take["rate"], take["patience"]))
            ends.append(givers.submit(KvTraffic().give, number, path, memory, give["patience"]))
        assert [end.result(20) for end in ends] == [Outcome.WHOLE] * 6
    assert taken == sent


tables = st.integers(0, 12).flatmap(
    lambda n: st.tuples(*[st.permutations(range(16)).map(lambda order: list(order)[:n])] * 2)
)


@given(tables)
def test_blocks_go_from_any_places_to_any_places(tables: tuple[list[int], list[int]]) -> None:
    """And no other block is touched; neighbours go as one piece."""
    blocks, into = tables
    pools = [torch.arange(16 * 6, dtype=torch.float32).view(16, 3, 2) + 1000 * number for number in range(4)]
    empty = [torch.zeros(16, 3, 2) for _ in pools]
    source, target = HostRows(pools, blocks), HostRows(empty, into)
    assert source.num_bytes == target.num_bytes == len(blocks) * 4 * 24
    sent = bytearray()
    pieces: list[int] = []

    def send(views: Views) -> None:
        pieces.append(len(views))
        for view in views:
            sent.extend(view)

    def fill(views: Views) -> None:
        for view in views:
            view[:] = sent[: view.nbytes]
            del sent[: view.nbytes]

    source.give(send)
    assert len(sent) == source.num_bytes
    assert set(pieces) == {bool(blocks) + sum(b != a + 1 for a, b in pairwise(blocks))}
    target.take(fill)
    for pool, filled in zip(pools, empty, strict=True):
        assert torch.equal(filled[into], pool[blocks])
        others = [block for block in range(16) if block not in into]
        assert not filled[others].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("num_blocks", [1, 7, 40])
def test_a_gpu_gives_and_takes_the_same_bytes(num_blocks: int) -> None:
    """In pieces of several tensors, of one, and of the host's order."""
    shape = (64, 16, 8, 128)
    pools = [torch.randn(shape, device="cuda") for _ in range(10)]
    blocks, into = list(range(1, 64))[:num_blocks], list(range(63, -1, -1))[:num_blocks]
    empty = [torch.zeros(shape, device="cuda") for _ in pools]
    source = DeviceRows(pools, blocks, Staging(torch.device("cuda:0")))
    target = DeviceRows(empty, into, Staging(torch.device("cuda:0")))
    sent, piece_sizes = bytearray(), list[int]()

    def send(views: Views) -> None:
        for view in views:
            piece_sizes.append(view.nbytes)
            sent.extend(view)

    def fill(views: Views) -> None:
        for view in views:
            view[:] = sent[: view.nbytes]
            del sent[: view.nbytes]

    source.give(send)
    assert max(piece_sizes) <= GROUP_SIZE
    on_host = [pool.cpu()[block].numpy().tobytes() for pool in pools for block in blocks]
    assert bytes(sent) == b"".join(on_host)
    target.take(fill)
    for pool, filled in zip(pools, empty, strict=True):
        assert torch.equal(filled[into], pool[blocks])
        others = [block for block in range(64) if block not in into]
        assert not filled[others].any()
