"""Which runs of a log folder are looked at, and whether shipped ones may fill their holes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aebench.claim_syntax import key_text
from aebench.errors import UsageError
from aebench.logs import RunLog, find_runs

if TYPE_CHECKING:
    import pandas as pd

Measured = tuple[str, str, str]
"""What tells runs apart that are never drawn together: backend, device, hardware."""


def measured_on(log: RunLog) -> Measured:
    """Backend, device and hardware of a run; empty where it was simulated on the paper's machines."""
    manifest = log.manifest
    return manifest.backend, manifest.device or "", manifest.hardware or ""


def is_run(folder: Path) -> bool:
    """Whether a folder is that of one run, not one that holds runs."""
    return (folder / "run.json").is_file()


def shown_runs(log_path: Path, experiment_id: str) -> list[RunLog]:
    """The run in this very folder, or of those below it one for each world and hardware, simulations first: the newest
    with results, preferably one that ran the experiment as declared."""
    if is_run(log_path):
        log = RunLog.open(log_path)
        return [log] if log.manifest.experiment == experiment_id else []
    logs = [RunLog.open(folder) for folder in find_runs(log_path, experiment_id)]
    logs = [log for log in logs if (log.folder / "summary.csv").exists()] or logs
    worlds: dict[Measured, list[RunLog]] = {}
    for log in logs:
        worlds.setdefault(measured_on(log), []).append(log)
    ordered = sorted(worlds, key=lambda world: (world[0] != "sim", world))
    return [_preferred(worlds[world]) for world in ordered]


def counterpart(log: RunLog, others: Sequence[RunLog]) -> RunLog | None:
    """The run among the others that was made in the same world, on the same hardware."""
    return next((other for other in others if measured_on(other) == measured_on(log)), None)


def spec_differences(one: Mapping[str, Any], other: Mapping[str, Any], but: Sequence[str] = ()) -> list[str]:
    """Keys in which two runs' specs differ, but for some; machines that neither uses do not count."""
    left, right = _used(one), _used(other)
    return [key for key in sorted({*left, *right} - {*but}) if left.get(key) != right.get(key)]


def run_spec(tables: Mapping[str, Any], testbeds: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run.json`` keeps of an experiment's tables and of the machines that they name."""
    return _used({**tables, "testbeds": testbeds})


def _used(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with the machines of its own testbed only, and without the list of backends."""
    bed, beds = spec.get("testbed"), spec.get("testbeds", {})
    if bed not in beds.get("testbed", {}):
        return dict(spec)
    servers = beds["testbed"][bed]["servers"]
    used = {"server": {name: beds["server"][name] for name in servers}, "testbed": {bed: beds["testbed"][bed]}}
    return {**{key: value for key, value in spec.items() if key != "backend"}, "testbeds": used}


def _preferred(logs: Sequence[RunLog]) -> RunLog:
    return next((log for log in logs if log.manifest.as_declared), logs[0])


def refuse_mixing(log: RunLog, shipped: RunLog) -> None:
    """Shipped points may fill holes of a run that differs from theirs in its grid only."""
    differing = spec_differences(log.manifest.spec, shipped.manifest.spec, but=("grid", "scale"))
    if differing:
        raise UsageError(
            f"--fill history: {log.folder} differs from {shipped.folder} in {', '.join(differing)}, so its holes "
            "cannot be filled from there. Leave out --fill"
        )


def filled(summary: "pd.DataFrame", shipped: "pd.DataFrame", grid_keys: Sequence[str]) -> "pd.DataFrame":
    """The summary with the shipped rows of cells that it lacks, marked ``history``."""
    import pandas as pd

    have = set(cells_of(summary, grid_keys))
    lacks = [cell not in have for cell in cells_of(shipped, grid_keys)]
    return pd.concat([summary.assign(history=False), shipped[lacks].assign(history=True)], ignore_index=True)


def cells_of(summary: "pd.DataFrame", grid_keys: Sequence[str]) -> list[tuple[str, ...]]:
    """The grid values of each row, as text."""
    return [tuple(map(key_text, row)) for row in summary[list(grid_keys)].itertuples(index=False)]
