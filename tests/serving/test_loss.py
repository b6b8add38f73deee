"""What is taken back: sequences whose clients left, and instances that died, at every point of their lives."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.control import MAX_LOSSES, Control
from serving.core.clock import SimClock
from serving.core.instance import Phase
from serving.core.request import Sequence, State
from serving.policies import SYSTEMS, configured
from serving.policies.llumnix_config import LlumnixConfig
from serving.records import DecisionRecord, Record, RequestRecord
from serving.serve import Setup, build_control, simulated_backend
from serving.units import GB, Seconds
from tests.build import A10, make_deployment, make_instance, make_requests, make_sequence, make_testbed, with_cache

COLD: Seconds = 24.62774
"""Serverless vLLM's cold start of Llama2-7B on the test servers, by the sum in its own test."""


def make_control(system: str = "serverless_vllm") -> tuple[Control, list[Record]]:
    chosen = SYSTEMS[system]
    if isinstance(chosen.config, LlumnixConfig):  # one instance, which has to start like those of other systems
        chosen = configured(system, {"num_instances": 1, "there_at_start": False})
    testbed = make_testbed(kind=with_cache(A10, 20.0), exclusive=chosen.exclusive_gpus)
    _, backend = simulated_backend(testbed, seed=0)
    records: list[Record] = []
    setup = Setup(testbed=testbed, system=chosen, deployments=(make_deployment(),), seed=0)
    return build_control(setup, backend, records.append), records


def clock_of(control: Control) -> SimClock:
    assert isinstance(control.backend.clock, SimClock)
    return control.backend.clock


def the_sequence(control: Control) -> Sequence:
    (sequence,) = control._unfinished
    return sequence


def actions_of(records: list[Record]) -> list[str]:
    return [record.action for record in records if isinstance(record, DecisionRecord)]


def assert_all_is_free(control: Control) -> None:
    for server in control.cluster.servers:
        assert server.host_memory.used == sum(
            worker.memory + 4 * GB
            for instance in control.cluster.instances
            for worker in instance.workers
            if worker.server is server
        )
        held = [w for i in control.cluster.instances for w in i.workers if w.server is server]
        assert sum(gpu.memory.used for gpu in server.gpus) == sum(worker.memory for worker in held)
    for instance in control.cluster.instances:
        if instance.pool is not None:
            assert instance.pool.num_free == instance.pool.num_blocks


def test_a_sequence_in_a_step_leaves_when_the_step_ends_and_its_blocks_are_free() -> None:
    bench = make_instance()
    leaving, staying = make_sequence(64, 10, 0), make_sequence(64, 2, 1)
    bench.instance.add(leaving)
    bench.instance.add(staying)
    bench.clock.call_at(0.5, bench.instance.take_back, leaving)
    bench.clock.run(0.75)
    assert leaving.block_table != []  # the step that runs writes into them
    bench.clock.run()
    assert (leaving.block_table, staying.token_times) == ([], [1, 2])
    assert bench.executor.steps == [(128, 2), (1, 1)]
    assert bench.finished == [staying]
    assert bench.instance.pool is not None
    assert bench.instance.pool.num_free == 64


def test_a_sequence_that_waits_leaves_at_once() -> None:
    bench = make_instance(max_sequences=1)
    first, waiting = make_sequence(64, 3, 0), make_sequence(64, 3, 1)
    bench.instance.add(first)
    bench.instance.add(waiting)
    bench.clock.call_at(1.5, bench.instance.take_back, waiting)
    bench.clock.run()
    assert bench.executor.steps == [(64, 1), (1, 1), (1, 1)]
    assert bench.finished == [first]


def test_a_sequence_taken_back_in_the_step_of_its_last_token_is_not_finished_as_well() -> None:
    bench = make_instance()
    sequence = make_sequence(16, 1)
    bench.instance.add(sequence)
    bench.clock.call_at(0.5, bench.instance.take_back, sequence)
    bench.clock.run()
    assert bench.finished == []
    assert bench.instance.idle_since == 1


@pytest.mark.parametrize("aborted_at", [0.0, 5.0, COLD - 0.01, COLD + 0.05, COLD + 0.2, COLD + 1.0])
def test_an_aborted_request_leaves_one_record_and_no_block(aborted_at: Seconds) -> None:
    control, records = make_control()
    clock = clock_of(control)
    done = control.arrive(make_requests(1, 64, 200)[0])
    sequence = the_sequence(control)
    control.start()
    clock.call_at(aborted_at, control.abort, sequence)
    clock.call_at(aborted_at, control.abort, sequence)  # the second time, it is gone already
    control.draining = True
    clock.run()
    assert done.fired
    (record,) = [record for record in records if isinstance(record, RequestRecord)]
    assert record.finished_at is None
    assert (sequence.state, sequence.refusal) == (State.ABORTED, "aborted by the client")
    assert_all_is_free(control)


def test_an_aborted_request_gives_its_seat_to_one_that_is_held() -> None:
    control, records = make_control("fixed_instances")
    control.controller.config = replace(control.controller.config, max_sequences=1)  # type: ignore[attr-defined]
    first, second = make_requests(2, 64, 2000)
    control.arrive(first)
    sequence = the_sequence(control)
    control.arrive(second)
    control.start()
    control.draining = True
    clock_of(control).call_at(30.0, control.abort, sequence)
    clock_of(control).run()
    dispatched = [r.at for r in records if isinstance(r, DecisionRecord) and r.action == "dispatch"]
    assert len(dispatched) == 2
    assert dispatched[1] == 30.0


@pytest.mark.parametrize("system", list(SYSTEMS))
@pytest.mark.parametrize("lost_at", [1.5, 3.0, 60.0])
def test_requests_of_a_lost_instance_restart_elsewhere(system: str, lost_at: Seconds) -> None:
    control, records = make_control(system)
    clock = clock_of(control)
    done = control.arrive(make_requests(1, 64, 3000)[0])
    sequence = the_sequence(control)

    def strike() -> None:
        (instance,) = control.cluster.instances
        control.lose(instance, "its process ended by SIGKILL")
        control.lose(instance, "said twice")
        assert instance.phase is Phase.RETIRED

    control.start()
    clock.call_at(lost_at, strike)
    control.draining = True
    clock.run()
    assert done.fired
    assert sequence.state is State.FINISHED
    assert sequence.num_losses == (1 if lost_at == 60.0 else 0)
    assert len(sequence.token_times) == 3000
    assert sequence.token_times == sorted(sequence.token_times)
    assert actions_of(records).count("lose") == 1
    assert actions_of(records).count("launch") == 2
    assert_all_is_free(control)


def test_a_request_under_which_instances_keep_dying_is_given_up_with_the_reason() -> None:
    control, records = make_control()
    clock = clock_of(control)
    control.arrive(make_requests(1, 64, 10_000)[0])
    sequence = the_sequence(control)

    def strike() -> None:
        for instance in list(control.cluster.instances):
            if instance.phase is Phase.READY and instance.num_steps:
                control.lose(instance, "CUDA error: an illegal memory access")
        if control._unfinished:
            clock.call_later(1.0, strike)

    control.start()
    control.draining = True
    strike()
    clock.run()
    assert (sequence.num_losses, sequence.refusal) == (MAX_LOSSES, "CUDA error: an illegal memory access")
    assert actions_of(records).count("launch") == MAX_LOSSES
    assert actions_of(records)[-1] == "refuse"


def test_a_model_whose_starts_all_fail_refuses_its_requests_and_can_be_asked_again() -> None:
    control, records = make_control()
    clock = clock_of(control)

    def strike() -> None:
        for instance in list(control.cluster.instances):
            if instance.phase is Phase.STARTING:
                control.lose(instance, "model.safetensors is truncated")
        if control._unfinished:
            clock.call_later(1.0, strike)

    for request in make_requests(3):
        control.arrive(request)
    control.start()
    control.draining = True
    strike()
    clock.run()
    answers = [record for record in records if isinstance(record, RequestRecord)]
    assert [record.finished_at for record in answers] == [None] * 3
    assert actions_of(records).count("launch") == MAX_LOSSES
    again = control.arrive(make_requests(4)[3])
    control.start()
    clock.run()
    assert again.fired
    assert again.value.state is State.FINISHED


@given(
    strikes=st.lists(st.tuples(st.floats(0, 80), st.booleans(), st.integers(0, 5)), max_size=12),
    system=st.sampled_from(sorted(SYSTEMS)),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_lost_or_aborted_all_requests_end_once_and_nothing_leaks(
    strikes: list[tuple[Seconds, bool, int]], system: str
) -> None:
    control, records = make_control(system)
    clock = clock_of(control)
    sequences: list[Sequence] = []
    for index, request in enumerate(make_requests(6, 64, 400)):
        clock.call_at(index * 6.0, lambda request=request: sequences.append(control.arrive(request) and _last(control)))

    def strike(is_loss: bool, index: int) -> None:
        if is_loss and control.cluster.instances:
            control.lose(control.cluster.instances[index % len(control.cluster.instances)], "struck")
        elif not is_loss and sequences:
            control.abort(sequences[index % len(sequences)])

    for at, is_loss, index in strikes:
        clock.call_at(at, strike, is_loss, index)
    control.start()
    clock.call_at(40.0, setattr, control, "draining", True)
    clock.run()
    ended = sorted(record.request_id for record in records if isinstance(record, RequestRecord))
    assert ended == list(range(6))
    assert_all_is_free(control)
    for sequence in sequences:
        assert sequence.state in (State.FINISHED, State.ABORTED)
        assert sequence.block_table == []


def _last(control: Control) -> Sequence:
    return list(control._unfinished)[-1]


def test_hydraserve_gives_the_bandwidth_of_a_lost_start_back() -> None:
    control, _ = make_control("hydraserve")
    clock = clock_of(control)
    control.arrive(make_requests(1, 64, 4)[0])
    control.start()
    clock.call_at(1.5, lambda: control.lose(control.cluster.instances[0], "struck"))
    control.draining = True
    clock.run()
    nics = control.controller._bandwidth._nics.values()  # type: ignore[attr-defined]
    assert [nic.claims for nic in nics] == [[], [], [], []]


def test_failed_starts_give_up_no_request_while_an_instance_is_ready() -> None:
    control, _ = make_control("fixed_instances")
    control.start()
    clock_of(control).run(until=60.0)
    (ready,) = control.cluster.instances
    assert ready.phase is Phase.READY
    control._failed_starts[ready.model] = 3
    done = control.arrive(make_requests(1, 64, 3)[0])
    sequence = the_sequence(control)
    assert not control._is_hopeless(sequence)
    control.lose(ready, "its process ended by SIGKILL")
    assert done.fired
    assert sequence.state is State.ABORTED
