"""KvMoves: the KV that moves between worker processes, as the control process orders and hears of it."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import isinf

from serving.core.worker import Worker
from serving.live.arrival import Arrival
from serving.live.fleet import Fleet, key_of
from serving.live.kv_move import Outcome
from serving.live.recording import KvMoved, WorkerKey
from serving.live.worker_link import Reply, WorkerLink
from serving.units import Bytes, Seconds


@dataclass(frozen=True, slots=True)
class KvMoving:
    """One move: from which worker to which, and what a recording calls it."""

    number: int
    source: Worker
    target: Worker
    giver: WorkerLink
    taker: WorkerLink
    key: WorkerKey
    serial: int
    arrival: Arrival


class KvMoves:
    """Takes and gives of the processes of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._numbers = count()
        self._serials: Counter[WorkerKey] = Counter()

    @property
    def patience(self) -> Seconds:
        """A process that moves no byte for so long has hung: sooner than an answer of it would be missed."""
        return self._fleet.options.answer_limit / 2

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
        moving = KvMoving(number, source, target, giver, taker, key, serial, arrival)
        rate = min(source.server.uplink.capacity, target.server.downlink.capacity)
        what = {"move": number, "layers": [source.layers.start, source.layers.stop], "patience": self.patience}
        take = {"blocks": list(into), "rate": None if source.server is target.server or isinf(rate) else rate}
        give = {"blocks": list(blocks), "to": str(fleet.kv_path(taker))}
        engines = fleet.num_stages(source), fleet.num_stages(target)
        taker.call({"op": "kv_take", "num_stages": engines[1], **what, **take}, partial(self._taken, moving))
        giver.call({"op": "kv_give", "num_stages": engines[0], **what, **give}, partial(self._given, moving))
        return arrival

    def _taken(self, moving: KvMoving, reply: Reply) -> None:
        """All of it is there; or not, which is the giver's fault if it said nothing, and else comes of something that
        control hears of by itself."""
        if not moving.arrival.under_way:
            return
        match reply.header["outcome"]:
            case Outcome.WHOLE:
                at = self._fleet.clock.now
                self._fleet.record(KvMoved(at=at, worker=moving.key, serial=moving.serial))
                moving.arrival.finish()
            case Outcome.STALLED:
                self._accuse(moving.source, moving.giver, "gave")

    def _given(self, moving: KvMoving, reply: Reply) -> None:
        if moving.arrival.under_way and reply.header["outcome"] == Outcome.STALLED:
            self._accuse(moving.target, moving.taker, "took")

    def _accuse(self, worker: Worker, link: WorkerLink, did: str) -> None:
        live = link.live
        self._fleet.fault(worker, f"{live.name} (process {live.pid}) {did} no KV for {self.patience:g} s")

    def _drop(self, source: Worker, target: Worker, number: int) -> None:
        """Before any step that comes from now on."""
        for link in (self._fleet.link(target), self._fleet.link(source)):
            if link is not None:
                link.call({"op": "kv_drop", "move": number}, None)
