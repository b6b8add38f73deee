"""What tests of migration start with: instances on one clock, with a wire of blocks per second between them."""

from dataclasses import dataclass, field
from typing import Any, cast

from serving.core.actions import Method, Migrate
from serving.core.clock import SimClock
from serving.core.hardware import Link
from serving.core.instance import Instance
from serving.core.ports import Backend, Transfer
from serving.core.request import Sequence
from serving.core.worker import Worker
from serving.cost.models import MODELS
from serving.migrations import Migrations
from serving.records import MigrationRecord, PauseRecord
from serving.sim.fair_share import FairShare
from serving.units import Bytes
from tests.build import TableExecutor, make_instance

BLOCK: Bytes = 16 * 32 * MODELS["llama2-7b"].kv_bytes_per_layer


@dataclass(slots=True, eq=False)
class Wire:
    """A Transport that moves so many blocks a second, one copy beside the other."""

    clock: SimClock
    blocks_per_second: float
    copied: list[list[int]] = field(default_factory=list)
    filled: list[list[int]] = field(default_factory=list)

    def move_kv(self, source: Worker, target: Worker, blocks: list[int], into: list[int], size: Bytes) -> Transfer:
        assert source is not target and len(into) == len(blocks) and size == len(blocks) * BLOCK
        self.copied.append(list(blocks))
        self.filled.append(list(into))
        links = (Link("wire", self.blocks_per_second * BLOCK),)
        return FairShare(self.clock).move(size, links)


@dataclass(slots=True, eq=False)
class Pair:
    """Instances whose steps take a second each, and what migrations between them left."""

    clock: SimClock
    instances: list[Instance]
    wire: Wire
    migrations: Migrations
    finished: list[Sequence]
    records: list[MigrationRecord | PauseRecord]
    ended: list[Migrate]

    @property
    def source(self) -> Instance:
        return self.instances[0]

    @property
    def target(self) -> Instance:
        return self.instances[1]

    @property
    def outcomes(self) -> list[str]:
        return [record.outcome for record in self.records if isinstance(record, MigrationRecord)]

    def migrate(self, sequence: Sequence, **changes: Any) -> None:
        """From the first to the second, now."""
        fields = {
            "source": self.source,
            "target": self.target,
            "method": Method.LIVE,
            "max_stages": 64,
            "last_stage_blocks": 1,
            "keep_free": 0,
        }
        self.migrations.start(Migrate(sequence=sequence, **{**fields, **changes}))

    def assert_blocks_are_conserved(self) -> None:
        """Every block is free, a sequence's or reserved, and no sequence is in two places."""
        places: list[Sequence] = []
        for instance in self.instances:
            pool, move = instance.pool, instance.move
            assert pool is not None
            here = [*instance.waiting, *instance.running]
            if move is not None and move.num_paused(instance):
                here.append(move.sequence)
            reserved = move.reservation.blocks if move is not None and move.target is instance else []
            held = [block for sequence in here for block in sequence.block_table] + list(reserved)
            assert sorted(held + list(pool._free)) == list(range(pool.num_blocks))
            assert all(sequence.instance is instance for sequence in here)
            places += here
        assert len(places) == len({id(sequence) for sequence in places})


def make_pair(
    blocks_per_second: float = 4.0, num_blocks: tuple[int, ...] = (64, 64), executor: Any = None, **fields: Any
) -> Pair:
    """Ready instances with so many KV blocks."""
    first = make_instance(num_blocks[0], **fields)
    clock, finished = first.clock, first.finished
    first.instance.executor = executor(clock) if executor else TableExecutor(clock)
    others = [
        make_instance(
            size, instance_id=index, clock=clock, executor=first.instance.executor, on_finish=finished.append, **fields
        ).instance
        for index, size in enumerate(num_blocks[1:], 1)
    ]
    wire = Wire(clock, blocks_per_second)
    backend = Backend(
        clock=clock,
        executor=first.instance.executor,
        transport=cast("Any", wire),
        provisioner=cast("Any", None),
    )
    records: list[MigrationRecord | PauseRecord] = []
    ended: list[Migrate] = []
    migrations = Migrations(backend, records.append, ended.append)
    return Pair(clock, [first.instance, *others], wire, migrations, finished, records, ended)
