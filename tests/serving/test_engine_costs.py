"""What an engine adds to the roofline, by hand-computed numbers; the sum is the same step by step and in runs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core.clock import SimClock
from serving.core.model import ModelSpec
from serving.core.plan import StepPlan
from serving.core.worker import Worker
from serving.cost.engine import EngineCosts, StepTerms
from serving.cost.models import MODELS
from serving.cost.roofline import forward_time
from serving.sim.pipeline import StageTimes
from serving.sim.provisioner import SimProvisioner
from serving.units import GB, ms, us
from tests.build import STARTUP, make_cluster, make_instance, make_sequence, make_testbed, make_workers

LLAMA = MODELS["llama2-7b"]
COSTS = EngineCosts(kv_read_share=0.5, sequence=0.3 * ms, copy_message=0.25 * ms, copy_slowdown=1.02)


def worker(model: ModelSpec = LLAMA) -> Worker:
    (whole,) = make_workers(make_cluster(testbed=make_testbed(exclusive=True)))
    return replace(whole, layers=range(model.num_layers), tensors=model.stage_tensors(range(model.num_layers)))


def step(costs: EngineCosts, num_rows: int, context: int, model: ModelSpec = LLAMA, *, copying: bool = False) -> float:
    """One step of sequences with a token each."""
    terms = costs.terms(model, worker(model), num_rows, num_rows, copying=copying)
    return terms.time(forward_time(model, worker(model), num_rows, context), context)


def test_kv_is_read_more_slowly_than_weights_and_every_sequence_costs_a_little() -> None:
    # weights 13.4768 GB at 0.75 x 600 GB/s: 29.948 ms; KV 8192 x 0.5 MiB at 0.5 x 600 GB/s: 14.317 ms; 32 x 0.3 ms
    assert step(COSTS, 32, 8192) == pytest.approx((29.948 + 14.317 + 9.6) * ms, rel=1e-4)
    assert step(COSTS, 1, 0) == pytest.approx((29.948 + 0.3) * ms, rel=1e-4)


def test_without_anything_known_a_step_is_the_rooflines_to_the_last_bit() -> None:
    assert step(EngineCosts(), 32, 8192) == forward_time(LLAMA, worker(), 32, 8192)
    assert StepTerms().time(0.1, 77) == 0.1


def test_a_step_beside_a_copy_takes_longer_by_a_factor() -> None:
    assert step(COSTS, 8, 4096, copying=True) == pytest.approx(1.02 * step(COSTS, 8, 4096), rel=1e-12)


def test_four_gpus_compute_a_quarter_each_and_reduce_twice_a_layer() -> None:
    model = MODELS["llama-30b"]
    costs = EngineCosts(tensor_parallel=4, all_reduce=100 * us, all_reduce_rate=10 * GB)
    # weights 65.0579 GB at 4 x 0.75 x 600 GB/s: 36.143 ms; 120 all-reduces: one row of 13.3 kB takes the latency, 12 ms
    assert step(costs, 1, 0, model) == pytest.approx((36.143 + 12.0) * ms, rel=1e-4)
    # 1,000 rows of 6656 x 2 bytes at 10 GB/s: 1.3312 ms each
    terms = costs.terms(model, worker(model), 1000, 1)
    assert terms.fixed == pytest.approx(120 * 1.3312 * ms)
    assert terms.degree == 4


def test_kv_is_read_from_all_gpus_at_once() -> None:
    costs = EngineCosts(tensor_parallel=4, kv_read_share=0.5)
    one = replace(costs, tensor_parallel=1)
    assert step(costs, 1, 8192) == pytest.approx(step(one, 1, 8192) / 4, rel=1e-9)


def test_a_copy_is_two_messages_a_layer() -> None:
    assert COSTS.copy_delay(worker()) == pytest.approx(2 * 32 * 0.25 * ms)


@given(st.integers(1, 64), st.integers(0, 9000), st.integers(1, 50), st.booleans(), st.sampled_from([1, 4]))
def test_runs_of_decode_steps_end_when_steps_one_by_one_would(
    num_sequences: int, context: int, repeats: int, is_copying: bool, degree: int
) -> None:
    instance = make_instance(workers=(worker(),)).instance
    costs = replace(COSTS, tensor_parallel=degree, all_reduce=70 * us, all_reduce_rate=10 * GB)
    stages = StageTimes({"a10x1": STARTUP}, {"a10x1": costs}, lambda _: is_copying)
    instance.workers[0].process.first_step_done = True
    sequences = [make_sequence(request_id=i) for i in range(num_sequences)]
    plan = StepPlan(sequences, [1] * num_sequences, num_sequences, context, repeats=repeats)
    ends = stages.ends_of(instance, plan, now := 1.7)
    one_by_one = []
    for index in range(repeats):
        step_plan = StepPlan(sequences, [1] * num_sequences, num_sequences, context + index * num_sequences)
        instance.workers[0].process.busy_until = 0.0
        now = stages.end_of(instance, step_plan, now)
        one_by_one.append(now)
    assert ends == one_by_one


def test_an_engine_known_to_have_so_many_blocks_has_them() -> None:
    instance = make_instance(workers=(worker(),)).instance
    known = {"a10x1": EngineCosts(kv_blocks=792)}
    assert SimProvisioner(SimClock(), {"a10x1": STARTUP}, 0, engines=known).num_blocks(instance) == 792
    by_memory = SimProvisioner(SimClock(), {"a10x1": STARTUP}, 0).num_blocks(instance)
    too_many = {"a10x1": EngineCosts(kv_blocks=100_000)}
    assert SimProvisioner(SimClock(), {"a10x1": STARTUP}, 0, engines=too_many).num_blocks(instance) == by_memory
    unknown = {"a10x1": EngineCosts(sequence=1 * ms)}
    assert SimProvisioner(SimClock(), {"a10x1": STARTUP}, 0, engines=unknown).num_blocks(instance) == by_memory
