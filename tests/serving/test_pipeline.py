"""Pipelines: stages compute beside each other, as many steps in flight as there are stages, one at a time on each."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.core.ports import Executor
from serving.core.request import Sequence, State
from serving.cost.gpus import GPUS, MEMORY_EFFICIENCY
from serving.cost.roofline import HOP, step_time
from serving.policies.continuous import Batching, ContinuousBatching
from serving.sim.executor import SimExecutor
from serving.sim.pipeline import StageTimes
from serving.units import Seconds
from tests.build import STARTUP, Bench, make_cluster, make_instance, make_sequence, make_testbed, make_workers

BYTES_PER_SECOND = GPUS["a10"].memory_bandwidth * MEMORY_EFFICIENCY
ROW = StepPlan([make_sequence()], [1], total_tokens=1)
"""A step of one row that reads no KV: a stage is busy with it for as long as it takes to read its weights."""


def pipeline(*seconds: Seconds, first_step_done: bool = True) -> Bench:
    """An instance whose stages take so long to read their weights, on whole GPUs."""
    cluster = make_cluster(testbed=make_testbed(exclusive=True))
    workers = tuple(
        replace(worker, tensors=(BYTES_PER_SECOND * duration,))
        for worker, duration in zip(make_workers(cluster, len(seconds)), seconds, strict=True)
    )
    for worker in workers:
        worker.process.first_step_done = first_step_done
    return make_instance(workers=workers)


def stage_times() -> StageTimes:
    return StageTimes({"a10x1": STARTUP})


def test_two_steps_on_two_stages_overlap_and_wait_for_each_other() -> None:
    # Stages of 1 s and 2 s, a hop of 1 ms. First step: 0 to 1, then 1.001 to 3.001. Second step: 1 to 2, there at
    # 2.001, but the stage is busy until 3.001, so 3.001 to 5.001. Third, given at 4: 4 to 5, there at 5.001, 7.001.
    instance = pipeline(1.0, 2.0).instance
    times = stage_times()
    assert times.end_of(instance, ROW, 0.0) == pytest.approx(3.001)
    assert [worker.process.busy_until for worker in instance.workers] == pytest.approx([1.0, 3.001])
    assert times.end_of(instance, ROW, 0.0) == pytest.approx(5.001)
    assert [worker.process.busy_until for worker in instance.workers] == pytest.approx([2.0, 5.001])
    assert times.end_of(instance, ROW, 4.0) == pytest.approx(7.001)


def test_a_slow_first_stage_leaves_the_others_idle() -> None:
    # 2 s and 1 s: steps leave every 2 s, at 3.001, 5.001, 7.001
    instance = pipeline(2.0, 1.0).instance
    times = stage_times()
    assert [times.end_of(instance, ROW, 0.0) for _ in range(3)] == pytest.approx([3.001, 5.001, 7.001])


def test_each_process_loads_its_kernels_when_the_first_step_reaches_it() -> None:
    # 0.125 s a process: 0 to 1.125, 1.126 to 3.251; the second step is 1.125 to 2.125, then from 3.251 on
    instance = pipeline(1.0, 2.0, first_step_done=False).instance
    times = stage_times()
    assert times.ends_of(pipeline(1.0, first_step_done=False).instance, ROW, 0.0) is None
    assert [times.end_of(instance, ROW, 0.0) for _ in range(2)] == pytest.approx([3.251, 5.251])


def test_two_instances_on_one_process_take_turns() -> None:
    # The pipeline's step has the first process from 0 to 1; the whole model, 3 s on that process, waits for it: 1 to 4.
    # The next step of the pipeline begins when the whole model's ends: 4 to 5, then 5.001 to 7.001.
    group = pipeline(1.0, 2.0).instance
    whole = make_instance(workers=(replace(group.workers[0], tensors=(BYTES_PER_SECOND * 3.0,)),)).instance
    times = stage_times()
    assert times.end_of(group, ROW, 0.0) == pytest.approx(3.001)
    assert times.ends_of(whole, ROW, 0.5) is None  # whoever shares a busy process cannot foresee
    assert times.end_of(whole, ROW, 0.5) == pytest.approx(4.0)
    assert times.end_of(group, ROW, 1.0) == pytest.approx(7.001)


@given(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=4), st.integers(1, 8))
def test_equal_steps_leave_a_pipeline_at_the_pace_of_its_slowest_stage(seconds: list[float], num_steps: int) -> None:
    # a flow shop of equal work: the n-th ends n - 1 times the slowest stage after the first
    instance = pipeline(*seconds).instance
    times = stage_times()
    ends = [times.end_of(instance, ROW, 0.0) for _ in range(num_steps)]
    first = sum(seconds) + HOP * (len(seconds) - 1)
    assert ends == pytest.approx([first + n * max(seconds) for n in range(num_steps)], rel=1e-3)


@given(
    num_stages=st.integers(1, 4),
    rows=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    context_tokens=st.integers(0, 5000),
    now=st.floats(0, 100),
)
def test_who_waits_for_nobody_takes_the_sum_of_the_stages_and_hops(
    num_stages: int, rows: list[int], context_tokens: int, now: float
) -> None:
    instance = make_instance(workers=make_workers(make_cluster(), num_stages)).instance
    for worker in instance.workers:
        worker.process.first_step_done = True
    times = stage_times()
    for num_rows in rows:
        plan = StepPlan([make_sequence()], [num_rows], total_tokens=num_rows, context_tokens=context_tokens)
        end = times.end_of(instance, plan, now)
        assert end == now + step_time(instance, num_rows, context_tokens)  # to the last bit
        now = end


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_a_lone_sequence_in_a_pipeline_gets_its_tokens_one_step_time_apart(num_stages: int) -> None:
    workers = make_workers(make_cluster(), num_stages)
    bench = make_instance(workers=workers)
    bench.instance.executor = SimExecutor(bench.clock, {"a10x1": STARTUP})
    sequence = make_sequence(64, 5)
    bench.instance.add(sequence)
    bench.clock.run()
    first = step_time(bench.instance, 64, 0, chunk_pairs=64 * 63 // 2) + 0.125 * num_stages
    expected = [first]
    for context in range(64, 68):
        expected.append(expected[-1] + step_time(bench.instance, 1, context))
    assert sequence.token_times == pytest.approx(expected, rel=1e-12)


@dataclass(slots=True, eq=False)
class Watching:
    """An Executor that passes steps on and notes who is in flight when one begins."""

    inner: Executor
    in_flight: list[StepPlan] = field(default_factory=list)
    num_at_once: list[int] = field(default_factory=list)
    """Steps in flight, with each that begins."""
    batches: list[int] = field(default_factory=list)

    def submit(self, instance: Instance, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        computed = [sequence for other in self.in_flight for sequence in other.sequences]
        assert not [sequence for sequence in plan.sequences if sequence in computed]
        for sequence in computed:
            assert sequence.block_table, "a sequence lost its blocks while a step computes it"
            assert sequence.num_computed <= sequence.capacity
        self.in_flight.append(plan)
        self.num_at_once.append(len(self.in_flight))
        self.batches.append(len(plan.sequences))

        def end(result: StepResult) -> None:
            self.in_flight.remove(plan)
            done(result)

        self.inner.submit(instance, plan, end)

    def step_ends(self, instance: Instance, plan: StepPlan) -> list[Seconds] | None:
        return self.inner.step_ends(instance, plan)


def watched(num_stages: int, num_blocks: int = 4096, *, chunked: bool = False, **fields: int) -> tuple[Bench, Watching]:
    """A pipeline of Llama2-7B in virtual time, and its watch."""
    scheduler = ContinuousBatching(Batching(chunked_prefill=chunked, watermark=0.0))
    bench = make_instance(num_blocks, scheduler, workers=make_workers(make_cluster(), num_stages), **fields)
    watch = Watching(SimExecutor(bench.clock, {"a10x1": STARTUP}))
    bench.instance.executor = watch
    return bench, watch


@pytest.mark.parametrize(("num_stages", "num_sequences", "at_once"), [(1, 8, 1), (2, 8, 2), (4, 8, 4), (4, 6, 3)])
def test_as_many_steps_are_in_flight_as_there_are_stages_and_batches(
    num_stages: int, num_sequences: int, at_once: int
) -> None:
    bench, watch = watched(num_stages, max_batch=2, max_sequences=8)
    for index in range(num_sequences):
        bench.instance.add(make_sequence(64, 20, index))
    bench.clock.run()
    assert max(watch.num_at_once) == at_once
    assert set(watch.batches) == {2}
    assert len(bench.finished) == num_sequences


def test_micro_batches_serve_more_tokens_a_second_than_one_batch_after_the_other() -> None:
    ends = []
    for max_batch in (2, 8):
        bench, _ = watched(4, max_batch=max_batch, max_sequences=8)
        for index in range(8):
            bench.instance.add(make_sequence(64, 100, index))
        bench.clock.run()
        ends.append(bench.clock.now)
    # four batches of two are computed beside each other, a quarter of the model each: four times the steps in the time
    # of as many; one batch of eight reads the weights as often as one of two does
    assert ends[0] == pytest.approx(ends[1], rel=0.1)


def test_a_sequence_that_comes_while_a_step_is_in_flight_starts_at_once_in_a_pipeline() -> None:
    bench, watch = watched(2, max_batch=8, max_sequences=16)
    early, late = make_sequence(64, 50, 0), make_sequence(64, 2, 1)
    bench.instance.add(early)
    bench.clock.call_at(0.05, bench.instance.add, late)  # during the first prefill, which takes over 0.1 s
    bench.clock.run()
    assert watch.num_at_once[:2] == [1, 2]
    assert 0.125 < early.token_times[0] < late.token_times[0] < early.token_times[0] + 0.03


def test_a_sequence_taken_back_in_flight_leaves_when_its_own_step_ends() -> None:
    bench, _ = watched(2, max_batch=1, max_sequences=2)
    first, second = make_sequence(64, 50, 0), make_sequence(64, 50, 1)
    for sequence in (first, second):
        bench.instance.add(sequence)
    bench.clock.call_at(1.0, bench.instance.take_back, second)
    bench.clock.run(1.0)
    assert second.in_flight
    assert second.block_table
    assert bench.instance.num_sequences == 1
    bench.clock.run()
    assert (second.block_table, second.num_computed, second.in_flight) == ([], 0, False)
    assert bench.instance.last_busy_at is not None
    assert bench.instance.last_busy_at > 1.0
    assert bench.finished == [first]
    assert bench.instance.pool is not None
    assert bench.instance.pool.num_free == 4096


def test_preemption_passes_over_a_sequence_in_flight() -> None:
    # 6 blocks, two each. The youngest is in flight when the eldest needs a third block: the middle one yields.
    bench, _ = watched(3, num_blocks=6, max_batch=1)
    pool = bench.instance.pool
    assert pool is not None
    sequences = [make_sequence(32, 40, index) for index in range(3)]
    for sequence in sequences:
        bench.instance.waiting.append(sequence)
        sequence.instance = bench.instance
        pool.extend(sequence, 32)
        bench.instance.admit(sequence)
        sequence.num_computed, sequence.num_tokens = 32, 33
    sequences[2].in_flight = True
    plan = bench.instance.scheduler.plan(bench.instance)
    assert plan.sequences == [sequences[0]]
    assert [sequence.num_preemptions for sequence in sequences] == [0, 1, 0]


def test_a_pipeline_lost_with_steps_in_flight_leaves_no_mark_on_its_sequences() -> None:
    bench, _ = watched(2, max_batch=1, max_sequences=2)
    sequences = [make_sequence(64, 50, index) for index in range(2)]
    for sequence in sequences:
        bench.instance.add(sequence)
    lost: list[Sequence] = []
    bench.clock.call_at(1.0, lambda: lost.extend(bench.instance.lose()))
    bench.clock.run()
    assert lost == sequences
    assert [(s.in_flight, s.num_computed, s.block_table) for s in sequences] == [(False, 0, [])] * 2
    assert max(sequence.token_times[-1] for sequence in sequences) <= 1.0


shapes = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 30), st.floats(0, 2)), min_size=1, max_size=14)


@given(
    workload=shapes,
    num_stages=st.integers(1, 4),
    chunked=st.booleans(),
    num_blocks=st.integers(8, 20),
    max_batch=st.sampled_from([1, 2, 3, None]),
    max_step_tokens=st.sampled_from([7, 64, 256]),
    gone=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 13)), max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_every_sequence_of_a_pipeline_gets_its_tokens_however_small_the_kv_pool(
    workload: list[tuple[int, int, float]],
    num_stages: int,
    chunked: bool,
    num_blocks: int,
    max_batch: int | None,
    max_step_tokens: int,
    gone: list[tuple[float, int]],
) -> None:
    bench, watch = watched(
        num_stages,
        num_blocks,
        chunked=chunked,
        max_sequences=8,
        max_step_tokens=max_step_tokens,
        **({} if max_batch is None else {"max_batch": max_batch}),
    )
    sequences = [make_sequence(prompt, output, index) for index, (prompt, output, _) in enumerate(workload)]
    left: list[Sequence] = []

    def leave(sequence: Sequence) -> None:
        if sequence.state in (State.WAITING, State.RUNNING) and sequence not in left:
            left.append(sequence)
            bench.instance.take_back(sequence)

    for sequence, (_, _, arrived_at) in zip(sequences, workload, strict=True):
        bench.clock.call_at(arrived_at, bench.instance.add, sequence)
    for at, index in gone:
        bench.clock.call_at(at, leave, sequences[index % len(sequences)])
    bench.clock.run(until=200.0)  # long enough, unless sequences take blocks from each other for ever
    assert sorted(s.request.request_id for s in (*bench.finished, *left)) == list(range(len(workload)))
    for sequence in bench.finished:
        assert sequence.num_output_tokens == sequence.request.num_output_tokens == len(sequence.token_times)
        assert sequence.token_times == sorted(set(sequence.token_times))
    assert not any(sequence.in_flight or sequence.block_table for sequence in sequences)
    pool = bench.instance.pool
    assert pool is not None
    assert pool.num_free == num_blocks
    assert (bench.instance.num_sequences, watch.in_flight) == (0, [])
    assert max(watch.num_at_once, default=0) <= num_stages
    assert max(watch.batches, default=0) <= (max_batch or 8)
    assert bench.instance.idle_since is not None
