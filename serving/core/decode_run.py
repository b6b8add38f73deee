"""DecodeRun: steps of the same sequences, a token each, whose ends are known beforehand.

Nothing is done to the sequences while it lasts: the tokens of many steps are folded in at once, at its end or when
somebody looks (``Instance.settle``). Step by step or in runs, the records are the same.
"""

from bisect import bisect_right
from dataclasses import dataclass

from serving.core.clock import Timer
from serving.core.kv import BlockPool
from serving.core.plan import StepPlan
from serving.core.request import Sequence
from serving.units import Seconds


@dataclass(slots=True, eq=False)
class DecodeRun:
    """The steps under way."""

    plan: StepPlan
    """Of the first of them; the others differ in the sequences' lengths only."""
    ends: list[Seconds]
    timer: Timer
    """Fires at the last end."""

    def num_ended(self, now: Seconds) -> int:
        """Steps that have ended, but for the last, of which the timer tells."""
        return min(bisect_right(self.ends, now), len(self.ends) - 1)

    def fold(self, pool: BlockPool, num_steps: int, num_in_flight: int) -> list[Sequence]:
        """Give each sequence the tokens of so many steps, and blocks for these and those in flight; those that have
        their last token now."""
        ends = self.ends[:num_steps]
        for sequence in self.plan.sequences:
            sequence.token_times += ends
            sequence.num_tokens += num_steps
            sequence.num_computed += num_steps
            pool.extend(sequence, sequence.num_computed + num_in_flight)
        return [sequence for sequence in self.plan.sequences if sequence.num_tokens >= sequence.final_tokens]
