"""What ``aebench serve`` serves: a checkpoint on this machine, as logical servers of one device each."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import Any

from aebench.errors import UsageError, near_misses
from aebench.point_checks import check_knobs
from aebench.service.chat_template import ChatTemplate
from aebench.service.room import Wanted, check_room
from aebench.service.served_model import ServedModel
from serving.core.cluster import Deployment
from serving.core.model import ModelSpec
from serving.core.ports import System
from serving.cost.memory import BLOCK_SIZE, UTILISATION
from serving.cost.startup import StartupCosts
from serving.live.checkpoint import Checkpoint
from serving.live.config import DTYPES
from serving.live.engine import Engine
from serving.live.fleet import WorkerOptions
from serving.live.setup import LiveSetup
from serving.live.tokenizer import put_before
from serving.policies import SYSTEMS, configured
from serving.policies.hydraserve import HydraServeConfig
from serving.policies.placement import slice_size
from serving.testbed import ServerKind, Testbed
from serving.units import GB, Bytes, BytesPerSecond

DEFAULT_SYSTEM = "fixed_instances"
LOCAL: BytesPerSecond = 20 * GB
"""No bottleneck: weights come from this machine."""
UNCOUNTED: Bytes = 1e15
"""Host memory in the accounts of policies, which reckon with a pod a worker, larger than its share of the GPU; what an
instance really takes is compared with this machine before any starts."""
NUM_INSTANCES = "num_instances"
"""The knob of systems that keep so many instances."""
FLAGS = {NUM_INSTANCES: "--replicas", "num_stages": "--stages", "kv_reserve": "--kv-gb"}
"""Knobs that flags of other names decide."""
MAX_STAGES = 4
"""Of the groups that systems make on demand."""
NO_COSTS = StartupCosts(
    container=0.0, libraries=0.0, context=0.0, engine=0.0, first_step=0.0, engine_load_rate=LOCAL, jitter=0.0
)
"""A live start takes what it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What the command line asks for."""

    folder: Path
    name: str
    system: str = DEFAULT_SYSTEM
    num_instances: int = 1
    num_stages: int = 1
    knobs: Mapping[str, Any]
    """Other knobs of the system, by name; those of its scheduler are a table, ``batching``."""
    kv_memory: Bytes
    """For the KV cache of one instance."""
    workers: WorkerOptions

    @property
    def starts_on_demand(self) -> bool:
        """Instances start when requests come, not before: the system does not keep a number of them."""
        return not hasattr(SYSTEMS[self.system].config, NUM_INSTANCES)


def engine_of(serving: Serving) -> tuple[Engine, ServedModel]:
    """The engine, not started, and the model as clients see it."""
    if serving.system not in SYSTEMS:
        raise UsageError(
            f"no system {serving.system!r}.{near_misses(serving.system, SYSTEMS)} Known: {', '.join(SYSTEMS)}"
        )
    checkpoint = Checkpoint.open(serving.folder)
    spec = checkpoint.spec(serving.name)
    dtype = serving.workers.dtype
    on_device = spec if dtype is None else replace(spec, bytes_per_value=DTYPES[dtype])
    needed = _needed(serving, on_device)
    if serving.starts_on_demand:  # such systems reckon with the stored size
        needed = max(needed, _needed(serving, spec))
    system = _placeable(_system(serving, needed - spec.weight_bytes), serving, spec)
    memory = needed if not serving.starts_on_demand else slice_size(needed, 0.0)
    check_room(
        Wanted(
            model=serving.name,
            memory=memory,
            num_stages=serving.num_stages,
            weights=on_device.weight_bytes,
            stored_weights=spec.weight_bytes,
            num_devices=serving.workers.num_devices,
        ),
        serving.workers.device,
    )
    deployment = Deployment(model=serving.name, spec=spec, size=spec.weight_bytes, ttft_slo=30.0, tpot_slo=1.0)
    setup = LiveSetup(
        testbed=_testbed(serving, memory, system.exclusive_gpus),
        system=system,
        deployments=(deployment,),
        checkpoints={serving.name: serving.folder},
        workers=serving.workers,
    )
    engine = Engine(setup)
    config = checkpoint.config
    return engine, ServedModel(
        name=serving.name,
        vocab=config.vocab,
        max_context=min(config.max_positions, _fewest_blocks(serving, on_device, needed) * BLOCK_SIZE),
        tokenizer=engine.tokenizers[serving.name],
        prefix=_prefix(serving.folder, config.bos_token_id),
        chat_template=ChatTemplate.read(serving.folder),
        created=int(time()),
    )


def _system(serving: Serving, kv_reserve: Bytes) -> System:
    """The system with the knobs that were asked for, and those that follow from flags of other names."""
    config = SYSTEMS[serving.system].config
    for name in serving.knobs:
        if name in FLAGS:
            raise UsageError(f"--set policy.{name}: expected {FLAGS[name]} instead")
    asked = {"num_stages": serving.num_stages > 1, "max_sequences": "max_sequences" in serving.knobs}
    given = [name for name, is_asked in asked.items() if is_asked and not hasattr(config, name)]
    if given:
        words = ", ".join(name.removeprefix("num_") for name in given)
        raise UsageError(f"{serving.system} decides itself on {words}: leave them out")
    told = {NUM_INSTANCES: serving.num_instances, "num_stages": serving.num_stages, "kv_reserve": kv_reserve}
    knobs = {**serving.knobs, **{name: value for name, value in told.items() if hasattr(config, name)}}
    check_knobs(serving.system, knobs, "--set")
    return configured(serving.system, knobs)


def _placeable(system: System, serving: Serving, spec: ModelSpec) -> System:
    """The system, with groups of no more stages than there are servers where it always makes groups: a stage has a
    server of its own, and a group that fits nowhere would be waited for without end."""
    config = system.config
    if not isinstance(config, HydraServeConfig) or config.max_pipeline_size <= serving.num_instances:
        return system
    is_large = config.sizing == "static" and spec.weight_bytes > config.small_model
    if not config.parallel or not (is_large or config.sizing == "fixed"):
        return system
    if "max_pipeline_size" in serving.knobs:
        raise UsageError(
            f"--set policy.max_pipeline_size={config.max_pipeline_size}: groups of so many stages need as many "
            f"--replicas, got {serving.num_instances}"
        )
    return replace(system, config=replace(config, max_pipeline_size=serving.num_instances))


def _stages(serving: Serving, spec: ModelSpec, num_stages: int) -> tuple[range, ...]:
    try:
        return spec.split(num_stages)
    except ValueError as error:
        raise UsageError(f"{serving.folder}: {error}; ask for fewer: --stages") from error


def _needed(serving: Serving, spec: ModelSpec) -> Bytes:
    """Memory of a device that holds a stage and its share of the KV cache."""
    block = spec.kv_bytes_per_layer * BLOCK_SIZE
    num_blocks = int(serving.kv_memory // (block * spec.num_layers))
    if num_blocks < 1:
        asked, one = f"{serving.kv_memory / GB:.3g} GB", f"{block * spec.num_layers / GB:.3g} GB"
        raise UsageError(f"{asked} hold no KV block of {serving.name}, one takes {one}: raise --kv-gb")
    stages = _stages(serving, spec, serving.num_stages)
    return max(spec.stage_bytes(stage) + (num_blocks + 0.5) * block * len(stage) for stage in stages) / UTILISATION


def _fewest_blocks(serving: Serving, spec: ModelSpec, needed: Bytes) -> int:
    """KV blocks of an instance, of the tightest that the system may make: on demand, a group of several stages."""
    counts = [serving.num_stages]
    if serving.starts_on_demand:
        counts = list(range(1, min(MAX_STAGES, spec.num_layers) + 1))
    block = spec.kv_bytes_per_layer * BLOCK_SIZE
    room = []
    for count in counts:
        memory = slice_size(needed, 0.0, count) if serving.starts_on_demand else needed
        stages = _stages(serving, spec, count)
        room += [(memory * UTILISATION - spec.stage_bytes(stage)) // (block * len(stage)) for stage in stages]
    return int(min(room))


def _testbed(serving: Serving, memory: Bytes, exclusive: bool) -> Testbed:
    """Servers with one device each."""
    num_servers = serving.num_instances * serving.num_stages
    kind = ServerKind(
        name="local",
        gpu="cpu" if serving.workers.device == "cpu" else "h200",
        num_gpus=1,
        gpu_memory=memory,
        dram=UNCOUNTED,
        nic_rate=LOCAL,
        fetch_rate=LOCAL,
        pcie_rate=LOCAL,
        startup=NO_COSTS,
    )
    return Testbed(
        servers=((kind, num_servers),), num_stores=1, store_nic_rate=LOCAL * num_servers, exclusive=exclusive
    )


def _prefix(folder: Path, bos: int | None) -> tuple[int, ...]:
    """Ids that the tokenizer puts before a text: what ``add_bos_token`` says, else what its post-processor adds."""
    try:
        table: Any = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        table = {}  # the chat template complains of a file that is damaged
    said = table.get("add_bos_token") if isinstance(table, dict) else None
    if isinstance(said, bool):
        return (bos,) if said and bos is not None else ()
    return put_before(folder / "tokenizer.json")
