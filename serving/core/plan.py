"""StepPlan: which sequences compute how many tokens in one forward pass; StepResult: what came of it."""

from dataclasses import dataclass, field

from serving.core.request import Sequence
from serving.units import Seconds, Tokens


def chunk_pairs(num_tokens: Tokens, context_tokens: Tokens) -> int:
    """Pairs of n tokens after c, n c + n (n + 1) / 2, less the c + n that every step counts."""
    return (num_tokens - 1) * context_tokens + num_tokens * (num_tokens - 1) // 2


def nanoseconds(at: Seconds) -> int:
    """A moment as a whole number, of which differences add up exactly, one by one or together."""
    return round(at * 1e9)


@dataclass(slots=True, eq=False)
class StepPlan:
    """Tokens per sequence for one forward pass, in batch order.

    There is no prefill and no decode plan: a decode is one token, a chunk is some, a verification of drafts is
    as many as were drafted. Lists run in parallel, since a step is the engine's hottest object.
    """

    sequences: list[Sequence] = field(default_factory=list)
    num_tokens: list[Tokens] = field(default_factory=list)
    total_tokens: Tokens = 0
    """Sum of ``num_tokens``: rows of the forward pass."""
    context_tokens: Tokens = 0
    """KV entries of earlier steps that the attention reads, over all sequences."""

    chunk_pairs: int = 0
    """Query-key pairs beyond one per row and per context token: those of prompt chunks, which attend to themselves."""
    ends_in_chunk: bool = False
    """The last sequence computes less than it has and gains no token; a budget cuts no other."""
    repeats: int = 1
    """Steps like this one, each sequence one token further, that the scheduler would plan in a row if nobody comes or
    leaves: an executor that knows beforehand how long steps take need not be asked for each."""

    started_at: Seconds = 0.0
    """When an executor got it; of steps whose ends are known beforehand, when the one in flight began."""

    def __bool__(self) -> bool:
        return bool(self.sequences)

    def add(self, sequence: Sequence, num_tokens: Tokens) -> None:
        """Put a sequence into the batch."""
        self.sequences.append(sequence)
        self.num_tokens.append(num_tokens)
        self.total_tokens += num_tokens
        self.context_tokens += sequence.num_computed
        self.chunk_pairs += chunk_pairs(num_tokens, sequence.num_computed)


@dataclass(slots=True, eq=False)
class StepResult:
    """Output tokens that each sequence of the plan gained: 0 for a chunk, 1 for a decode, more when drafts hold."""

    plan: StepPlan
    num_output: list[Tokens]

    def fold(self, now: Seconds) -> list[Sequence]:
        """Give the sequences what they gained at the step's end; those that have their last token now."""
        finished: list[Sequence] = []
        plan = self.plan
        took = nanoseconds(now) - nanoseconds(plan.started_at)
        for sequence, num_computed, num_output in zip(plan.sequences, plan.num_tokens, self.num_output, strict=True):
            sequence.in_flight = False
            sequence.computed_for += took
            sequence.num_computed += num_computed
            if num_output:
                sequence.token_times.append(now)
                if num_output > 1:
                    sequence.token_times.extend([now] * (num_output - 1))
                sequence.num_tokens = num_tokens = sequence.num_tokens + num_output
                if num_tokens >= sequence.final_tokens:
                    finished.append(sequence)
        return finished
