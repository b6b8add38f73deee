"""Executor in virtual time: a step takes what the cost model, or a measured table, says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serving.core.clock import Clock, Timer
from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.core.worker import Worker
from serving.cost.engine import EngineCosts
from serving.cost.profile import StepTable
from serving.cost.startup import StartupCosts
from serving.sim.pipeline import StageTimes
from serving.units import Seconds, Tokens

Done = Callable[[StepResult], None]


class SimExecutor:
    """The Executor port."""

    def __init__(
        self,
        clock: Clock,
        startup: dict[str, StartupCosts],
        steps: StepTable | None = None,
        engines: Mapping[str, EngineCosts] | None = None,
        is_copying: Callable[[Worker], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._stages = StageTimes(startup, engines, is_copying)
        self._measured = None if steps is None else _SharedMachine(clock, steps)

    def submit(self, instance: Instance, plan: StepPlan, done: Done) -> None:
        """Book the step's end; a sequence gains a token when all its tokens are computed."""
        num_output = [1] * len(plan.sequences)
        if plan.ends_in_chunk:
            num_output[-1] = 0
        result = StepResult(plan, num_output)
        if self._measured is not None:
            first_step = self._stages.first_step(instance)
            self._measured.compute(plan, len(instance.workers), first_step, done, result)
            return
        self._clock.call_at(self._stages.end_of(instance, plan, self._clock.now), done, result)

    def step_ends(self, instance: Instance, plan: StepPlan) -> list[Seconds] | None:
        """Known as long as the instance has its processes for itself; not where a machine is shared."""
        return None if self._measured is not None else self._stages.ends_of(instance, plan, self._clock.now)


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
        alone = self._steps.time(plan, num_stages) / self._steps.factor(plan.total_tokens, ()) + extra
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
        """Book the ends anew, with the factors beside those that compute now."""
        now = self._clock.now
        for step in self._computing:
            others = [other.num_rows for other in self._computing if other is not step]
            factor = self._steps.factor(step.num_rows, others)
            if factor == step.factor:
                continue
            step.left = max(0.0, step.left - (now - step.since) / step.factor)
            step.since, step.factor = now, factor
            fn, args = step.timer.fn, step.timer.args
            step.timer.cancel()
            if fn is not None:
                step.timer = self._clock.call_later(step.left * factor, fn, *args)
