"""Experiment: a declared grid; scales and ``--set`` are merged over it, and its points come out resolved."""

import copy
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from aebench.calibration import Calibration
from aebench.errors import SpecError, UsageError, near_misses
from aebench.point import GridValue, Point
from aebench.toml_files import ExperimentFile, TestbedsFile, check, read_toml
from serving.cost.gpus import GPUS
from serving.cost.models import MODELS
from serving.policies import SYSTEMS, configured

Tables = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment as its file declares it, before a grid value is chosen."""

    experiment_id: str
    """``paper/name``."""
    path: Path
    tables: Mapping[str, Any]
    """The file's tables with scale and settings merged in; validated."""
    file: ExperimentFile
    testbeds: TestbedsFile
    testbeds_path: Path

    @classmethod
    def read(
        cls, path: Path, calibration: Calibration, scale: str = "paper", settings: Sequence[str] = ()
    ) -> "Experiment":
        """The experiment in a file at a scale, with ``KEY=VALUE`` settings."""
        tables = read_toml(path)
        check(ExperimentFile, tables, path)
        if scale != "paper":
            merge(tables, expand_dots(tables.get("scale", {}).get(scale, {})))
        for setting in settings:
            apply_setting(tables, setting)
        file = check(ExperimentFile, tables, path)
        testbeds_path = path.parent / "testbeds.toml"
        testbeds = calibration.apply(read_toml(testbeds_path))
        experiment = cls(
            experiment_id=f"{path.parent.name}/{path.stem}",
            path=path,
            tables=tables,
            file=file,
            testbeds=check(TestbedsFile, testbeds, testbeds_path),
            testbeds_path=testbeds_path,
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
            raise SpecError(self.path, "grid", "no point is left: every cell of the grid is excluded")
        return cells

    def points(self, seeds: Sequence[int]) -> list[Point]:
        """Every cell with every seed, in grid order, seeds last."""
        return [
            Point(experiment=self.experiment_id, keys=cell, seed=seed, spec=spec)
            for cell in self.cells()
            for spec in (self.resolve(cell),)
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
                raise SpecError(self.path, f"grid.{key}", f"{value!r} means nothing: add [when.{key}.{value}]")
        file = check(ExperimentFile, {**tables, "grid": {}}, self.path)
        self._check_point(file)
        return self._spec(file)

    def _spec(self, file: ExperimentFile) -> Tables:
        spec = file.model_dump(include=set(_SPEC_FIELDS))
        bed = self.testbeds.testbed[file.testbed]
        spec["servers"] = {
            name: {**self.testbeds.server[name].model_dump(exclude={"sources"}), "count": count}
            for name, count in bed.servers.items()
        }
        spec["stores"] = bed.stores
        spec["store_nic_gbps"] = bed.store_nic_gbps
        return spec

    def _excluded(self, cell: Mapping[str, GridValue]) -> bool:
        return any(
            all(cell[key] in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in rule.items())
            for rule in self.file.exclude
        )

    def _check_names(self) -> None:
        """Names in the grid and the tables are known; what only a resolved point shows is checked there."""
        for key, values in self.file.grid.items():
            if not values:
                raise SpecError(self.path, f"grid.{key}", "expected at least one value, got an empty list")
            known = _known_values(key, self.file)
            for index, value in enumerate(values):
                if known is not None:
                    self._check_name(f"grid.{key}[{index}]", key, value, known)
        for rule_index, rule in enumerate(self.file.exclude):
            for key in rule:
                self._check_name(f"exclude[{rule_index}]", "grid key", key, self.file.grid)
        for key in self.file.when:
            self._check_name("when", "grid key", key, self.file.grid)
        for model in self.file.deployments:
            self._check_name(f"deployments.{model}", "model", model, MODELS)
        self._check_name("testbed", "testbed", self.file.testbed, self.testbeds.testbed)
        self._check_testbeds()

    def _check_testbeds(self) -> None:
        for name, bed in self.testbeds.testbed.items():
            for server in bed.servers:
                if server not in self.testbeds.server:
                    raise SpecError(self.testbeds_path, f"testbed.{name}.servers", f"no [server.{server}]")
        for name, server_table in self.testbeds.server.items():
            if server_table.gpu not in GPUS:
                known = ", ".join(GPUS)
                message = f"unknown GPU {server_table.gpu!r}. Known: {known}"
                raise SpecError(self.testbeds_path, f"server.{name}.gpu", message)

    def _check_name(self, where: str, what: str, name: Any, known: Any) -> None:
        if name not in known:
            names = [str(one) for one in known]
            label = {"gpu": "GPU"}.get(what, what)
            close = near_misses(str(name), names)
            raise SpecError(self.path, where, f"unknown {label} {name!r}.{close} Known: {', '.join(names)}")

    def _check_point(self, file: ExperimentFile) -> None:
        if file.system is None:
            raise SpecError(self.path, "system", "missing: give a system, or a grid axis of systems")
        self._check_name("system", "system", file.system, SYSTEMS)
        if file.gpu is not None:
            self._check_name("gpu", "gpu", file.gpu, GPUS)
        if file.model is not None:
            self._check_name("model", "model", file.model, file.deployments)
        elif file.workload.kind == "cold_requests":
            raise SpecError(self.path, "model", "missing: cold_requests needs a model, or a grid axis of models")
        self._check_policy(file)
        self._check_open_loop(file)

    def _check_policy(self, file: ExperimentFile) -> None:
        """Every ``policy`` key is a knob of the system, and its value of the knob's type."""
        config = SYSTEMS[str(file.system)].config
        own = {key: value for key, value in file.policy.items() if key != "batching"}
        self._check_knobs("policy", f"knob of {file.system}", config, own)
        batching = file.policy.get("batching", {})
        if not isinstance(batching, dict):
            raise SpecError(self.path, "policy.batching", f"expected a table, got {batching!r}")
        self._check_knobs("policy.batching", "knob of continuous batching", config.batching, batching)
        try:
            configured(str(file.system), file.policy)
        except ValueError as error:
            raise SpecError(self.path, "policy", str(error)) from error

    def _check_knobs(self, where: str, what: str, config: Any, changes: Mapping[str, Any]) -> None:
        types = get_type_hints(type(config))
        known = [item.name for item in fields(config) if item.name != "batching"]
        for key, value in changes.items():
            self._check_name(f"{where}.{key}", what, key, known)
            try:
                TypeAdapter(types[key]).validate_python(value, strict=True)
            except ValidationError as error:
                message = error.errors()[0]["msg"].removeprefix("Input should be ")
                raise SpecError(self.path, f"{where}.{key}", f"expected {message}, got {value!r}") from error

    def _check_open_loop(self, file: ExperimentFile) -> None:
        """An open loop says how requests arrive and how long they are, each kind with its own numbers."""
        workload = file.workload
        if workload.kind != "open_loop":
            return
        if workload.arrivals is None:
            raise SpecError(self.path, "workload.arrivals", "missing: an open loop needs it")
        needs = {"poisson": ("rate",), "gamma": ("rate", "cv"), "fixed": ("gap",), "trace": ("file",)}
        self._require("workload.arrivals", workload.arrivals, needs)
        if workload.arrivals.kind == "trace":
            return
        needs = {"fixed": ("tokens",), "lognormal": ("median", "sigma"), "empirical": ("values",)}
        for name, table in (("prompt", workload.prompt), ("output", workload.output)):
            if table is None:
                raise SpecError(self.path, f"workload.{name}", "missing: an open loop needs it")
            self._require(f"workload.{name}", table, needs)

    def _require(self, where: str, table: Any, needs: Mapping[str, Sequence[str]]) -> None:
        for key in needs[table.kind]:
            if getattr(table, key) is None:
                raise SpecError(self.path, f"{where}.{key}", f"missing: kind = {table.kind!r} needs it")


_FIELDS_OF_A_POINT = ("system", "model", "gpu")
"""Fields of an experiment that a grid axis of the same name sets."""

_SPEC_FIELDS = (
    "system",
    "model",
    "gpu",
    "max_servers",
    "cache_gib",
    "workload",
    "measure",
    "policy",
    "deployments",
)


def _known_values(key: str, file: ExperimentFile) -> Any:
    return {"system": SYSTEMS, "model": file.deployments, "gpu": GPUS}.get(key)


def merge(tables: Tables, over: Mapping[str, Any]) -> None:
    """Put ``over`` on top of ``tables``, table by table, in place."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(tables.get(key), dict):
            merge(tables[key], value)
        else:
            tables[key] = copy.deepcopy(value)


def expand_dots(over: Mapping[str, Any]) -> Tables:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``, for keys that TOML kept quoted."""
    expanded: Tables = {}
    for key, value in over.items():
        *parents, last = key.split(".")
        table = expanded
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = expand_dots(value) if isinstance(value, Mapping) else value
    return expanded


def apply_setting(tables: Tables, setting: str) -> None:
    """``grid.KEY=V1,V2`` restricts or replaces an axis, ``KEY=VALUE`` any other field, in place."""
    key, equals, text = setting.partition("=")
    if not equals or not key or not text:
        raise UsageError(f"--set {setting}: expected KEY=VALUE, for example --set grid.model=opt-2.7b")
    *parents, last = key.split(".")
    if parents == ["grid"]:
        if last not in tables["grid"]:
            known = ", ".join(tables["grid"])
            raise UsageError(f"--set {setting}: the grid has no key {last!r}. Known: {known}")
        tables["grid"][last] = [_value(part) for part in text.split(",")]
        return
    table = tables
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {setting}: {parent!r} is no table")
    table[last] = _value(text)


def _value(text: str) -> GridValue:
    """A TOML scalar where the text is one, else the text itself."""
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | int | float | bool) else text
