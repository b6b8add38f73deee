"""Shape: what a measured step computes; and the shapes that a calibration measures."""

from collections.abc import Iterable
from dataclasses import dataclass

from serving.core.plan import StepPlan
from serving.core.request import Request, Sequence
from serving.cost.memory import BLOCK_SIZE
from serving.units import Tokens

LITTLE: Tokens = 8
"""Context of a sequence that decodes with next to none."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Tokens to compute and tokens computed before, of each sequence of a step."""

    chunks: tuple[tuple[Tokens, Tokens], ...]

    @classmethod
    def prompt(cls, num_tokens: Tokens, context: Tokens = 0) -> "Shape":
        """One prompt, or a chunk of one after a context."""
        return cls(((num_tokens, context),))

    @classmethod
    def decode(cls, num_sequences: int, context: Tokens = LITTLE) -> "Shape":
        """So many sequences with one token each."""
        return cls(((1, context),) * num_sequences)

    @property
    def rows(self) -> Tokens:
        """Tokens that it computes."""
        return sum(num_tokens for num_tokens, _ in self.chunks)

    @property
    def total(self) -> Tokens:
        """Tokens that the KV cache needs room for, in whole blocks."""
        return sum(-(-(num_tokens + context) // BLOCK_SIZE) * BLOCK_SIZE for num_tokens, context in self.chunks)

    @property
    def longest(self) -> Tokens:
        """Tokens of its longest sequence."""
        return max(num_tokens + context for num_tokens, context in self.chunks)

    def plan(self, model: str) -> StepPlan:
        """The step as a Scheduler would plan it, but for KV blocks."""
        plan = StepPlan()
        for index, (num_tokens, context) in enumerate(self.chunks):
            request = Request(
                request_id=index, model=model, num_prompt_tokens=num_tokens + context, num_output_tokens=2
            )
            sequence = Sequence(request, 0.0)
            sequence.num_computed = context
            plan.add(sequence, num_tokens)
        return plan


PROMPTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3072)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
DECODES_IN_CONTEXT = ((1, 256), (1, 1000), (4, 128), (4, 500), (16, 100), (16, 400), (8, 900))
"""Sequences and the context of each."""
CHUNKS_IN_CONTEXT = ((32, 128), (32, 512), (128, 256), (256, 512), (64, 1000))
"""Tokens of a chunk and the context before it."""
UNSEEN = (
    Shape(((1, 60), (1, 110), (1, 180), (48, 0))),
    Shape(((1, 90), (1, 200), (1, 40), (1, 150), (1, 75), (1, 120))),
    Shape(((100, 0), (40, 0))),
    Shape(((1, 300), (100, 64))),
)
"""Steps as they mix in a served load, which the fit does not see: they say how far the table can be trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What is measured of steps."""

    prompts: tuple[Shape, ...]
    batches: tuple[Shape, ...]
    in_context: tuple[Shape, ...]
    unseen: tuple[Shape, ...]

    @classmethod
    def of(cls, max_positions: Tokens, kv_tokens: Tokens, quick: bool) -> "Shapes":
        """Those that a model's positions and the KV cache have room for; every third or so for a quick look."""

        def fitting(shapes: Iterable[Shape], step: int) -> tuple[Shape, ...]:
            found = [shape for shape in shapes if shape.longest <= max_positions and shape.total <= kv_tokens]
            return tuple(found[:: step if quick else 1])

        return cls(
            prompts=fitting((Shape.prompt(count) for count in PROMPTS[: 9 if quick else None]), 2),
            batches=fitting(map(Shape.decode, BATCHES[: 5 if quick else None]), 2),
            in_context=(
                *fitting((Shape.decode(count, context) for count, context in DECODES_IN_CONTEXT), 3),
                *fitting((Shape.prompt(count, context) for count, context in CHUNKS_IN_CONTEXT), 3),
            ),
            unseen=fitting(UNSEEN, 2),
        )
