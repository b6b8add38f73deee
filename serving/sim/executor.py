"""Executor in virtual time: a step takes what the cost model, or a measured table, says."""

from collections.abc import Callable
from dataclasses import dataclass

from serving.core.clock import Clock, Timer
from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.cost.profile import StepTable
from serving.cost.roofline import step_time
from serving.cost.startup import StartupCosts
from serving.units import Seconds, Tokens

Done = Callable[[StepResult], None]


class SimExecutor:
    """The Executor port."""

    def __init__(self, clock: Clock, startup: dict[str, StartupCosts], steps: StepTable | None = None) -> None:
        self._clock = clock
        self._startup = startup
        self._measured = None if steps is None else _SharedMachine(clock, steps)

    def submit(self, instance: Instance, plan: StepPlan, done: Done) -> None:
        """Book the step's end; a sequence gains a token when all its tokens are computed."""
        num_output = [1] * len(plan.sequences)
        if plan.ends_in_chunk:
            num_output[-1] = 0
        result = StepResult(plan, num_output)
        if self._measured is not None:
            self._measured.compute(plan, len(instance.workers), self._first_step(instance), done, result)
            return
        computing = step_time(instance, plan.total_tokens, plan.context_tokens, plan.chunk_pairs)
        self._clock.call_later(computing + self._first_step(instance), done, result)

    def _first_step(self, instance: Instance) -> Seconds:
        """Kernel loading, which each process of a pipeline pays when the first activations reach it, in turn."""
        if instance.workers[0].first_step_done:
            return 0.0
        extra = 0.0
        for worker in instance.workers:
            extra += self._startup[worker.server.kind].first_step
            worker.first_step_done = True
        return extra


@dataclass(slots=True, eq=False)
class _Computing:
    """A step under way on a machine where others compute as well."""

    num_rows: Tokens
    left: Seconds
    """What it still takes when it has the machine alone."""
    since: Seconds
    factor: float
    timer: Timer


class _SharedMachine:
    """Steps of a measured table: each slows down, and gains again, as the others of the machine come and go."""

    def __init__(self, clock: Clock, steps: StepTable) -> None:
        self._clock = clock
        self._steps = steps
        self._computing: list[_Computing] = []

    def compute(self, plan: StepPlan, num_stages: int, extra: Seconds, done: Done, result: StepResult) -> None:
        """Book a step's end; ``extra`` is what it takes beside the table's time."""
        alone = self._steps.time(plan, num_stages, 1) / self._steps.factor(plan.total_tokens, 1) + extra
        now = self._clock.now
        step = _Computing(plan.total_tokens, alone, now, 1.0, Timer(now, None, ()))
        self._computing.append(step)
        step.timer = self._clock.call_later(alone, self._end, step, done, result)
        self._share()

    def _end(self, step: _Computing, done: Done, result: StepResult) -> None:
        self._computing.remove(step)
        self._share()
        done(result)

    def _share(self) -> None:
        """Book the ends anew, with the factors of so many that compute now."""
        now = self._clock.now
        for step in self._computing:
            factor = self._steps.factor(step.num_rows, len(self._computing))
            if factor == step.factor:
                continue
            step.left = max(0.0, step.left - (now - step.since) / step.factor)
            step.since, step.factor = now, factor
            fn, args = step.timer.fn, step.timer.args
            step.timer.cancel()
            if fn is not None:
                step.timer = self._clock.call_later(step.left * factor, fn, *args)
