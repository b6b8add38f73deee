"""How many instances: the average freeness of all of them is kept in a range.

**Paper**: Llumnix (OSDI'24), sheet section 4, auto-scaling.
"""

from dataclasses import dataclass

from serving.core.instance import Instance
from serving.policies.llumnix_freeness import Rule, queued_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Average freeness, in KV blocks per request, and numbers of instances."""

    low: float
    high: float
    min_instances: int
    max_instances: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one instance adds to the average: numbers of KV blocks and of requests."""

    instance: Instance
    num_free: float
    """Beyond the watermark."""
    num_used: float
    queued: float
    """Those that all that wait there ask for; a part of a block is a part."""
    num_running: int
    num_waiting: int


def share_of(instance: Instance, rule: Rule) -> Share:
    """An instance's share of the average now."""
    pool = instance.pool
    if pool is None:
        raise RuntimeError(f"instance {instance.instance_id} has no share before it is ready")
    num_free = instance.num_free_blocks
    return Share(
        instance=instance,
        num_free=num_free - int(rule.watermark * pool.num_blocks),
        num_used=pool.num_blocks - num_free,
        queued=queued_blocks(instance),
        num_running=instance.num_sequences - len(instance.waiting),
        num_waiting=len(instance.waiting),
    )


def missing(shares: list[Share], wanted: Range) -> int:
    """Instances to start: as many empty ones as bring the average to the low end, within the maximum. It is that of
    dispatch: what waits counts as what runs."""
    num_requests = sum(share.num_running + share.num_waiting for share in shares)
    if not num_requests:
        return 0
    most = wanted.max_instances - len(shares)
    num_free = sum(share.num_free - share.queued for share in shares)
    empty = shares[0].num_free + shares[0].num_used
    return next((n for n in range(most) if (num_free + n * empty) / num_requests >= wanted.low), max(0, most))


def superfluous(shares: list[Share], wanted: Range, *, counts_queue: bool, fewest_running: bool) -> Instance | None:
    """The instance that can go, as the average stays above the high end without it: its requests are still there, what
    they hold is taken from the others' free blocks. It is that of migration: a queue counts as one request, or not at
    all (``counts_queue``). ``fewest_running``: that one goes, else the last."""
    if len(shares) <= wanted.min_instances:
        return None
    gone = min(reversed(shares), key=lambda s: len(s.instance.running)) if fewest_running else shares[-1]
    num_requests = sum(share.num_running for share in shares)
    num_free = sum(share.num_free for share in shares if share is not gone) - gone.num_used
    if counts_queue:
        num_requests += sum(share.num_waiting > 0 for share in shares)
        num_free -= sum(share.queued for share in shares if share is not gone)
    return gone.instance if not num_requests or max(0.0, num_free) / num_requests > wanted.high else None
