"""Decode runs: steps whose ends are known beforehand are taken many at a time, and nobody can tell from the records."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.control import Control
from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.core.ports import Executor, Provisioner, System
from serving.core.request import Sequence, State
from serving.policies import SYSTEMS, configured
from serving.policies.continuous import Batching, ContinuousBatching
from serving.records import Record
from serving.serve import Setup, build_control, simulated_backend
from serving.sim.executor import SimExecutor
from serving.units import Seconds
from tests.build import A10, STARTUP, Bench, make_deployment, make_instance, make_requests, make_sequence, make_testbed

STEP: Seconds = 0.0302
"""About what a decode step of Llama2-7B takes on an A10."""


@dataclass(slots=True, eq=False)
class Counting:
    """An Executor that computes as another does, and counts what it is asked."""

    inner: Executor
    foresees: bool
    num_submitted: int = 0
    num_foreseen: int = 0

    def submit(self, instance: Instance, plan: StepPlan, done: Callable[[StepResult], None]) -> None:
        self.num_submitted += 1
        self.inner.submit(instance, plan, done)

    def step_ends(self, instance: Instance, plan: StepPlan) -> list[Seconds] | None:
        ends = self.inner.step_ends(instance, plan) if self.foresees else None
        self.num_foreseen += len(ends or ())
        return ends


@dataclass(frozen=True, slots=True)
class Scarce:
    """A Provisioner that finds room for so many KV blocks only."""

    inner: Provisioner
    size: int

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def num_blocks(self, instance: Instance) -> int:
        return min(self.size, self.inner.num_blocks(instance))


def make_bench(foresees: bool, num_blocks: int = 512, *, chunked: bool = False, **fields: int) -> Bench:
    """An instance whose steps take what the cost model says, and whose first has been computed long ago."""
    scheduler = ContinuousBatching(Batching(chunked_prefill=chunked, watermark=0.0))
    bench = make_instance(num_blocks, scheduler, **fields)
    bench.instance.executor = Counting(SimExecutor(bench.clock, {"a10x1": STARTUP}), foresees)
    return bench


def counted(bench: Bench) -> Counting:
    assert isinstance(bench.instance.executor, Counting)
    return bench.instance.executor


def test_a_lone_decode_is_one_event_and_its_token_times_are_those_of_steps() -> None:
    times = []
    for foresees in (True, False):
        bench = make_bench(foresees)
        sequence = make_sequence(64, 120)
        bench.instance.add(sequence)
        bench.clock.run()
        times.append(sequence.token_times)
        assert (len(sequence.token_times), bench.instance.num_steps, sequence.state) == (120, 120, State.FINISHED)
        assert bench.clock.num_events == (1 + 1 + 1 if foresees else 1 + 120)  # wake, prefill, a run or 119 decodes
    assert times[0] == times[1]
    assert sorted(set(times[0])) == times[0]


def test_who_looks_in_the_middle_sees_what_has_been_computed_by_then() -> None:
    seen: list[tuple[int, int, int, int]] = []
    for foresees in (True, False):
        bench = make_bench(foresees)
        sequence = make_sequence(64, 100)

        def look(bench: Bench = bench, sequence: Sequence = sequence) -> None:
            bench.instance.settle()
            assert sequence.token_times[-1] <= bench.clock.now < sequence.token_times[-1] + 2 * STEP
            blocks = len(sequence.block_table)
            seen.append((sequence.num_tokens, sequence.num_computed, blocks, bench.instance.num_steps))

        bench.instance.add(sequence)
        for at in (1.0, 1.001, 2.0):
            bench.clock.call_at(at, look)
        bench.clock.run()
        assert len(sequence.token_times) == 100
    assert seen[:3] == seen[3:]
    tokens, computed, blocks, _ = seen[0]
    assert (computed, blocks) == (tokens - 1, -(-tokens // 16))  # blocks for the step in flight as well


def test_a_sequence_that_comes_during_a_run_joins_the_next_step() -> None:
    bench = make_bench(True)
    first, second = make_sequence(64, 100, 0), make_sequence(64, 4, 1)
    bench.instance.add(first)
    bench.clock.call_at(1.0, bench.instance.add, second)
    bench.clock.run()
    step_end = next(time for time in first.token_times if time > 1.0)
    prefill_end = second.token_times[0]
    assert 1.0 < step_end < 1.0 + 2 * STEP
    assert step_end < prefill_end < step_end + 3 * STEP
    assert [time for time in first.token_times if step_end < time <= prefill_end] == []  # the prompt goes first
    assert second.token_times[1] in first.token_times


def test_a_run_lasts_as_long_as_blocks_do() -> None:
    # 8 blocks of 16: two prompts of 48 hold 3 each, and one more each from token 49 on; at token 65 one of them yields
    bench = make_bench(True, num_blocks=8)
    sequences = [make_sequence(48, 40, index) for index in range(2)]
    for sequence in sequences:
        bench.instance.add(sequence)
    bench.clock.run()
    assert [sequence.num_preemptions for sequence in sequences] == [0, 1]
    assert [len(sequence.token_times) for sequence in sequences] == [40, 40]
    assert counted(bench).num_foreseen > 60


def test_a_chunk_of_one_token_is_no_decode() -> None:
    # Two decode and leave one row of the budget to the prompt of 40: three rows, of three sequences, one a prompt's.
    outcomes = []
    for foresees in (True, False):
        bench = make_bench(foresees, chunked=True, max_step_tokens=3)
        sequences = [make_sequence(1, 60, 0), make_sequence(1, 60, 1), make_sequence(40, 5, 2)]
        for sequence in sequences:
            bench.instance.add(sequence)
        bench.clock.run()
        outcomes.append([sequence.token_times for sequence in sequences])
        assert [sequence.num_output_tokens for sequence in sequences] == [60, 60, 5]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][2][0] == outcomes[0][0][39]  # one token of the prompt in each of the first 40 steps


shapes = st.lists(
    st.tuples(st.integers(1, 90), st.integers(1, 80), st.floats(0, 3, allow_subnormal=False)), min_size=1, max_size=10
)
touches = st.lists(
    st.tuples(st.floats(0.01, 4), st.sampled_from(["take back", "settle"]), st.integers(0, 9)), max_size=5
)


@dataclass(frozen=True, slots=True)
class Knobs:
    """Of one instance."""

    num_blocks: int
    chunked: bool
    max_step_tokens: int
    max_sequences: int


knobs = st.builds(
    Knobs,
    num_blocks=st.integers(11, 40),
    chunked=st.booleans(),
    max_step_tokens=st.sampled_from([3, 7, 64, 256]),
    max_sequences=st.integers(1, 6),
)


def lives(
    foresees: bool, workload: list[tuple[int, int, float]], touched: list[tuple[float, str, int]], knob: Knobs
) -> tuple[list[object], Counting]:
    """What became of each sequence, for an instance alone."""
    bench = make_bench(
        foresees,
        knob.num_blocks,
        chunked=knob.chunked,
        max_step_tokens=knob.max_step_tokens,
        max_sequences=knob.max_sequences,
    )
    sequences = [make_sequence(prompt, output, index) for index, (prompt, output, _) in enumerate(workload)]

    def touch(kind: str, sequence: Sequence) -> None:
        if kind == "settle":
            bench.instance.settle()
        elif sequence.state in (State.WAITING, State.RUNNING) and sequence not in gone:
            gone.append(sequence)
            bench.instance.take_back(sequence)

    gone: list[Sequence] = []
    for sequence, (_, _, arrived_at) in zip(sequences, workload, strict=True):
        bench.clock.call_at(arrived_at, bench.instance.add, sequence)
    for at, kind, index in touched:
        bench.clock.call_at(at, touch, kind, sequences[index % len(sequences)])
    bench.clock.run()
    pool = bench.instance.pool
    assert pool is not None
    assert pool.num_free == pool.num_blocks
    assert sorted(s.request.request_id for s in (*bench.finished, *gone)) == list(range(len(sequences)))
    for sequence in bench.finished:
        assert len(sequence.token_times) == sequence.num_output_tokens == sequence.request.num_output_tokens
    states = [(s.token_times, s.num_tokens, s.num_preemptions, s.finished_at, s.state) for s in sequences]
    return [states, bench.instance.num_steps, bench.instance.last_busy_at, bench.instance.idle_since], counted(bench)


@given(shapes, touches, knobs)
@settings(max_examples=300, deadline=None)
def test_runs_change_nothing_in_the_lives_of_an_instances_sequences(
    workload: list[tuple[int, int, float]], touched: list[tuple[float, str, int]], knob: Knobs
) -> None:
    in_runs, foreseeing = lives(True, workload, touched, knob)
    by_step, blind = lives(False, workload, touched, knob)
    assert in_runs == by_step
    assert foreseeing.num_submitted <= blind.num_submitted


def served(system: System, seed: int, foresees: bool, num_blocks: int) -> tuple[list[Record], Counting]:
    """All records of two models on four servers whose instances die and whose clients leave, by the seed."""
    testbed = make_testbed(4, replace(A10, startup=replace(A10.startup, jitter=0.06)), exclusive=system.exclusive_gpus)
    models = ("llama2-7b", "opt-2.7b")
    setup = Setup(
        testbed=testbed, system=system, deployments=tuple(make_deployment(model) for model in models), seed=seed
    )
    clock, backend = simulated_backend(testbed, seed)
    executor = Counting(backend.executor, foresees)
    records: list[Record] = []
    control = build_control(
        setup,
        replace(backend, executor=executor, provisioner=Scarce(backend.provisioner, num_blocks)),
        records.append,
    )
    draws = Random(f"{seed}/decode runs")
    for request in make_requests(24):
        shape = replace(
            request,
            model=draws.choice(models),
            num_prompt_tokens=draws.randint(1, 300),
            num_output_tokens=draws.randint(1, 300),
            priority=request.request_id % 5 // 4,
        )
        clock.call_at(draws.uniform(0.0, 40.0), control.arrive, shape)
    for _ in range(5):
        clock.call_at(draws.uniform(0.0, 60.0), strike, control, draws.random() < 0.3, draws.random())
    control.start()
    clock.call_at(60.0, setattr, control, "draining", True)
    clock.run()
    control.close()
    return records, executor


RESTLESS = {"migrate_threshold": inf, "migrate_in_threshold": -inf}
"""Whoever is less free than another gives, all the time."""
SCALING = {"scaling": True, "num_instances": 1, "scale_interval": 2.0, "scale_first_check": 1.0}


def strike(control: Control, is_loss: bool, share: float) -> None:
    """Lose an instance, or a client."""
    candidates = list(control.cluster.instances) if is_loss else list(control._unfinished)
    if candidates:
        victim = candidates[int(share * len(candidates))]
        if isinstance(victim, Instance):
            control.lose(victim, "struck")
        elif isinstance(victim, Sequence):
            control.abort(victim)


@pytest.mark.parametrize(
    "system",
    [
        SYSTEMS["serverless_vllm"],
        SYSTEMS["serverlessllm"],
        configured("serverless_vllm", {"batching": {"chunked_prefill": True}}),
        configured("hydraserve", {"sizing": "adaptive"}),
        SYSTEMS["llumnix"],
        configured("llumnix", {**RESTLESS, "migrate_choice": "ljf"}),
        configured("llumnix", {**RESTLESS, "variant": "artifact", "dispatch": "first"}),
        configured("llumnix", {**RESTLESS, "method": "recompute"}),
        configured("llumnix", {**RESTLESS, "defragmentation": False, **SCALING}),
    ],
    ids=[
        "serverless_vllm",
        "serverlessllm",
        "chunked",
        "adaptive",
        "llumnix",
        "restless",
        "artifact",
        "recompute",
        "scaling",
    ],
)
@pytest.mark.parametrize("num_blocks", [50, 10_000])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_runs_change_no_record_of_a_cluster_that_scales_loses_and_aborts(
    system: System, num_blocks: int, seed: int
) -> None:
    in_runs, foreseeing = served(system, seed, True, num_blocks)
    by_step, blind = served(system, seed, False, num_blocks)
    assert in_runs == by_step
    assert foreseeing.num_foreseen > 0
    assert foreseeing.num_submitted < blind.num_submitted / 2
