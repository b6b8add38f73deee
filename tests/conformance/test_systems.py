"""What every system must do: answer all exactly once, conserve memory, repeat itself, decide without touching."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.actions import Action
from serving.core.cluster import Cluster
from serving.core.instance import Instance, Phase
from serving.core.ports import Controller, System
from serving.core.request import Request, Sequence
from serving.policies import SYSTEMS, configured
from serving.policies.serverless_vllm import ServerlessVllm
from serving.records import (
    DecisionRecord,
    MigrationRecord,
    PauseRecord,
    Record,
    RequestRecord,
    SampleRecord,
    StageRecord,
    WorkerRecord,
)
from serving.units import GB, Seconds
from serving.workload.arrivals import Gamma
from tests.build import A10, Outcome, make_deployment, make_requests, make_testbed, run, sent, with_cache

VARIANTS: dict[str, System] = {
    **SYSTEMS,
    "hydraserve, adaptive": configured("hydraserve", {"sizing": "adaptive"}),
    "hydraserve, chunked": configured("hydraserve", {"batching": {"chunked_prefill": True}}),
    "hydraserve, fixed": configured("hydraserve", {"sizing": "fixed", "max_pipeline_size": 2, "batch_size": 2}),
    "llumnix, artifact": configured("llumnix", {"variant": "artifact", "there_at_start": False}),
    "llumnix, restless": configured(
        "llumnix", {"migrate_threshold": inf, "migrate_in_threshold": -inf, "migrate_choice": "ljf"}
    ),
    "llumnix, blocking": configured(
        "llumnix", {"migrate_threshold": inf, "migrate_in_threshold": -inf, "method": "blocking", "dispatch": "first"}
    ),
    "llumnix, recompute": configured(
        "llumnix", {"migrate_threshold": inf, "migrate_in_threshold": -inf, "method": "recompute", "dispatch": "first"}
    ),
    "llumnix, scaling": configured(
        "llumnix", {"scaling": True, "num_instances": 1, "scale_interval": 2.0, "scale_first_check": 1.0}
    ),
    "llumnix, scheduler down": configured("llumnix", {"scheduler_down_from": 10.0, "scheduler_down_until": 40.0}),
}
"""Every entry of SYSTEMS, and the choices that its defaults leave unexercised."""


def stays(name: str) -> bool:
    """Whether a system keeps instances that nobody needs."""
    return name in ("fixed_instances", "infaas++", "round-robin") or name.startswith("llumnix")


MODELS = ("llama2-7b", "opt-2.7b")
seeds = st.integers(0, 10_000)
each_system = pytest.mark.parametrize("name", VARIANTS)
each_that_runs_on_one_server = pytest.mark.parametrize(
    "name",
    [
        name
        for name in VARIANTS
        if name not in ("hydraserve", "hydraserve, chunked", "hydraserve, fixed") and not stays(name)
    ],
)
"""A group of static size needs four servers, or as many as it has workers; some systems hold what they have."""
each_that_retires = pytest.mark.parametrize("name", [name for name in VARIANTS if not stays(name)])


def bursty(seed: int, num_requests: int = 40) -> list[tuple[Seconds, Request]]:
    """Requests of two models in bursts, with pauses beyond the grace period between some of them."""
    draws = Random(f"{seed}/conformance")
    times = list(islice(Gamma(rate=0.4, cv=4.0).times(seed), num_requests))
    requests = [
        replace(
            request,
            model=draws.choice(MODELS),
            num_prompt_tokens=draws.randint(1, 1500),
            num_output_tokens=draws.randint(1, 60),
        )
        for request in make_requests(num_requests)
    ]
    return list(zip(times, requests, strict=True))


def serve_bursty(system: System, seed: int, linger: Seconds = 0.0) -> Outcome:
    """Two models on four servers with a jitter of 6 % and a host cache of 20 GiB."""
    kind = with_cache(replace(A10, startup=replace(A10.startup, jitter=0.06)), 20.0)
    return run(
        system,
        sent(bursty(seed), linger),
        *(make_deployment(model) for model in MODELS),
        testbed=make_testbed(4, kind, exclusive=system.exclusive_gpus),
        seed=seed,
    )


def state(cluster: Cluster) -> tuple[Any, ...]:
    """Everything of a cluster that an Action could change, as a value."""
    sequence_state = [
        (id(s), s.state, s.num_tokens, s.num_computed, tuple(s.block_table), s.dispatched_at, len(s.token_times))
        for held in (*cluster.held.values(), *(queue for i in cluster.instances for queue in (i.waiting, i.running)))
        for s in held
    ]
    servers = [
        (
            server.host_memory.used,
            None if server.cache is None else (server.cache.used, [server.cache.holds(model) for model in MODELS]),
            [(gpu.memory.used, gpu.memory.free) for gpu in server.gpus],
        )
        for server in cluster.servers
    ]
    instances = [
        (id(i), i.phase, i.idle_since, i.num_steps, i.spare, None if i.pool is None else i.pool.num_free)
        for i in cluster.instances
    ]
    return cluster.now, sequence_state, servers, instances, list(cluster.held), list(cluster.deployments)


@dataclass(slots=True, eq=False)
class Watched:
    """A Controller that passes every hook on and compares the cluster before and after it."""

    inner: Controller
    interval: Seconds
    instances: list[Instance] = field(default_factory=list)
    """Every instance that a hook saw; what a pipeline becomes has the pipeline's id, or one of its own."""
    num_hooks: int = 0

    def _watch(self, cluster: Cluster, hook: Callable[[], list[Action]]) -> list[Action]:
        before = state(cluster)
        actions = hook()
        assert state(cluster) == before
        self.num_hooks += 1
        self.instances += [instance for instance in cluster.instances if instance not in self.instances]
        return actions

    def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        return self._watch(cluster, lambda: self.inner.on_arrival(sequence, cluster))

    def on_ready(self, instance: Instance, cluster: Cluster) -> list[Action]:
        return self._watch(cluster, lambda: self.inner.on_ready(instance, cluster))

    def on_finish(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
        return self._watch(cluster, lambda: self.inner.on_finish(sequence, cluster))

    def on_change(self, model: str, cluster: Cluster, lost: Instance | None) -> list[Action]:
        return self._watch(cluster, lambda: self.inner.on_change(model, cluster, lost))

    def on_interval(self, cluster: Cluster) -> list[Action]:
        return self._watch(cluster, lambda: self.inner.on_interval(cluster))


def watched(system: System) -> System:
    return replace(system, controller=lambda config: Watched(system.controller(config), config.interval))


def written_at(record: Record) -> Seconds:
    """When it was; one that the end of the run wrote is later than all others."""
    match record:
        case RequestRecord():
            assert record.finished_at is not None
            return record.finished_at
        case StageRecord():
            return record.ended_at
        case DecisionRecord():
            return record.at
        case PauseRecord():
            return record.resumed_at
        case MigrationRecord():
            return record.ended_at
        case SampleRecord():
            return record.at
        case WorkerRecord():
            return inf if record.ended_at is None else record.ended_at


@each_system
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_every_request_is_answered_exactly_once_with_all_its_tokens(name: str, seed: int) -> None:
    outcome = serve_bursty(VARIANTS[name], seed)
    asked = bursty(seed)
    assert [record.request_id for record in outcome.requests] == list(range(len(asked)))
    for record, (arrived_at, request) in zip(outcome.requests, asked, strict=True):
        assert record.model == request.model
        assert record.num_output_tokens == request.num_output_tokens == len(record.token_gaps) + 1
        assert record.arrived_at == pytest.approx(arrived_at)


@each_system
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_times_in_records_never_go_back(name: str, seed: int) -> None:
    outcome = serve_bursty(VARIANTS[name], seed)
    times = [written_at(record) for record in outcome.records]
    assert times == sorted(times)
    for record in outcome.requests:
        assert record.dispatched_at is not None
        assert record.first_token_at is not None
        assert record.finished_at is not None
        assert record.arrived_at <= record.dispatched_at < record.first_token_at <= record.finished_at
        assert min(record.token_gaps, default=1.0) > 0
        assert record.first_token_at + sum(record.token_gaps) == pytest.approx(record.finished_at)
    for stage in outcome.records:
        assert not isinstance(stage, StageRecord) or stage.started_at <= stage.ended_at


@each_that_retires
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_all_memory_is_free_again_when_all_instances_have_retired(name: str, seed: int) -> None:
    outcome = serve_bursty(
        watched(VARIANTS[name]), seed, linger=90.0
    )  # a start that nobody waits for any more, and 30 s of grace
    control = outcome.control
    controller = control.controller
    assert isinstance(controller, Watched)
    assert control.cluster.instances == []
    assert len({instance.instance_id for instance in controller.instances}) == control.num_launched > 0
    for instance in controller.instances:
        assert instance.phase is Phase.RETIRED
        assert instance.pool is not None
        assert instance.pool.num_free == instance.pool.num_blocks
    for server in control.cluster.servers:
        assert server.host_memory.used == 0
        assert [gpu.memory.used for gpu in server.gpus] == [0] * len(server.gpus)
        if server.cache is not None:
            server.cache.open("anything", server.cache.capacity)  # raises while an entry has a reader


@each_system
@given(seed=seeds)
@settings(max_examples=3, deadline=None)
def test_a_run_repeats_itself_record_by_record(name: str, seed: int) -> None:
    first, second = (serve_bursty(VARIANTS[name], seed).records for _ in range(2))
    assert first == second


def test_runs_are_alike_in_processes_with_other_hash_seeds() -> None:
    assert fingerprint(2) == fingerprint(2) != fingerprint(3)
    program = "from tests.conformance.test_systems import fingerprint; print(fingerprint(2))"
    elsewhere = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]
    assert elsewhere == [fingerprint(2)] * 2


def fingerprint(seed: int) -> str:
    """A digest of every record of every system."""
    records = [serve_bursty(system, seed).records for system in VARIANTS.values()]
    return hashlib.sha256(repr(records).encode()).hexdigest()


@each_system
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_the_controller_touches_nothing(name: str, seed: int) -> None:
    system = VARIANTS[name]
    outcome = serve_bursty(watched(system), seed)
    controller = outcome.control.controller
    assert isinstance(controller, Watched)
    assert controller.num_hooks > 80  # 40 arrivals, 40 ends, and ticks
    assert controller.interval == system.config.interval
    assert outcome.records == serve_bursty(system, seed).records


def test_the_watch_notices_a_controller_that_claims_memory_itself() -> None:
    class Meddler(ServerlessVllm):
        def on_arrival(self, sequence: Sequence, cluster: Cluster) -> list[Action]:
            cluster.servers[0].gpus[0].memory.claim(sequence, 1 * GB)
            return []

    with pytest.raises(AssertionError):
        serve_bursty(watched(replace(SYSTEMS["serverless_vllm"], controller=Meddler)), 0)


@each_that_runs_on_one_server
def test_models_that_contend_for_one_gpu_take_turns_and_all_are_answered(name: str) -> None:
    models = ("llama2-7b", "opt-6.7b", "opt-2.7b")
    requests = [replace(make_requests(3)[i], model=model) for i, model in enumerate(models)]
    system = VARIANTS[name]
    outcome = run(
        system,
        sent([(1.0, request) for request in requests]),
        *(make_deployment(model) for model in models),
        testbed=make_testbed(1, with_cache(A10, 20.0), exclusive=system.exclusive_gpus),
    )
    assert sorted(record.request_id for record in outcome.requests if record.finished_at is not None) == [0, 1, 2]


@each_that_runs_on_one_server
def test_a_model_that_no_free_gpu_holds_waits_for_one_that_does(name: str) -> None:
    # 26 GB of weights: never on the A10, whoever is first in order
    system = VARIANTS[name]
    v100 = replace(A10, name="v100x1", gpu="v100", gpu_memory=32 * GB)
    testbed = replace(make_testbed(1, exclusive=system.exclusive_gpus), servers=((A10, 1), (v100, 1)))
    (request,) = make_requests(1, model="llama2-13b")
    deployment = make_deployment("llama2-13b", ttft_slo=60.0)
    outcome = run(system, sent([(1.0, request)]), deployment, testbed=testbed)
    assert outcome.requests[0].finished_at is not None
