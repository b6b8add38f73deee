"""Instances that compute nothing and a watch on what decides for them: the parts of the scheduler benchmark."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from measure import best_time
from scheduler_stall import STEP

from serving.core.actions import Action, Migrate
from serving.core.clock import Clock, Signal
from serving.core.cluster import Cluster
from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.core.request import Sequence
from serving.core.worker import Worker
from serving.policies.llumnix import Llumnix
from serving.policies.llumnix_freeness import Report, report_of
from serving.units import Bytes, Seconds

REPEATS = 3


@dataclass(slots=True, eq=False)
class Watch:
    """CPU time of one kind of decision, without that of another kind which is watched inside it."""

    inside: "Watch | None" = None
    total: Seconds = 0.0
    count: int = 0
    num_inside: int = 0

    def call(self, work: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Do it, and note what it took."""
        inside = self.inside
        before = (0.0, 0) if inside is None else (inside.total, inside.count)
        began = time.process_time()
        result = work(*args, **named)
        took = time.process_time() - began
        if inside is not None:
            num_inside = inside.count - before[1]
            took -= inside.total - before[0] + num_inside * CLOCK
            self.num_inside += num_inside
        self.total += took
        self.count += 1
        return result

    def start(self) -> None:
        """Forget what was before."""
        self.total, self.count, self.num_inside = 0.0, 0, 0

    @property
    def mean(self) -> Seconds:
        """Of one decision, less what looking at the clock takes."""
        return self.total / self.count - CLOCK_INSIDE if self.count else 0.0


def _nothing() -> None:
    """What a watch is tried on."""


def _watching(num: int = 20_000) -> tuple[Seconds, Seconds]:
    """CPU time of watching nothing: in all, and what of it the watch itself counts."""
    watch = Watch()

    def watched() -> None:
        for _ in range(num):
            watch.call(_nothing)

    whole = best_time(watched, REPEATS) / num
    return whole, watch.total / watch.count


CLOCK_INSIDE: Seconds = 0.0
WATCHED, CLOCK_INSIDE = _watching()
CLOCK: Seconds = WATCHED - CLOCK_INSIDE
"""Of a watch inside another, what that one counts and the inner one does not."""


@dataclass(slots=True, eq=False)
class Watches:
    """What is measured of one run."""

    reports: Watch = field(default_factory=Watch)
    submits: Watch = field(default_factory=Watch)
    dispatches: Watch = field(init=False)
    ticks: Watch = field(init=False)
    steps: Watch = field(init=False)
    num_migrations: int = 0
    num_sequences: int = 0
    """In all steps."""

    def __post_init__(self) -> None:
        self.dispatches, self.ticks = Watch(self.reports), Watch(self.reports)
        self.steps = Watch(self.submits)

    def start(self) -> None:
        """Forget the warm-up."""
        for watch in (self.reports, self.submits, self.dispatches, self.ticks, self.steps):
            watch.start()
        self.num_migrations = self.num_sequences = 0

    def report_of(self, *args: Any, **named: Any) -> Report:
        """As the policy's, watched."""
        report: Report = self.reports.call(report_of, *args, **named)
        return report


@dataclass(slots=True, eq=False)
class FreeCompute:
    """An Executor whose steps take the same time whatever they compute."""

    clock: Clock
    watches: Watches

    def submit(self, instance: Instance, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        """Book the step's end."""
        del instance
        self.watches.submits.call(self._book, plan, done)

    def _book(self, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        self.watches.num_sequences += len(plan.sequences)
        result = StepResult(plan, [1] * len(plan.sequences))
        self.clock.call_later(STEP, self.watches.steps.call, done, result)

    def step_ends(self, instance: Instance, plan: StepPlan) -> list[Seconds] | None:
        """Every step is a step of its own, as it is on a GPU."""
        del instance, plan
        return None


@dataclass(slots=True, eq=False)
class FreeMove:
    """A transfer that takes no time."""

    done: Signal

    def cancel(self) -> None:
        """It is over."""


@dataclass(slots=True, eq=False)
class FreeTransport:
    """Of a Transport, what migrations need."""

    clock: Clock

    def move_kv(self, source: Worker, target: Worker, blocks: list[int], into: list[int], size: Bytes) -> FreeMove:
        """They are there."""
        del source, target, blocks, into, size
        done = Signal(self.clock)
        done.fire()
        return FreeMove(done)


@dataclass(slots=True, eq=False)
class Watched:
    """A Controller that another one decides for, on the watch."""

    policy: Llumnix
    watches: Watches
    interval: Seconds = field(init=False)

    def __post_init__(self) -> None:
        self.interval = self.policy.interval

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """A dispatch."""
        actions: list[Action] = self.watches.dispatches.call(self.policy.on_arrival, sequence, cluster)
        return actions

    def on_interval(self, cluster: Cluster) -> list[Action]:
        """A tick."""
        actions: list[Action] = self.watches.ticks.call(self.policy.on_interval, cluster)
        self.watches.num_migrations += sum(isinstance(action, Migrate) for action in actions)
        return actions

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        """Not of interest."""
        return self.policy.on_ready(instance, cluster)

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        """Not of interest."""
        return self.policy.on_finish(sequence, cluster)

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        """Not of interest."""
        return self.policy.on_change(model, cluster, lost)
