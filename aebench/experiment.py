"""Experiment: a declared grid; scales and ``--set`` are merged over it, and its points come out resolved."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aebench.calibration import Calibration
from aebench.deployed_models import names, names_in_short, tables_by_model
from aebench.errors import SpecError, UsageError, near_misses
from aebench.point import GridValue, Point
from aebench.point_checks import check_breakdown, check_name, check_policy, check_slos, check_workload
from aebench.settings import Tables, apply_setting, expand_dots, held, merge, parts
from aebench.testbed_checks import check_machines, check_servers
from aebench.testbed_tables import TestbedsFile, take_after
from aebench.toml_files import DeploymentTable, ExperimentFile, check, read_toml
from aebench.trace_files import check_trace_files, note_trace_digest
from aebench.world import PAPER, World, declared_devices, tables_for
from serving.cost.gpus import KINDS
from serving.cost.models import MODELS
from serving.policies import SYSTEMS


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
    declared_grid: Mapping[str, Sequence[GridValue]] = field(default_factory=dict)
    """The grid as its file has it, before world, scale and settings."""
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
        with_calibration = f" with {calibration.path.name}" if calibration.file else ""
        testbeds = take_after(calibration.apply(read_toml(testbeds_path)), f"{testbeds_path}{with_calibration}")
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
            declared_grid=in_file.grid,
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
        cells = [cell for cell in every if self._included(cell) and not self._excluded(cell)]
        if not cells:
            how = "excluded or not included" if self.file.include else "excluded"
            raise SpecError(self.source, "grid", f"no point is left: every cell of the grid is {how}")
        return cells

    def points(self, seeds: Sequence[int]) -> list[Point]:
        """Every cell with every seed, in grid order, seeds last."""
        resolved = [(cell, self.resolve(cell)) for cell in self.cells()]
        self._check_settings([spec for _, spec in resolved])
        check_trace_files([spec for _, spec in resolved], self.source)
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
            if key in self.file.sets:
                merge(tables, expand_dots({self.file.sets[key]: value}))
            elif key in _FIELDS_OF_A_POINT:
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
        note_trace_digest(spec["workload"], self.source)
        if bed.assignment != "largest":
            spec["assignment"] = bed.assignment
        spec["isolation"] = bed.isolation
        spec["stores"] = bed.stores
        spec["store_nic_gbps"] = bed.store_nic_gbps
        if self.world.backend == "live":
            spec |= {"backend": "live", "device": self.world.device}
        if self.world.profile is not None:
            spec["profile"] = self.world.profile.to_json()
        return spec

    def _excluded(self, cell: Mapping[str, GridValue]) -> bool:
        return any(_speaks_of(rule, cell) for rule in self.file.exclude)

    def _included(self, cell: Mapping[str, GridValue]) -> bool:
        return not self.file.include or any(_speaks_of(rule, cell) for rule in self.file.include)

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
        for name, rules in (("include", self.file.include), ("exclude", self.file.exclude)):
            for rule_index, rule in enumerate(rules):
                for key in rule:
                    self._check_name(f"{name}[{rule_index}]", "grid key", key, self.file.grid)
        for name, keys in (("sets", self.file.sets), ("when", self.file.when)):
            for key in keys:
                self._check_name(name, "grid key", key, self.file.grid)
        self._check_twins()
        check_breakdown(self.file, self.source)
        for model, table in self.file.deployments.items():
            key = f"deployments.{model}"
            if table.architecture is not None:
                self._check_name(f"{key}.architecture", "model", table.architecture, MODELS)
            else:
                self._check_name(key, "model", model, MODELS)
        self._check_name("testbed", "testbed", self.file.testbed, self.testbeds.testbed)
        check_servers(self.testbeds, self.testbeds_path)

    def _check_twins(self) -> None:
        """No model is deployed under another's name."""
        owner: dict[str, str] = {}
        for table in self.file.deployments:
            for model in names(table, _deployment(self.file.deployments[table])):
                if model in owner:
                    message = f"deploys {model}, as [deployments.{owner[model]!r}] does; give one of them another name"
                    raise SpecError(self.source, f"deployments.{table}", message)
                owner[model] = table

    def _check_name(self, where: str, what: str, name: Any, known: Any) -> None:
        check_name(self.source, where, what, name, known)

    def _check_point(self, file: ExperimentFile) -> None:
        if file.system is None:
            raise SpecError(self.source, "system", "missing: give a system, or a grid axis of systems")
        self._check_name("system", "system", file.system, SYSTEMS)
        if file.gpu is not None:
            self._check_name("gpu", "gpu", file.gpu, KINDS)
        if file.model is not None:
            tables = {name: _deployment(table) for name, table in file.deployments.items()}
            if file.model not in tables_by_model(tables):
                self._check_name("model", "model", file.model, names_in_short(tables))
        elif file.workload.kind == "cold_requests":
            raise SpecError(self.source, "model", "missing: cold_requests needs a model, or a grid axis of models")
        check_machines(file, self.testbeds, self.source, simulated=not self.world.is_local)
        check_policy(file, self.source)
        check_slos(file, self.source)
        check_workload(file, self.source)
        for key in ("breakdown", "metrics", "by", "sample_period"):
            if getattr(file.measure, key) != getattr(self.file.measure, key):
                message = "expected the same for all points, which make one table; a [when...] table changes it"
                raise SpecError(self.source, f"measure.{key}", message)
        workload, drop = file.workload, file.measure.drop_largest
        if workload.kind == "cold_requests" and drop >= workload.repeats:
            message = f"expected less than workload.repeats, which is {workload.repeats}, got {drop}"
            raise SpecError(self.source, "measure.drop_largest", message)

    def _check_settings(self, specs: Sequence[Tables]) -> None:
        """A setting reaches some point: it is not overruled by ``[when...]`` in all of them."""
        tables = self.file.model_dump()  # as specs are written: without keys of ``LATER`` that have their defaults
        for setting in self.settings:
            path, _ = parts(setting)
            wanted = held(tables, path)
            if path[0] in _SPEC_FIELDS and not any(held(spec, path) == wanted for spec in specs):
                message = f"no effect, every point gets its {'.'.join(path)} from a [when...] table of {self.path}"
                raise UsageError(f"--set {setting}: {message}")


def _speaks_of(rule: Mapping[str, GridValue | list[GridValue]], cell: Mapping[str, GridValue]) -> bool:
    """Whether a cell has one of the values that a rule gives for each of its keys."""
    return all(cell[key] in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in rule.items())


def _deployment(table: DeploymentTable) -> Tables:
    """A deployment in a point's spec; what it does not say is left out, as before it could be said."""
    return {key: value for key, value in table.model_dump().items() if value is not None}


_FIELDS_OF_A_POINT = ("system", "model", "gpu")
"""Fields of an experiment that a grid axis of the same name sets."""

_SPEC_FIELDS = (
    "system",
    "model",
    "gpu",
    "max_servers",
    "cache_gib",
    "cache_gb",
    "workload",
    "measure",
    "policy",
    "deployments",
)


def _known_values(key: str, file: ExperimentFile) -> Any:
    models = names_in_short({name: _deployment(table) for name, table in file.deployments.items()})
    return {"system": SYSTEMS, "model": models, "gpu": KINDS}.get(key)
