"""KvMoves: the KV that moves between worker processes, as the control process orders and hears of it."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import isinf

from serving.core.instance import Instance
from serving.core.worker import Worker
from serving.live.arrival import Arrival
from serving.live.config import DTYPES
from serving.live.fleet import Fleet, key_of
from serving.live.kv_move import Outcome
from serving.live.recording import KvMoved, WorkerKey
from serving.live.worker_link import Reply, WorkerLink
from serving.units import Bytes, BytesPerSecond, KiB, Seconds

HELD: Bytes = 256 * KiB
"""What a socket between two processes holds, and more (208 KiB on Linux): who gives may not be let on until it was
taken. No less than a chunk, but where the link is so fast that a chunk takes milliseconds."""


@dataclass(frozen=True, slots=True)
class KvMoving:
    """One move: from which worker to which, what a recording calls it, and how long it may take."""

    number: int
    source: Worker
    target: Worker
    giver: WorkerLink
    taker: WorkerLink
    key: WorkerKey
    serial: int
    arrival: Arrival
    duration: Seconds
    """What the link needs for its bytes; 0 where that has no limit."""
    ahead: Seconds
    """What the taker may need before, for those it was told of earlier: it takes one after the other."""
    patience: Seconds
    """A process that moves no byte of it for so long has hung: sooner than an answer of it would be missed."""


class KvMoves:
    """Takes and gives of the processes of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._numbers = count()
        self._serials: Counter[WorkerKey] = Counter()
        self._under_way: dict[int, KvMoving] = {}
        """By number, those that their takers have not answered for."""

    def start(self, source: Worker, target: Worker, blocks: list[int], into: list[int], size: Bytes) -> Arrival:
        """Some blocks of the source's layers over a socket, as fast as the servers' links; it never arrives when a
        process dies, of which the fleet tells."""
        fleet, number = self._fleet, next(self._numbers)
        arrival = Arrival(fleet.clock, size, partial(self._drop, source, target, number))
        giver, taker, instance = fleet.link(source), fleet.link(target), fleet.instance_of(source)
        if instance is None:
            return arrival
        key = key_of(instance, source)
        serial = self._serials[key]
        self._serials[key] += 1
        if giver is None or taker is None:
            return arrival
        rate = _rate(source, target)
        num_bytes = self._num_bytes(instance, size)
        ahead = sum(moving.duration for moving in self._under_way.values() if moving.taker is taker)
        duration = 0.0 if rate is None else num_bytes / rate
        patience = ahead + self._patience(num_bytes, rate)
        moving = KvMoving(number, source, target, giver, taker, key, serial, arrival, duration, ahead, patience)
        self._under_way[number] = moving
        self._order(moving, list(blocks), list(into), rate)
        return arrival

    def _order(self, moving: KvMoving, blocks: list[int], into: list[int], rate: BytesPerSecond | None) -> None:
        """Tell both processes. Either may owe its answer until the taker is through with this move."""
        fleet, source = self._fleet, moving.source
        layers = [source.layers.start, source.layers.stop]
        what = {"move": moving.number, "layers": layers, "patience": moving.patience}
        take = {"op": "kv_take", "num_stages": fleet.num_stages(moving.target), "blocks": into, "rate": rate}
        to = str(fleet.kv_path(moving.taker))
        give = {"op": "kv_give", "num_stages": fleet.num_stages(source), "blocks": blocks, "to": to}
        longer = moving.ahead + moving.duration
        moving.taker.call({**take, **what}, partial(self._taken, moving), longer=longer)
        longer += moving.ahead  # as patient as it is: it says that the taker has hung before it is missed itself
        moving.giver.call({**give, **what}, partial(self._given, moving), longer=longer)

    def _num_bytes(self, instance: Instance, size: Bytes) -> Bytes:
        """What goes over the socket: KV is of the type that is computed in, and ``size`` of that in the checkpoint."""
        dtype = self._fleet.options.dtype
        return size if dtype is None else size * DTYPES[dtype] / instance.spec.bytes_per_value

    def _patience(self, num_bytes: Bytes, rate: BytesPerSecond | None) -> Seconds:
        """With a process whose turn it is. On a slow link no byte may move while the taker rests: half of the patience
        is left over then."""
        patience = self._fleet.options.answer_limit / 2
        rest = 0.0 if rate is None else min(num_bytes, HELD) / rate
        return max(patience, rest + patience / 2)

    def _taken(self, moving: KvMoving, reply: Reply) -> None:
        """All of it is there; or not, which is the giver's fault if it said nothing, and else comes of something that
        control hears of by itself."""
        self._under_way.pop(moving.number, None)
        if not moving.arrival.under_way:
            return
        match reply.header["outcome"]:
            case Outcome.WHOLE:
                at = self._fleet.clock.now
                self._fleet.record(KvMoved(at=at, worker=moving.key, serial=moving.serial))
                moving.arrival.finish()
            case Outcome.STALLED:
                self._accuse(moving, moving.source, moving.giver, "gave")

    def _given(self, moving: KvMoving, reply: Reply) -> None:
        if moving.arrival.under_way and reply.header["outcome"] == Outcome.STALLED:
            self._accuse(moving, moving.target, moving.taker, "took")

    def _accuse(self, moving: KvMoving, worker: Worker, link: WorkerLink, did: str) -> None:
        live = link.live
        self._fleet.fault(worker, f"{live.name} (process {live.pid}) {did} no KV for {moving.patience:g} s")

    def _drop(self, source: Worker, target: Worker, number: int) -> None:
        """Before any step that comes from now on."""
        self._under_way.pop(number, None)
        for link in (self._fleet.link(target), self._fleet.link(source)):
            if link is not None:
                link.call({"op": "kv_drop", "move": number}, None)


def _rate(source: Worker, target: Worker) -> BytesPerSecond | None:
    """Of the link between two workers' servers; None: it has no limit."""
    rate = min(source.server.uplink.capacity, target.server.downlink.capacity)
    return None if source.server is target.server or isinf(rate) else rate
