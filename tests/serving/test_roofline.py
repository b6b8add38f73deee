"""Step times and KV room by hand-computed numbers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.plan import chunk_pairs
from serving.core.worker import Worker
from serving.cost.memory import num_blocks
from serving.cost.models import MODELS
from serving.cost.roofline import compute_share, forward_time, step_time
from serving.units import GB, ms
from tests.build import make_cluster, make_instance, make_testbed, make_workers

LLAMA = MODELS["llama2-7b"]


def worker(memory: float = 22 * GB) -> Worker:
    return make_workers(make_cluster(), memory=memory)[0]


def test_a_decode_step_reads_all_weights_once() -> None:
    # 13.4768 GB / (0.75 x 600 GB/s) = 29.95 ms, the paper's "about 30 ms per token"
    assert forward_time(LLAMA, worker(), 1, 0) == pytest.approx(29.95 * ms, rel=1e-3)


def test_kv_of_earlier_steps_is_read_as_well() -> None:
    # 8192 tokens x 32 layers x 16 KiB = 4.295 GB more: 9.54 ms
    extra = forward_time(LLAMA, worker(), 1, 8192) - forward_time(LLAMA, worker(), 1, 0)
    assert extra == pytest.approx(9.544 * ms, rel=1e-3)


def test_a_long_prefill_is_bound_by_arithmetic() -> None:
    # 2 x 6.7384e9 x 3072 = 41.401 TFLOP, attention 4 x 4096 x 32 x 3072 = 0.0016 TFLOP more, at 0.5 x 125 TFLOP/s
    assert forward_time(LLAMA, worker(), 3072, 0) == pytest.approx(41.4024 / 62.5, rel=1e-4)


@pytest.mark.parametrize(
    ("memory_gb", "share"),
    [(22, 1.0), (18, 0.80), (11, 0.50), (6, 0.25), (5, 0.20), (1, 0.05), (0.1, 0.05)],  # 18/22 = 81.8 %, floored to 80
)
def test_a_slice_of_memory_comes_with_that_share_of_compute_floored_to_five_percent(
    memory_gb: float, share: float
) -> None:
    assert compute_share(worker(memory_gb * GB)) == share


def test_a_worker_with_an_exclusive_gpu_has_all_its_compute() -> None:
    cluster = make_cluster(testbed=make_testbed(exclusive=True))
    assert compute_share(make_workers(cluster, memory=5 * GB)[0]) == 1.0


def test_a_slice_slows_a_step_down_in_proportion() -> None:
    whole, slice_ = forward_time(LLAMA, worker(), 1, 0), forward_time(LLAMA, worker(18 * GB), 1, 0)
    assert slice_ == pytest.approx(whole / 0.8)


def test_a_pipeline_takes_its_stages_in_turn_and_a_millisecond_per_hop() -> None:
    instance = make_instance(workers=make_workers(make_cluster(), 4)).instance
    # the same bytes in four pieces, 29.95 ms, and three hops
    assert step_time(instance, 1, 0) == pytest.approx(29.95 * ms + 3 * ms, rel=1e-3)


@given(st.integers(1, 4000), st.integers(0, 50_000), st.integers(1, 4))
@settings(max_examples=60)
def test_a_step_takes_longer_with_more_tokens_or_more_context(tokens: int, context: int, stages: int) -> None:
    instance = make_instance(workers=make_workers(make_cluster(), stages)).instance
    base = step_time(instance, tokens, context)
    assert 0 < base <= step_time(instance, tokens + 100, context) <= step_time(instance, tokens + 100, context + 1000)


def test_kv_room_is_what_the_weights_leave_of_the_usable_slice() -> None:
    # 0.95 x 18 GB - 13.4768 GB = 3.6232 GB; a block of 16 tokens takes 16 x 32 x 16 KiB = 8.389 MB: 431.9
    instance = make_instance(workers=make_workers(make_cluster(), memory=18 * GB)).instance
    assert num_blocks(instance) == 431


def test_kv_room_of_a_pipeline_is_that_of_its_tightest_stage() -> None:
    workers = make_workers(make_cluster(), 4, memory=18 * GB)
    tight = replace(workers[1], memory=5 * GB)
    instance = make_instance(workers=(workers[0], tight, *workers[2:])).instance
    # stage 1 holds 8 layers, 3.2381 GB: (4.75 - 3.2381) GB / (16 x 8 x 16 KiB = 2.097 MB) = 720.9
    assert num_blocks(instance) == 720


def test_a_slice_that_the_weights_fill_is_refused_with_the_numbers() -> None:
    instance = make_instance(workers=make_workers(make_cluster(), memory=14 * GB)).instance
    with pytest.raises(ValueError, match=r"llama2-7b: 13\.5 GB of weights leave no KV block in a slice of 14\.0 GB"):
        num_blocks(instance)


def test_a_prompt_attends_to_itself_and_chunks_of_it_to_what_came_before() -> None:
    # 8 tokens: 8 x 9 / 2 = 36 pairs; in chunks of 4: 4 x 5 / 2 = 10, then 4 x 4 + 10 = 26
    assert 8 + 0 + chunk_pairs(8, 0) == 36
    assert (4 + 0 + chunk_pairs(4, 0)) + (4 + 4 + chunk_pairs(4, 4)) == 36
    assert chunk_pairs(1, 1000) == 0
    # Llama2-7B, 8192 tokens: 4 x 4096 x 32 x 33.55 M pairs beyond the rows = 17.6 TFLOP, at 62.5 TFLOP/s 0.281 s
    extra = forward_time(LLAMA, worker(), 8192, 0, chunk_pairs(8192, 0)) - forward_time(LLAMA, worker(), 8192, 0)
    assert extra == pytest.approx(0.2815, rel=1e-3)


def test_blocks_are_counted_in_the_values_that_the_engine_computes_with() -> None:
    instance = make_instance().instance
    (worker,) = instance.workers
    assert num_blocks(instance, 2) == num_blocks(instance)
    # half the bytes a value: half the weights, and half as large blocks
    block = instance.spec.kv_bytes_per_layer * 16 * len(worker.layers) / 2
    assert (
        num_blocks(instance, 1) == int((worker.memory * 0.95 - worker.weights / 2) // block) > 2 * num_blocks(instance)
    )
    with pytest.raises(ValueError, match=r"27\.0 GB of weights leave no KV block in a slice of 22\.0 GB"):
        num_blocks(instance, 4)
