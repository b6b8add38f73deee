"""The step loop of one instance: queues, tokens, times, preemption; steps take a second unless told otherwise."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.instance import Instance, Phase
from serving.core.plan import StepPlan
from serving.core.request import State
from serving.policies.continuous import Batching, ContinuousBatching
from tests.build import Bench, make_instance, make_sequence

shapes = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 30), st.integers(0, 12)), min_size=1, max_size=12)


class PlansNothing:
    """A Scheduler that never computes anything."""

    def plan(self, instance: Instance) -> StepPlan:
        del instance
        return StepPlan()


def num_free(bench: Bench) -> int:
    assert bench.instance.pool is not None
    return bench.instance.pool.num_free


def test_a_lone_sequence_gets_a_token_a_step_and_leaves_the_instance_idle() -> None:
    bench = make_instance()
    sequence = make_sequence(num_prompt_tokens=64, num_output_tokens=4)
    bench.instance.add(sequence)
    bench.clock.run()
    assert bench.executor.steps == [(64, 1), (1, 1), (1, 1), (1, 1)]
    assert sequence.token_times == [1, 2, 3, 4]
    assert (sequence.state, sequence.finished_at, sequence.num_output_tokens) == (State.FINISHED, 4, 4)
    assert (bench.finished, bench.instance.idle_since, num_free(bench)) == ([sequence], 4, 64)


def test_sequences_of_one_moment_share_a_step() -> None:
    bench = make_instance()
    for index in range(3):
        bench.instance.add(make_sequence(10, 1, index))
    bench.clock.run()
    assert bench.executor.steps == [(30, 3)]


def test_a_sequence_that_comes_during_a_step_joins_the_next() -> None:
    bench = make_instance()
    first, second = make_sequence(32, 3, 0), make_sequence(16, 2, 1)
    bench.instance.add(first)
    bench.clock.call_at(0.5, bench.instance.add, second)
    bench.clock.run()
    # prompts go first: the second's prefill takes the step from 1 to 2, and both decode from 2 on
    assert bench.executor.steps == [(32, 1), (16, 1), (2, 2), (1, 1)]
    assert first.token_times == [1, 3, 4]
    assert second.token_times == [2, 3]


def test_a_preempted_sequence_recomputes_its_prompt_and_its_output() -> None:
    bench = make_instance(num_blocks=4)
    first, second = make_sequence(30, 8, 0), make_sequence(30, 8, 1)
    bench.instance.add(first)
    bench.instance.add(second)
    bench.clock.run()
    # Two blocks each hold 32 tokens. Token 33 of the first, in step 4, takes a block from the second, which can come
    # back only when the first has left (3 blocks for its 33 tokens): after step 8. It computes 30 + 3 tokens again.
    assert bench.executor.steps == [(60, 2), (2, 2), (2, 2), *[(1, 1)] * 5, (33, 1), *[(1, 1)] * 4]
    assert first.token_times == [1, 2, 3, 4, 5, 6, 7, 8]
    assert second.token_times == [1, 2, 3, 9, 10, 11, 12, 13]
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)


def test_preemption_puts_the_sequence_first_in_the_queue() -> None:
    bench = make_instance()
    pool = bench.instance.pool
    running, waiting = make_sequence(request_id=0), make_sequence(request_id=1)
    assert pool is not None
    bench.instance.waiting.append(running)
    pool.extend(running, 64)
    bench.instance.admit(running)
    bench.instance.waiting.append(waiting)
    bench.instance.preempt(running)
    assert list(bench.instance.waiting) == [running, waiting]
    assert (running.state, running.num_computed, num_free(bench)) == (State.WAITING, 0, 64)


@given(shapes, st.booleans(), st.integers(8, 14), st.integers(7, 64))
@settings(max_examples=120, deadline=None)
def test_every_sequence_finishes_with_its_tokens_however_small_the_kv_pool(
    workload: list[tuple[int, int, int]], chunked: bool, num_blocks: int, max_step_tokens: int
) -> None:
    scheduler = ContinuousBatching(Batching(chunked_prefill=chunked, watermark=0.0))
    bench = make_instance(num_blocks, scheduler, max_sequences=6, max_step_tokens=max_step_tokens)
    sequences = [make_sequence(prompt, output, index) for index, (prompt, output, _) in enumerate(workload)]
    for sequence, (_, _, arrived_at) in zip(sequences, workload, strict=True):
        bench.clock.call_at(float(arrived_at), bench.instance.add, sequence)
    bench.clock.run()
    assert sorted(s.request.request_id for s in bench.finished) == list(range(len(workload)))
    for sequence in sequences:
        assert sequence.num_output_tokens == sequence.request.num_output_tokens == len(sequence.token_times)
        assert sequence.token_times == sorted(sequence.token_times)
        assert sequence.finished_at == sequence.token_times[-1]
    assert num_free(bench) == num_blocks
    assert bench.instance.num_sequences == 0
    if chunked:
        assert all(num_tokens <= max_step_tokens for num_tokens, _ in bench.executor.steps)
    if not any(sequence.num_preemptions for sequence in sequences):
        # nothing is computed twice: every token but the last of each sequence goes through exactly one step
        computed = sum(num_tokens for num_tokens, _ in bench.executor.steps)
        assert computed == sum(prompt + output - 1 for prompt, output, _ in workload)
    assert all(batch <= 6 for _, batch in bench.executor.steps)


def test_small_pools_do_preempt() -> None:
    bench = make_instance(num_blocks=8)
    sequences = [make_sequence(60, 30, index) for index in range(4)]
    for sequence in sequences:
        bench.instance.add(sequence)
    bench.clock.run()
    assert sum(sequence.num_preemptions for sequence in sequences) > 0


def test_an_instance_that_is_not_ready_takes_no_sequence() -> None:
    bench = make_instance()
    bench.instance.phase = Phase.RETIRED
    with pytest.raises(RuntimeError, match="instance 0 is retired, not ready"):
        bench.instance.add(make_sequence())


def test_a_scheduler_that_plans_nothing_for_waiting_sequences_is_an_error() -> None:
    bench = make_instance(scheduler=PlansNothing())
    bench.instance.add(make_sequence())
    with pytest.raises(RuntimeError, match=r"holds 1 sequences and plans nothing \(t=0\.0, 64 blocks free\)"):
        bench.clock.run()


def test_only_the_first_in_the_queue_can_be_admitted() -> None:
    bench = make_instance()
    bench.instance.waiting.extend([make_sequence(request_id=0), make_sequence(request_id=1)])
    with pytest.raises(RuntimeError, match="sequence 1 was not first"):
        bench.instance.admit(bench.instance.waiting[1])


def test_an_idle_instance_wakes_up_for_the_next_sequence() -> None:
    bench = make_instance()
    late = make_sequence(16, 1, 1)
    bench.instance.add(make_sequence(16, 1, 0))
    bench.clock.call_at(10.0, bench.instance.add, late)
    bench.clock.run()
    assert late.token_times == [11]
    assert bench.instance.idle_since == 11


def test_spare_seats_count_waiting_and_running_sequences() -> None:
    bench = make_instance(max_sequences=2)
    for index in range(3):
        bench.instance.add(make_sequence(16, 5, index))
    bench.clock.run(until=0.5)
    assert (len(bench.instance.running), len(bench.instance.waiting), bench.instance.spare) == (2, 1, -1)


def test_a_sequence_cannot_be_preempted_while_a_step_computes_it() -> None:
    bench = make_instance()
    sequence = make_sequence()
    bench.instance.add(sequence)
    bench.clock.call_at(0.5, lambda: bench.instance.preempt(sequence))  # steps take 1 s
    with pytest.raises(RuntimeError, match="sequence 0 cannot be preempted while a step computes it"):
        bench.clock.run()
