"""Continuous batching in which sequences of higher priority jump the queue.

**Paper**: Llumnix (OSDI'24), its scheduling priority. **Implements** (sheet): section 4, priorities: higher first,
first come first served inside a class. **Departures**: who is preempted does not depend on it, as in the paper.
"""

from collections import deque

from serving.core.instance import Instance
from serving.core.plan import StepPlan
from serving.core.request import Sequence
from serving.policies.continuous import ContinuousBatching


class QueueJump(ContinuousBatching):
    """Puts the queue in order, then plans one step of one instance."""

    def plan(self, instance: Instance) -> StepPlan:
        """The next step, in which the highest priority that waits is admitted first."""
        _put_in_order(instance.waiting)
        plan = super().plan(instance)
        if _put_in_order(instance.waiting):  # behind one that was preempted now, one waits that may be admitted
            plan.repeats = 1
        return plan


def _put_in_order(waiting: deque[Sequence]) -> bool:
    """Sort by priority, the rest as they stand; whether they stood otherwise."""
    if len(waiting) < 2:
        return False
    priorities = [sequence.request.priority for sequence in waiting]
    if max(priorities) == min(priorities) or priorities == sorted(priorities, reverse=True):
        return False
    by_priority = sorted(waiting, key=lambda sequence: -sequence.request.priority)
    waiting.clear()
    waiting.extend(by_priority)
    return True
