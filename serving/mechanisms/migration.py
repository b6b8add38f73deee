"""Migration: carry out a Migrate. A running sequence goes on at another instance, with its KV or without.

KV only ever grows, so what has been copied stays valid while the sequence is computed: complete blocks are copied in
stages, and only for the last one, with little left, is the sequence paused (Llumnix sheet, section 5). Nothing is
handed over before all is there; until then the sequence is the source's, and giving up frees what was reserved.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from serving.core.actions import Method, Migrate
from serving.core.clock import FlowBody
from serving.core.move import Move
from serving.core.ports import Backend
from serving.core.request import State
from serving.cost.memory import BLOCK_SIZE
from serving.records import MigrationRecord, PauseRecord
from serving.units import Seconds

MOVED = "migrated"


@dataclass(slots=True, eq=False)
class Migration:
    """One sequence's. ``run()`` is the flow to spawn; whoever cancels it calls ``end`` with the reason."""

    action: Migrate
    backend: Backend
    note: Callable[[MigrationRecord | PauseRecord], None]
    move: Move = field(init=False)
    started_at: Seconds = field(init=False)
    num_stages: int = 0
    num_copied: int = 0
    """Blocks that are at the target."""
    first_stage: Seconds = 0.0
    _ended: bool = False

    def __post_init__(self) -> None:
        action = self.action
        if action.max_stages < 2 or len(action.source.workers) != len(action.target.workers):
            raise ValueError(
                f"sequence {action.sequence.request.request_id} cannot migrate from instance "
                f"{action.source.instance_id} to {action.target.instance_id}: expected 2 stages at least and instances "
                f"of the same shape, got {action.max_stages}"
            )
        self.move = Move(action.sequence, action.source, action.target, self.backend.clock)
        self.started_at = self.backend.clock.now

    def run(self) -> FlowBody:
        """Move the sequence by the method asked for, unless the target could never compute it to its end."""
        if not self.move.can_end_there:
            self.end("no space")
            return
        methods = {Method.LIVE: self._live, Method.BLOCKING: self._blocking, Method.RECOMPUTE: self._recompute}
        outcome = yield from methods[self.action.method]()
        self.end(outcome)

    def end(self, outcome: str) -> None:
        """It is over: both instances are free for others, and it is written down. A second time it does nothing."""
        if self._ended:
            return
        self._ended = True
        paused_at, now = self.move.paused_at, self.backend.clock.now
        self.move.end()
        if outcome == MOVED and paused_at is not None:
            self._write_pause(paused_at, now)
        self.note(
            MigrationRecord(
                request_id=self.action.sequence.request.request_id,
                source=self.action.source.instance_id,
                target=self.action.target.instance_id,
                started_at=self.started_at,
                ended_at=now,
                stages=self.num_stages,
                num_blocks=self.num_copied,
                downtime=0.0 if paused_at is None else now - paused_at,
                outcome=outcome,
                method=self.action.method.value,
                first_stage=self.first_stage,
            )
        )

    def _live(self) -> FlowBody:
        """Copy complete blocks while the sequence is computed; then pause it for the rest."""
        sequence = self.action.sequence
        while True:
            self.action.source.settle()
            if not self.move.is_there:
                return self._what_became()
            left = len(sequence.block_table) - self.num_copied
            complete = sequence.num_computed // BLOCK_SIZE - self.num_copied
            is_last = self.num_stages + 1 >= self.action.max_stages or left <= self.action.last_stage_blocks
            if is_last or not complete:
                return (yield from self._pause_and_copy())
            if not self.move.reserve(complete, self.action.keep_free):
                return "no space"
            yield from self._copy(complete)

    def _blocking(self) -> FlowBody:
        """All of it in one copy, paused."""
        return (yield from self._pause_and_copy())

    def _pause_and_copy(self) -> FlowBody:
        can_go = yield self.move.withdraw()
        if not can_go:
            return self._what_became()
        left = len(self.action.sequence.block_table) - self.num_copied
        if not self.move.reserve(left, self.action.keep_free):
            return "no space in the last stage" if self.num_stages else "no space"
        yield from self._copy(left)
        self.move.hand_over()
        return MOVED

    def _recompute(self) -> FlowBody:
        """Drop the KV; the sequence goes first in the target's queue."""
        can_go = yield self.move.withdraw()
        if not can_go:
            return self._what_became()
        yield self.move.drop()
        return MOVED

    def _copy(self, num_blocks: int) -> FlowBody:
        """One stage: the next so many blocks, from every worker to the one of its rank."""
        began_at, spec = self.backend.clock.now, self.action.source.spec
        stage = slice(self.num_copied, self.num_copied + num_blocks)
        blocks, into = self.action.sequence.block_table[stage], self.move.reservation.blocks[stage]
        size = num_blocks * BLOCK_SIZE * spec.kv_bytes_per_layer
        self.num_stages += 1
        self.move.settle()
        transfers = [
            self.backend.transport.move_kv(source, target, blocks, into, size * len(source.layers))
            for source, target in zip(self.action.source.workers, self.action.target.workers, strict=True)
        ]
        try:
            for transfer in transfers:
                yield transfer.done
        finally:
            for transfer in transfers:
                transfer.cancel()
        self.move.settle()
        self.num_copied += num_blocks
        if self.num_stages == 1:
            self.first_stage = self.backend.clock.now - began_at

    def _what_became(self) -> str:
        """Why the sequence is not to be moved any more."""
        ends = {State.FINISHED: "finished", State.ABORTED: "aborted"}
        return ends.get(self.action.sequence.state, "preempted")

    def _write_pause(self, paused_at: Seconds, resumed_at: Seconds) -> None:
        spec = self.action.source.spec
        size = self.num_copied * BLOCK_SIZE * spec.kv_bytes_per_layer * spec.num_layers
        self.note(
            PauseRecord(
                request_id=self.action.sequence.request.request_id,
                instance=self.action.source.instance_id,
                paused_at=paused_at,
                resumed_at=resumed_at,
                num_bytes=size,
                reason="migration",
            )
        )
