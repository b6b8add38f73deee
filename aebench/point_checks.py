"""Checks of a resolved point that need a system's knobs or a workload's kind; each names the key that is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from aebench.errors import SpecError, near_misses
from aebench.toml_files import ExperimentFile, expectation, shown
from serving.policies import SYSTEMS, configured


def check_name(source: str, where: str, what: str, name: Any, known: Any) -> None:
    """The name is one of those known, or a SpecError that says which are."""
    if name not in known:
        names = [str(one) for one in known]
        label = {"gpu": "GPU"}.get(what, what)
        close = near_misses(str(name), names)
        raise SpecError(source, where, f"unknown {label} {name!r}.{close} Known: {', '.join(names)}")


def check_policy(file: ExperimentFile, source: str) -> None:
    """Every ``policy`` key is a knob of the system, and its value of the knob's type."""
    config = SYSTEMS[str(file.system)].config
    own = {key: value for key, value in file.policy.items() if key != "batching"}
    _check_knobs(source, "policy", f"knob of {file.system}", config, own)
    batching = file.policy.get("batching", {})
    if not isinstance(batching, dict):
        raise SpecError(source, "policy.batching", f"expected a table, got {batching!r}")
    _check_knobs(source, "policy.batching", "knob of continuous batching", config.batching, batching)
    try:
        configured(str(file.system), file.policy)
    except ValueError as error:
        raise SpecError(source, "policy", str(error)) from error


def _check_knobs(source: str, where: str, what: str, config: Any, changes: Mapping[str, Any]) -> None:
    types = get_type_hints(type(config))
    known = [item.name for item in fields(config) if item.name != "batching"]
    for key, value in changes.items():
        check_name(source, f"{where}.{key}", what, key, known)
        try:
            TypeAdapter(types[key]).validate_python(value, strict=True)
        except ValidationError as error:
            message = f"expected {expectation(error.errors()[0]['msg'])}, got {shown(value)}"
            raise SpecError(source, f"{where}.{key}", message) from error


def check_open_loop(file: ExperimentFile, source: str) -> None:
    """An open loop says how requests arrive and how long they are, each kind with its own numbers."""
    workload = file.workload
    if workload.kind != "open_loop":
        return
    if workload.arrivals is None:
        raise SpecError(source, "workload.arrivals", "missing: an open loop needs it")
    needs = {"poisson": ("rate",), "gamma": ("rate", "cv"), "fixed": ("gap",), "trace": ("file",)}
    _require(source, "workload.arrivals", workload.arrivals, needs)
    if workload.arrivals.kind == "trace":
        return
    needs = {"fixed": ("tokens",), "lognormal": ("median", "sigma"), "empirical": ("values",)}
    for name, table in (("prompt", workload.prompt), ("output", workload.output)):
        if table is None:
            raise SpecError(source, f"workload.{name}", "missing: an open loop needs it")
        _require(source, f"workload.{name}", table, needs)


def _require(source: str, where: str, table: Any, needs: Mapping[str, Sequence[str]]) -> None:
    for key in needs[table.kind]:
        if getattr(table, key) is None:
            raise SpecError(source, f"{where}.{key}", f"missing: kind = {table.kind!r} needs it")
