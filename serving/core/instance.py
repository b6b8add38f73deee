"""Instance: one model replica on its GPUs; its queues and the plan, submit, finish loop."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from serving.core.clock import Clock
from serving.core.hardware import GPU, Server
from serving.core.kv import BlockPool
from serving.core.model import ModelSpec
from serving.core.plan import StepPlan, StepResult
from serving.core.request import Sequence, State
from serving.units import Bytes, Seconds, Tokens

if TYPE_CHECKING:
    from serving.core.ports import Executor, Scheduler


class Phase(Enum):
    """Where an instance is in its life."""

    STARTING = "starting"
    READY = "ready"
    RETIRED = "retired"


@dataclass(slots=True, eq=False)
class Worker:
    """One pipeline stage of an instance: a process with a slice of a GPU and some of the layers."""

    rank: int
    server: Server
    gpu: GPU
    memory: Bytes
    layers: range
    tensors: tuple[Bytes, ...]
    """Sizes of its weights in the order in which they are stored."""
    from_cache: bool
    first_step_done: bool = False
    """The first forward pass of a process also loads its kernels."""
    weights: Bytes = field(init=False)
    """Bytes of its part of the model."""

    def __post_init__(self) -> None:
        self.weights = sum(self.tensors)


@dataclass(slots=True, eq=False)
class Instance:
    """A replica. Sequences wait, run (in order of admission) and leave; one step is in flight at a time."""

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
    phase: Phase = Phase.STARTING
    pool: BlockPool | None = None
    """None until it is ready."""
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    idle_since: Seconds | None = None
    """Since when it is ready and has no sequence; None while it is starting or has some."""
    num_steps: int = 0
    _stepping: bool = False
    _in_flight: StepPlan | None = None
    """The step that the executor computes; its sequences may not change until it ends."""
    _leaving: list[Sequence] = field(default_factory=list)
    """Sequences taken back while a step computes them."""

    @property
    def num_sequences(self) -> int:
        """Sequences it holds, without those that leave when the step ends."""
        return len(self.waiting) + len(self.running) - len(self._leaving)

    @property
    def spare(self) -> int:
        """Sequences it can still take."""
        return self.max_sequences - self.num_sequences

    def open(self, pool: BlockPool) -> None:
        """Become ready, with KV memory."""
        self.pool = pool
        self.phase = Phase.READY
        self.idle_since = self.clock.now

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence and see that a step is under way."""
        if self.phase is not Phase.READY:
            raise RuntimeError(f"instance {self.instance_id} is {self.phase.value}, not ready")
        sequence.instance = self
        sequence.state = State.WAITING
        self.waiting.append(sequence)
        self.idle_since = None
        if not self._stepping:
            self._stepping = True
            self.clock.call_later(0.0, self.step)

    def step(self) -> None:
        """Plan a step and hand it to the executor; with nothing to compute, go idle."""
        plan = self.scheduler.plan(self)
        if plan:
            self.num_steps += 1
            self._in_flight = plan
            self.executor.submit(self, plan, self.finish_step)
            return
        self._stepping = False
        if self.num_sequences:
            raise RuntimeError(
                f"instance {self.instance_id} holds {self.num_sequences} sequences and plans nothing "
                f"(t={self.clock.now}, {self.pool.num_free if self.pool else 0} blocks free)"
            )
        self.idle_since = self.clock.now

    def finish_step(self, result: StepResult) -> None:
        """Fold a step's result into the sequences, let finished ones go, and step again."""
        now = self.clock.now
        plan = result.plan
        if plan is not self._in_flight:
            return  # of an instance that was lost meanwhile
        self._in_flight = None
        finished: list[Sequence] = []
        for sequence, num_computed, num_output in zip(plan.sequences, plan.num_tokens, result.num_output, strict=True):
            sequence.num_computed += num_computed
            if num_output:
                sequence.token_times.append(now)
                if num_output > 1:
                    sequence.token_times.extend([now] * (num_output - 1))
                sequence.num_tokens = num_tokens = sequence.num_tokens + num_output
                if num_tokens >= sequence.final_tokens:
                    finished.append(sequence)
        if self._leaving:
            finished = [sequence for sequence in finished if sequence not in self._leaving]
            for sequence in self._leaving:
                self._let_go(sequence)
            self._leaving.clear()
        for sequence in finished:
            self._finish(sequence)
        self.step()

    def preempt(self, sequence: Sequence) -> None:
        """The inverse of admission: drop its blocks and put it first in the queue, to be recomputed.

        Between steps only: the result of a step in flight would be folded onto blocks that are gone.
        """
        if self._in_flight is not None and sequence in self._in_flight.sequences:
            raise RuntimeError(f"sequence {sequence.request.request_id} cannot be preempted while a step computes it")
        self._pool().free(sequence)
        self.running.remove(sequence)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        sequence.state = State.WAITING
        self.waiting.appendleft(sequence)

    def take_back(self, sequence: Sequence) -> None:
        """Let go of a sequence before its last token: now, or when the step ends that computes it."""
        if self._in_flight is not None and sequence in self._in_flight.sequences:
            self._leaving.append(sequence)
        else:
            self._let_go(sequence)

    def lose(self) -> list[Sequence]:
        """Be gone, with all KV; the sequences that it held, oldest first, as they were before they were computed."""
        self.phase = Phase.RETIRED
        self._in_flight = None
        sequences = [sequence for sequence in (*self.running, *self.waiting) if sequence not in self._leaving]
        for sequence in [*self.running, *self.waiting]:
            self._let_go(sequence)
        self._leaving.clear()
        return sequences

    def admit(self, sequence: Sequence) -> None:
        """Move the first waiting sequence into the batch; its blocks are there."""
        if self.waiting.popleft() is not sequence:
            raise RuntimeError(f"sequence {sequence.request.request_id} was not first in the queue")
        sequence.state = State.RUNNING
        self.running.append(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        self._pool().free(sequence)
        sequence.num_computed = 0
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def _finish(self, sequence: Sequence) -> None:
        self._pool().free(sequence)
        self.running.remove(sequence)
        sequence.state = State.FINISHED
        sequence.finished_at = self.clock.now
        self.on_finish(sequence)

    def _pool(self) -> BlockPool:
        if self.pool is None:
            raise RuntimeError(f"instance {self.instance_id} has no KV memory before it is ready")
        return self.pool
