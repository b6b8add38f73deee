"""Executor in virtual time: a step takes what the cost model, or a measured table, says."""

from collections.abc import Callable

from serving.core.clock import Clock
from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.cost.profile import StepTable
from serving.cost.roofline import step_time
from serving.cost.startup import StartupCosts
from serving.units import Seconds


class SimExecutor:
    """The Executor port."""

    def __init__(self, clock: Clock, startup: dict[str, StartupCosts], steps: StepTable | None = None) -> None:
        self._clock = clock
        self._startup = startup
        self._steps = steps
        self._num_busy = 0
        """Steps under way; counted where the table says what they cost each other."""

    def submit(self, instance: Instance, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        """Book the step's end; a sequence gains a token when all its tokens are computed."""
        num_output = [1] * len(plan.sequences)
        if plan.ends_in_chunk:
            num_output[-1] = 0
        result = StepResult(plan, num_output)
        if self._steps is None:
            computing = step_time(instance, plan.total_tokens, plan.context_tokens, plan.chunk_pairs)
            self._clock.call_later(computing + self._first_step(instance), done, result)
            return
        self._num_busy += 1
        computing = self._steps.time(plan, len(instance.workers), self._num_busy)
        self._clock.call_later(computing + self._first_step(instance), self._measured_end, done, result)

    def _measured_end(self, done: Callable[[StepResult], None], result: StepResult) -> None:
        self._num_busy -= 1
        done(result)

    def _first_step(self, instance: Instance) -> Seconds:
        """Kernel loading, which each process of a pipeline pays when the first activations reach it, in turn."""
        if instance.workers[0].first_step_done:
            return 0.0
        extra = 0.0
        for worker in instance.workers:
            extra += self._startup[worker.server.kind].first_step
            worker.first_step_done = True
        return extra
