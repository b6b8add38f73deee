"""What may stand in ``testbeds.toml``: servers, testbeds, and servers that take after others."""

import copy
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from aebench.errors import SpecError, near_misses
from aebench.strict import Strict
from serving.testbed import Assignment


class Startup(Strict):
    """``[server.NAME.startup]``; seconds and bytes per second."""

    container: float = Field(ge=0)
    libraries: float = Field(ge=0)
    context: float = Field(ge=0)
    engine: float = Field(ge=0)
    first_step: float = Field(ge=0)
    engine_load_gb_s: float = Field(gt=0)
    jitter: float = Field(ge=0, lt=1)


class Engine(Strict):
    """``[server.NAME.engine]``: ``serving/cost/engine.py`` has the meanings; seconds and bytes per second."""

    tensor_parallel: int = Field(default=1, ge=1)
    kv_blocks: int | None = Field(default=None, ge=1)
    kv_read_share: float | None = Field(default=None, gt=0, le=1)
    step: float = Field(default=0.0, ge=0)
    sequence: float = Field(default=0.0, ge=0)
    all_reduce: float = Field(default=0.0, ge=0)
    all_reduce_gb_s: float | None = Field(default=None, gt=0)
    copy_gb_s: float | None = Field(default=None, gt=0)
    copy_message: float = Field(default=0.0, ge=0)
    copy_slowdown: float = Field(default=1.0, ge=1)


class ServerTable(Strict):
    """``[server.NAME]``."""

    LATER: ClassVar[tuple[str, ...]] = ("like", "engine")

    like: str | None = None
    """Another server, from which comes what this one does not give; see ``take_after``."""
    gpu: str
    num_gpus: int = Field(ge=1)
    gpu_memory_gb: float = Field(gt=0)
    dram_gb: float = Field(gt=0)
    nic_gbps: float = Field(gt=0)
    fetch_gb_s: float | None = Field(default=None, gt=0)
    """None: whatever the NIC lets through."""
    pcie_gb_s: float = Field(gt=0)
    startup: Startup | None = None
    """None: nobody has measured it, so only live runs know it."""
    engine: Engine | None = None
    """None: steps are as the GPU's data sheet has them, KV moves as fast as the links let it."""
    sources: dict[str, str]


class TestbedTable(Strict):
    """``[testbed.NAME]``."""

    __test__ = False  # not a test class, whatever its name looks like to pytest
    LATER: ClassVar[tuple[str, ...]] = ("assignment",)

    servers: dict[str, Annotated[int, Field(ge=1)]]
    stores: int = Field(ge=1)
    store_nic_gbps: float = Field(gt=0)
    isolation: Literal["shared", "exclusive", "follows_system"] = "follows_system"
    """How GPUs are lent: in slices, whole, or as each system needs them."""
    assignment: Assignment = "largest"
    """Which storage server a server fetches from."""
    source: str


class TestbedsFile(Strict):
    """``experiments/<paper>/testbeds.toml``."""

    __test__ = False

    server: dict[str, ServerTable]
    testbed: dict[str, TestbedTable]


def take_after(testbeds: dict[str, Any], source: str) -> dict[str, Any]:
    """The tables with every ``like = "OTHER"`` carried out: what a server does not give is the other's, calibrated
    values included. A ``fetch_gb_s`` grows with the NIC: it is the same share of it."""
    servers = testbeds.get("server")
    if not isinstance(servers, dict):
        return testbeds
    return testbeds | {"server": {name: _filled(name, servers, source) for name in servers}}


def _filled(name: str, servers: Mapping[str, Any], source: str) -> Any:
    own = servers[name]
    if not isinstance(own, dict) or "like" not in own:
        return own
    like, where = own["like"], f"server.{name}.like"
    if not isinstance(like, str) or like not in servers:
        others = [other for other in servers if other != name]
        message = f"expected another server, got {like!r}.{near_misses(str(like), others)} Known: {', '.join(others)}"
        raise SpecError(source, where, message)
    other = servers[like]
    if "like" in other:
        raise SpecError(source, where, f"expected a server that takes after none, but {like} does")
    table: dict[str, Any] = copy.deepcopy({**other, **own})
    del table["like"]
    for part in ("startup", "engine"):
        if isinstance(other.get(part), dict):
            table[part] = copy.deepcopy({**other[part], **own.get(part, {})})
    if "fetch_gb_s" in other and "fetch_gb_s" not in own:
        table["fetch_gb_s"] = other["fetch_gb_s"] * table["nic_gbps"] / other["nic_gbps"]
    table["sources"] = _sources(like, table, own, other)
    return table


def _sources(like: str, table: Mapping[str, Any], own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """Where each number of a server that takes after another is from."""
    given, theirs = own.get("sources", {}), other.get("sources", {})
    sources = dict(given)
    for key in _flat_keys(table):
        if key not in _flat_keys(own):
            scaled = " times the ratio of the NICs" if key == "fetch_gb_s" else ""
            sources[key] = f"as {like}{scaled}: {theirs.get(key, 'calibrated')}"
    return sources


def _flat_keys(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of a server's numbers."""
    return [found for key, value in table.items() if key != "sources" for found in _flat_key(key, value, prefix)]


def _flat_key(key: str, value: Any, prefix: str) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _flat_keys(value, f"{prefix}{key}.")
    else:
        yield f"{prefix}{key}"
