"""Trace files that workloads name: their digests in points' specs, and checks before anything runs."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aebench.deployed_models import names_in_short, tables_by_model
from aebench.errors import SpecError, near_misses
from serving.workload.traces import TraceError, read_trace


def file_table(workload: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Where a workload's spec names a trace file, and the table that does; None: it comes from no file."""
    for name, kind in (("arrivals", "trace"), ("trace", "file")):
        table = workload.get(name) or {}
        if table.get("kind") == kind:
            return f"workload.{name}.file", table
    return None


def note_trace_digest(workload: Mapping[str, Any], source: str) -> None:
    """Write the digest of a trace file's content into the workload's spec: a file that was changed makes other
    points."""
    if (named := file_table(workload)) is None:
        return
    where, table = named
    try:
        table["sha256"] = hashlib.sha256(Path(table["file"]).read_bytes()).hexdigest()
    except OSError as error:
        raise SpecError(source, where, f"{table['file']}: cannot be read ({error.strerror})") from error


def check_trace_files(specs: Sequence[Mapping[str, Any]], source: str) -> None:
    """Every trace file can be read and asks only for models that are deployed."""
    named = [(file_table(spec["workload"]), spec["deployments"]) for spec in specs]
    deployed = {(each[0], each[1]["file"]): tables for each, tables in named if each is not None}
    for (where, file), tables in deployed.items():
        try:
            rows = read_trace(Path(file))
        except TraceError as error:
            raise SpecError(source, where, str(error)) from error
        models = tables_by_model(tables)
        strange = next((row.model for row in rows if row.model not in models), None)
        if strange is not None:
            known = f"{near_misses(strange, models)} Known: {', '.join(names_in_short(tables))}"
            raise SpecError(source, f"{where} {file}", f"unknown model {strange!r}.{known}")
