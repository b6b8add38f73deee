"""Which instances exchange sequences, and which sequence leaves.

**Paper**: Llumnix (OSDI'24), sheet section 4: the global scheduler pairs instances by freeness, the llumlet of the
source chooses among its running sequences.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from serving.core.instance import Instance
from serving.core.request import Sequence, State

Order = Literal["sjf", "ljf", "lcfs"]
"""``sjf``: lower priority first, then the shortest. ``ljf``: then the longest. ``lcfs``: the last that came, of normal
priority only."""


@dataclass(slots=True, kw_only=True, eq=False)
class Standing:
    """An instance as the pairing sees it."""

    instance: Instance
    freeness: float
    has_preempted: bool
    room: int = 0
    """KV blocks that it can take from elsewhere."""
    lets_high_go: bool = True
    """It has too little without the headroom, or is to be emptied: those of high priority may leave as well."""


def moves(
    standings: list[Standing], out_below: float, in_above: float, offers: "Offers", *, accepts: "Accepts | None" = None
) -> Iterator[tuple[Standing, Standing, Sequence]]:
    """Who gives what to whom: the least free to the freest, the second to the second, and so on. Those with a sequence
    that lost its KV give, whatever their freeness, and take none. Nothing comes of a pair of which one is in a
    migration already, and it takes part in no other.

    ``offers``: sequences that a source lets go, the first is the first choice. ``accepts``: whether one can go to a
    target; a source gives the first that can go to the freest target to which one can, and without any stands in
    nobody's way. None: the first choice goes to whomever the source is paired with.
    """
    sources = sorted((one for one in standings if one.freeness < out_below or one.has_preempted), key=_freeness)
    if not sources:
        return
    targets = [one for one in standings if one.freeness > in_above and not one.has_preempted]
    targets.sort(key=lambda one: -one.freeness)
    takers: set[Standing] = set()  # membership only
    for source in sources:
        if source in takers:
            continue
        is_moving = source.instance.move is not None
        offered = [] if is_moving else offers(source)
        if accepts is not None and not is_moving and not offered:
            continue
        for at, target in enumerate(targets):
            if source.freeness >= target.freeness:
                break
            is_busy = is_moving or target.instance.move is not None
            going = None if is_busy else _going(offered, source, target, accepts)
            if going is not None:
                takers.add(target)
                yield source, target, going
            if is_busy or going is not None or accepts is None:
                del targets[at]
                break


def _freeness(standing: Standing) -> float:
    return standing.freeness


def _going(offered: list[Sequence], source: Standing, target: Standing, accepts: "Accepts | None") -> Sequence | None:
    if accepts is None:
        return offered[0] if offered else None
    return next((sequence for sequence in offered if accepts(sequence, source, target)), None)


def leaving(instance: Instance, order: Order, *, lets_high_go: bool = True) -> list[Sequence]:
    """The sequences that the llumlet may let go, the first choice first: those that decode and have a token at least.
    The headroom is kept for those of high priority, so that an instance looks full for it is no reason for these to
    leave: each would take it along, to where none was (``lets_high_go``: there is another reason)."""
    ready = [s for s in reversed(instance.running) if s.token_times and s.num_computed + 1 == s.num_tokens]
    ready = [s for s in ready if s.state is State.RUNNING]  # a client may have left while a step computes its sequence
    if order == "lcfs" or not lets_high_go:
        ready = [sequence for sequence in ready if sequence.request.priority <= 0]
    if order == "lcfs":
        return ready
    sign = 1 if order == "sjf" else -1
    return sorted(ready, key=lambda sequence: (sequence.request.priority, sign * sequence.num_tokens))


def narrows(source: Standing, target: Standing, num_blocks: int, in_above: float) -> bool:
    """Whether the two are nearer to each other after so many blocks have gone over, and the target still takes more:
    asked where queues do not count (sheet, section 4)."""
    num_left, num_there = len(source.instance.running) - 1, len(target.instance.running) + 1
    if not num_left:
        return False
    give, take = source.instance.num_free_blocks + num_blocks, target.instance.num_free_blocks - num_blocks
    gap = abs(take / num_there - give / num_left)
    return gap < target.freeness - source.freeness and take / num_there > in_above


Offers = Callable[[Standing], list[Sequence]]
Accepts = Callable[[Sequence, Standing, Standing], bool]
"""Whether a sequence can go from a source to a target."""
