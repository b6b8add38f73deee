"""Checks of a resolved point that need a system's knobs or a workload's kind; each names the key that is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from aebench.errors import SpecError, near_misses
from aebench.toml_files import ExperimentFile, expectation, shown
from aebench.workload_tables import Lengths, Workload
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
    check_knobs(str(file.system), file.policy, source)


def check_slos(file: ExperimentFile, source: str) -> None:
    """A system that plans by SLOs gets those of every deployment."""
    if not SYSTEMS[str(file.system)].plans_by_slos:
        return
    for model, table in file.deployments.items():
        for key in ("ttft_slo", "tpot_slo"):
            if getattr(table, key) is None:
                message = f"missing: {file.system} plans by it, in seconds"
                raise SpecError(source, f"deployments.{model}.{key}", message)


def check_knobs(system: str, policy: Mapping[str, Any], source: str) -> None:
    """Every key is a knob of the system, or in ``batching`` one of its scheduler, and its value of the knob's type."""
    config = SYSTEMS[system].config
    own = {key: value for key, value in policy.items() if key != "batching"}
    _check_knobs(source, "policy", f"knob of {system}", config, own)
    batching = policy.get("batching", {})
    if not isinstance(batching, dict):
        raise SpecError(source, "policy.batching", f"expected a table, got {batching!r}")
    _check_knobs(source, "policy.batching", "knob of continuous batching", config.batching, batching)
    try:
        configured(system, dict(policy))
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


def check_workload(file: ExperimentFile, source: str) -> None:
    """The workload has what its kind needs: an open loop says how requests arrive and how long they are, batches how
    long, serverless traffic when which model is asked and what each application's requests are like."""
    workload = file.workload
    if workload.warmups and workload.kind != "batches":
        raise SpecError(source, "workload.warmups", f"expected with batches only, not {workload.kind}")
    if workload.kind == "open_loop":
        _check_open_loop(workload, source)
        return
    for name in ("lengths", "high_priority_share"):
        if getattr(workload, name):
            raise SpecError(source, f"workload.{name}", f"expected with an open loop only, not {workload.kind}")
    if workload.kind == "batches":
        for name, table in (("prompt", workload.prompt), ("output", workload.output)):
            if table is None:
                raise SpecError(source, f"workload.{name}", "missing: batches need it")
            _check_lengths(source, f"workload.{name}", table)
    if workload.kind == "serverless":
        _check_serverless(file, source)


def _check_open_loop(workload: Workload, source: str) -> None:
    if workload.arrivals is None:
        raise SpecError(source, "workload.arrivals", "missing: an open loop needs it")
    needs = {"poisson": ("rate",), "gamma": ("rate", "cv"), "fixed": ("gap",), "trace": ("file",)}
    _require(source, "workload.arrivals", workload.arrivals, needs)
    if workload.arrivals.kind == "trace":
        return
    for name, table in (("prompt", workload.prompt), ("output", workload.output)):
        _check_either(source, f"workload.{name}", table, workload.lengths)


def _check_either(source: str, where: str, table: Lengths | None, lengths: str | None) -> None:
    """An open loop has distributions of lengths, or a trace of them."""
    if lengths is None:
        if table is None:
            raise SpecError(source, where, "missing: an open loop needs it, or workload.lengths")
        _check_lengths(source, where, table)
    elif table is not None:
        raise SpecError(source, where, f"expected none where workload.lengths is {lengths!r}")


def _check_serverless(file: ExperimentFile, source: str) -> None:
    workload, trace = file.workload, file.workload.trace
    if trace is None:
        raise SpecError(source, "workload.trace", "missing: serverless traffic needs it")
    _require(source, "workload.trace", trace, {"synthetic": ("rate",), "file": ("file",)})
    if trace.kind == "file":
        return
    if trace.num_invocations < trace.num_functions:
        message = f"expected at least one a function, {trace.num_functions}, got {trace.num_invocations}"
        raise SpecError(source, "workload.trace.num_invocations", message)
    if workload.duration is None:
        raise SpecError(source, "workload.duration", "missing: serverless traffic needs it, in seconds")
    if workload.duration > trace.compressed * (1 + 1e-9):
        message = f"expected at most {trace.compressed:g}, which is trace.days compressed, got {workload.duration:g}"
        raise SpecError(source, "workload.duration", message)
    for name, table in workload.applications.items():
        _check_lengths(source, f"workload.applications.{name}.prompt", table.prompt)
        _check_lengths(source, f"workload.applications.{name}.output", table.output)
    for name, deployment in file.deployments.items():
        where = f"deployments.{name}.application"
        if deployment.application is None:
            raise SpecError(source, where, "missing: serverless traffic needs it")
        check_name(source, where, "application", deployment.application, workload.applications)
    _check_shares(workload, source)


def _check_shares(workload: Workload, source: str) -> None:
    shares = [table.share for table in workload.applications.values()]
    said = [share for share in shares if share is not None]
    if said and (len(said) < len(shares) or abs(sum(said) - 1) > 1e-6):
        got = ", ".join("none" if share is None else f"{share:g}" for share in shares)
        raise SpecError(
            source, "workload.applications", f"expected a share of each that add up to 1, or none, got {got}"
        )


def _check_lengths(source: str, where: str, table: Lengths) -> None:
    needs = {"fixed": ("tokens",), "lognormal": ("sigma",), "empirical": ("values",)}
    _require(source, where, table, needs)
    if table.kind == "lognormal" and (table.median is None) == (table.mean is None):
        both = "one of median and mean" if table.median is None else "median or mean, not both"
        raise SpecError(source, where, f"kind = 'lognormal' needs {both}")


def _require(source: str, where: str, table: Any, needs: Mapping[str, Sequence[str]]) -> None:
    for key in needs[table.kind]:
        if getattr(table, key) is None:
            raise SpecError(source, f"{where}.{key}", f"missing: kind = {table.kind!r} needs it")


def check_breakdown(file: ExperimentFile, source: str) -> None:
    """A breakdown's columns are free, and every deployed model has an application."""
    if not file.measure.breakdown:
        return
    for key in ("application", "model"):
        if key in file.grid:
            raise SpecError(source, f"grid.{key}", f"the tables of measure.breakdown have a column {key} of their own")
    for model, table in file.deployments.items():
        if table.application is None:
            raise SpecError(source, f"deployments.{model}.application", "missing: measure.breakdown needs it")
