"""Move: a running sequence on its way from one instance to another, as the two instances see it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serving.core.clock import Clock, Signal
from serving.core.kv import BlockPool, Reservation
from serving.core.phase import Phase
from serving.core.request import Sequence, State
from serving.units import Seconds

if TYPE_CHECKING:
    from serving.core.instance import Instance


@dataclass(slots=True, eq=False)
class Move:
    """From the decision to the end: an instance is in one move at most. The sequence is the source's until it is handed
    over, whatever has been copied by then, and may finish, be preempted or be taken back there as any other."""

    sequence: Sequence
    source: "Instance"
    target: "Instance"
    clock: Clock
    reservation: Reservation = field(init=False)
    """Blocks at the target, in the order of the source's block table."""
    paused_at: Seconds | None = None
    """Since when no step computes it though it is wanted; None: it is computed as ever."""
    _num_preemptions: int = 0
    """Of the sequence, at the start."""
    _withdrawn: Signal | None = None
    _resumed: Signal | None = None
    _num_tokens: int = 0
    """Of the sequence, when it was dropped to be computed again."""

    def __post_init__(self) -> None:
        for instance in (self.source, self.target):
            if instance.move is not None or instance.phase is not Phase.READY or instance.neighbour is not None:
                raise RuntimeError(
                    f"instance {instance.instance_id} can be in no migration: it is {instance.phase.value}, shares its "
                    f"process, or is in one already"
                )
        if self.source is self.target or self.sequence not in self.source.running:
            raise RuntimeError(
                f"sequence {self.sequence.request.request_id} does not run on instance {self.source.instance_id}, or "
                f"is to go where it is"
            )
        self.reservation = Reservation(self.sequence.request.request_id)
        self._num_preemptions = self.sequence.num_preemptions
        self.source.move = self.target.move = self

    @property
    def is_there(self) -> bool:
        """Whether the sequence has run on the source all the time, and still does."""
        sequence = self.sequence
        same = sequence.instance is self.source and sequence.num_preemptions == self._num_preemptions
        return same and sequence.state is State.RUNNING

    @property
    def can_end_there(self) -> bool:
        """Whether the target has memory for all that the sequence may become."""
        return _pool(self.target).can_ever_hold(self.sequence)

    def num_paused(self, instance: "Instance") -> int:
        """Sequences of an instance that are neither waiting nor running: 1 for the source's while it is paused."""
        return int(instance is self.source and self.paused_at is not None and self.sequence.instance is instance)

    def reserve(self, num_blocks: int, keep_free: int) -> bool:
        """Get the target to keep more blocks; False: it has not got them, or no seat now. Seats are not kept: one that
        is taken before the sequence comes makes the batch larger by it."""
        self.target.settle()
        pool = _pool(self.target)
        if self.target.spare < 1 or not pool.can_reserve(num_blocks, keep_free):
            return False
        pool.reserve(self.reservation, num_blocks)
        return True

    def settle(self) -> None:
        """Steps of both instances may take longer, or less long again, from the next ones on."""
        self.source.settle()
        self.target.settle()

    def withdraw(self) -> Signal:
        """Take the sequence out of the source's batch when no step computes it any more; its blocks stay. The signal
        fires then: with False when that step was its last, or it is gone already."""
        self.source.settle()
        self._withdrawn = Signal(self.clock)
        self.step_ended()
        return self._withdrawn

    def step_ended(self) -> None:
        """A step of the source or the target has ended, and the next is not planned yet."""
        sequence = self.sequence
        if self._withdrawn is not None and not self._withdrawn.fired and not self.source.is_computed(sequence):
            can_go = self.is_there
            if can_go:
                self.source.running.remove(sequence)
                self.paused_at = self.clock.now
            self._withdrawn.fire(can_go)
        if self._resumed is not None and not self._resumed.fired and sequence.num_tokens > self._num_tokens:
            self._resumed.fire()

    def hand_over(self) -> None:
        """All KV is at the target: the sequence runs there from now on."""
        self.settle()
        self._leave_source()
        _pool(self.target).hand(self.reservation, self.sequence)
        _insert(self.sequence, self.target)
        self.target.wake()

    def drop(self) -> Signal:
        """Leave the KV behind and have the sequence computed again at the target, before all that wait there; fires
        when it has its next token."""
        self.settle()
        self._num_tokens = self.sequence.num_tokens
        self._resumed = Signal(self.clock)
        self._leave_source()
        self.sequence.num_computed = 0
        self.sequence.state = State.WAITING
        self.target.waiting.appendleft(self.sequence)
        self.target.wake()
        return self._resumed

    def end(self) -> None:
        """It is over. A sequence that was not handed over goes on at the source, what was reserved is free again."""
        self.settle()
        _pool(self.target).release(self.reservation)
        self.source.move = self.target.move = None
        if self.paused_at is not None and self.sequence.instance is self.source:
            _insert(self.sequence, self.source)
        for instance in (self.source, self.target):
            instance.wake()

    def _leave_source(self) -> None:
        if self.paused_at is None:
            raise RuntimeError(f"sequence {self.sequence.request.request_id} is handed over while it is computed")
        _pool(self.source).free(self.sequence)
        self.sequence.instance = self.target
        self.sequence.num_migrations += 1
        self.source.last_busy_at = self.clock.now
        self.source.rest()
        self.source.wake()


def _insert(sequence: Sequence, instance: "Instance") -> None:
    """Into the batch, by arrival: the latest to arrive is the first to be preempted."""
    running = instance.running
    at = next((i for i, other in enumerate(running) if other.arrived_at > sequence.arrived_at), len(running))
    running.insert(at, sequence)


def _pool(instance: "Instance") -> BlockPool:
    if instance.pool is None:
        raise RuntimeError(f"instance {instance.instance_id} has no KV memory before it is ready")
    return instance.pool
