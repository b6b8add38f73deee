"""Freeness: how many decode steps an instance's batch can still run before its memory is gone, by what it reports.

**Paper**: Llumnix (OSDI'24), virtual usage, sheet section 3. In KV blocks per request; below 0 it is overloaded.
"""

from dataclasses import dataclass
from itertools import takewhile
from math import ceil, inf
from typing import Literal

from serving.core.instance import Instance
from serving.core.request import Sequence
from serving.cost.memory import BLOCK_SIZE
from serving.units import Seconds, Tokens

Variant = Literal["paper", "artifact"]
"""``paper``: of the queue only the first counts. ``artifact``: all of it, and the watermark is not free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How loads become freeness."""

    variant: Variant
    watermark: float
    """Share of the blocks that the scheduler keeps free."""
    target_load: Tokens | None
    """KV tokens beyond which an instance with high-priority requests counts as full; None: it does not matter."""
    defragmentation: bool
    """Whether queues count when sequences are moved, not only when they are dispatched."""


@dataclass(slots=True, kw_only=True)
class Report:
    """The load of one instance, as its llumlet tells it: a number of requests or of KV blocks each."""

    taken_at: Seconds
    num_blocks: int
    num_free: int
    num_running: int
    num_waiting: int
    first_demand: int
    """Of the first in the queue."""
    queue_demand: float
    """Of all in the queue, where the rule counts them; a part of a block is a part."""
    has_preempted: bool
    """One that lost its KV waits."""
    num_high: int
    """Of high priority, waiting or running, where the rule counts them."""

    def add(self, sequence: Sequence) -> None:
        """One is dispatched there after the report was taken."""
        if not self.num_waiting:
            self.first_demand = ceil(sequence.num_tokens / BLOCK_SIZE)
        self.num_waiting += 1
        self.queue_demand += sequence.num_tokens / BLOCK_SIZE
        self.num_high += sequence.request.priority > 0


def report_of(instance: Instance, now: Seconds, rule: Rule, *, any_high: bool) -> Report:
    """What an instance that is ready has now. ``any_high``: there were requests of high priority at all."""
    pool, waiting = instance.pool, instance.waiting
    if pool is None:
        raise RuntimeError(f"instance {instance.instance_id} reports no load before it is ready")
    counts_high = any_high and rule.target_load is not None
    return Report(
        taken_at=now,
        num_blocks=pool.num_blocks,
        num_free=instance.num_free_blocks,
        num_running=len(instance.running),
        num_waiting=len(waiting),
        first_demand=pool.blocks_for(waiting[0].num_tokens) if waiting else 0,
        queue_demand=queued_blocks(instance) if rule.variant == "artifact" else 0.0,
        has_preempted=bool(waiting) and _has_preempted(instance),
        num_high=sum(s.request.priority > 0 for s in (*instance.running, *waiting)) if counts_high else 0,
    )


def queued_blocks(instance: Instance) -> float:
    """KV blocks that the whole queue of an instance asks for, parts of blocks as parts (sheet, section 3)."""
    return sum(sequence.num_tokens for sequence in instance.waiting) / BLOCK_SIZE


def dispatch_freeness(report: Report, rule: Rule, priority: int) -> float:
    """For one more request of a priority. The headroom that makes an instance look full is there for requests of high
    priority, so it does not count for these; the sheet leaves open what the paper does."""
    if rule.variant == "paper":
        return _paper(report, rule, counts_queue=True, counts_headroom=priority <= 0)
    # The term is inverted for a high-priority request, so that such requests gather (sheet, section 3).
    full = (report.num_high > 0) != (priority > 0)
    free = _available(report, rule) - report.queue_demand - (_term(report, rule) if full else 0.0)
    return _per_request(free, report.num_running + report.num_waiting)


def migration_freeness(report: Report, rule: Rule) -> float:
    """For sequences to come from elsewhere, or to go."""
    if rule.variant == "paper":
        return _paper(report, rule, counts_queue=rule.defragmentation, counts_headroom=True)
    if not rule.defragmentation:
        return _per_request(_available(report, rule), report.num_running)
    free = _available(report, rule) - report.queue_demand - (_term(report, rule) if report.num_high else 0.0)
    return _per_request(free, report.num_running + (report.num_waiting > 0))


def _paper(report: Report, rule: Rule, *, counts_queue: bool, counts_headroom: bool) -> float:
    """(M - sum of virtual usages) / B, where the headroom of all high-priority requests together is constant."""
    if not report.num_running and not (counts_queue and report.num_waiting):
        return inf
    free = report.num_free - (report.first_demand if counts_queue else 0)
    headroom = _term(report, rule) if report.num_high and counts_headroom else 0.0
    return (free - headroom) / max(1, report.num_running)


def _available(report: Report, rule: Rule) -> int:
    return report.num_free - int(rule.watermark * report.num_blocks)


def _term(report: Report, rule: Rule) -> float:
    """What high priority adds to the usage: all blocks but those of the target load."""
    return 0.0 if rule.target_load is None else max(0.0, report.num_blocks - rule.target_load / BLOCK_SIZE)


def _per_request(free: float, num_requests: int) -> float:
    return free / num_requests if num_requests else inf


def _has_preempted(instance: Instance) -> bool:
    """Those that were preempted are first in the queue, but for some of high priority."""
    first = takewhile(lambda s: s.num_preemptions > 0 or s.request.priority > 0, instance.waiting)
    return any(sequence.num_preemptions for sequence in first)
