"""Continuous batching: who is admitted, what shares a step, whose blocks are taken."""

import pytest

from serving.core.plan import StepPlan
from serving.core.request import Sequence
from serving.policies.continuous import Batching, ContinuousBatching
from tests.build import Bench, make_instance, make_sequence

CHUNKED = ContinuousBatching(Batching(chunked_prefill=True, watermark=0.0))


def queue(bench: Bench, *prompts: int) -> list[Sequence]:
    sequences = [make_sequence(prompt, 4, index) for index, prompt in enumerate(prompts)]
    bench.instance.waiting.extend(sequences)
    return sequences


def plan(bench: Bench) -> StepPlan:
    return bench.instance.scheduler.plan(bench.instance)


def batch(planned: StepPlan) -> list[tuple[int, int]]:
    return [(s.request.request_id, num) for s, num in zip(planned.sequences, planned.num_tokens, strict=True)]


def test_prompts_are_admitted_in_order_while_the_token_budget_lasts() -> None:
    bench = make_instance(max_step_tokens=100)
    queue(bench, 60, 40, 1)
    assert batch(plan(bench)) == [(0, 60), (1, 40)]


def test_a_prompt_that_does_not_fit_the_budget_is_not_overtaken() -> None:
    bench = make_instance(max_step_tokens=100)
    queue(bench, 60, 50, 10)
    assert batch(plan(bench)) == [(0, 60)]


def test_a_whole_prompt_beyond_the_budget_runs_alone() -> None:
    bench = make_instance(max_step_tokens=100)
    queue(bench, 150, 10)
    assert batch(plan(bench)) == [(0, 150)]


def test_no_more_sequences_run_than_there_are_seats() -> None:
    bench = make_instance(max_sequences=2)
    queue(bench, 10, 10, 10)
    assert batch(plan(bench)) == [(0, 10), (1, 10)]


def test_admission_keeps_the_watermark_free_except_for_a_lone_sequence() -> None:
    # 10 blocks, 20 % kept: a second sequence may use 10 - 2 - 4 = 4 blocks = 64 tokens, not 65
    for prompt, admitted in ((64, 2), (65, 1)):
        bench = make_instance(10, ContinuousBatching(Batching(watermark=0.2)))
        queue(bench, 64, prompt)
        assert len(plan(bench).sequences) == admitted
    alone = make_instance(10, ContinuousBatching(Batching(watermark=0.2)))
    queue(alone, 160)
    assert batch(plan(alone)) == [(0, 160)]


def test_chunks_fill_what_decodes_leave_of_the_budget() -> None:
    bench = make_instance(scheduler=CHUNKED, max_step_tokens=100)
    first, second = queue(bench, 20, 250)
    bench.instance.waiting.clear()
    bench.instance.add(first)
    bench.instance.add(second)
    bench.clock.run(until=4.5)
    # 20 + 80 of the long prompt; then one decode and 99; then one decode and the last 71; then two decodes
    assert bench.executor.steps[:4] == [(100, 2), (100, 2), (72, 2), (2, 2)]
    assert second.token_times[0] == 3


def test_without_chunks_a_prompt_stalls_the_decodes() -> None:
    bench = make_instance()
    first, second = make_sequence(20, 4, 0), make_sequence(200, 4, 1)
    bench.instance.add(first)
    bench.clock.call_at(1.5, bench.instance.add, second)
    bench.clock.run()
    assert bench.executor.steps == [(20, 1), (1, 1), (200, 1), (2, 2), (2, 2), (1, 1)]


def test_the_youngest_running_sequence_gives_its_blocks() -> None:
    bench = make_instance(num_blocks=6)
    sequences = queue(bench, 32, 32, 32)
    for sequence, num in zip(plan(bench).sequences, (32, 32, 32), strict=True):
        sequence.num_computed = num
        sequence.num_tokens += 1
    assert batch(plan(bench)) == [(0, 1), (1, 1)]
    assert [sequence.num_preemptions for sequence in sequences] == [0, 0, 1]


def test_a_sequence_without_an_elder_to_yield_to_is_preempted_itself() -> None:
    bench = make_instance(num_blocks=4)
    first, second = queue(bench, 32, 32)
    for sequence in plan(bench).sequences:
        sequence.num_computed = 32
    second.num_tokens += 1  # only the younger needs a block; it is the youngest, so it goes
    first.num_tokens = 32
    first.num_computed = 31
    assert batch(plan(bench)) == [(0, 1)]
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)


def test_a_chunk_that_finds_no_blocks_does_not_end_the_step_in_a_chunk() -> None:
    bench = make_instance(num_blocks=4, scheduler=CHUNKED, max_step_tokens=20)
    first, second = queue(bench, 32, 64)
    pool = bench.instance.pool
    assert pool is not None
    for sequence, computed in ((first, 31), (second, 32)):
        pool.extend(sequence, 32)
        bench.instance.waiting.popleft()
        bench.instance.running.append(sequence)
        sequence.num_computed = computed
    bench.instance.scheduler._continue(bench.instance, pool, planned := StepPlan())  # type: ignore[attr-defined]
    assert batch(planned) == [(0, 1)]  # the younger yields
    assert second.num_preemptions == 1
    assert not planned.ends_in_chunk


def test_a_sequence_that_outgrows_the_whole_pool_raises_with_the_numbers() -> None:
    bench = make_instance(num_blocks=2)
    bench.instance.add(make_sequence(32, 4, 7))
    with pytest.raises(RuntimeError, match="sequence 7 alone needs 3 KV blocks, instance 0 has 2"):
        bench.clock.run()


def test_a_prompt_that_never_fits_raises_instead_of_waiting_for_ever() -> None:
    bench = make_instance(num_blocks=2)
    bench.instance.add(make_sequence(100, 4))
    with pytest.raises(RuntimeError, match="holds 1 sequences and plans nothing"):
        bench.clock.run()


def test_an_instance_without_memory_plans_nothing() -> None:
    bench = make_instance()
    queue(bench, 10)
    bench.instance.pool = None
    assert not plan(bench)
