"""The control plane: actions are carried out or refused, and a run that cannot end is ended."""

from dataclasses import replace

import pytest

from serving.control import POD_OVERHEAD, Control, NoProgress
from serving.core.actions import Action, Dispatch, Launch, Placement, Retire
from serving.core.clock import SimClock
from serving.core.cluster import Cluster
from serving.core.hardware import OverCommit
from serving.core.instance import Instance, Phase
from serving.core.ports import System
from serving.core.request import Sequence
from serving.policies import SYSTEMS
from serving.policies.serverless_vllm import SERIAL_START
from serving.records import DecisionRecord, Record, RequestRecord
from serving.serve import IsolationMismatch, Setup, build_control, simulated_backend
from serving.units import GB
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
        return [Dispatch(sequence=sequence, instance=instance) for sequence in cluster.held[instance.model]]

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        del sequence, cluster
        return self.script.pop("finish", [])

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


def launch(control: Control, memory: float = 18 * GB, server: int = 0) -> Launch:
    machine = control.cluster.servers[server]
    return Launch(
        model="llama2-7b",
        placements=(Placement(server=machine, gpu=machine.gpus[0], memory=memory),),
        graph=SERIAL_START,
        max_sequences=8,
        max_step_tokens=3072,
    )


def run_out(control: Control) -> None:
    """Serve what has arrived to the end."""
    clock = control.backend.clock
    assert isinstance(clock, SimClock)
    control.start()
    control.draining = True
    clock.run()


def test_a_request_for_a_model_that_is_not_deployed_raises() -> None:
    control, _ = make_control()
    with pytest.raises(ValueError, match=r"request 0 asks for 'opt-13b', which is not deployed"):
        control.arrive(make_requests(1, model="opt-13b")[0])


@pytest.mark.parametrize(("system", "needs"), [("serverlessllm", "exclusive"), ("hydraserve", "shared")])
def test_a_testbed_with_the_other_isolation_is_refused(system: str, needs: str) -> None:
    testbed = make_testbed(exclusive=needs == "shared")
    with pytest.raises(IsolationMismatch, match=f"{system} needs {needs} GPUs"):
        run(system, sent([]), testbed=testbed)


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
    control._carry_out("test", [launch(control, server=index) for index in (2, 0, 1)])
    assert [instance.instance_id for instance in control.cluster.instances] == [0, 1, 2]
