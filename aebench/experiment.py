"""Experiment: a declared grid; scales and ``--set`` are merged over it, and its points come out resolved."""

import copy
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aebench.calibration import Calibration
from aebench.errors import SpecError, UsageError, near_misses
from aebench.point import GridValue, Point
from aebench.point_checks import check_name, check_open_loop, check_policy
from aebench.settings import Tables, apply_setting, expand_dots, held, merge, parts
from aebench.toml_files import DeploymentTable, ExperimentFile, ServerTable, TestbedsFile, check, read_toml
from aebench.world import PAPER, World, declared_devices, tables_for
from serving.cost.gpus import KINDS
from serving.cost.models import MODELS
from serving.policies import SYSTEMS
from serving.testbed import isolation
from serving.units import GB, GiB
from serving.workload.traces import TraceError, read_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment as its file declares it, before a grid value is chosen."""

    experiment_id: str
    """``paper/name``."""
    path: Path
    tables: Mapping[str, Any]
    """The file's tables with world, scale and settings merged in; validated."""
    file: ExperimentFile
    testbeds: TestbedsFile
    testbeds_path: Path
    source: str
    """The file, and the settings that changed it: where a mistake is."""
    settings: tuple[str, ...] = ()
    world: World = PAPER
    devices: tuple[str, ...] = ()
    """Those of this machine that its file declares a world for."""
    seconds_per_point: float = 0.1
    """Estimate: a point in virtual time takes what it takes there, whatever machine it simulates."""

    @classmethod
    def read(
        cls,
        path: Path,
        calibration: Calibration,
        scale: str = "paper",
        settings: Sequence[str] = (),
        world: World = PAPER,
    ) -> "Experiment":
        """The experiment in a file as it is in a world at a scale, with ``KEY=VALUE`` settings."""
        declared = read_toml(path)
        in_file = check(ExperimentFile, declared, path)
        tables = tables_for(world, declared, scale)
        for setting in settings:
            apply_setting(tables, setting)
        source = " ".join([str(path), *(["with"] if settings else []), *(f"--set {setting}" for setting in settings)])
        file = check(ExperimentFile, tables, source)
        testbeds_path = path.parent / "testbeds.toml"
        testbeds = calibration.apply(read_toml(testbeds_path))
        with_calibration = f" with {calibration.path.name}" if calibration.file else ""
        experiment = cls(
            experiment_id=f"{path.parent.name}/{path.stem}",
            path=path,
            tables=tables,
            file=file,
            testbeds=check(TestbedsFile, testbeds, f"{testbeds_path}{with_calibration}"),
            testbeds_path=testbeds_path,
            source=source,
            settings=tuple(settings),
            world=world,
            devices=declared_devices(declared),
            seconds_per_point=(file if world.backend == "live" else in_file).seconds_per_point,
        )
        experiment._check_names()
        return experiment

    @property
    def grid_keys(self) -> tuple[str, ...]:
        """Grid keys in the file's order."""
        return tuple(self.file.grid)

    def cells(self) -> list[dict[str, GridValue]]:
        """The grid's cells that are not excluded, in grid order (the last key varies fastest)."""
        values = itertools.product(*self.file.grid.values())
        every = [dict(zip(self.file.grid, cell, strict=True)) for cell in values]
        cells = [cell for cell in every if not self._excluded(cell)]
        if not cells:
            raise SpecError(self.source, "grid", "no point is left: every cell of the grid is excluded")
        return cells

    def points(self, seeds: Sequence[int]) -> list[Point]:
        """Every cell with every seed, in grid order, seeds last."""
        resolved = [(cell, self.resolve(cell)) for cell in self.cells()]
        self._check_settings([spec for _, spec in resolved])
        self._check_traces([spec for _, spec in resolved])
        return [
            Point(experiment=self.experiment_id, keys=cell, seed=seed, spec=spec)
            for cell, spec in resolved
            for seed in seeds
        ]

    def resolve(self, cell: Mapping[str, GridValue]) -> Tables:
        """Everything a worker needs to run a cell, as JSON-able tables."""
        tables: Tables = copy.deepcopy({k: v for k, v in self.tables.items() if k not in ("grid", "when", "scale")})
        for key, value in cell.items():
            overrides = self.file.when.get(key, {}).get(str(value))
            if overrides is not None:
                merge(tables, expand_dots(overrides))
            if key in _FIELDS_OF_A_POINT:
                tables[key] = value
            elif overrides is None:
                close = near_misses(str(value), self.file.when.get(key, {}))
                message = f"{value!r} means nothing: add [when.{key}.{value}].{close}"
                raise SpecError(self.source, f"grid.{key}", message)
        file = check(ExperimentFile, {**tables, "grid": {}}, self.source)
        self._check_point(file)
        return self._spec(file)

    def _spec(self, file: ExperimentFile) -> Tables:
        spec = file.model_dump(include=set(_SPEC_FIELDS))
        bed = self.testbeds.testbed[file.testbed]
        spec["servers"] = {
            name: {**self.testbeds.server[name].model_dump(exclude={"sources"}), "count": count}
            for name, count in bed.servers.items()
        }
        spec["deployments"] = {name: _deployment(table) for name, table in file.deployments.items()}
        if not spec["workload"]["first_after"]:
            del spec["workload"]["first_after"]  # as before it could be said
        arrivals = spec["workload"]["arrivals"]
        if arrivals is not None and arrivals["kind"] == "trace":
            arrivals["sha256"] = self._trace_digest(arrivals["file"])
        spec["isolation"] = bed.isolation
        spec["stores"] = bed.stores
        spec["store_nic_gbps"] = bed.store_nic_gbps
        if self.world.backend == "live":
            spec |= {"backend": "live", "device": self.world.device}
        if self.world.profile is not None:
            spec["profile"] = self.world.profile.to_json()
        return spec

    def _trace_digest(self, file: str) -> str:
        """Digest of a trace's content: a file that was changed makes other points."""
        try:
            return hashlib.sha256(Path(file).read_bytes()).hexdigest()
        except OSError as error:
            message = f"{file}: cannot be read ({error.strerror})"
            raise SpecError(self.source, "workload.arrivals.file", message) from error

    def _excluded(self, cell: Mapping[str, GridValue]) -> bool:
        return any(
            all(cell[key] in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in rule.items())
            for rule in self.file.exclude
        )

    def _check_names(self) -> None:
        """Names in the grid and the tables are known; what only a resolved point shows is checked there."""
        for key, values in self.file.grid.items():
            if not values:
                raise SpecError(self.source, f"grid.{key}", "expected at least one value, got an empty list")
            known = _known_values(key, self.file)
            for index, value in enumerate(values):
                if known is not None:
                    self._check_name(f"grid.{key}[{index}]", key, value, known)
                if str(value) in map(str, values[:index]):
                    raise SpecError(self.source, f"grid.{key}[{index}]", f"{value!r} is given twice")
        for rule_index, rule in enumerate(self.file.exclude):
            for key in rule:
                self._check_name(f"exclude[{rule_index}]", "grid key", key, self.file.grid)
        for key in self.file.when:
            self._check_name("when", "grid key", key, self.file.grid)
        for model, table in self.file.deployments.items():
            key = f"deployments.{model}"
            if table.architecture is not None:
                self._check_name(f"{key}.architecture", "model", table.architecture, MODELS)
            else:
                self._check_name(key, "model", model, MODELS)
        self._check_name("testbed", "testbed", self.file.testbed, self.testbeds.testbed)
        self._check_testbeds()

    def _check_testbeds(self) -> None:
        for name, bed in self.testbeds.testbed.items():
            for server in bed.servers:
                if server not in self.testbeds.server:
                    raise SpecError(self.testbeds_path, f"testbed.{name}.servers", f"no [server.{server}]")
        for name, server_table in self.testbeds.server.items():
            if server_table.gpu not in KINDS:
                message = f"unknown GPU {server_table.gpu!r}. Known: {', '.join(KINDS)}"
                raise SpecError(self.testbeds_path, f"server.{name}.gpu", message)

    def _check_name(self, where: str, what: str, name: Any, known: Any) -> None:
        check_name(self.source, where, what, name, known)

    def _check_point(self, file: ExperimentFile) -> None:
        if file.system is None:
            raise SpecError(self.source, "system", "missing: give a system, or a grid axis of systems")
        self._check_name("system", "system", file.system, SYSTEMS)
        if file.gpu is not None:
            self._check_name("gpu", "gpu", file.gpu, KINDS)
        if file.model is not None:
            self._check_name("model", "model", file.model, file.deployments)
        elif file.workload.kind == "cold_requests":
            raise SpecError(self.source, "model", "missing: cold_requests needs a model, or a grid axis of models")
        self._check_isolation(file)
        self._check_machines(file)
        check_policy(file, self.source)
        check_open_loop(file, self.source)
        workload, drop = file.workload, file.measure.drop_largest
        if workload.kind == "cold_requests" and drop >= workload.repeats:
            message = f"expected less than workload.repeats, which is {workload.repeats}, got {drop}"
            raise SpecError(self.source, "measure.drop_largest", message)

    def _servers(self, file: ExperimentFile) -> dict[str, ServerTable]:
        """The kinds of servers that take part."""
        kinds = {name: self.testbeds.server[name] for name in self.testbeds.testbed[file.testbed].servers}
        return {name: table for name, table in kinds.items() if file.gpu in (None, table.gpu)}

    def _check_isolation(self, file: ExperimentFile) -> None:
        """The testbed lends GPUs in the way that the system needs."""
        lent = self.testbeds.testbed[file.testbed].isolation
        needed = isolation(SYSTEMS[str(file.system)].exclusive_gpus)
        if lent not in (needed, "follows_system"):
            message = f"{file.system} needs {needed} GPUs, {file.testbed} has isolation = {lent!r}"
            raise SpecError(
                self.source, "testbed", f"{message} in testbeds.toml. Expected {needed!r} or 'follows_system'"
            )

    def _check_machines(self, file: ExperimentFile) -> None:
        """Some server takes part, and the cache fits into the host memory of each that does."""
        servers = self._servers(file)
        if not servers:
            raise SpecError(self.source, "gpu", f"testbed {file.testbed} has no server with a GPU {file.gpu!r}")
        for name, table in servers.items():
            if file.cache_gib * GiB > table.dram_gb * GB:
                message = f"expected at most the {table.dram_gb:g} GB of memory of {name}, got {file.cache_gib:g} GiB"
                raise SpecError(self.source, "cache_gib", message)
            if table.startup is None and not self.world.is_local:
                message = (
                    f"{name} of testbeds.toml has no start-up times to simulate with. "
                    "Expected --backend live, or --profile with what aebench calibrate measured"
                )
                raise SpecError(self.source, "testbed", message)

    def _check_settings(self, specs: Sequence[Tables]) -> None:
        """A setting reaches some point: it is not overruled by ``[when...]`` in all of them."""
        for setting in self.settings:
            path, _ = parts(setting)
            wanted = held(self.tables, path)
            if path[0] in _SPEC_FIELDS and not any(held(spec, path) == wanted for spec in specs):
                message = f"no effect, every point gets its {'.'.join(path)} from a [when...] table of {self.path}"
                raise UsageError(f"--set {setting}: {message}")

    def _check_traces(self, specs: Sequence[Tables]) -> None:
        """Every trace file can be read and asks only for models that are deployed."""
        arrivals = [(spec["workload"]["arrivals"] or {}, spec["deployments"]) for spec in specs]
        deployed = {table["file"]: models for table, models in arrivals if table.get("kind") == "trace"}
        for file, models in deployed.items():
            try:
                rows = read_trace(Path(file))
            except TraceError as error:
                raise SpecError(self.source, "workload.arrivals.file", str(error)) from error
            for model in dict.fromkeys(row.model for row in rows):
                self._check_name(f"workload.arrivals.file {file}", "model", model, models)


def _deployment(table: DeploymentTable) -> Tables:
    """A deployment in a point's spec; what it does not say is left out, as before it could be said."""
    return {key: value for key, value in table.model_dump().items() if value is not None}


_FIELDS_OF_A_POINT = ("system", "model", "gpu")
"""Fields of an experiment that a grid axis of the same name sets."""

_SPEC_FIELDS = ("system", "model", "gpu", "max_servers", "cache_gib", "workload", "measure", "policy", "deployments")


def _known_values(key: str, file: ExperimentFile) -> Any:
    return {"system": SYSTEMS, "model": file.deployments, "gpu": KINDS}.get(key)
