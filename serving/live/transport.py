"""LiveTransport: weights travel from a storage process through a server's prefetcher into shared memory, and from
there into the worker's process."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from serving.core.hardware import Server, StorageServer
from serving.core.stages import Loader
from serving.core.worker import Worker
from serving.live.arrival import Arrival, Inflow
from serving.live.checkpoint import Checkpoint
from serving.live.errors import LiveError
from serving.live.fleet import Fleet
from serving.live.kv_moves import KvMoves
from serving.live.part import Part
from serving.live.prefetch_link import PrefetchLink
from serving.live.processes import start_prefetcher
from serving.live.recording import Fetched, FetchFailed, Loaded, WorkerKey
from serving.live.shared_region import exists, region_name, unlink
from serving.live.store_link import StoreLink
from serving.live.worker_link import LAST_CHANCE, Reply
from serving.units import Bytes, Seconds


@dataclass(slots=True, eq=False)
class Fetch(Inflow):
    """A part in a region of a server's shared memory, or on its way there."""

    part: Part
    region: str
    prefetcher: PrefetchLink | None
    """None: none could be started."""
    heard_at: Seconds
    """When there was news of it last."""

    def failure(self, at: Seconds, reason: str) -> FetchFailed:
        """For a recording."""
        return FetchFailed(at=at, worker=self.key, serial=self.serial, reason=reason)

    @property
    def lost(self) -> bool:
        """Whether all its bytes had arrived, and went with the prefetcher."""
        return self.arrival.done.fired and not self.arrival.released and not exists(self.region)


class LiveTransport:
    """The Transport port."""

    def __init__(
        self,
        fleet: Fleet,
        run_id: str,
        checkpoints: Mapping[str, Checkpoint],
    ) -> None:
        self._fleet = fleet
        self._run_id = run_id
        self._checkpoints = checkpoints
        self.stores: dict[StorageServer, StoreLink] = {}
        self._serials = count()
        self._kv_moves = KvMoves(fleet)
        self._prefetchers: dict[Server, PrefetchLink] = {}
        self._fetches: dict[int, Fetch] = {}
        """By id, until released."""

    @property
    def prefetchers(self) -> tuple[PrefetchLink, ...]:
        """The prefetcher of each server."""
        return tuple(self._prefetchers.values())

    @property
    def fetches(self) -> tuple[Fetch, ...]:
        """What is in shared memory, or on its way there."""
        return tuple(self._fetches.values())

    def open(self, server: Server) -> PrefetchLink:
        """The server's prefetcher, started if it does not run."""
        link = self._prefetchers.get(server)
        if link is None or link.ended:
            log_folder = self._fleet.options.log_folder
            process = start_prefetcher(
                server.name,
                f"{self._run_id}.{next(self._serials)}",
                log_path=None if log_folder is None else log_folder / f"prefetcher-{server.name}.log",
            )
            try:
                link = PrefetchLink(process, self._fleet.clock, self._hear)
            except RuntimeError as error:  # no thread can be started
                process.stop()
                raise LiveError(f"prefetcher of {server.name}: {error}") from error
            self._prefetchers[server] = link
            link.on_end = partial(self._prefetcher_died, link)
        return link

    def close(self) -> None:
        """End the prefetchers; every region goes."""
        for link in self._prefetchers.values():
            link.close()
        for fetch in self._fetches.values():
            unlink(fetch.region)

    def fetch(self, worker: Worker) -> Arrival:
        """The worker's part, from its server's storage process into a shared region of the server."""
        instance = self._fleet.instance_of(worker)
        if instance is None:
            raise LookupError(f"a worker on {worker.gpu.name} fetches for no instance")
        fetch_id = next(self._serials)
        part = self._checkpoints[instance.model].part(worker.layers, instance.model)
        arrival = Arrival(
            self._fleet.clock, part.size, partial(self._cancel, fetch_id), partial(self._release, fetch_id)
        )
        clock = self._fleet.clock
        region = region_name(self._run_id, fetch_id)
        serial = self._fleet.serial_of_fetch(instance, worker)
        fetch = Fetch(instance, worker.rank, worker.server, arrival, serial, part, region, None, clock.now)
        self._fetches[fetch_id] = fetch
        try:
            prefetcher = fetch.prefetcher = self.open(worker.server)
            store = self.stores[worker.server.store].address
        except LiveError as error:
            layers = f"layers {worker.layers.start}..{worker.layers.stop}"
            nothing = f"no bytes of {instance.model}, {layers}, have arrived"
            clock.post(self._fail, fetch, f"{error}: {nothing}")
            return arrival
        fetch.region = region = region_name(prefetcher.process.run_id, fetch_id)
        clock.call_later(self._fleet.options.fetch_limit, self._look, fetch)
        prefetcher.send(
            {
                "op": "fetch",
                "id": fetch_id,
                "store": store,
                "link": worker.server.name,
                "model": instance.model,
                "layers": [worker.layers.start, worker.layers.stop],
                "region": region,
            }
        )
        return arrival

    def pieces(self, worker: Worker) -> tuple[Bytes, ...]:
        """Tensor by tensor."""
        return worker.tensors

    def load(self, worker: Worker, size: Bytes, loader: Loader) -> Arrival:
        """The next tensors of the worker's part, so many bytes of them, from the region into its process."""
        link = self._fleet.link(worker)
        arrival = Arrival(self._fleet.clock, size)
        if link is None:
            raise LookupError(f"a worker on {worker.gpu.name} loads before its process was started")
        part = worker.layers.start
        if part not in link.num_loaded:
            try:
                fetch = self._source(worker)
            except LiveError as error:
                self._fleet.clock.post(self._fleet.fault, worker, str(error))
                return arrival
            link.call({"op": "part", "part": fetch.part.to_json(), "region": fetch.region}, None)
        first = link.num_loaded.get(part, 0)
        stop = link.num_loaded[part] = stop_of(worker, first, size)
        loaded = partial(self._loaded, arrival, self._fleet.key(worker), link.num_loads)
        link.num_loads += 1
        command = {"op": "load", "first_layer": part, "tensors": [first, stop], "loader": loader.value}
        link.call(command, loaded)
        return arrival

    def move_kv(self, source: Worker, target: Worker, blocks: list[int], into: list[int], size: Bytes) -> Arrival:
        """The blocks' KV, from one process to the other over a socket between them, as fast as their servers' links."""
        return self._kv_moves.start(source, target, blocks, into, size)

    def _source(self, worker: Worker) -> Fetch:
        """Where the worker's bytes are: in the region of its own fetch, or in what the server keeps."""
        instance = self._fleet.instance_of(worker)
        found: Fetch | None = None
        for fetch in self._fetches.values():
            if fetch.part.layers != worker.layers:
                continue
            if fetch.instance is instance and fetch.rank == worker.rank:
                return fetch
            same = fetch.instance.model == (instance and instance.model)
            if same and fetch.server is worker.server and not fetch.arrival.cancelled:
                found = fetch
        if found is None:
            raise LiveError(f"{worker.server.name} holds the weights no more that a worker on {worker.gpu.name} loads")
        return found

    def _loaded(self, arrival: Arrival, worker: WorkerKey, serial: int, reply: Reply) -> None:
        del reply  # says nothing but that it is done
        if arrival.under_way:
            self._fleet.record(Loaded(at=self._fleet.clock.now, worker=worker, serial=serial))
            arrival.finish()

    def _hear(self, event: dict[str, Any]) -> None:
        """News of a prefetcher; of a fetch that nobody wants any more there may still be some."""
        fetch = self._fetches.get(event["id"])
        if fetch is None or not fetch.arrival.under_way:
            return
        fetch.heard_at = self._fleet.clock.now
        match event["event"]:
            case "described":
                if Part.from_json(event["part"]) != fetch.part:
                    self._fail(fetch, f"the storage server of {fetch.server.name} has another {fetch.part.model}")
            case "progress":
                self._advance(fetch, event["received"], done=False)
            case "done":
                self._advance(fetch, fetch.part.size, done=True)
            case "failed":
                self._fail(fetch, event["error"])

    def _advance(self, fetch: Fetch, received: int, *, done: bool) -> None:
        at = self._fleet.clock.now
        self._fleet.record(Fetched(at=at, worker=fetch.key, serial=fetch.serial, received=received, done=done))
        fetch.arrival.advance(received)
        if done:
            fetch.arrival.finish()

    def _fail(self, fetch: Fetch, reason: str) -> None:
        if not fetch.arrival.under_way:
            return  # it was cancelled meanwhile
        self._fleet.record(fetch.failure(self._fleet.clock.now, reason))
        if self._fleet.cluster is not None and self._fleet.on_lost is not None:
            fetch.fail(self._fleet.cluster, reason, self._fleet.on_lost)

    def _prefetcher_died(self, link: PrefetchLink, reason: str) -> None:
        """Its regions are gone, and its fetches end, each at an instant of its own: when policies hear of that, caches
        know already what they have lost. The next fetch starts another."""
        for fetch in list(self._fetches.values()):
            if fetch.prefetcher is link and fetch.arrival.under_way:
                self._fleet.clock.post(self._fail, fetch, reason)
            elif fetch.prefetcher is link and fetch.lost:
                self._fleet.record(fetch.failure(self._fleet.clock.now, reason))
                fetch.forget()

    def _look(self, fetch: Fetch) -> None:
        """A timer: a prefetcher that was silent for too long is given up; else look again when it may have been."""
        if not fetch.arrival.under_way or fetch.prefetcher is None or fetch.prefetcher.ended:
            return
        clock, limit = self._fleet.clock, self._fleet.options.fetch_limit
        left = fetch.heard_at + limit - clock.now
        if left > 0:
            clock.call_later(left, self._look, fetch)
        else:
            clock.post(self._give_last_chance, fetch, fetch.heard_at)

    def _give_last_chance(self, fetch: Fetch, heard_at: Seconds) -> None:
        """As a post, for which time is what it is: this process may have been stopped itself, and news may wait."""
        self._fleet.clock.call_later(LAST_CHANCE, self._accuse, fetch, heard_at)

    def _accuse(self, fetch: Fetch, heard_at: Seconds) -> None:
        if fetch.heard_at > heard_at:
            self._look(fetch)
        elif fetch.arrival.under_way and fetch.prefetcher is not None:
            fetch.prefetcher.kill(f"has said nothing of a fetch for {self._fleet.options.fetch_limit:g} s")

    def _cancel(self, fetch_id: int) -> None:
        fetch = self._fetches.get(fetch_id)
        if fetch is not None and fetch.prefetcher is not None:
            fetch.prefetcher.send({"op": "cancel", "id": fetch_id})

    def _release(self, fetch_id: int) -> None:
        fetch = self._fetches.pop(fetch_id, None)
        if fetch is not None and fetch.prefetcher is not None:
            fetch.prefetcher.send({"op": "free", "region": fetch.region})
            if fetch.prefetcher.ended:
                unlink(fetch.region)


def stop_of(worker: Worker, first: int, size: Bytes) -> int:
    """The tensor behind those that have so many bytes, from ``first`` on."""
    stop, left = first, size
    while left > 0 and stop < len(worker.tensors):
        left -= worker.tensors[stop]
        stop += 1
    if left or stop == first:
        raise ValueError(f"no tensors from number {first} on of a worker on {worker.gpu.name} have {size:.0f} bytes")
    return stop
