"""What ``aebench trace`` does: makes traces from experiments and recorded functions, and shows them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from aebench.catalog import Catalog
from aebench.errors import UsageError
from aebench.execute import deployments
from aebench.experiment import Experiment
from aebench.point import Point
from aebench.point_log import placed_by
from aebench.serverless_workload import serverless_requests
from aebench.trace_statistics import statistics_of, statistics_table
from aebench.workloads import timed_requests
from serving.core.request import Request
from serving.units import Seconds
from serving.workload.azure_functions import read_azure_functions
from serving.workload.recordings import RecordingError
from serving.workload.serverless import ServerlessError
from serving.workload.traces import TraceError, TraceRow, read_trace, write_trace

KEEP_ALIVE: Seconds = 30.0
"""How long an idle instance stays (sheet section 2.2)."""


def make(name: str, settings: Sequence[str], seed: int, out: Path) -> str:
    """Write the workload of an experiment's points to a trace file; what it is like."""
    point = only_workload(name, settings, seed)
    try:
        rows = rows_of(timed_requests(point.spec, seed, deployments(point.spec)))
    except ServerlessError as error:
        raise UsageError(f"{point.experiment}: {error}. Expected a lower workload.trace.rate") from error
    return written(rows, out)


def import_azure_functions(file: Path, name: str, settings: Sequence[str], seed: int, out: Path) -> str:
    """Write the workload that an experiment's points have when their functions are those of a recorded trace."""
    point = only_workload(name, settings, seed)
    workload = point.spec["workload"]
    if workload["kind"] != "serverless" or workload["trace"]["kind"] != "synthetic":
        raise UsageError(f"{point.experiment}: expected an experiment with serverless traffic from a synthetic trace")
    try:
        recorded = read_azure_functions(file)
    except RecordingError as error:
        raise UsageError(str(error)) from error
    compressed = recorded.span / workload["trace"]["compression"]
    if workload["duration"] > compressed * (1 + 1e-9):
        raise UsageError(
            f"{file}: {recorded.span:,.0f} s compressed last {compressed:g} s, workload.duration is "
            f"{workload['duration']:g}. Run with --set workload.duration={compressed:g}, or a lower "
            "workload.trace.compression"
        )
    by_model = {deployment.model: deployment for deployment in deployments(point.spec)}
    try:
        rows = rows_of(serverless_requests(point.spec, seed, by_model, recorded))
    except ServerlessError as error:
        raise UsageError(f"{file}: {error}. Expected a lower workload.trace.rate") from error
    summary = f"{file}: {recorded.num_invocations:,} invocations of {len(recorded.arrived_at)} functions"
    return f"{summary}\n{written(rows, out)}"


def show(file: Path, keep_alive: Seconds, out: Path | None) -> str:
    """A trace's statistics; its picture is drawn to ``out``, in all formats of figures."""
    rows = _read(file)
    lines = [f"{file}", statistics_table(statistics_of(rows, keep_alive))]
    if out is not None:
        from aebench.plotting.trace_picture import draw_trace

        with placed_by("--out"):
            lines += ["", *(f"picture {path}" for path in draw_trace(rows, out.with_suffix("")))]
    return "\n".join(lines)


def only_workload(name: str, settings: Sequence[str], seed: int) -> Point:
    """A point of the experiment; all that the settings leave have the same workload, whatever system serves it."""
    experiment = _experiment(name, settings)
    points = experiment.points([seed])
    if any(point.spec["workload"]["kind"] in ("cold_requests", "batches") for point in points):
        raise UsageError(
            f"{experiment.experiment_id}: its requests go by the answers before them, so no trace can be made of "
            "them. Expected an experiment with workload.kind open_loop or serverless"
        )
    kinds: dict[str, list[Point]] = {}
    for point in points:
        asked = {key: point.spec[key] for key in ("workload", "deployments", "model")}
        kinds.setdefault(json.dumps(asked, sort_keys=True), []).append(point)
    if len(kinds) > 1:
        firsts = [group[0].keys for group in kinds.values()]
        chosen = [key for key in points[0].keys if len({str(keys[key]) for keys in firsts}) > 1]
        example = " ".join(f"--set grid.{key}={firsts[0][key]}" for key in chosen)
        raise UsageError(
            f"{experiment.experiment_id}: its {len(points)} points have {len(kinds)} workloads. Say which, "
            f"for example: {example}"
        )
    return points[0]


def _experiment(name: str, settings: Sequence[str]) -> Experiment:
    """The experiment of that name, or the one behind a figure's."""
    catalog = Catalog()
    ids = list(dict.fromkeys(declared.experiment_id for declared in catalog.resolve([name])))
    if len(ids) > 1:
        raise UsageError(f"{name} is drawn from {len(ids)} experiments: {', '.join(ids)}. Say which")
    return catalog.experiment(ids[0], settings=settings)


def rows_of(timed: Iterable[tuple[Seconds, Request]]) -> list[TraceRow]:
    """The requests as rows of a trace."""
    return [
        TraceRow(
            arrived_at=arrived_at,
            model=request.model,
            num_prompt_tokens=request.num_prompt_tokens,
            num_output_tokens=request.num_output_tokens,
            label=request.label,
            ttft_slo=request.ttft_slo,
            tpot_slo=request.tpot_slo,
            priority=request.priority,
        )
        for arrived_at, request in timed
    ]


def written(rows: Sequence[TraceRow], out: Path) -> str:
    """Write the trace; its path and what it is like."""
    try:
        write_trace(out, rows)
    except OSError as error:
        raise UsageError(
            f"{out}: cannot be written ({error.strerror}). Expected --out in a folder that is there"
        ) from error
    except TraceError as error:
        raise UsageError(str(error)) from error
    return f"{out}\n{statistics_table(statistics_of(rows, KEEP_ALIVE))}"


def _read(file: Path) -> list[TraceRow]:
    try:
        return read_trace(file)
    except TraceError as error:
        raise UsageError(str(error)) from error
