"""The control plane: actions are carried out or refused, and a run that cannot end is ended."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.control import Control, NoProgress
from serving.core.actions import Action, Dispatch, Launch, Placement, Retire
from serving.core.clock import Clock, Signal, SimClock
from serving.core.cluster import Cluster
from serving.core.hardware import OverCommit
from serving.core.instance import Instance, Phase
from serving.core.plan import StepPlan
from serving.core.ports import Provisioner, System
from serving.core.request import Sequence
from serving.core.stages import Stage
from serving.core.worker import Worker
from serving.cost.memory import POD_OVERHEAD
from serving.policies import SYSTEMS, configured
from serving.policies.continuous import Batching, ContinuousBatching
from serving.policies.serverless_vllm import SERIAL_START
from serving.records import DecisionRecord, Record, RequestRecord
from serving.serve import Setup, build_control, simulated_backend
from serving.units import GB, Seconds
from serving.workload.clients import closed_loop
from tests.build import make_deployment, make_requests, make_testbed, run, sent


class Scripted:
    """A Controller that returns what a test puts into its script, hook by hook."""

    interval = 1.0

    def __init__(self, **script: list[Action]) -> None:
        self.script = script

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        del sequence, cluster
        return self.script.pop("arrival", [])

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        return [Dispatch(sequence=sequence, instance=instance) for sequence in cluster.held.get(instance.model, ())]

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        del sequence, cluster
        return self.script.pop("finish", [])

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        del model, cluster, lost
        return self.script.pop("change", [])

    def on_interval(self, cluster: Cluster) -> list[Action]:
        del cluster
        return []


def make_control(system: System | None = None) -> tuple[Control, list[Record]]:
    testbed = make_testbed()
    _, backend = simulated_backend(testbed, seed=0)
    setup = Setup(
        testbed=testbed, system=system or SYSTEMS["serverless_vllm"], deployments=(make_deployment(),), seed=0
    )
    records: list[Record] = []
    return build_control(setup, backend, records.append), records


def scripted(**script: list[Action]) -> System:
    return replace(SYSTEMS["serverless_vllm"], controller=lambda _: Scripted(**script))


def launch(
    control: Control, memory: float = 18 * GB, servers: tuple[int, ...] = (0,), *, from_cache: bool = False
) -> Launch:
    machines = [control.cluster.servers[server] for server in servers]
    return Launch(
        model="llama2-7b",
        placements=tuple(
            Placement(server=machine, gpu=machine.gpus[0], memory=memory, from_cache=from_cache) for machine in machines
        ),
        graph=SERIAL_START,
        max_sequences=8,
        max_step_tokens=3072,
    )


def run_out(control: Control, until: Seconds | None = None) -> None:
    """Serve what has arrived to the end."""
    clock = control.backend.clock
    assert isinstance(clock, SimClock)
    control.start()
    control.draining = True
    clock.run(until)


class Thrashing:
    """A Scheduler that goes well until a sequence has some output tokens, and then preempts it for ever."""

    def __init__(self, num_output_tokens: int = 0) -> None:
        self.num_output_tokens = num_output_tokens
        self.inner = ContinuousBatching(Batching())

    def plan(self, instance: Instance) -> StepPlan:
        for sequence in list(instance.running):
            if sequence.num_output_tokens >= self.num_output_tokens:
                instance.preempt(sequence)
        if not instance.waiting or instance.waiting[0].num_output_tokens < self.num_output_tokens:
            plan = self.inner.plan(instance)
            plan.repeats = min([plan.repeats, *(self.num_output_tokens - s.num_output_tokens for s in plan.sequences)])
            return plan
        plan = StepPlan()
        sequence = instance.waiting[0]
        assert instance.pool is not None
        instance.pool.extend(sequence, 1)
        instance.admit(sequence)
        plan.add(sequence, 1)
        plan.ends_in_chunk = True
        return plan


class Stuck:
    """A Provisioner with which some stage never ends."""

    def __init__(self, inner: Provisioner, clock: Clock, stage_name: str) -> None:
        self.inner = inner
        self.clock = clock
        self.stage_name = stage_name

    def start(self, instance: Instance, worker: Worker, stage: Stage) -> Signal:
        return Signal(self.clock) if stage.name == self.stage_name else self.inner.start(instance, worker, stage)

    def num_blocks(self, instance: Instance) -> int:
        return self.inner.num_blocks(instance)


def decisions_of(records: list[Record], action: str) -> list[DecisionRecord]:
    return [record for record in records if isinstance(record, DecisionRecord) and record.action == action]


def requests_of(records: list[Record]) -> dict[int, RequestRecord]:
    """Request records by id; a second one of a request is an error."""
    found = [record for record in records if isinstance(record, RequestRecord)]
    by_id = {record.request_id: record for record in found}
    assert len(by_id) == len(found)
    return by_id


def test_a_request_for_a_model_that_is_not_deployed_raises() -> None:
    control, _ = make_control()
    with pytest.raises(ValueError, match=r"request 0 asks for 'opt-13b', which is not deployed"):
        control.arrive(make_requests(1, model="opt-13b")[0])


@pytest.mark.parametrize("system", ["serverless_vllm", "hydraserve_with_single_worker", "hydraserve"])
def test_a_model_that_fits_nowhere_ends_the_run_with_what_is_held_and_free(system: str) -> None:
    huge = make_deployment(size=400 * GB)
    with pytest.raises(NoProgress, match=r"held 1 of llama2-7b; free a10x1-0/gpu0 22 GB, a10x1-1/gpu0 22 GB"):
        run(system, sent([(1.0, make_requests(1)[0])]), huge)


def test_a_run_is_patient_while_a_request_is_served() -> None:
    # 3000 tokens of 30 ms take 90 s, longer than the patience
    control, records = make_control()
    control.patience = 60.0
    control.arrive(make_requests(1, 64, 3000)[0])
    run_out(control)
    (record,) = [record for record in records if isinstance(record, RequestRecord)]
    assert record.finished_at is not None
    assert record.finished_at > 90.0


def test_a_run_is_patient_while_stages_of_a_start_end() -> None:
    # 1 + 2 + 0.5 s, then 13.5 GB at 2 GB/s and at 1 GB/s: no stage takes 15 s, all take over 20 s
    control, records = make_control()
    control.patience = 15.0
    control.arrive(make_requests(1)[0])
    run_out(control)
    (record,) = [record for record in records if isinstance(record, RequestRecord)]
    assert record.dispatched_at is not None
    assert record.dispatched_at > 20.0


def test_a_scheduler_that_preempts_for_ever_ends_the_run_with_what_the_instance_holds() -> None:
    control, _ = make_control(replace(SYSTEMS["serverless_vllm"], scheduler=lambda _: Thrashing()))
    control.patience = 60.0
    control.arrive(make_requests(1)[0])
    with pytest.raises(NoProgress, match=r"held none; .*; instances 0 of llama2-7b ready with 0 waiting and 1 running"):
        run_out(control, until=1000.0)
    assert control.cluster.instances[0].running[0].num_preemptions > 100


def test_a_standstill_is_dated_from_the_last_token() -> None:
    control, _ = make_control(replace(SYSTEMS["serverless_vllm"], scheduler=lambda _: Thrashing(800)))
    control.patience = 15.0
    control.arrive(make_requests(1, num_output_tokens=1000)[0])
    with pytest.raises(NoProgress, match=r"no request moved between t=") as stopped:
        run_out(control, until=1000.0)
    (sequence,) = control.cluster.instances[0].running
    assert len(sequence.token_times) == 800
    assert sequence.token_times[-1] - sequence.token_times[0] > 15.0
    assert f"between t={sequence.token_times[-1]:.1f} and" in str(stopped.value)
    assert control.cluster.now == pytest.approx(sequence.token_times[-1] + 15.0, abs=1.01)


def test_a_start_whose_stage_never_ends_ends_the_run() -> None:
    control, _ = make_control()
    backend = control.backend
    control.backend = replace(backend, provisioner=Stuck(backend.provisioner, backend.clock, "context"))
    control.arrive(make_requests(1)[0])
    with pytest.raises(NoProgress, match=r"held 1 of llama2-7b; .*; instances 0 of llama2-7b starting with 0 waiting"):
        run_out(control, until=10_000.0)


def test_a_run_without_unanswered_requests_may_stand_still() -> None:
    control, _ = make_control()
    control.patience = 10.0
    control.start()
    assert isinstance(control.backend.clock, SimClock)
    control.backend.clock.run(until=100.0)
    assert control.cluster.now == 100.0


def test_launch_claims_gpu_slice_and_host_memory_and_retire_gives_them_back() -> None:
    control, _ = make_control()
    server = control.cluster.servers[0]
    control.arrive(make_requests(1)[0])
    # ceil(13 + 5) = 18 GB of 22, and since 4 GB are no more than the leftover of 6 GB, all of it
    assert server.gpus[0].memory.used == 22 * GB
    assert server.host_memory.used == 22 * GB + POD_OVERHEAD
    run_out(control)
    (instance,) = control.cluster.instances
    control._carry_out("test", [Retire(instance=instance)])
    assert (server.gpus[0].memory.used, server.host_memory.used, instance.phase) == (0, 0, Phase.RETIRED)
    assert control.cluster.instances == []


def test_an_instance_that_is_starting_or_serving_cannot_retire() -> None:
    control, _ = make_control()
    control.arrive(make_requests(1)[0])
    (instance,) = control.cluster.instances
    with pytest.raises(RuntimeError, match="instance 0 cannot retire: it is starting with 0 sequences"):
        control._carry_out("test", [Retire(instance=instance)])


def test_a_launch_beyond_the_gpus_memory_raises() -> None:
    control, _ = make_control(scripted())
    control._carry_out("test", [launch(control)])
    with pytest.raises(OverCommit, match=r"a10x1-0/gpu0: 18000000000 bytes asked, 4000000000 of 22000000000 free"):
        control._carry_out("test", [launch(control)])


def test_a_sequence_cannot_be_dispatched_to_an_instance_that_is_starting() -> None:
    control, _ = make_control(scripted())
    control._carry_out("test", [launch(control)])
    control.arrive(make_requests(1)[0])
    action = Dispatch(sequence=control.cluster.held["llama2-7b"][0], instance=control.cluster.instances[0])
    with pytest.raises(RuntimeError, match="instance 0 is starting, not ready"):
        control._carry_out("test", [action])


def test_every_action_leaves_a_decision_with_its_hook_and_instant() -> None:
    control, records = make_control()
    control.arrive(make_requests(1)[0])
    run_out(control)
    decisions = [record for record in records if isinstance(record, DecisionRecord)]
    assert [(decision.hook, decision.action) for decision in decisions] == [
        ("arrival", "launch"),
        ("ready", "dispatch"),
    ]
    assert decisions[0].detail == "instance 0 of llama2-7b on a10x1-0/gpu0 22 GB"
    assert decisions[1].detail == "request 0 to instance 0"
    assert decisions[0].at == 0.0 < decisions[1].at


@pytest.mark.parametrize("from_cache", [True, False])
def test_a_launch_is_recorded_with_its_servers_memory_and_source_of_weights(from_cache: bool) -> None:
    control, records = make_control(scripted())
    control._carry_out("test", [launch(control, 12 * GB, (2, 1), from_cache=from_cache)])
    (decision,) = decisions_of(records, "launch")
    assert (decision.request_id, decision.instance, decision.model) == (None, 0, "llama2-7b")
    assert (decision.servers, decision.memory) == (("a10x1-2", "a10x1-1"), (12 * GB, 12 * GB))
    assert decision.from_cache is from_cache


def test_a_dispatch_and_a_retirement_are_recorded_with_what_they_concern() -> None:
    control, records = make_control()
    control.arrive(make_requests(1)[0])
    run_out(control)
    control._carry_out("test", [Retire(instance=control.cluster.instances[0])])
    (dispatch,) = decisions_of(records, "dispatch")
    assert (dispatch.request_id, dispatch.instance, dispatch.model) == (0, 0, "llama2-7b")
    assert (dispatch.servers, dispatch.memory, dispatch.from_cache) == ((), (), None)
    (retire,) = decisions_of(records, "retire")
    assert (retire.request_id, retire.instance, retire.model) == (None, 0, "llama2-7b")
    assert (retire.servers, retire.memory, retire.from_cache) == (("a10x1-0",), (22 * GB,), None)


def test_a_request_beyond_an_instances_kv_memory_is_refused_and_recorded() -> None:
    control, records = make_control()
    refused = control.arrive(make_requests(1, 64, 100_000)[0])
    run_out(control)
    assert refused.fired
    assert refused.value.finished_at is None
    (instance,) = control.cluster.instances
    assert instance.pool is not None
    (decision,) = decisions_of(records, "refuse")
    assert (decision.request_id, decision.instance, decision.model) == (0, 0, "llama2-7b")
    room = instance.pool.num_blocks * 16
    assert decision.detail == (f"request 0 of 100064 prompt and output tokens, instance 0 has KV memory for {room}")
    assert decisions_of(records, "dispatch") == []
    record = requests_of(records)[0]
    assert (record.finished_at, record.dispatched_at, record.instance, record.num_output_tokens) == (None,) * 3 + (0,)
    assert (instance.num_sequences, instance.num_steps, control.cluster.num_held("llama2-7b")) == (0, 0, 0)


@given(
    st.lists(
        st.tuples(st.integers(1, 2000) | st.just(1400), st.integers(1, 80) | st.integers(1, 2000)),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=25, deadline=None)
def test_what_fits_into_kv_memory_is_served_and_all_else_refused(sizes: list[tuple[int, int]]) -> None:
    control, records = make_control(scripted())
    requests = [replace(make_requests(1, *size)[0], request_id=index) for index, size in enumerate(sizes)]
    signals = [control.arrive(request) for request in requests]
    control._carry_out("test", [launch(control, memory=15 * GB)])  # of which 0.77 GB are KV memory
    run_out(control)
    (instance,) = control.cluster.instances
    assert instance.pool is not None
    room = instance.pool.num_blocks * 16
    assert 1000 < room < 2000
    assert all(signal.fired for signal in signals)
    recorded = requests_of(records)
    for request in requests:
        fits = request.num_prompt_tokens + request.num_output_tokens <= room
        assert (recorded[request.request_id].finished_at is not None) == fits
        assert recorded[request.request_id].num_output_tokens == (request.num_output_tokens if fits else 0)
    assert len(decisions_of(records, "refuse")) + len(decisions_of(records, "dispatch")) == len(requests)


@pytest.mark.parametrize("over", [0, 1])
def test_a_request_that_fills_the_kv_memory_is_served_and_one_token_more_refused(over: int) -> None:
    control, records = make_control(scripted())
    control._carry_out("test", [launch(control, memory=14.5 * GB)])
    run_out(control)
    pool = control.cluster.instances[0].pool
    assert pool is not None
    room = pool.num_blocks * 16
    control.draining = False
    control.arrive(make_requests(1, room - 20, 20 + over)[0])
    (sequence,) = control.cluster.held["llama2-7b"]
    control._carry_out("test", [Dispatch(sequence=sequence, instance=control.cluster.instances[0])])
    run_out(control)
    assert (requests_of(records)[0].finished_at is None) == bool(over)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_prompt_beyond_the_budget_of_a_step_is_served_since_it_can_be_admitted(chunked: bool) -> None:
    system = configured("serverless_vllm", {"batching": {"chunked_prefill": chunked}})
    outcome = run(system, sent([(1.0, make_requests(1, 4000, 3)[0])]))
    assert system.config.max_step_tokens < 4000
    assert outcome.requests[0].num_output_tokens == 3


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_prompt_that_no_instance_can_hold_stops_nobody_else(system: str) -> None:
    requests = make_requests(5)
    requests[1] = replace(requests[1], num_prompt_tokens=1_000_000)
    outcome = run(system, sent([(1.0, request) for request in requests]))
    assert [record.request_id for record in outcome.requests if record.finished_at is None] == [1]
    assert len(outcome.requests) == 5


def test_a_closed_loop_goes_on_after_a_refusal() -> None:
    requests = [replace(request, num_prompt_tokens=n) for request, n in zip(make_requests(2), (10**6, 64), strict=True)]
    outcome = run("serverless_vllm", closed_loop(requests, gap=5.0, phase=0.0, seed=0))
    first, second = outcome.requests
    assert (first.finished_at, second.num_output_tokens) == (None, 4)
    (refusal,) = decisions_of(outcome.records, "refuse")
    assert second.arrived_at == refusal.at + 5.0


def test_the_signal_of_a_request_fires_with_its_finished_sequence() -> None:
    control, _ = make_control()
    answered = control.arrive(make_requests(1, num_output_tokens=3)[0])
    run_out(control)
    assert answered.fired
    assert answered.value.num_output_tokens == 3


def test_requests_without_an_answer_are_recorded_when_the_run_is_closed() -> None:
    control, records = make_control(scripted())
    for request in make_requests(2):
        control.arrive(request)
    control.close()
    unanswered = [record for record in records if isinstance(record, RequestRecord)]
    assert [(r.request_id, r.finished_at, r.dispatched_at, r.num_output_tokens) for r in unanswered] == [
        (0, None, None, 0),
        (1, None, None, 0),
    ]


def test_instances_are_numbered_in_order_of_launch() -> None:
    control, _ = make_control(scripted())
    control._carry_out("test", [launch(control, servers=(index,)) for index in (2, 0, 1)])
    assert [instance.instance_id for instance in control.cluster.instances] == [0, 1, 2]
