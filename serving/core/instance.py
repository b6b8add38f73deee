"""Instance: one model replica on its GPUs; its queues and the plan, submit, finish loop."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serving.core.clock import Clock, Signal
from serving.core.in_flight import InFlight
from serving.core.kv import BlockPool
from serving.core.model import ModelSpec
from serving.core.phase import Phase as Phase
from serving.core.plan import StepResult
from serving.core.request import Sequence, State
from serving.core.worker import Worker
from serving.units import Seconds, Tokens

if TYPE_CHECKING:
    from serving.core.move import Move
    from serving.core.ports import Executor, Scheduler


@dataclass(slots=True, eq=False)
class Instance:
    """A replica. Sequences wait, run (in order of admission) and leave; as many steps are in flight as it has stages.

    Two instances can stand on the same worker process and share its KV blocks: a pipeline that takes no more sequences
    (``closed``), and the whole model, which will be there alone when the last of the pipeline's sequences has left.
    """

    instance_id: int
    model: str
    spec: ModelSpec
    workers: tuple[Worker, ...]
    max_sequences: int
    max_step_tokens: Tokens
    clock: Clock
    scheduler: "Scheduler"
    executor: "Executor"
    on_finish: Callable[[Sequence], None]
    max_batch: int | None = None
    """Sequences in one step at most; None: as many as it holds."""
    phase: Phase = Phase.STARTING
    pool: BlockPool | None = None
    """None until it is ready."""
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    opened_at: Seconds | None = None
    """When it became ready; of what comes of a consolidation, when that had the whole model."""
    idle_since: Seconds | None = None
    """Since when it is ready and has no sequence; None while it is starting or has some."""
    last_busy_at: Seconds | None = None
    """When a sequence last left it; None: none ever did."""
    num_steps: int = 0
    num_becoming: int = 0
    """Instances that it is being turned into; 0: none."""
    neighbour: "Instance | None" = None
    """The other instance on the same process, with the same KV blocks."""
    closed: bool = False
    """It takes no more sequences, and what it preempts goes to the neighbour."""
    move: "Move | None" = None
    """The migration that it takes part in, from it or to it."""
    _waking: bool = False
    """A call of ``step`` is booked."""
    _in_flight: InFlight = field(default_factory=InFlight)
    _frozen: Signal | None = None
    """Fires when no step is in flight any more, and none is begun."""
    _leaving: list[Sequence] = field(default_factory=list)
    """Sequences taken back while a step computes them."""

    @property
    def num_sequences(self) -> int:
        """Sequences it holds, without those that leave when the step ends."""
        num_paused = 0 if self.move is None else self.move.num_paused(self)
        return len(self.waiting) + len(self.running) + num_paused - len(self._leaving)

    @property
    def spare(self) -> int:
        """Sequences it can still take."""
        return 0 if self.closed else self.max_sequences - self.num_sequences

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that are free now, as one may look at them without calling ``settle``."""
        pool = self._pool()
        return pool.num_free - self._in_flight.num_grown(self.clock.now, pool.block_size)

    def num_blocks_of(self, sequence: Sequence) -> int:
        """KV blocks that a running sequence has now, as one may look at them without calling ``settle``."""
        run = self._in_flight.run
        if run is None:
            return len(sequence.block_table)
        return self._pool().blocks_for(sequence.num_computed + run.num_ended(self.clock.now) + 1)

    def open(self, pool: BlockPool) -> None:
        """Become ready, with KV memory."""
        self.pool = pool
        self.phase = Phase.READY
        self.opened_at = self.idle_since = self.clock.now

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence and see that a step is under way."""
        if self.phase is not Phase.READY or self.closed:
            state = "closed" if self.closed else self.phase.value
            raise RuntimeError(f"instance {self.instance_id} is {state}, not ready")
        sequence.instance = self
        sequence.state = State.WAITING
        self.waiting.append(sequence)
        self.wake()

    def wake(self) -> None:
        """Something changed: plan again, after all that happens in this instant."""
        if not self.num_sequences:
            return
        self.idle_since = None
        self.settle()
        if not self._waking and len(self._in_flight.plans) < len(self.workers):
            self._waking = True
            self.clock.call_later(0.0, self.step)

    def step(self) -> None:
        """Plan steps and hand them to the executor, as many as fit; with nothing to compute, go idle."""
        self._waking = False
        if self._frozen is None and self.phase is Phase.READY:
            while len(self._in_flight.plans) < len(self.workers) and (plan := self.scheduler.plan(self)):
                self._in_flight.begin(self, plan)
        if self._in_flight.plans:
            return
        if self._frozen is not None:
            if not self._frozen.fired:
                self._frozen.fire()
        elif not self.num_sequences:
            self.idle_since = self.clock.now
        elif self.neighbour is None and self.move is None and self.phase is Phase.READY:
            raise RuntimeError(
                f"instance {self.instance_id} holds {self.num_sequences} sequences and plans nothing "
                f"(t={self.clock.now}, {self.pool.num_free if self.pool else 0} blocks free)"
            )

    def finish_step(self, result: StepResult) -> None:
        """Fold a step's result into the sequences, let finished ones go, and step again."""
        if result.plan not in self._in_flight.plans:
            return  # of an instance that was lost meanwhile
        self._in_flight.plans.remove(result.plan)
        self.part(result.fold(self.clock.now))

    def part(self, finished: list[Sequence]) -> None:
        """Let go of those that a step gave their last token or that were taken back during it; then step again."""
        if self._leaving:
            finished = [sequence for sequence in finished if sequence not in self._leaving]
            for sequence in [sequence for sequence in self._leaving if not sequence.in_flight]:
                self._leaving.remove(sequence)
                self._let_go(sequence)
        for sequence in finished:
            self._finish(sequence)
        if self.move is not None:
            self.move.step_ended()
        self.step()

    def settle(self) -> None:
        """Of steps whose ends were known beforehand, fold in those that have ended; the next is then like any other
        step in flight. To be called before anything is done to a sequence, or read of it."""
        if self._in_flight.run is not None:
            self._in_flight.settle(self, self._pool())

    def preempt(self, sequence: Sequence) -> None:
        """The inverse of admission: drop its blocks and put it first in the queue, to be recomputed. Between steps
        only: the result of a step in flight would be folded onto blocks that are gone."""
        if self.is_computed(sequence):
            raise RuntimeError(f"sequence {sequence.request.request_id} cannot be preempted while a step computes it")
        self.running.remove(sequence)
        self._free(sequence)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        sequence.preempted_at.append((len(sequence.token_times), self.clock.now))
        sequence.state = State.WAITING
        target = self.neighbour if self.closed and self.neighbour is not None else self
        sequence.instance = target
        target.waiting.appendleft(sequence)
        if target is not self:
            target.wake()

    def release_leaving(self) -> None:
        """Of a frozen pipeline: those that were taken back go now."""
        for sequence in self._leaving:
            self._let_go(sequence)
        self._leaving.clear()

    def take_back(self, sequence: Sequence) -> None:
        """Let go of a sequence before its last token: now, or when its step has ended or its KV has moved."""
        self.settle()
        if self.is_computed(sequence) or self._frozen is not None:  # its KV may be moving
            self._leaving.append(sequence)
        else:
            self._let_go(sequence)
            self.rest()  # it waited, for blocks of the neighbour's or of a migration's

    def rest(self) -> None:
        """Be idle, if there is nothing to do."""
        if not self.num_sequences and not self._in_flight.plans:
            self.idle_since = self.clock.now

    def lose(self) -> list[Sequence]:
        """Be gone, with all KV; the sequences that it held, oldest first, as they were before they were computed."""
        self.settle()
        self.phase = Phase.RETIRED
        self._in_flight.plans.clear()
        sequences = [sequence for sequence in (*self.running, *self.waiting) if sequence not in self._leaving]
        for sequence in [*self.running, *self.waiting]:
            sequence.in_flight = False
            self._let_go(sequence)
        self._leaving.clear()
        return sequences

    def admit(self, sequence: Sequence) -> None:
        """Move the first waiting sequence into the batch; its blocks are there."""
        if self.waiting.popleft() is not sequence:
            raise RuntimeError(f"sequence {sequence.request.request_id} was not first in the queue")
        sequence.state = State.RUNNING
        self.running.append(sequence)

    def freeze(self) -> Signal:
        """Begin no more steps; fires when none is in flight."""
        self.settle()
        self._frozen = Signal(self.clock)
        if not self._in_flight.plans:
            self._frozen.fire()
        return self._frozen

    def part_from_neighbour(self) -> None:
        """The other one on the process is gone: all of it is this one's."""
        self.neighbour = None
        self.wake()

    @property
    def is_still(self) -> bool:
        """Whether no step is in flight."""
        return not self._in_flight.plans

    def is_computed(self, sequence: Sequence) -> bool:
        """Whether a step in flight computes it."""
        return self._in_flight.computes(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._free(sequence)
        sequence.num_computed = 0
        self.last_busy_at = self.clock.now

    def _finish(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.state = State.FINISHED
        sequence.finished_at = self.last_busy_at = self.clock.now
        self.on_finish(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._pool().free(sequence)
        if self.neighbour is not None:
            self.neighbour.wake()

    def _pool(self) -> BlockPool:
        if self.pool is None:
            raise RuntimeError(f"instance {self.instance_id} has no KV memory before it is ready")
        return self.pool
