"""Continuous batching over paged KV: the Scheduler of every baseline.

**Paper**: vLLM (SOSP'23) and its 0.4 scheduler; Sarathi-Serve for chunked prefill.
**Implements**: first come, first served admission; preemption by recompute, the latest in the batch first; whole-prompt
prefill steps that go before decodes, or chunked prefill that shares the step with them.
**Departures**: no swapping to host memory. A chunked prompt is admitted when there are blocks for its first chunk, not
for all of it: where memory is short, long prompts preempt each other.
"""

from dataclasses import dataclass

from serving.core.instance import Instance
from serving.core.kv import BlockPool
from serving.core.plan import StepPlan, chunk_pairs
from serving.core.request import Sequence
from serving.units import Tokens

MAX_REPEATS = 128
"""Steps that are foreseen at once. Records do not depend on it. Whoever looks at a sequence meanwhile ends the run, and
the rest was computed in vain: with more, runs with many migrations take about 6 % longer, others 3 to 12 % less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """Knobs of continuous batching."""

    chunked_prefill: bool = False
    """Mix prompt chunks and decodes in one step instead of whole prompts first."""
    watermark: float = 0.01
    """Share of blocks kept free at admission (vLLM's default)."""


class ContinuousBatching:
    """Plans one step of one instance."""

    def __init__(self, batching: Batching) -> None:
        self._chunked = batching.chunked_prefill
        self._watermark = batching.watermark

    def plan(self, instance: Instance) -> StepPlan:
        """Prompts first, or decodes first with chunks in what is left of the budget."""
        pool = instance.pool
        if pool is None:
            return StepPlan()
        plan = StepPlan()
        if self._chunked:
            self._continue(instance, pool, plan)
            decoding = len(plan.sequences)
            self._admit(instance, pool, plan)
            if decoding == len(plan.sequences):
                _foresee(instance, pool, plan)
            return plan
        self._admit(instance, pool, plan)
        if not plan:
            self._continue(instance, pool, plan)
            _foresee(instance, pool, plan)
        return plan

    def _continue(self, instance: Instance, pool: BlockPool, plan: StepPlan) -> None:
        """Everything that runs computes what it has not computed, oldest first; blocks come from the youngest.

        The hottest loop of all, hence ``plan.add`` in line. Preemption shortens ``running`` at its end only.
        """
        left, context_tokens = instance.max_step_tokens, 0
        sequences, counts = plan.sequences, plan.num_tokens
        for sequence in instance.running:
            if left <= 0 or len(sequences) == instance.max_batch:
                break
            if sequence.in_flight:
                continue
            num_computed = sequence.num_computed
            target = sequence.num_tokens
            num_tokens = target - num_computed
            if num_tokens > left:
                num_tokens = left
                target = num_computed + left
            if target > sequence.capacity and not self._grow(instance, pool, sequence, target):
                break
            sequences.append(sequence)
            counts.append(num_tokens)
            context_tokens += num_computed
            if num_tokens > 1:
                plan.chunk_pairs += chunk_pairs(num_tokens, num_computed)
            left -= num_tokens
        if sequences:  # only the last can be cut short; told here, as one that found no blocks is not in the step
            plan.ends_in_chunk = sequences[-1].num_computed + counts[-1] < sequences[-1].num_tokens
        plan.context_tokens = context_tokens
        plan.total_tokens = instance.max_step_tokens - left

    def _grow(self, instance: Instance, pool: BlockPool, sequence: Sequence, target: Tokens) -> bool:
        """Find blocks for the sequence, preempting the youngest; False when it was the youngest itself, or has to wait
        until a step of a younger one has ended: else two could drop each other's blocks for ever."""
        while not pool.can_extend(sequence, target):
            victim = next(running for running in reversed(instance.running) if not running.in_flight)
            alone = len(instance.running) == 1 and instance.neighbour is None and instance.move is None
            if victim is sequence and alone:
                raise RuntimeError(
                    f"sequence {sequence.request.request_id} alone needs {pool.blocks_for(target)} KV blocks, "
                    f"instance {instance.instance_id} has {pool.num_blocks}"
                )
            if victim is sequence is not instance.running[-1]:
                return False
            instance.preempt(victim)
            if victim is sequence:
                return False
        pool.extend(sequence, target)
        return True

    def _admit(self, instance: Instance, pool: BlockPool, plan: StepPlan) -> None:
        """Take waiting sequences while tokens, seats and blocks last."""
        reserve = int(self._watermark * pool.num_blocks)
        budget = instance.max_step_tokens - plan.total_tokens
        while instance.waiting and budget > 0 and len(instance.running) < instance.max_sequences:
            if len(plan.sequences) == instance.max_batch:
                break
            sequence = instance.waiting[0]
            num_tokens = sequence.num_tokens
            if num_tokens > budget:
                if not self._chunked and plan.sequences:
                    break
                num_tokens = budget if self._chunked else num_tokens
            is_chunk = num_tokens < sequence.num_tokens
            spare = reserve if instance.running else 0
            if not pool.can_extend(sequence, num_tokens, spare):
                break
            pool.extend(sequence, num_tokens)
            instance.admit(sequence)
            plan.add(sequence, num_tokens)
            plan.ends_in_chunk = is_chunk
            budget -= num_tokens


def _foresee(instance: Instance, pool: BlockPool, plan: StepPlan) -> None:
    """Say how often a step in which every running sequence decodes repeats: until the first has its last token, as long
    as blocks last. Who waits now will wait as long, since no seat and no block gets free."""
    if plan.ends_in_chunk or not 0 < len(plan.sequences) == plan.total_tokens == len(instance.running):
        return
    repeats = min(sequence.final_tokens - sequence.num_tokens for sequence in plan.sequences)
    while repeats > 1 and _missing(pool, plan, repeats) > pool.num_free:
        repeats //= 2
    plan.repeats = max(1, min(repeats, MAX_REPEATS))


def _missing(pool: BlockPool, plan: StepPlan, num_steps: int) -> int:
    """Blocks that so many decode steps take beyond those that the sequences hold."""
    missing = 0
    for sequence in plan.sequences:
        more = sequence.num_computed + num_steps - sequence.capacity
        if more > 0:
            missing += pool.blocks_for(more)
    return missing
