"""execute(): a resolved Point becomes a Setup and a client, and runs; called in worker processes."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import nan
from pathlib import Path
from random import Random
from typing import Any

from aebench.point import Point
from serving.core.cluster import Deployment
from serving.core.model import ModelSpec
from serving.core.ports import System
from serving.core.request import Request
from serving.cost.models import MODELS
from serving.cost.profile import Profile
from serving.cost.startup import StartupCosts
from serving.policies import configured
from serving.records import Record
from serving.serve import Setup, serve
from serving.testbed import ServerKind, Testbed
from serving.units import GB, Gbps, GiB, Seconds
from serving.workload import arrivals, lengths, traces
from serving.workload.clients import Client, closed_loop, cold_requests, open_loop

Spec = Mapping[str, Any]


VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a weight by its type."""


def execute(point: Point, write: Callable[[Record], None]) -> Seconds | None:
    """Run one point in its world and hand its records to ``write``; how late a real clock's timers ran (99th
    percentile), None for virtual time."""
    if is_live(point.spec):
        from aebench.live_point import execute as execute_live

        return execute_live(point, write)
    serve(setup(point.spec, point.seed), client(point.spec, point.seed), write)
    return None


def is_live(spec: Spec) -> bool:
    """Whether the point runs on real processes."""
    return spec.get("backend") == "live"


def setup(spec: Spec, seed: int) -> Setup:
    """The system on its testbed."""
    system = configured(spec["system"], spec["policy"])
    return Setup(
        testbed=testbed(spec, lends_whole_gpus(spec["isolation"], system)),
        system=system,
        deployments=deployments(spec),
        seed=seed,
        steps=None if (measured := profile(spec)) is None else measured.steps,
    )


def profile(spec: Spec) -> Profile | None:
    """What was measured of the machine that is simulated; None: it is the paper's, or a real one."""
    return Profile.from_json(spec["profile"]) if "profile" in spec else None


def deployments(spec: Spec) -> tuple[Deployment, ...]:
    """What clients may ask for."""
    architectures = model_specs(spec)
    return tuple(
        Deployment(
            model=model,
            spec=architectures[model],
            size=table["size_gb"] * GB,
            ttft_slo=table["ttft_slo"],
            tpot_slo=table["tpot_slo"],
        )
        for model, table in spec["deployments"].items()
    )


def model_specs(spec: Spec) -> dict[str, ModelSpec]:
    """Architecture by deployment: as the checkpoint has it where the point runs live, else as the table of models."""
    if is_live(spec):
        from aebench.live_point import checkpoint_specs

        return checkpoint_specs(spec)
    return {
        model: _tabled(MODELS[table.get("architecture", model)], table) for model, table in spec["deployments"].items()
    }


def _tabled(model: ModelSpec, table: Spec) -> ModelSpec:
    return replace(model, bytes_per_value=VALUE_BYTES[table["dtype"]]) if "dtype" in table else model


def lends_whole_gpus(isolation: str, system: System) -> bool:
    """Whether a testbed with this ``isolation`` lends whole GPUs to the system."""
    return system.exclusive_gpus if isolation == "follows_system" else isolation == "exclusive"


def testbed(spec: Spec, exclusive: bool) -> Testbed:
    """The machines that take part: those with the point's GPU, at most ``max_servers`` of a kind, as fast as a profile
    says where there is one."""
    measured = profile(spec)
    most = spec["max_servers"]
    kinds = [(name, table) for name, table in spec["servers"].items() if spec["gpu"] in (None, table["gpu"])]
    return Testbed(
        servers=tuple(
            (
                as_measured(server_kind(name, table, spec["cache_gib"]), measured),
                min(table["count"], most or table["count"]),
            )
            for name, table in kinds
        ),
        num_stores=spec["stores"],
        store_nic_rate=spec["store_nic_gbps"] * Gbps,
        exclusive=exclusive,
    )


def server_kind(name: str, table: Spec, cache_gib: float) -> ServerKind:
    """A server type from its TOML table."""
    nic_rate = table["nic_gbps"] * Gbps
    return ServerKind(
        name=name,
        gpu=table["gpu"],
        num_gpus=table["num_gpus"],
        gpu_memory=table["gpu_memory_gb"] * GB,
        dram=table["dram_gb"] * GB,
        nic_rate=nic_rate,
        fetch_rate=nic_rate if table["fetch_gb_s"] is None else table["fetch_gb_s"] * GB,
        pcie_rate=table["pcie_gb_s"] * GB,
        cache=cache_gib * GiB,
        startup=UNKNOWN if table["startup"] is None else _startup_costs(table["startup"]),
    )


def as_measured(kind: ServerKind, measured: Profile | None) -> ServerKind:
    """The server type with the start-up times and rates of a profile, below its declared NIC."""
    if measured is None:
        return kind
    return replace(
        kind,
        startup=measured.startup,
        fetch_rate=min(kind.fetch_rate, measured.fetch_rate),
        pcie_rate=measured.load_rate,
    )


UNKNOWN = StartupCosts(
    container=nan, libraries=nan, context=nan, engine=nan, first_step=nan, engine_load_rate=nan, jitter=nan
)
"""Of servers that only live runs use. An experiment refuses to simulate them; a clock would refuse these."""


def _startup_costs(table: Spec) -> StartupCosts:
    return StartupCosts(
        container=table["container"],
        libraries=table["libraries"],
        context=table["context"],
        engine=table["engine"],
        first_step=table["first_step"],
        engine_load_rate=table["engine_load_gb_s"] * GB,
        jitter=table["jitter"],
    )


def client(spec: Spec, seed: int) -> Client:
    """The client of the point's workload."""
    workload = spec["workload"]
    if workload["kind"] == "cold_requests":
        return _cold_client(spec, workload, seed)
    return open_loop(_timed_requests(spec, workload, seed))


def _cold_client(spec: Spec, workload: Spec, seed: int) -> Client:
    """Requests to one model, each of which finds it cold; see ``workload.prepare``."""

    def request(model: str, output_tokens: int, label: str) -> Request:
        return Request(
            request_id=0,
            model=model,
            num_prompt_tokens=workload["prompt_tokens"],
            num_output_tokens=output_tokens,
            label=label,
        )

    def preparing(models: list[str]) -> list[Request]:
        return [request(model, workload["prepare_output_tokens"], "prepare") for model in models]

    model = spec["model"]
    before_each = evicting(spec) if workload["prepare"] == "evict" else []
    before_all = [model] if workload["prepare"] == "load" else []
    script = cold_requests(
        request(model, workload["output_tokens"], "measured"),
        preparing(before_each),
        preparing(before_all),
        workload["repeats"],
    )
    return closed_loop(script, workload["gap"], workload["phase"], seed)


def evicting(spec: Spec) -> list[str]:
    """Other deployed models, in table order, that together push the point's model out of a host cache."""
    capacity = spec["cache_gib"] * GiB
    architectures = model_specs(spec)
    models: list[str] = []
    for model in spec["deployments"]:
        held = sum(architectures[other].weight_bytes for other in models)
        if model != spec["model"] and held + architectures[spec["model"]].weight_bytes <= capacity:
            models.append(model)
    return models


def _timed_requests(spec: Spec, workload: Spec, seed: int) -> Iterator[tuple[Seconds, Request]]:
    """An open loop's requests; models are drawn uniformly."""
    if workload["arrivals"]["kind"] == "trace":
        yield from _replayed(spec, workload["arrivals"]["file"])
        return
    first_after = workload.get("first_after", 0.0)
    times = (first_after + at for at in _arrivals(workload["arrivals"]).times(seed))
    sizes = lengths.LengthPair(prompt=_lengths(workload["prompt"]), output=_lengths(workload["output"])).pairs(seed)
    choice = Random(f"{seed}/models")
    models = [spec["model"]] if spec["model"] else list(spec["deployments"])
    numbered = itertools.islice(zip(times, sizes, strict=False), workload["num_requests"])
    for request_id, (arrived_at, (num_prompt_tokens, num_output_tokens)) in enumerate(numbered):
        model = choice.choice(models)
        table = spec["deployments"][model]
        yield (
            arrived_at,
            Request(
                request_id=request_id,
                model=model,
                num_prompt_tokens=num_prompt_tokens,
                num_output_tokens=num_output_tokens,
                ttft_slo=table["ttft_slo"],
                tpot_slo=table["tpot_slo"],
            ),
        )


def _replayed(spec: Spec, file: str) -> Iterator[tuple[Seconds, Request]]:
    """The requests of a workload trace file."""
    for request_id, row in enumerate(traces.read_trace(Path(file))):
        table = spec["deployments"][row.model]
        yield (
            row.arrived_at,
            Request(
                request_id=request_id,
                model=row.model,
                num_prompt_tokens=row.num_prompt_tokens,
                num_output_tokens=row.num_output_tokens,
                label=row.label or "measured",
                ttft_slo=row.ttft_slo or table["ttft_slo"],
                tpot_slo=row.tpot_slo or table["tpot_slo"],
            ),
        )


def _arrivals(table: Spec) -> arrivals.Arrivals:
    match table["kind"]:
        case "poisson":
            return arrivals.Poisson(rate=table["rate"])
        case "gamma":
            return arrivals.Gamma(rate=table["rate"], cv=table["cv"])
        case _:
            return arrivals.Fixed(gap=table["gap"])


def _lengths(table: Spec) -> lengths.Lengths:
    match table["kind"]:
        case "fixed":
            return lengths.Fixed(num_tokens=table["tokens"])
        case "lognormal":
            return lengths.LogNormal(
                median=table["median"],
                sigma=table["sigma"],
                min_tokens=table["min"],
                max_tokens=table["max"],
            )
        case _:
            return lengths.Empirical(values=tuple(table["values"]))
