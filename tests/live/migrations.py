"""Live runs in which running sequences move between instances: all the time, or one when a test says so."""

import atexit
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from shutil import rmtree
from tempfile import mkdtemp
from time import monotonic, sleep
from typing import Any, TypeVar

from serving.core.actions import Action, Method, Migrate
from serving.core.cluster import Cluster, Deployment
from serving.core.hardware import GPU, Link, Server
from serving.core.instance import Instance, Phase
from serving.core.ports import System
from serving.core.request import Sequence
from serving.live.checkpoint import Checkpoint
from serving.live.engine import Engine
from serving.live.engine_stats import sequences_of
from serving.live.fleet import WorkerOptions
from serving.live.setup import LiveRun, LiveSetup
from serving.policies.fixed_instances import FixedInstances, FixedInstancesConfig
from serving.records import DecisionRecord, MigrationRecord, Record
from serving.units import MB, BytesPerSecond
from tests.live.served import fixed, small_testbed
from tests.live.stages import make_lively

T = TypeVar("T")

MODEL = "tiny"
NUM_BLOCKS = 30
"""Of an instance: too few for all that the storms send, so that sequences are preempted."""
BLOCK = 16 * 2 * 2 * 2 * 16 * 4
"""Bytes of a KV block: tokens x layers x keys and values x heads x head size x float32."""
WAIT = 60.0
"""Seconds; generous, for machines that are busy."""


@cache
def two_layers() -> Path:
    """A model of two layers that matter, made once a session."""
    folder = mkdtemp(prefix="aebench-test-")
    atexit.register(rmtree, folder, ignore_errors=True)
    return make_lively(Path(folder) / MODEL, scale=20.0, num_hidden_layers=2, max_position_embeddings=1024)


@dataclass
class Weather:
    """How sequences are moved; none when there are no methods."""

    methods: tuple[Method, ...] = ()


class Storm(FixedInstances):
    """Fixed instances between which running sequences move all the time; one that is lost is not replaced."""

    def __init__(self, config: FixedInstancesConfig, weather: Weather) -> None:
        super().__init__(config)
        self._weather = weather
        self._draws = Random("0/storm")
        self._begun = False

    def on_interval(self, cluster: Cluster) -> list[Action]:
        """Pairs of instances, a sequence of each first, a method."""
        actions = super().on_interval(cluster)
        ready = [one for one in cluster.instances_of(MODEL, Phase.READY) if one.move is None]
        self._draws.shuffle(ready)
        for source, target in zip(ready[::2], ready[1::2], strict=False):
            if source.running and self._weather.methods:
                sequence = self._draws.choice(source.running)
                method = self._draws.choice(self._weather.methods)
                actions.append(migrate(sequence, source, target, method=method, max_stages=self._draws.choice((2, 8))))
        return actions

    def _launches(self, model: str, cluster: Cluster, free: list[tuple[Server, GPU]] | None = None) -> list[Action]:
        if self._begun:
            return []
        self._begun = True
        return super()._launches(model, cluster, free)


def migrate(sequence: Sequence, source: Instance, target: Instance, **changes: Any) -> Migrate:
    """The action, with the usual knobs."""
    return replace(
        Migrate(sequence=sequence, source=source, target=target, max_stages=8, last_stage_blocks=1, keep_free=0),
        **changes,
    )


def stormy(num_instances: int, num_stages: int, weather: Weather, device: str = "cpu") -> LiveSetup:
    """Instances of the two-layer model that compute prompts in chunks."""
    knobs = {"interval": 0.01, "max_step_tokens": 32}
    system: System = fixed(num_instances, num_stages, **knobs)
    folder = two_layers()
    spec = Checkpoint.open(folder).spec(MODEL)
    return LiveSetup(
        testbed=small_testbed(num_instances * num_stages, exclusive=True),
        system=replace(system, controller=partial(Storm, weather=weather)),
        deployments=(Deployment(model=MODEL, spec=spec, size=spec.weight_bytes, ttft_slo=30.0, tpot_slo=1.0),),
        checkpoints={MODEL: folder},
        workers=WorkerOptions(device=device, max_blocks=NUM_BLOCKS),
    )


@dataclass
class Sky:
    """An engine, and what there is to see of its migrations."""

    engine: Engine
    weather: Weather
    records: list[Record] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    """Instances that a test has killed a process of."""

    @property
    def run(self) -> LiveRun:
        assert self.engine._run is not None
        return self.engine._run

    @property
    def instances(self) -> list[Instance]:
        """The ready ones."""
        return list(self.run.control.cluster.instances_of(MODEL, Phase.READY))

    def on_clock(self, fn: Callable[[], T]) -> T:
        """What a function returns on the clock's thread."""
        found: Future[T] = Future()

        def call() -> None:
            try:
                found.set_result(fn())
            except BaseException as error:
                found.set_exception(error)

        self.run.clock.post(call)
        return found.result(WAIT)

    def sequence(self, request_id: int) -> Sequence:
        """A request's, on the clock's thread."""
        under_way = sequences_of(self.run.control.cluster, MODEL)
        return next(sequence for sequence in under_way if sequence.request.request_id == request_id)

    def move(self, request_id: int, to: Instance | None = None, **changes: Any) -> tuple[Instance, Instance]:
        """Begin to move a request's sequence; from where, and to where."""

        def begin() -> tuple[Instance, Instance]:
            sequence = self.sequence(request_id)
            source = sequence.instance
            assert source is not None
            target = to or next(one for one in self.instances if one is not source and one.move is None)
            self.run.control._carry_out("test", [migrate(sequence, source, target, **changes)])
            return source, target

        return self.on_clock(begin)

    def kill(self, victim: Instance, rank: int = 0) -> None:
        """One of its processes."""
        self.killed.add(victim.instance_id)
        os.kill(self.run.fleet.links(victim)[rank].live.pid, signal.SIGKILL)

    def limit(self, rate: BytesPerSecond) -> None:
        """How fast KV goes from now on."""
        for server in self.run.control.cluster.servers:
            server.downlink = Link(server.downlink.name, rate)

    def migrations(self) -> list[MigrationRecord]:
        """Those that have ended."""
        return [record for record in self.records if isinstance(record, MigrationRecord)]

    def ended(self, request_id: int) -> MigrationRecord:
        """The request's, once it has ended."""
        self.until(lambda: any(record.request_id == request_id for record in self.migrations()))
        return next(record for record in self.migrations() if record.request_id == request_id)

    def until(self, holds: Callable[[], bool]) -> None:
        """Look, on the clock's thread, until it is so."""
        give_up = monotonic() + WAIT
        while not self.on_clock(holds):
            assert monotonic() < give_up
            sleep(0.002)

    def assert_is_clear(self) -> None:
        """Nothing is under way, every block is free, every process has its one socket file, and no instance was lost
        but those that were killed."""
        control = self.run.control
        self.until(lambda: not sequences_of(control.cluster, MODEL) and not control._migrations._under_way)
        lost = {d.instance: d.detail for d in self.records if isinstance(d, DecisionRecord) and d.action == "lose"}
        assert {number: why for number, why in lost.items() if number not in self.killed} == {}

        def look() -> None:
            for instance in control.cluster.instances:
                pool = instance.pool
                assert pool is not None and instance.move is None
                assert pool.num_free == pool.num_blocks
                assert sorted(pool._free) == list(range(pool.num_blocks))
                assert pool._holder == [None] * pool.num_blocks
            inlets = {self.run.fleet.kv_path(link) for link in self.run.fleet._links.values()}
            sockets = self.run.fleet.sockets
            assert {path for path in sockets.parent.glob(f"{sockets.name}-*") if path.suffix == ".kv"} == inlets

        self.on_clock(look)


def fast(sky: Sky) -> None:
    """KV goes as fast as it can."""
    sky.limit(200 * MB)
