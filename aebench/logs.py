"""Logs: the folder of a run, and what is in it; nothing else opens files under a log root.

    <log root>/<paper>/<experiment>/<UTC stamp>-<backend>-<commit>/
        run.json       what was run, where and how it ended; written first as "started"
        points/        one file a point: .jsonl while it runs, .parquet once it is sealed
        summary.csv    one row a point; other tables, figures and measured claims lie beside it

Every file but the JSON lines is written under another name and renamed, so a reader never sees half of one.
"""

import dataclasses
import errno
import fcntl
import io
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from aebench.errors import LogError
from aebench.log_format import NO_MATTER, Only
from aebench.point import Point
from aebench.point_log import disk_error, read_point, replacing, sealed_digest
from aebench.run_manifest import RunManifest, describe_host, git_state, package_versions
from serving.records import RECORD_TYPES, DecisionRecord, Record, RequestRecord, StageRecord

if TYPE_CHECKING:  # pandas takes 0.4 s to import, and only the summary needs it
    import pandas as pd

RecordT = TypeVar("RecordT", RequestRecord, StageRecord, DecisionRecord)


SUMMARY = "summary"
COUNT = "num_requests"
"""The column by which tables are seen to be of one run, and whole."""
PRIORITIES = ("normal", "high")
"""What requests are called by ``measure.by = "priority"``, with a row each: those with priority 0, those with more."""


class RunLog:
    """The folder of one run: its manifest, its points, and the files made from them."""

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def create(cls, log_root: Path, manifest: RunManifest) -> Self:
        """A new folder with its ``run.json``; fills in host, versions, commit and time of start."""
        commit, dirty = git_state()
        now = datetime.now(UTC)
        manifest = dataclasses.replace(
            manifest,
            status="started",
            host={**manifest.host, **describe_host()},
            versions=package_versions(),
            commit=commit,
            dirty=dirty,
            started_at=now.isoformat(),
        )
        stamp = f"{now:%Y%m%dT%H%M%SZ}-{manifest.backend}-{commit[:7] if commit else 'nogit'}"
        parent = log_root / manifest.experiment
        unnamed = parent / f".new-{os.getpid()}-{time.monotonic_ns()}"
        try:
            log_root.mkdir(parents=True, exist_ok=True)
            (unnamed / "points").mkdir(parents=True)
            (unnamed / "run.json").write_bytes(manifest.encode())
            return cls(_give_name(unnamed, stamp), manifest)
        except OSError as error:
            shutil.rmtree(unnamed, ignore_errors=True)
            raise disk_error(Path(error.filename or parent), error) from error

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The run in an existing folder."""
        path = folder / "run.json"
        try:
            return cls(folder, RunManifest.parse(path.read_bytes(), path))
        except FileNotFoundError as error:
            raise LogError(f"{folder}: not the folder of a run, it has no run.json") from error
        except OSError as error:
            raise LogError(f"{path}: {error.strerror}") from error

    @property
    def points_folder(self) -> Path:
        """Where the points' files are."""
        return self.folder / "points"

    def update(self, **changes: Any) -> None:
        """Rewrites ``run.json`` with some fields changed."""
        manifest = dataclasses.replace(self.manifest, **changes)
        self.write("run.json", manifest.encode())
        self.manifest = manifest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one run; the kernel lets go of it when the process dies."""
        path = self.folder / ".lock"
        try:
            file = path.open("a+")
        except OSError as error:
            raise disk_error(path, error) from error
        with file:
            _lock(file, self.folder)
            self._sweep()
            yield
            self._sweep()

    def _sweep(self) -> None:
        """Removes what a killed run was about to rename, and the lines of points that it had sealed just then."""
        leftovers = [path for folder in (self.folder, self.points_folder) for path in sorted(folder.glob(".*.tmp"))]
        lines = sorted(self.points_folder.glob("*.jsonl"))
        leftovers += [path for path in lines if path.with_name(f"{path.stem}.parquet").exists()]
        for path in leftovers:
            with suppress(OSError):
                path.unlink()

    def is_sealed(self, point: Point) -> bool:
        """Whether the point's records are complete and made from its spec."""
        return sealed_digest(self.points_folder, point) == point.digest

    def missing(self, points: Iterable[Point]) -> list[Point]:
        """The points that are still to run: not sealed, or sealed from another spec."""
        return [point for point in points if not self.is_sealed(point)]

    def records(
        self, point: Point, wanted: Sequence[type[Record]] = tuple(RECORD_TYPES.values()), only: Only = NO_MATTER
    ) -> list[Record]:
        """What was recorded of a point so far: of some types, and ``only`` those with certain values."""
        return read_point(self.points_folder, point, wanted, only)

    def records_of(self, point: Point, record_type: type[RecordT]) -> list[RecordT]:
        """What was recorded of a point so far, of one type."""
        records = read_point(self.points_folder, point, (record_type,))
        return [record for record in records if isinstance(record, record_type)]

    def requests(self, point: Point) -> list[RequestRecord]:
        """The point's request records."""
        return self.records_of(point, RequestRecord)

    def write(self, name: str, content: bytes | str) -> None:
        """Puts a file into the folder, whole or not at all."""
        with replacing(self.folder / name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def read(self, name: str) -> str:
        """The text of a file in the folder."""
        path = self.folder / name
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise LogError(f"{path}: not UTF-8 text (byte {error.start})") from error
        except OSError as error:
            raise LogError(f"{path}: {error.strerror}") from error

    def write_table(self, name: str, frame: "pd.DataFrame") -> None:
        """Writes ``summary.csv`` or another table; floats in the shortest form that reads back exactly."""
        self.write(f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))

    def summary(self) -> "pd.DataFrame":
        """``summary.csv``; an empty cell is NaN."""
        frame = self._read_table(SUMMARY)
        by = self.manifest.spec.get("measure", {}).get("by")
        num_rows = self.manifest.num_points * (len(PRIORITIES) if by else 1)
        if self.manifest.status == "success" and len(frame) < num_rows:
            raise self._cut_off(SUMMARY, f"{len(frame)} rows of {num_rows}")
        return frame

    def table(self, name: str) -> "pd.DataFrame":
        """A table by name. The requests of one beside the summary add up to the summary's, point by point."""
        summary = self.summary()
        if name == SUMMARY:
            return summary
        frame = self._read_table(name)
        points = [*self.manifest.grid_keys, "seed"]
        if not {*points, COUNT} <= {*frame.columns}:
            raise self._cut_off(name, "not all of its columns")
        wanted, found = (each.groupby(points)[COUNT].sum().to_dict() for each in (summary, frame))
        if found != {point: count for point, count in wanted.items() if count}:
            raise self._cut_off(name, f"{frame[COUNT].sum()} requests of {summary[COUNT].sum()}")
        return frame

    def _read_table(self, name: str) -> "pd.DataFrame":
        import pandas as pd

        path = self.folder / f"{name}.csv"
        try:
            text = self.read(path.name)
            options = _exact_floats(pd.__version__)
            frame: pd.DataFrame = pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""], **options)
        except LogError as error:
            raise LogError(f"{error}. Run again with --resume") from error
        except ValueError as error:  # pandas' parser errors are ValueErrors
            raise LogError(f"{path}: {error}. Run again with --resume") from error
        if not text.endswith("\n"):
            of = f" of {self.manifest.num_points}" if name == SUMMARY else ""
            raise self._cut_off(name, f"{len(frame)} rows{of}")
        return frame

    def _cut_off(self, name: str, has: str) -> LogError:
        return LogError(f"{self.folder / name}.csv: cut off, it has {has}. Run again with --resume")


def _exact_floats(version: str) -> dict[str, Any]:
    """What makes pandas read floats exactly; from 3.1 on it always does, and warns of the option."""
    is_default = tuple(map(int, version.split(".")[:2])) >= (3, 1)
    return {} if is_default else {"float_precision": "round_trip"}


def _give_name(unnamed: Path, stamp: str) -> Path:
    """Renames a new folder to its stamp, numbered where another run began in the same second."""
    for number in range(1, 1000):
        folder = unnamed.parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            return unnamed.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    raise LogError(f"{unnamed.parent}: 999 runs began in one second. Wait a second and run again")


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        raise LogError(
            f"{folder}: another run is writing here (process {owner}). Wait for it, or leave out --resume"
        ) from error
    except OSError as error:
        raise disk_error(folder / ".lock", error) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


def find_runs(log_root: Path, experiment: str) -> list[Path]:
    """The folders of an experiment's runs, newest first."""
    folders = [path.parent for path in (log_root / experiment).glob("[!.]*/run.json")]
    return sorted(folders, key=_age, reverse=True)


def _age(folder: Path) -> tuple[str, int, str]:
    """Sorts by time stamp, then by number within the second (``-10`` behind ``-9``)."""
    return folder.name.partition("-")[0], len(folder.name), folder.name
