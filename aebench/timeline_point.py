"""Which point a timeline shows, of which run, and which stretch of its time."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aebench.catalog import Catalog
from aebench.claim_syntax import key_text
from aebench.errors import LogError, UsageError, near_misses
from aebench.log_format import read_parquet, read_parquet_header
from aebench.logs import RunLog
from aebench.shown_runs import is_run, shown_runs
from aebench.timeline import Interval, Timeline, timeline
from serving.records import RECORD_TYPES
from serving.units import Seconds

WINDOW: Seconds = 300.0
"""Length of the window that is shown unless both its ends are given."""
COMMAND = "aebench plot timeline"
SEED = "seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPoint:
    """A finished point of a run."""

    path: Path
    keys: Mapping[str, str]
    """Grid values and the seed, as text."""

    @property
    def name(self) -> str:
        """As its file is called."""
        return self.path.stem

    @property
    def seed(self) -> int:
        """The seed that it was run with."""
        return int(self.keys[SEED])


def one_run(catalog: Catalog, what: str | None, log_path: Path) -> RunLog:
    """The run that a name means below a log folder; without a name, the one there is."""
    if not log_path.is_dir():
        raise LogError(f"{log_path}: no such folder. Give --log-path the folder that runs were written to")
    if what is None and is_run(log_path):
        return RunLog.open(log_path)
    meant = _experiments_below(log_path) if what is None else _experiments_of(catalog, what)
    if not meant:
        raise LogError(f"{log_path} has no run. Run, for example: aebench run figure7 --log-path {log_path}")
    if len(meant) > 1:
        which = f"{log_path} has runs of {len(meant)} experiments" if what is None else f"{what} is several experiments"
        example = f"{COMMAND} {meant[0]} --log-path {shlex.quote(str(log_path))}"
        raise UsageError(
            f"a timeline shows one run, and {which}: {', '.join(meant)}. Say which, for example: {example}"
        )
    logs = shown_runs(log_path, meant[0])
    if not logs:
        raise LogError(f"{log_path} has no run of {meant[0]}. Run: aebench run {meant[0]} --log-path {log_path}")
    if len(logs) > 1:
        folders = ", ".join(str(log.folder) for log in logs)
        raise UsageError(f"a timeline shows one run, and there are {folders}. Give one of them as --log-path")
    return logs[0]


def _experiments_of(catalog: Catalog, what: str) -> list[str]:
    return list(dict.fromkeys(declared.experiment_id for declared in catalog.resolve([what])))


def _experiments_below(log_path: Path) -> list[str]:
    return sorted({"/".join(path.parts[-4:-2]) for path in log_path.glob("*/*/[!.]*/run.json")})


def one_point(log: RunLog, text: str) -> SealedPoint:
    """The finished point that has all of ``KEY=VALUE,...``; of several seeds the first."""
    points = _sealed(log)
    wanted = _parsed(text)
    for key, value in wanted.items():
        _check(key, value, points, log)
    found = [point for point in points if all(point.keys[key] == value for key, value in wanted.items())]
    if not found:
        close = near_misses(text, [point.name for point in points])
        raise UsageError(f"--point {text}: {log.folder} has no such point.{close} {_example(log, points)}")
    first = min(point.seed for point in found)
    found = [point for point in found if point.seed == first]
    if len(found) > 1:
        given = f"--point {text}: {len(found)} points" if text else f"{len(found)} points"
        raise UsageError(
            f"a timeline shows one point, and {given} of {log.folder} could be meant. {_example(log, found)}"
        )
    return found[0]


def _sealed(log: RunLog) -> list[SealedPoint]:
    points = []
    for path in sorted(log.points_folder.glob("*.parquet")):
        header = read_parquet_header(path)
        keys = {key: key_text(value) for key, value in header.keys.items()}
        points.append(SealedPoint(path=path, keys={**keys, SEED: str(header.seed)}))
    if not points:
        raise LogError(f"{log.folder}: none of its points is finished. Run again with --resume")
    return points


def _parsed(text: str) -> dict[str, str]:
    wanted = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--point {text}: expected KEY=VALUE,..., got {part!r}")
        wanted[key.strip()] = key_text(value.strip())
    return wanted


def _check(key: str, value: str, points: Sequence[SealedPoint], log: RunLog) -> None:
    known = list(points[0].keys)
    if key not in known:
        close = near_misses(key, known)
        raise UsageError(f"--point {key}={value}: unknown key {key!r}.{close} Known: {', '.join(known)}")
    values = list(dict.fromkeys(point.keys[key] for point in points))
    if value not in values:
        raise UsageError(
            f"--point {key}={value}: no point of {log.folder} has that {key}.{near_misses(value, values)} "
            f"Known: {', '.join(values)}"
        )


def _example(log: RunLog, points: Sequence[SealedPoint]) -> str:
    """A command that draws one of the points as it stands, whichever run was meant."""
    words = ["--log-path", str(log.folder), "--point", points[0].name]
    return f"Say which, for example: {COMMAND} {shlex.join(words)}"


def timeline_of(point: SealedPoint) -> Timeline:
    """The point's timeline; LogError when it has no workers."""
    shown = timeline(read_parquet(point.path, tuple(RECORD_TYPES.values())))
    if not shown.bars:
        raise LogError(f"{point.path}: no worker is recorded in it, so there is nothing to show over time")
    return shown


def chosen_window(start: Seconds | None, end: Seconds | None, shown: Timeline) -> Interval:
    """From ``start`` to ``end``; 300 s before or behind the one that is given, the busiest 300 s when none is."""
    if start is None and end is None:
        return shown.busiest(WINDOW)
    if start is None:
        assert end is not None
        start = max(end - WINDOW, 0.0)
    if end is None:
        end = min(start + WINDOW, shown.end)
    if start >= shown.end:
        raise UsageError(f"--from {start:g}: expected less than {shown.end:.0f}, when the run ended")
    if end <= start:
        raise UsageError(f"--to {end:g}: expected more than {start:g}, where the window begins")
    return start, min(end, shown.end)
