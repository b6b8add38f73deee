"""Checks of testbeds, and of what an experiment asks of the one that it names; each names the key that is wrong."""

from collections.abc import Mapping
from pathlib import Path

from aebench.errors import SpecError
from aebench.point_checks import check_name
from aebench.testbed_tables import ServerTable, TestbedsFile
from aebench.toml_files import ExperimentFile
from serving.cost.gpus import KINDS
from serving.policies import SYSTEMS
from serving.testbed import isolation
from serving.units import GB, GiB


def check_servers(testbeds: TestbedsFile, path: Path) -> None:
    """Every testbed's servers are declared, and every server's GPU is known."""
    for name, bed in testbeds.testbed.items():
        for server in bed.servers:
            if server not in testbeds.server:
                raise SpecError(path, f"testbed.{name}.servers", f"no [server.{server}]")
    for name, server_table in testbeds.server.items():
        if server_table.gpu not in KINDS:
            message = f"unknown GPU {server_table.gpu!r}. Known: {', '.join(KINDS)}"
            raise SpecError(path, f"server.{name}.gpu", message)


def check_machines(file: ExperimentFile, testbeds: TestbedsFile, source: str, *, simulated: bool) -> None:
    """GPUs are lent as the system needs them, some server takes part, and each that does has what is asked of it."""
    _check_isolation(file, testbeds, source)
    kinds = {name: testbeds.server[name] for name in testbeds.testbed[file.testbed].servers}
    taking_part = {name: table for name, table in kinds.items() if file.gpu in (None, table.gpu)}
    if not taking_part:
        raise SpecError(source, "gpu", f"testbed {file.testbed} has no server with a GPU {file.gpu!r}")
    _check_cache(file, taking_part, kinds, source)
    for name, table in taking_part.items():
        if table.startup is None and simulated:
            message = (
                f"{name} of testbeds.toml has no start-up times to simulate with. "
                "Expected --backend live, or --profile with what aebench calibrate measured"
            )
            raise SpecError(source, "testbed", message)


def _check_isolation(file: ExperimentFile, testbeds: TestbedsFile, source: str) -> None:
    """The testbed lends GPUs in the way that the system needs."""
    lent = testbeds.testbed[file.testbed].isolation
    needed = isolation(SYSTEMS[str(file.system)].exclusive_gpus)
    if lent not in (needed, "follows_system"):
        message = f"{file.system} needs {needed} GPUs, {file.testbed} has isolation = {lent!r}"
        raise SpecError(source, "testbed", f"{message} in testbeds.toml. Expected {needed!r} or 'follows_system'")


def _check_cache(
    file: ExperimentFile, taking_part: Mapping[str, ServerTable], kinds: Mapping[str, ServerTable], source: str
) -> None:
    """The cache is given once, of servers of the testbed, and fits into the host memory of each that takes part."""
    if file.cache_gb is not None and file.cache_gib:
        raise SpecError(source, "cache_gb", f"given beside cache_gib = {file.cache_gib:g}; give one of them")
    if isinstance(file.cache_gb, dict):
        for name in file.cache_gb:
            check_name(source, f"cache_gb.{name}", "server", name, kinds)
    for name, table in taking_part.items():
        key, unit, number, size = "cache_gib", "GiB", file.cache_gib, file.cache_gib * GiB
        if file.cache_gb is not None:
            number = file.cache_gb.get(name, 0.0) if isinstance(file.cache_gb, dict) else file.cache_gb
            key, unit, size = "cache_gb", "GB", number * GB
        if not 0 <= size <= table.dram_gb * GB:
            most = "from 0 to" if number < 0 else "at most"
            message = f"expected {most} the {table.dram_gb:g} GB of memory of {name}, got {number:g} {unit}"
            raise SpecError(source, key, message)
