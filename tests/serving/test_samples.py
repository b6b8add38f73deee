"""Samples of all instances, and what a request's record says of its preemptions and its steps: worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core.kv import BlockPool
from serving.core.request import Request
from serving.policies import SYSTEMS
from serving.records import Record, RequestRecord, SampleRecord
from serving.samples import blocked_demand, fragmented, is_empty, sample
from serving.serve import Setup, serve
from tests.build import make_cluster, make_deployment, make_instance, make_sequence, make_testbed, sent


@pytest.mark.parametrize(
    ("num_free", "demands", "expected"),
    [
        (10, [9, 4], 4),  # both do not fit, the smaller one does
        (13, [4, 9], 13),
        (3, [4], 0),
        (100, [0, 0, 7], 7),
        (100, [], 0),
    ],
)
def test_fragmented_blocks_are_those_of_demands_that_all_free_ones_could_meet(
    num_free: int, demands: list[int], expected: int
) -> None:
    assert fragmented(num_free, demands) == expected


@given(st.integers(0, 200), st.lists(st.integers(0, 50)))
def test_no_more_is_fragmented_than_is_free_or_is_asked_for(num_free: int, demands: list[int]) -> None:
    assert 0 <= fragmented(num_free, demands) <= min(num_free, sum(demands))
    assert fragmented(num_free, demands) <= fragmented(num_free + 1, demands)


def test_the_first_in_a_queue_is_blocked_when_it_wants_more_blocks_than_there_are() -> None:
    bench = make_instance(num_blocks=8)
    for tokens, expected in ((128, 0), (129, 9)):  # 8 and 9 blocks of 16 tokens
        bench.instance.waiting.clear()
        bench.instance.waiting.append(make_sequence(tokens))
        assert blocked_demand(bench.instance) == expected


def test_a_sample_counts_ready_instances_and_disturbs_nothing() -> None:
    cluster = make_cluster()
    for number, blocks in enumerate((8, 4)):
        bench = make_instance(num_blocks=blocks, instance_id=number)
        cluster.instances.append(bench.instance)
    starting = make_instance().instance
    starting.pool, starting.phase = None, type(starting.phase).STARTING
    cluster.instances.append(starting)
    assert is_empty(cluster)
    first, second = cluster.instances[:2]
    first.waiting.append(make_sequence(16 * 9))
    pool = second.pool
    assert isinstance(pool, BlockPool)
    runner = make_sequence(16)
    pool.extend(runner, 16)
    second.running.append(runner)
    assert not is_empty(cluster)
    assert sample(cluster) == SampleRecord(
        at=0.0,
        num_instances=2,
        num_running=1,
        num_waiting=1,
        num_blocks=12,
        num_free_blocks=11,
        num_fragmented_blocks=9,
    )


def served(sample_period: float | None) -> list[Record]:
    """Records of four requests to one system."""
    requests = [Request(request_id=i, model="llama2-7b", num_prompt_tokens=64, num_output_tokens=40) for i in range(4)]
    records: list[Record] = []
    setup = Setup(
        testbed=make_testbed(),
        system=SYSTEMS["serverless_vllm"],
        deployments=(make_deployment(),),
        seed=0,
        sample_period=sample_period,
    )
    serve(setup, sent((2.5 * i, request) for i, request in enumerate(requests)), records.append)
    return records


def test_samples_are_taken_at_their_period_until_the_last_answer_and_change_nothing_else() -> None:
    with_samples, without = served(1.5), served(None)
    samples = [record for record in with_samples if isinstance(record, SampleRecord)]
    last = max(record.finished_at or 0.0 for record in without if isinstance(record, RequestRecord))
    assert [one.at for one in samples] == [1.5 * number for number in range(int(last // 1.5) + 1)]
    assert {one.num_instances for one in samples} == {0, 1}
    assert [record for record in with_samples if not isinstance(record, SampleRecord)] == without


def test_a_preemption_costs_until_the_next_token_and_steps_add_up() -> None:
    """Steps of 1 s; 4 blocks: two sequences of 16 + 20 tokens need 3 blocks each in the end. Both prompts are one step;
    at t=17 both want a third block, none is free, the younger goes and waits for the elder's last token at 20."""
    bench = make_instance(num_blocks=4)
    elder, younger = make_sequence(16, 20, 0), make_sequence(16, 20, 1)
    for sequence in (elder, younger):
        bench.instance.add(sequence)
    bench.clock.run()
    assert [sequence.num_preemptions for sequence in (elder, younger)] == [0, 1]
    one, other = (sequence.record() for sequence in (elder, younger))
    assert (one.finished_at, one.preempted_for, one.computed_for) == (20.0, 0.0, 20.0)
    # preempted at 17, computed again in the step from 20 to 21, which gives its 18th token; two more until 23
    assert (other.finished_at, other.preempted_for) == (23.0, 4.0)
    assert other.computed_for == pytest.approx(20.0)  # 23 s less the three that it waited


def test_who_loses_its_kv_again_before_its_next_token_has_lost_it_once() -> None:
    sequence = make_sequence(16, 20)
    sequence.token_times = [1.0, 2.0, 9.0, 10.0, 15.0]
    sequence.preempted_at = [(2, 3.0), (2, 5.0), (4, 11.5), (4, 12.0), (5, 16.0)]
    assert sequence.record().preempted_for == (9.0 - 3.0) + (15.0 - 11.5)  # the last has no token after it
