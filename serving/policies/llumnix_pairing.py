"""Which instances exchange sequences, and which sequence leaves.

**Paper**: Llumnix (OSDI'24), sheet section 4: the global scheduler pairs instances by freeness alone, the llumlet of
the source chooses among its running sequences.
"""

from dataclasses import dataclass
from typing import Literal

from serving.core.instance import Instance
from serving.core.request import Sequence

Order = Literal["sjf", "ljf", "lcfs"]
"""``sjf``: lower priority first, then the shortest. ``ljf``: then the longest. ``lcfs``: the last that came, of normal
priority only."""


@dataclass(slots=True, kw_only=True)
class Standing:
    """An instance as the pairing sees it."""

    instance: Instance
    freeness: float
    has_preempted: bool


def pairs(standings: list[Standing], out_below: float, in_above: float) -> list[tuple[Standing, Standing]]:
    """The least free with the freest, the second with the second, and so on; those with a sequence that lost its KV
    give, whatever their freeness, and take none. A pair of which one is in a migration already is left out."""
    sources = [one for one in standings if one.freeness < out_below or one.has_preempted]
    if not sources:
        return []
    targets = [one for one in standings if one.freeness > in_above and not one.has_preempted]
    sources.sort(key=lambda one: one.freeness)
    targets.sort(key=lambda one: -one.freeness)
    return [
        (source, target)
        for source, target in zip(sources, targets, strict=False)
        if source.freeness < target.freeness and source.instance.move is None and target.instance.move is None
    ]


def leaving(instance: Instance, order: Order) -> Sequence | None:
    """The sequence that the llumlet lets go: one that decodes and has a token at least; None: there is none."""
    ready = (s for s in reversed(instance.running) if s.token_times and s.num_computed + 1 == s.num_tokens)
    if order == "lcfs":
        return next((sequence for sequence in ready if sequence.request.priority <= 0), None)
    sign = 1 if order == "sjf" else -1
    return min(ready, key=lambda sequence: (sequence.request.priority, sign * sequence.num_tokens), default=None)


def narrows(source: Standing, target: Standing, num_blocks: int, in_above: float) -> bool:
    """Whether the two are nearer to each other after so many blocks have gone over, and the target still takes more:
    asked where queues do not count (sheet, section 4)."""
    num_left, num_there = len(source.instance.running) - 1, len(target.instance.running) + 1
    if not num_left:
        return False
    give, take = source.instance.num_free_blocks + num_blocks, target.instance.num_free_blocks - num_blocks
    gap = abs(take / num_there - give / num_left)
    return gap < target.freeness - source.freeness and take / num_there > in_above
