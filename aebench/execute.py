"""execute(): a resolved Point becomes a Setup and a client, and runs; called in worker processes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import nan
from typing import Any

from aebench.deployed_models import tables_by_model
from aebench.host_cache import cache_bytes
from aebench.point import Point
from aebench.workloads import client
from serving.core.cluster import Deployment
from serving.core.model import ModelSpec
from serving.core.ports import System
from serving.cost.engine import EngineCosts
from serving.cost.models import MODELS
from serving.cost.profile import Profile
from serving.cost.startup import StartupCosts
from serving.policies import configured
from serving.records import DecisionRecord, PauseRecord, Record, RequestRecord
from serving.serve import Setup, serve
from serving.testbed import ServerKind, Testbed
from serving.units import GB, Bytes, Gbps, Seconds

Spec = Mapping[str, Any]


VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a weight by its type."""


CAN_BE_LEFT_OUT: dict[str, Any] = {"token_gaps": (), "computed_for": 0.0}
"""Fields of a request's record by their keys in ``[measure]``, and what stands there then."""


def execute(point: Point, write: Callable[[Record], None]) -> Seconds | None:
    """Run one point in its world and hand its records to ``write``; how late a real clock's timers ran (99th
    percentile), None for virtual time."""
    measure = point.spec.get("measure", {})
    left_out = {name: nothing for name, nothing in CAN_BE_LEFT_OUT.items() if not measure.get(name, True)}
    if left_out:
        write = without(left_out, write)
    if not measure.get("dispatches", True):
        write = without_dispatches(write)
    if is_live(point.spec):
        from aebench.live_point import execute as execute_live

        return execute_live(point, write)
    world = setup(point.spec, point.seed)
    serve(world, client(point.spec, point.seed, world.deployments), write)
    return None


def without(left_out: Mapping[str, Any], write: Callable[[Record], None]) -> Callable[[Record], None]:
    """Writes records of requests with these fields as if there were nothing in them."""

    def write_less(record: Record) -> None:
        has_more = isinstance(record, RequestRecord) and any(getattr(record, name) for name in left_out)
        write(replace(record, **left_out) if has_more else record)

    return write_less


def without_dispatches(write: Callable[[Record], None]) -> Callable[[Record], None]:
    """Writes all but the decisions about single sequences, and how long their migrations stopped them; what came of the
    ones is in the sequences' own records, the others are in those of the migrations."""

    def write_less(record: Record) -> None:
        is_choice = isinstance(record, DecisionRecord) and record.action in ("dispatch", "migrate")
        if not is_choice and not (isinstance(record, PauseRecord) and record.reason == "migration"):
            write(record)

    return write_less


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
        sample_period=spec.get("measure", {}).get("sample_period"),
        token_gaps=spec.get("measure", {}).get("token_gaps", True),
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
            ttft_slo=table.get("ttft_slo"),
            tpot_slo=table.get("tpot_slo"),
        )
        for model, table in tables_by_model(spec["deployments"]).items()
    )


def model_specs(spec: Spec) -> dict[str, ModelSpec]:
    """Architecture by deployment: as the checkpoint has it where the point runs live, else as the table of models."""
    if is_live(spec):
        from aebench.live_point import checkpoint_specs

        return checkpoint_specs(spec)
    return {
        model: _tabled(MODELS[table.get("architecture", model)], table)
        for model, table in tables_by_model(spec["deployments"]).items()
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
                as_measured(server_kind(name, table, cache_bytes(spec, name)), measured),
                min(table["count"], most or table["count"]),
            )
            for name, table in kinds
        ),
        num_stores=spec["stores"],
        store_nic_rate=spec["store_nic_gbps"] * Gbps,
        exclusive=exclusive,
        assignment=spec.get("assignment", "largest"),
    )


def server_kind(name: str, table: Spec, cache: Bytes) -> ServerKind:
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
        cache=cache,
        startup=UNKNOWN if table["startup"] is None else _startup_costs(table["startup"]),
        engine=_engine_costs(table["engine"]) if "engine" in table else None,
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
        engine=None,
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


def _engine_costs(table: Spec) -> EngineCosts:
    rates = {key: None if table[f"{key}_gb_s"] is None else table[f"{key}_gb_s"] * GB for key in ("all_reduce", "copy")}
    return EngineCosts(
        tensor_parallel=table["tensor_parallel"],
        kv_blocks=table["kv_blocks"],
        kv_read_share=table["kv_read_share"],
        step=table["step"],
        sequence=table["sequence"],
        all_reduce=table["all_reduce"],
        all_reduce_rate=rates["all_reduce"],
        copy_rate=rates["copy"],
        copy_message=table["copy_message"],
        copy_slowdown=table["copy_slowdown"],
    )
