"""Runner: which points are missing -> host -> log; stops cleanly, and resumes where it stopped."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn, Protocol

from tqdm import tqdm

from aebench.errors import LogError
from aebench.hosts.local import PointEvent, Stage
from aebench.logs import RunLog
from aebench.point import Point
from aebench.run_manifest import Status
from aebench.tables import table_frames
from serving.units import Seconds


class Host(Protocol):
    """Where points are executed."""

    def run(self, points: Sequence[Point], run_log: RunLog, on_event: Callable[[PointEvent], None]) -> None:
        """Runs the points into the log; returns when all have ended or after ``stop``."""

    def stop(self) -> None:
        """Ends the run soon: no new points, running ones are given up."""

    def kill(self) -> None:
        """Ends everything that still runs, now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run ended."""

    status: Status
    num_points: int
    num_done: int
    """Sealed points, those of earlier runs included."""
    num_reused: int
    """Points that an earlier run had sealed."""
    errors: dict[str, str]
    """Point name -> what happened."""
    retries: tuple[str, ...]
    """Points whose worker died once and that were run again."""
    wall_seconds: float
    signum: int | None = None
    """The signal that stopped the run."""


@dataclass(slots=True, eq=False)
class _Interrupts:
    """SIGINT and SIGTERM while a run is on: the first one stops the host, the second one kills it all."""

    host: Host
    signum: int | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        caught = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in caught]
        try:
            yield
        finally:
            for number, handler in zip(caught, before, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
            self.host.stop()
        else:
            self.host.kill()
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


@dataclass(slots=True, eq=False)
class _Tally:
    """What the host's events add up to, and the progress bar that shows it."""

    bar: "tqdm[NoReturn]"
    errors: dict[str, str] = field(default_factory=dict)
    retries: list[str] = field(default_factory=list)
    clock_lag: Seconds | None = None
    """The worst of the points that ran on a real clock."""

    def note(self, event: PointEvent) -> None:
        """Takes in one event."""
        if event.stage is Stage.FAILED:
            self.errors[event.point.name] = event.message
        if event.stage is Stage.RETRIED:
            self.retries.append(event.point.name)
        if event.clock_lag is not None:
            self.clock_lag = max(event.clock_lag, self.clock_lag or 0.0)
        if event.stage in (Stage.SEALED, Stage.FAILED):
            self.bar.update()


def run_experiment(points: Sequence[Point], run_log: RunLog, host: Host, progress: bool) -> RunOutcome:
    """Runs the points that the log lacks, writes ``summary.csv`` and how it ended into ``run.json``.

    Call it from the main thread, which is where signals arrive. Raises ``LogError`` when the log cannot be
    written any more; what is sealed by then stays.
    """
    _refuse_twins(points)
    began = time.monotonic()
    interrupts = _Interrupts(host)
    with run_log.locked(), interrupts.caught():
        missing = run_log.missing(points)
        run_log.update(status="started", num_points=len(points), errors={})
        try:
            tally = _run_missing(missing, len(points), run_log, host, progress)
            num_done = _summarise(points, run_log)
        except BaseException as error:
            with suppress(LogError):  # the disk may be the reason
                _record_end(run_log, "error", {"run": str(error)}, began)
            raise
        status = _status(len(points), num_done, interrupts.signum)
        _record_clock_lag(run_log, tally.clock_lag)
        _record_end(run_log, status, tally.errors, began)
    return RunOutcome(
        status=status,
        num_points=len(points),
        num_done=num_done,
        num_reused=len(points) - len(missing),
        errors=tally.errors,
        retries=tuple(tally.retries),
        wall_seconds=time.monotonic() - began,
        signum=interrupts.signum,
    )


def _refuse_twins(points: Sequence[Point]) -> None:
    twins = [name for name, count in Counter(point.name for point in points).items() if count > 1]
    if twins:
        raise LogError(f"two points are named {twins[0]!r}; give each value of a grid axis once")


def _run_missing(missing: Sequence[Point], num_points: int, run_log: RunLog, host: Host, progress: bool) -> _Tally:
    """Runs the points under a progress bar, which is shown on a terminal only."""
    num_reused = num_points - len(missing)
    disabled = None if progress else True
    with tqdm(total=num_points, initial=num_reused, unit="point", disable=disabled, leave=False) as bar:
        tally = _Tally(bar)
        if missing:
            host.run(missing, run_log, tally.note)
    return tally


def _summarise(points: Sequence[Point], run_log: RunLog) -> int:
    """Writes ``summary.csv`` of the points that are sealed, and the tables beside it; returns how many they are."""
    frames = table_frames(run_log, points)
    num_sealed = sum(map(run_log.is_sealed, points))
    if num_sealed:
        for name, frame in frames.items():
            run_log.write_table(name, frame)
    return num_sealed


def _status(num_points: int, num_done: int, signum: int | None) -> Status:
    if num_done == num_points:
        return "success"
    if signum is not None:
        return "stopped"
    return "partial" if num_done else "error"


def _record_clock_lag(run_log: RunLog, clock_lag: Seconds | None) -> None:
    """Keeps the worst lag over all resumptions with the host, where the clock was a real one."""
    if clock_lag is not None:
        worst = max(clock_lag, run_log.manifest.host.get("clock_lag", 0.0))
        run_log.update(host={**run_log.manifest.host, "clock_lag": worst})


def _record_end(run_log: RunLog, status: Status, errors: dict[str, str], began: float) -> None:
    wall_seconds = run_log.manifest.wall_seconds + time.monotonic() - began
    run_log.update(status=status, errors=errors, wall_seconds=wall_seconds)
