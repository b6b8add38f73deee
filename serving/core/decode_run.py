"""DecodeRun: steps of the same sequences, a token each, whose ends are known beforehand.

Nothing is done to the sequences while it lasts: the tokens of many steps are folded in at once, at its end or when
somebody looks (``Instance.settle``). Step by step or in runs, the records are the same.
"""

from bisect import bisect_right
from dataclasses import dataclass

from serving.core.clock import Timer
from serving.core.kv import BlockPool
from serving.core.plan import StepPlan, nanoseconds
from serving.core.request import Sequence
from serving.units import Seconds, Tokens


@dataclass(slots=True, eq=False)
class DecodeRun:
    """The steps under way."""

    plan: StepPlan
    """Of the first of them; the others differ in the sequences' lengths only."""
    ends: list[Seconds]
    timer: Timer
    """Fires at the last end."""
    _rooms: list[Tokens] | None = None
    """Tokens that each sequence still finds room for in its blocks, the fewest first."""

    def num_ended(self, now: Seconds) -> int:
        """Steps that have ended, but for the last, of which the timer tells."""
        return bisect_right(self.ends, now, 0, len(self.ends) - 1)

    def num_grown(self, now: Seconds, block_size: Tokens) -> int:
        """Blocks that folding in what has ended would take, with those for the step in flight then."""
        ends = self.ends
        num_ended = bisect_right(ends, now, 0, len(ends) - 1)
        if not num_ended:
            return 0
        rooms = self._rooms
        if rooms is None:
            rooms = self._rooms = sorted([one.capacity - one.num_computed for one in self.plan.sequences])
        if num_ended <= block_size:  # a sequence has room for one token at least, and one block's
            return bisect_right(rooms, num_ended)
        full, rest = divmod(num_ended - 1, block_size)
        return full * len(rooms) + bisect_right(rooms, rest + 1)

    def fold(self, pool: BlockPool, num_steps: int, num_in_flight: int) -> list[Sequence]:
        """Give each sequence the tokens of so many steps, and blocks for these and those in flight; those that have
        their last token now."""
        ends = self.ends[:num_steps]
        if ends:
            took = nanoseconds(ends[-1]) - nanoseconds(self.plan.started_at)
            self.plan.started_at = ends[-1]
            for sequence in self.plan.sequences:
                sequence.computed_for += took
                sequence.token_times += ends
                sequence.num_tokens += num_steps
                sequence.num_computed += num_steps
        finished = []
        for sequence in self.plan.sequences:
            if (target := sequence.num_computed + num_in_flight) > sequence.capacity:
                pool.extend(sequence, target)
            if sequence.num_tokens >= sequence.final_tokens:
                finished.append(sequence)
        return finished
