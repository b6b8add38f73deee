"""Steps on the processes of a pipeline, by the cost model: a stage computes one step at a time, first come, first
served."""

from collections.abc import Callable, Mapping

from serving.core.instance import Instance
from serving.core.plan import StepPlan
from serving.core.worker import Worker
from serving.cost.engine import EngineCosts, StepTerms
from serving.cost.roofline import HOP, decode_times, forward_time
from serving.cost.startup import StartupCosts
from serving.units import Seconds


def _never(worker: Worker) -> bool:
    del worker  # nothing copies
    return False


class StageTimes:
    """When steps end. Several may be in flight, of one instance or of two that share a process."""

    def __init__(
        self,
        startup: dict[str, StartupCosts],
        engines: Mapping[str, EngineCosts] | None = None,
        is_copying: Callable[[Worker], bool] | None = None,
    ) -> None:
        self._startup = startup
        self._engines = engines or {}
        self._is_copying = is_copying or _never

    def end_of(self, instance: Instance, plan: StepPlan, now: Seconds) -> Seconds:
        """When a step begun now will leave the last stage; every stage is busy with it for its part."""
        stages = [self._stage(instance, worker, plan) for worker in instance.workers]
        first = [self._first_step(worker) for worker in instance.workers]
        # Waits apart from work: where nobody waits, the sum is that of the stages, in their order.
        waited = passed = 0.0
        for rank, (worker, computing) in enumerate(zip(instance.workers, stages, strict=True)):
            passed += HOP if rank else 0.0
            waited += max(0.0, worker.process.busy_until - (now + waited + passed))
            passed += computing + first[rank]
            worker.process.busy_until = now + waited + passed
        end = now + (sum(stages) + HOP * (len(stages) - 1) + sum(first)) + waited
        instance.workers[-1].process.busy_until = end
        return end

    def ends_of(self, instance: Instance, plan: StepPlan, now: Seconds) -> list[Seconds] | None:
        """When each of a row of decode steps will end; None where that is not known before: in a pipeline, or a process
        that is still to load its kernels or busy with another's step."""
        (worker, *others) = instance.workers
        if others or not worker.process.first_step_done or worker.process.busy_until > now:
            return None
        return decode_times(instance.spec, worker, plan, now, self._terms(instance, worker, plan))

    def _stage(self, instance: Instance, worker: Worker, plan: StepPlan) -> Seconds:
        busy = forward_time(instance.spec, worker, plan.total_tokens, plan.context_tokens, plan.chunk_pairs)
        terms = self._terms(instance, worker, plan)
        return busy if terms is None else terms.time(busy, plan.context_tokens)

    def _terms(self, instance: Instance, worker: Worker, plan: StepPlan) -> StepTerms | None:
        """As the step begins: a copy that starts or ends meanwhile counts from the next one."""
        costs = self._engines.get(worker.server.kind)
        if costs is None:
            return None
        copying = self._is_copying(worker)
        return costs.terms(instance.spec, worker, plan.total_tokens, len(plan.sequences), copying=copying)

    def first_step(self, instance: Instance) -> Seconds:
        """Kernel loading, which each process of a pipeline pays when the first activations reach it, in turn."""
        return sum(self._first_step(worker) for worker in instance.workers)

    def _first_step(self, worker: Worker) -> Seconds:
        if worker.process.first_step_done:
            return 0.0
        worker.process.first_step_done = True
        return self._startup[worker.server.kind].first_step
