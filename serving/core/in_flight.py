"""InFlight: the steps of one instance that the executor computes, one by one or as a run of decode steps."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serving.core.decode_run import DecodeRun
from serving.core.kv import BlockPool
from serving.core.plan import StepPlan, StepResult
from serving.core.request import Sequence
from serving.units import Seconds

if TYPE_CHECKING:
    from serving.core.instance import Instance


@dataclass(slots=True, eq=False)
class InFlight:
    """At most as many steps as the instance has stages. Their sequences may not change until they end."""

    plans: list[StepPlan] = field(default_factory=list)
    run: DecodeRun | None = None
    """The step in flight is the first of these that has not ended."""

    def computes(self, sequence: Sequence) -> bool:
        """Whether one of the steps has the sequence."""
        return any(sequence in plan.sequences for plan in self.plans)

    def num_grown(self, now: Seconds, block_size: int) -> int:
        """Blocks that steps which have ended take, though nobody has folded them in."""
        return 0 if self.run is None else self.run.num_grown(now, block_size)

    def begin(self, instance: "Instance", plan: StepPlan) -> None:
        """Hand a step to the executor, or all that repeat it where their ends are known beforehand."""
        instance.num_steps += 1
        self.plans.append(plan)
        plan.started_at = instance.clock.now
        if len(instance.workers) > 1:
            for sequence in plan.sequences:
                sequence.in_flight = True
        elif plan.repeats > 1 and instance.neighbour is None:
            ends = instance.executor.step_ends(instance, plan)
            if ends is not None:
                timer = instance.clock.call_at(ends[-1], self._end_run, instance)
                self.run = DecodeRun(plan, ends, timer)
                return
        instance.executor.submit(instance, plan, instance.finish_step)

    def settle(self, instance: "Instance", pool: BlockPool) -> None:
        """Fold in what has ended of a run; the step after that is then like any other."""
        run = self.run
        if run is not None:
            run.timer.cancel()
            num_ended = run.num_ended(instance.clock.now)
            self._fold(run, instance, pool, num_ended)
            result = StepResult(run.plan, [1] * len(run.plan.sequences))
            instance.clock.call_at(run.ends[num_ended], instance.finish_step, result)

    def _end_run(self, instance: "Instance") -> None:
        run, pool = self.run, instance.pool
        if run is not None and pool is not None:
            self.plans.remove(run.plan)
            instance.part(self._fold(run, instance, pool, len(run.ends)))

    def _fold(self, run: DecodeRun, instance: "Instance", pool: BlockPool, num_steps: int) -> list[Sequence]:
        num_in_flight = int(num_steps < len(run.ends))
        self.run = None
        instance.num_steps += num_steps + num_in_flight - 1
        return run.fold(pool, num_steps, num_in_flight)
