"""Executor in virtual time: a step takes what the cost model says."""

from collections.abc import Callable

from serving.core.clock import Clock
from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.cost.roofline import step_time
from serving.cost.startup import StartupCosts
from serving.units import Seconds


class SimExecutor:
    """The Executor port."""

    def __init__(self, clock: Clock, startup: dict[str, StartupCosts]) -> None:
        self._clock = clock
        self._startup = startup

    def submit(self, instance: Instance, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        """Book the step's end; a sequence gains a token when all its tokens are computed."""
        computing = step_time(instance, plan.total_tokens, plan.context_tokens, plan.chunk_pairs)
        duration = computing + self._first_step(instance)
        num_output = [1] * len(plan.sequences)
        if plan.ends_in_chunk:
            num_output[-1] = 0
        self._clock.call_later(duration, done, StepResult(plan, num_output))

    def _first_step(self, instance: Instance) -> Seconds:
        """Kernel loading, which each process of a pipeline pays when the first activations reach it, in turn."""
        if instance.workers[0].first_step_done:
            return 0.0
        extra = 0.0
        for worker in instance.workers:
            extra += self._startup[worker.server.kind].first_step
            worker.first_step_done = True
        return extra
