"""Steps on the processes of a pipeline, by the cost model: a stage computes one step at a time, first come, first
served."""

from serving.core.instance import Instance
from serving.core.plan import StepPlan
from serving.core.worker import Worker
from serving.cost.roofline import HOP, decode_times, forward_time
from serving.cost.startup import StartupCosts
from serving.units import Seconds


class StageTimes:
    """When steps end. Several may be in flight, of one instance or of two that share a process."""

    def __init__(self, startup: dict[str, StartupCosts]) -> None:
        self._startup = startup

    def end_of(self, instance: Instance, plan: StepPlan, now: Seconds) -> Seconds:
        """When a step begun now will leave the last stage; every stage is busy with it for its part."""
        stages = [
            forward_time(instance.spec, worker, plan.total_tokens, plan.context_tokens, plan.chunk_pairs)
            for worker in instance.workers
        ]
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
        return decode_times(instance.spec, worker, plan, now)

    def first_step(self, instance: Instance) -> Seconds:
        """Kernel loading, which each process of a pipeline pays when the first activations reach it, in turn."""
        return sum(self._first_step(worker) for worker in instance.workers)

    def _first_step(self, worker: Worker) -> Seconds:
        if worker.process.first_step_done:
            return 0.0
        worker.process.first_step_done = True
        return self._startup[worker.server.kind].first_step
